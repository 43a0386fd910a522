"""Guests whose root is a clone of an image: logical volumes from scripts/image.py to the boot."""

import sys
import tempfile
import unittest

from backends import chosen_backend
from common import REPO, run, skip_if_missing
from image import busybox_image, root_directory
from qemu import Qemu, qemu_program

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


if __name__ == '__main__':
    unittest.main()
