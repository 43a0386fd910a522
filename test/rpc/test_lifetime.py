"""How the real daemon starts and ends."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

from daemon import BINARY, Daemon


class Lifetime(unittest.TestCase):
    """How the daemon starts and ends."""

    def setUp(self):
        self.directory = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory(prefix='sluice-')))

    def run_binary(self, *options):
        if not BINARY.exists():
            self.skipTest(f'{BINARY} is not built (scripts/build)')
        return subprocess.run([BINARY, *options], capture_output=True, text=True, timeout=20, check=False, cwd=self.directory)

    def fail_to_start(self, *options, rpc='rpc.sock', cores=None):
        cores = cores or hex(1 << min(os.sched_getaffinity(0)))
        done = self.run_binary('-m', cores, '-r', str(self.directory / rpc), *options)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(done.stderr.count('\n'), 1, f'one line: {done.stderr}')
        return done.stderr

    def left_behind(self):
        return sorted(path.name for path in self.directory.iterdir() if path.name != 'log')

    def test_unknown_options_are_one_line_and_exit_code_2(self):
        for options in (['--colour'], ['stray'], ['-m', 'zebra'], ['--mode', 'fast'], ['--log-level', 'LOUD'],
                        ['--log-flags', 'nvmf'], ['--rpc-socket-mode', '999'], ['-m']):
            done = self.run_binary(*options)
            self.assertEqual(done.returncode, 2, options)
            self.assertEqual(done.stderr.count('\n'), 1, done.stderr)
            self.assertIn('sluice-vhost', done.stderr)

    def test_version_and_help(self):
        self.assertRegex(self.run_binary('--version').stdout, r'^Sluice \d+\.\d+\.\d+')
        self.assertIn('--cpumask', self.run_binary('--help').stdout)

    def test_sigterm_ends_it_cleanly_and_removes_the_sockets(self):
        with Daemon(directory=self.directory) as daemon:
            client = daemon.client()
            client.call('bdev_malloc_create', name='m', num_blocks=2048, block_size=512)
            client.call('vhost_create_blk_controller', ctrlr='vm', dev_name='m')
            self.assertEqual(self.left_behind(), ['rpc.sock', 'vm'])
            self.assertEqual((self.directory / 'rpc.sock').stat().st_mode & 0o777, 0o600)
            self.assertEqual(daemon.stop(), 0)
            self.assertEqual(self.left_behind(), [])

    def test_kill_instance_answers_and_ends_it(self):
        with Daemon(directory=self.directory) as daemon:
            waiting = daemon.client()
            waiting.send('{"method": "bdev_get_bdevs", "params": {"name": "never", "timeout": 3600000}}')
            self.assertIs(daemon.client().call('spdk_kill_instance', sig_name='SIGINT'), True)
            self.assertEqual(daemon.wait_exit(), 0)
            self.assertIn(b'No such device', waiting.receive())

    def test_a_second_daemon_does_not_take_a_live_socket(self):
        with Daemon(directory=self.directory) as daemon:
            error = self.fail_to_start()
            self.assertIn('Address already in use', error)
            self.assertIn(str(daemon.socket), error)
            self.assertTrue(daemon.client().call('spdk_get_version'))

    def test_a_stale_socket_is_replaced(self):
        with Daemon(directory=self.directory) as daemon:
            daemon.process.kill()
            daemon.wait_exit()
            self.assertEqual(self.left_behind(), ['rpc.sock'])
        with Daemon(directory=self.directory):
            pass

    def test_a_socket_path_that_is_too_long_is_refused(self):
        error = self.fail_to_start(rpc='r' * 120)
        self.assertIn('File name too long', error)

    def test_a_missing_directory_of_sockets_is_refused(self):
        self.assertIn('No such file or directory', self.fail_to_start('-S', str(self.directory / 'missing')))

    def test_cores_that_do_not_exist_are_refused(self):
        self.assertIn('Invalid argument', self.fail_to_start(cores='[1000]'))

    def test_a_configuration_that_fails_leaves_nothing_behind(self):
        config = self.directory / 'config.json'
        entries = [{'method': 'bdev_malloc_create', 'params': {'name': 'm', 'num_blocks': 8, 'block_size': 512}}]
        controllers = [{'method': 'vhost_create_blk_controller', 'params': {'ctrlr': 'vm', 'dev_name': 'm'}},
                       {'method': 'vhost_create_blk_controller', 'params': {'ctrlr': 'vm2', 'dev_name': 'x'}}]
        config.write_text(json.dumps({'subsystems': [{'subsystem': 'bdev', 'config': entries},
                                                     {'subsystem': 'vhost_blk', 'config': controllers}]}))
        error = self.fail_to_start('-c', str(config), '-S', str(self.directory))
        for text in (str(config), "subsystem 'vhost_blk', entry 1", 'vhost_create_blk_controller', 'No such device'):
            self.assertIn(text, error)
        self.assertEqual(self.left_behind(), ['config.json'])

    def test_a_saved_configuration_makes_the_same_state(self):
        image = self.directory / 'image'
        image.write_bytes(bytes(1 << 20))
        config = self.directory / 'config.json'
        with Daemon(directory=self.directory) as daemon:
            client = daemon.client()
            client.call('bdev_malloc_create', name='m', num_blocks=2048, block_size=512, physical_block_size=4096,
                        optimal_io_boundary=16)
            client.call('bdev_null_create', name='n', num_blocks=256, block_size=4096)
            client.call('bdev_aio_create', name='a', filename=str(image), block_size=512, readonly=True)
            client.call('vhost_create_blk_controller', ctrlr='vm0', dev_name='m')
            client.call('vhost_create_blk_controller', ctrlr='vm1', dev_name='a', readonly=True,
                        queue_threads=2, allowed_uids=[1000, 0], allowed_gids=[4_000_000_000], any_memory_file=True)
            client.call('vhost_controller_set_coalescing', ctrlr='vm0', delay_base_us=20, iops_threshold=5000)
            before = [client.call('bdev_get_bdevs'), client.call('vhost_get_controllers')]
            self.assertEqual(daemon.run_rpc_py('save_config', str(config)).stderr, '')
            self.assertEqual(daemon.stop(), 0)
        with Daemon('-c', str(config), directory=self.directory) as daemon:
            client = daemon.client()
            self.assertEqual([client.call('bdev_get_bdevs'), client.call('vhost_get_controllers')], before)
            self.assertEqual(daemon.run_rpc_py('save_config').stdout, config.read_text())
            self.assertEqual(daemon.stop(), 0)


if __name__ == '__main__':
    unittest.main(verbosity=2)
