"""Guests on logical volumes: with a clone of an image as their root, and on a store that is full."""

import concurrent.futures
import sys
import tempfile
import time
import unittest

from backends import chosen_backend
from common import Deadline, GuestError, LOGS, REPO, run, skip_if_missing, tail
from image import busybox_image, root_directory
from qemu import Qemu, qemu_program
from uml import BLOCK, EXTENT, Uml

STORE_BYTES = 256 << 20


class RootOnClone(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.backend = skip_if_missing(chosen_backend)
        if not cls.backend.has_volumes:
            raise unittest.SkipTest(f'{cls.backend.kind} has no logical volumes')
        skip_if_missing(qemu_program)
        skip_if_missing(busybox_image)

    def boot(self, disk, name, **parameters):
        with Qemu([disk.socket], name, 'microvm', root='vda') as guest:
            guest.run('root', **parameters)
            guest.power_off()

    def image(self, backend, *arguments):
        """Runs scripts/image.py."""
        run([sys.executable, REPO / 'scripts/image.py', '-s', backend.rpc_path, *arguments])

    def exclusive_clusters(self, backend, name):
        return backend.call('bdev_lvol_get_usage', name=name)['exclusive_clusters']

    def test_clone_boots_and_boots_again_after_daemon_crash(self):
        with self.backend('clone') as backend:
            backend.add_store('lvs', STORE_BYTES)
            with tempfile.TemporaryDirectory() as directory:
                root_directory(directory)
                self.image(backend, 'import', '--store', 'lvs', '--name', 'image', '--size', '64M', directory)
            self.image(backend, 'clone', '--image', 'lvs/image', '--count', 3, '--prefix', 'vm')
            first, second = backend.add_volume('lvs/vm0'), backend.add_volume('lvs/vm1')
            self.boot(first, 'clone-first', boots=1)
            self.assertGreater(self.exclusive_clusters(backend, 'lvs/vm0'), 0)

            backend.restart()
            self.boot(first, 'clone-again', boots=2)
            # What the first has written is not in the other clones, nor in the image.
            self.boot(second, 'clone-second', boots=1)
            self.assertEqual(self.exclusive_clusters(backend, 'lvs/vm2'), 0)

    def test_synced_files_on_a_clone_survive_daemon_crash_under_running_guest(self):
        with self.backend('clone-crash') as backend:
            backend.add_store('lvs', STORE_BYTES)
            backend.call('bdev_lvol_create', lvs_name='lvs', lvol_name='empty', size=128 << 20, thin_provision=True)
            backend.call('bdev_lvol_snapshot', lvol_name='lvs/empty', snapshot_name='base')
            self.image(backend, 'clone', '--image', 'lvs/base', '--count', 1, '--prefix', 'vm')
            disk = backend.add_volume('lvs/vm0')
            with Qemu([disk.socket], 'clone-crash', 'microvm', queues=2, reconnect=True) as guest:
                guest.start('files', limit_s=6)
                guest.wait_for('SYNCED 5')
                backend.restart()
                files = guest.result()['files']
                guest.run('verify', files=files)
                guest.power_off()


class FullStore(unittest.TestCase):
    BLOCKS, EXTENTS = 1000, 600  # what the guest writes: more than is free, less than there will be

    @classmethod
    def setUpClass(cls):
        cls.backend = skip_if_missing(chosen_backend)
        if not cls.backend.has_volumes:
            raise unittest.SkipTest(f'{cls.backend.kind} has no logical volumes')
        cls.uml = skip_if_missing(Uml)

    def usage(self, backend):
        return backend.call('bdev_lvol_get_usage', lvs_name='lvs')

    def told(self, backend):
        return [told['type'] for told in backend.call('notify_get_notifications') if told['type'].startswith('lvol_store_')]

    def wait_until(self, true, what, guest, limit_s=30):
        deadline = Deadline(limit_s)
        while not true():
            if guest.done():
                self.fail(f'the guest has ended before {what}: {guest.exception() or guest.result()}')
            if not deadline.left():
                raise GuestError(f'{what}: not within {limit_s} s')
            time.sleep(0.02)

    def test_guest_waits_while_store_is_full_and_goes_on_when_snapshot_is_deleted(self):
        name = 'volume-full'
        with self.backend(name) as backend, concurrent.futures.ThreadPoolExecutor(1) as pool:
            backend.add_store('lvs', 64 << 20)
            # Half of the store belongs to a snapshot that nobody needs any more.
            backend.call('bdev_lvol_create', lvs_name='lvs', lvol_name='was', size=32 << 20)
            backend.call('bdev_lvol_snapshot', lvol_name='lvs/was', snapshot_name='old')
            backend.call('bdev_lvol_delete', name='lvs/was')
            backend.call('bdev_lvol_create', lvs_name='lvs', lvol_name='vm', size=128 << 20, thin_provision=True)
            backend.call('bdev_lvol_set_enospc_policy', lvs_name='lvs', policy='hold')
            backend.call('bdev_lvol_set_thresholds', lvs_name='lvs', percent=[80])
            disk = backend.add_volume('lvs/vm')
            written = self.BLOCKS * BLOCK + self.EXTENTS * EXTENT
            self.assertGreater(written, self.usage(backend)['free_bytes'])

            guest = pool.submit(self.uml.run, disk.socket, name, self.BLOCKS, self.EXTENTS, 5, 128 << 20)
            try:
                self.wait_until(lambda: self.usage(backend)['waiting_writes'] > 0, 'a write waits for space', guest)
                self.assertEqual(self.told(backend), ['lvol_store_usage_above', 'lvol_store_no_space'])
                # It waits, for as long as it takes: init.c ends with a RESULT line at the first error.
                used = backend.call('bdev_lvol_get_usage', name='lvs/vm')['allocated_clusters']
                time.sleep(1)
                self.assertFalse(guest.done(), tail(LOGS / f'{name}.log'))
                self.assertEqual(backend.call('bdev_lvol_get_usage', name='lvs/vm')['allocated_clusters'], used)
                self.assertGreater(self.usage(backend)['waiting_writes'], 0)

                backend.call('bdev_lvol_delete', name='lvs/old')
                # It has read back all that it has written.
                self.assertEqual(guest.result(30)['size'], 128 << 20)
            finally:
                # A guest that waits would not end.
                backend.call('bdev_lvol_set_enospc_policy', lvs_name='lvs', policy='fail')
            self.assertIn('lvol_store_usage_below', self.told(backend))
            self.assertNotIn('error', (LOGS / f'{name}.log').read_text().lower())
            self.assertEqual(self.usage(backend)['waiting_writes'], 0)
            used = backend.call('bdev_lvol_get_usage', name='lvs/vm')['allocated_bytes']
            self.assertGreaterEqual(used, written - 2 * EXTENT)


if __name__ == '__main__':
    unittest.main()
