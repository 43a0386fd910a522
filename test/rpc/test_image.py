"""scripts/image.py and sluice-copy, which brings the data: what they make, and that nothing is left of what fails."""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

from daemon import BUILD, COPY, IMAGE_PY, PATIENCE_S, Daemon

MIB = 1 << 20
CLUSTER = 256 << 10
SEED = 7


def run(*command, build=BUILD):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=3 * PATIENCE_S,
                          check=False, env={**os.environ, 'SLUICE_BUILD_DIR': str(build)})


def needs(program, package):
    path = shutil.which(program, path=os.environ.get('PATH', '') + ':/usr/sbin:/sbin')
    if path is None:
        raise unittest.SkipTest(f'{program} is not installed (apt-get install {package})')
    return path


@unittest.skipUnless(COPY.exists(), f'{COPY} is not built (scripts/build)')
class CopyCase(unittest.TestCase):
    """A daemon, and files in its directory."""

    def setUp(self):
        self.daemon = self.enterContext(Daemon())
        self.call = self.daemon.client().call

    def file(self, name, size, fill=None):
        path = self.daemon.directory / name
        with open(path, 'wb') as file:
            if fill is None:
                file.truncate(size)
            else:
                file.write(fill * size)
        return path

    def sparse_file(self, name, size):
        """Holes, zeros that are written, and data of many lengths; the end is data."""
        rng = random.Random(SEED)
        path = self.file(name, size)
        with open(path, 'r+b') as file:
            for _ in range(12):
                file.seek(rng.randrange(size - 300_000))
                file.write(rng.randbytes(rng.randrange(1, 300_000)))
            file.seek(size // 2)
            file.write(bytes(MIB))
            file.seek(size - 3)
            file.write(b'end')
        return path


class Copy(CopyCase):
    """sluice-copy."""

    def setUp(self):
        super().setUp()
        self.disk = self.file('disk.img', 16 * MIB, b'\xff')
        self.call('bdev_aio_create', name='disk', filename=str(self.disk), block_size=512)
        self.call('vhost_create_blk_controller', ctrlr='disk', dev_name='disk')
        self.call('vhost_create_blk_controller', ctrlr='frozen', dev_name='disk', readonly=True)

    def copy(self, source, *options, controller='disk'):
        return run(COPY, source, self.daemon.directory / controller, *options)

    def test_disk_holds_file_and_after_it_what_it_held(self):
        size = 10 * MIB + 1001
        source = self.sparse_file('source', size)
        done = self.copy(source, '--verify')
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        end = -(-size // 512) * 512
        expected = source.read_bytes() + bytes(end - size) + b'\xff' * (16 * MIB - end)
        self.assertTrue(self.disk.read_bytes() == expected, f'seed {SEED}')

    def test_verify_finds_disk_that_was_not_new(self):
        done = self.copy(self.sparse_file('source', 10 * MIB), '--new', '--verify')
        self.assertEqual(done.returncode, 1)
        self.assertIn('holds something else', done.stderr)

    def test_what_cannot_be_copied_is_refused_by_name(self):
        small = self.file('small', MIB, b's')
        for source, controller, text in [
                (self.file('large', 17 * MIB), 'disk', 'the disk only 16777216'),
                (self.file('empty', 0), 'disk', 'is empty'),
                (self.daemon.directory, 'disk', 'neither a file nor a block device'),
                (self.daemon.directory / 'none', 'disk', 'No such file'),
                (small, 'frozen', 'read-only'),
                (small, 'nobody', 'nobody')]:
            done = self.copy(source, controller=controller)
            self.assertEqual(done.returncode, 1, text)
            self.assertIn(text, done.stderr)
        self.assertEqual(run(COPY).returncode, 2)
        self.assertTrue(self.disk.read_bytes() == b'\xff' * (16 * MIB))


class Images(CopyCase):
    """scripts/image.py."""

    def setUp(self):
        super().setUp()
        self.make_store('lvs', 128 * MIB)

    def make_store(self, name, size):
        self.call('bdev_aio_create', name=name, filename=str(self.file(name, size)), block_size=512)
        self.call('bdev_lvol_create_lvstore', bdev_name=name, lvs_name=name)

    def image(self, *arguments, build=BUILD):
        return run(IMAGE_PY, '-s', self.daemon.socket, *arguments, build=build)

    def import_ok(self, source, *arguments, name='image'):
        done = self.image('import', '--store', 'lvs', '--name', name, source, *arguments)
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        return done.stdout

    def assert_refused(self, done, text, code=1):
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertIn(text, done.stderr)
        self.assertNotIn('Traceback', done.stderr)
        self.assertNotIn('left behind', done.stderr)

    def volumes(self):
        return sorted(volume['alias'] for volume in self.call('bdev_lvol_get_lvols'))

    def test_raw_file_becomes_snapshot_that_takes_its_data_only(self):
        source = self.file('source', 64 * MIB)
        with open(source, 'r+b') as file:
            for at in (0, 9 * MIB, 64 * MIB - 4096):
                file.seek(at)
                file.write(b'data' * 1024)
        self.import_ok(source)
        image, = self.call('bdev_lvol_get_lvols')
        self.assertEqual((image['alias'], image['is_snapshot']), ('lvs/image', True))
        self.assertEqual(image['num_allocated_clusters'], 3)
        self.assertEqual(self.call('vhost_get_controllers'), [])

    def test_size_makes_room_behind_the_data(self):
        self.import_ok(self.file('source', MIB, b's'), '--size', '80M')
        image, = self.call('bdev_get_bdevs', name='lvs/image')
        self.assertEqual(image['num_blocks'] * image['block_size'], 80 * MIB)

    def test_directory_becomes_file_system(self):
        needs('mke2fs', 'e2fsprogs')
        tree = self.daemon.directory / 'tree'
        (tree / 'etc').mkdir(parents=True)
        (tree / 'etc/motd').write_text('welcome')
        (tree / 'link').symlink_to('etc/motd')
        text = self.import_ok(tree, '--size', '256M', '--fs', 'ext2')
        self.assertIn('ext2', text)
        self.assertLess(self.call('bdev_lvol_get_usage', name='lvs/image')['allocated_bytes'], 16 * MIB)
        (tree / 'large').write_bytes(random.Random(SEED).randbytes(9 * MIB))
        self.assert_refused(self.image('import', '--store', 'lvs', '--name', 'other', '--size', '8M', tree), '--size')
        self.assertEqual(self.volumes(), ['lvs/image'])

    def test_qcow2_is_converted_unless_it_refers_to_other_files(self):
        qemu_img = needs('qemu-img', 'qemu-utils')
        source = self.sparse_file('source', 8 * MIB)
        whole, overlay = self.daemon.directory / 'whole', self.daemon.directory / 'overlay'
        run(qemu_img, 'convert', '-f', 'raw', '-O', 'qcow2', source, whole)
        run(qemu_img, 'create', '-f', 'qcow2', '-b', whole, '-F', 'qcow2', overlay)
        self.assertIn('from qcow2', self.import_ok(whole))
        image, = self.call('bdev_get_bdevs', name='lvs/image')
        self.assertEqual(image['num_blocks'] * image['block_size'], 8 * MIB)
        self.assert_refused(self.image('import', '--store', 'lvs', '--name', 'other', overlay), 'is not complete')
        # Taken by its word, a file of any beginning is raw.
        self.import_ok(overlay, '--format', 'raw', name='raw')
        self.assertEqual(self.volumes(), ['lvs/image', 'lvs/raw'])

    def test_nothing_is_left_of_import_that_does_not_fit(self):
        self.make_store('tiny', 16 * MIB)
        source = self.file('source', 32 * MIB, b'x')
        self.assert_refused(self.image('import', '--store', 'tiny', '--name', 'image', source), 'could not be brought')
        self.assertEqual(self.volumes(), [])
        self.assertEqual(self.call('vhost_get_controllers'), [])

    def test_nothing_is_left_of_import_that_is_ended(self):
        source = self.file('source', MIB, b's')
        with tempfile.TemporaryDirectory() as build:
            # In sluice-copy's place: something that takes for ever.
            stub = pathlib.Path(build) / 'app/copy/sluice-copy'
            stub.parent.mkdir(parents=True)
            stub.write_text('#!/bin/sh\nexec tail -f /dev/null\n')
            stub.chmod(0o755)
            command = [IMAGE_PY, '-s', self.daemon.socket, 'import', '--store', 'lvs', '--name', 'image', source]
            with subprocess.Popen(command, env={**os.environ, 'SLUICE_BUILD_DIR': build},
                                  stdout=subprocess.DEVNULL) as process:
                deadline = time.monotonic() + PATIENCE_S
                while not self.call('vhost_get_controllers'):
                    self.assertLess(time.monotonic(), deadline)
                self.assertEqual(self.volumes(), ['lvs/image.import'])
                process.send_signal(signal.SIGTERM)
                self.assertEqual(process.wait(PATIENCE_S), 143)
        self.assertEqual(self.volumes(), [])
        self.assertEqual(self.call('vhost_get_controllers'), [])

    def test_clones_are_made_all_or_none(self):
        self.import_ok(self.file('source', MIB, b's'))
        done = self.image('clone', '--image', 'lvs/image', '--count', 3, '--prefix', 'vm')
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        self.assertRegex(done.stdout, r'^made 3 clones of lvs/image in \d+\.\d ms: lvs/vm0 to lvs/vm2\n$')
        made = ['lvs/image', 'lvs/vm0', 'lvs/vm1', 'lvs/vm2']
        self.assertEqual(self.volumes(), made)
        # vm3 and vm4 would be new, but vm5 is taken.
        self.call('bdev_lvol_clone', snapshot_name='lvs/image', clone_name='vm5')
        done = self.image('clone', '--image', 'lvs/image', '--count', 4, '--prefix', 'vm', '--first', 3)
        self.assert_refused(done, 'vm5')
        self.assertEqual(self.volumes(), [*made, 'lvs/vm5'])

    def test_list_shows_images_only(self):
        self.assertIn('no images', self.image('list').stdout)
        self.import_ok(self.file('source', MIB, b's'))
        self.image('clone', '--image', 'lvs/image', '--count', 2)
        head, *lines = self.image('list').stdout.splitlines()
        self.assertEqual(head.split(), ['IMAGE', 'SIZE', 'USED', 'CLONES'])
        self.assertEqual([line.split() for line in lines], [['lvs/image', '1.0', 'MiB', '1.0', 'MiB', '2']])

    def test_mistakes_are_named(self):
        source = self.file('source', MIB, b's')
        self.import_ok(source)

        def import_with(*arguments):
            return self.image('import', *arguments)

        self.assert_refused(import_with('--store', 'lvs', '--name', 'image', source), 'is there already')
        self.assert_refused(import_with('--store', 'none', '--name', 'a', source), "'none'")
        self.assert_refused(import_with('--store', 'lvs', '--name', 'a', self.daemon.directory / 'none'), 'none')
        self.assert_refused(import_with('--store', 'lvs', '--name', 'a', '--size', '64K', source), '--size')
        self.assert_refused(self.image('clone', '--image', 'lvs/none', '--count', 1), 'lvs/none')
        self.assert_refused(import_with('--store', 'lvs', source), '--name', code=2)
        self.assert_refused(import_with('--store', 'lvs', '--name', 'a/b', source), 'slash', code=2)
        self.assert_refused(import_with('--store', 'lvs', '--name', 'a', '--size', 'much', source), 'much', code=2)
        self.assert_refused(import_with('--store', 'lvs', '--name', 'a', '--fs', 'ext4', source), '--fs', code=2)
        self.assert_refused(self.image('clone', '--image', 'image', '--count', 1), 'STORE/NAME', code=2)
        self.assert_refused(self.image('clone', '--image', 'lvs/image', '--count', 0), 'above 0', code=2)
        self.assert_refused(run(IMAGE_PY, '-s', '/nonexistent/s.sock', 'list'), 'cannot connect', code=3)
        self.assertEqual(self.volumes(), ['lvs/image'])


if __name__ == '__main__':
    unittest.main()
