"""Hostile front ends beside honest ones: these see no error, and when the hostile have gone nothing is left of them."""

import errno
import json
import os
import pathlib
import subprocess
import tempfile
import time
import unittest

from daemon import BDEVPERF, BUILD, Daemon, RpcError

CROWD = BUILD / 'test/bench/sluice-crowd'
HONEST = 8
HOSTILE = 24
SECONDS = 6
SETTLE_S = 30  # what is pooled goes within seconds, what waits for its deadline within five
SLACK_KIB = 4096
BLOCKS = 8192


@unittest.skipUnless(CROWD.exists() and BDEVPERF.exists(), f'{CROWD} or {BDEVPERF} is not built (scripts/build)')
class Hostile(unittest.TestCase):
    def setUp(self):
        self.daemon = self.enterContext(Daemon())
        self.call = self.daemon.client().call
        for i in range(HONEST + HOSTILE):
            self.call('bdev_malloc_create', name=f'disk{i}', num_blocks=BLOCKS, block_size=512)
            self.call('vhost_create_blk_controller', ctrlr=f'vhost.{i}', dev_name=f'disk{i}', packed_ring=i % 2 == 0)

    def attack(self, seed):
        """The hostile ones, at it."""
        return subprocess.Popen([CROWD, '--socket-prefix', self.daemon.directory / 'vhost.', '--first', str(HONEST),
                                 '--count', str(HOSTILE), '--behave', 'hostile', '--seed', str(seed)],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def verify(self, seconds=1):
        """Writes and verifies on the honest ones' disks; what bdevperf reports."""
        calls = [{'method': 'bdev_virtio_attach_controller',
                  'params': {'name': f'front{i}', 'trtype': 'user', 'dev_type': 'blk', 'vq_count': 1,
                             'traddr': str(self.daemon.directory / f'vhost.{i}'), 'packed_ring': i % 2 == 0}}
                 for i in range(HONEST)]
        config = self.daemon.directory / 'load.json'
        config.write_text(json.dumps({'subsystems': [{'subsystem': 'bdev', 'config': calls}]}))
        done = subprocess.run([BDEVPERF, '-m', hex(1 << self.daemon.cores[0]), '-c', config, '-q', '4', '-o', '4096',
                               '-w', 'verify', '-t', str(seconds), '--mode', 'interrupt', '--json'],
                              capture_output=True, text=True, timeout=seconds + 60, check=False)
        self.assertEqual(done.returncode, 0, done.stderr + self.daemon.read_log())
        return json.loads(done.stdout)['total']

    def use(self):
        """The daemon's own memory in KiB, its descriptors and its mappings."""
        folder = f'/proc/{self.daemon.process.pid}'
        own = ('Private_Clean:', 'Private_Dirty:')
        with open(f'{folder}/smaps_rollup', encoding='ascii') as rollup:
            kib = sum(int(words[1]) for words in map(str.split, rollup) if words[0] in own)
        with open(f'{folder}/maps', encoding='ascii') as maps:
            mappings = sum('memfd:' in line for line in maps)
        return kib, len(list(pathlib.Path(folder, 'fd').iterdir())), mappings

    def test_honest_ones_see_no_error_and_nothing_is_left(self):
        # Disks are memory: written once, they stay.
        self.verify()
        before = self.use()
        with self.attack(seed=time.time_ns() % 1_000_000) as crowd:
            self.assertEqual(json.loads(crowd.stdout.readline()), {'attacking': HOSTILE})
            total = self.verify(SECONDS)
            self.assertIsNone(crowd.poll())
            crowd.stdin.close()
            made = json.loads(crowd.stdout.read())
            self.assertEqual(crowd.wait(60), 0, crowd.args)
        self.assertGreater(total['io_completed'], 0)
        self.assertEqual(total['io_failed'], 0)
        self.assertGreater(sum(made.values()), 2 * len(made), made)
        deadline = time.monotonic() + SETTLE_S
        while not self.is_as(before) and time.monotonic() < deadline:
            time.sleep(0.2)
        after = self.use()
        self.assertTrue(self.is_as(before), f'{before} -> {after} after {made}\n{self.daemon.read_log()[-2000:]}')
        # Each of them serves the next front end.
        self.assertEqual([session for controller in self.call('vhost_get_controllers')
                          for session in controller['sessions']], [])
        self.verify()
        self.assertEqual(self.daemon.stop(), 0, self.daemon.read_log()[-2000:])

    def is_as(self, before):
        kib, descriptors, mappings = self.use()
        return kib <= before[0] + SLACK_KIB and descriptors <= before[1] and mappings <= before[2]


class Access(unittest.TestCase):
    """Who may connect, and who could take a socket's place."""

    def test_only_allowed_processes_connect(self):
        daemon = self.enterContext(Daemon())
        call = daemon.client().call
        call('bdev_null_create', name='base', num_blocks=2048, block_size=512)
        attach = {'name': 'front', 'trtype': 'user', 'dev_type': 'blk'}
        for allowed, lets_us_in in (({'allowed_uids': [os.getuid() + 1]}, False), ({'allowed_uids': [os.getuid()]}, True),
                                    ({'allowed_gids': [os.getgid()], 'allowed_uids': [os.getuid() + 1]}, True)):
            with self.subTest(**allowed):
                call('vhost_create_blk_controller', ctrlr='c', dev_name='base', **allowed)
                controller, = call('vhost_get_controllers', name='c')
                self.assertEqual({name: controller[name] for name in allowed}, allowed)
                if lets_us_in:
                    call('bdev_virtio_attach_controller', **attach, traddr=controller['socket'])
                    call('bdev_virtio_detach_controller', name='front')
                else:
                    with self.assertRaises(RpcError) as refused:
                        call('bdev_virtio_attach_controller', **attach, traddr=controller['socket'])
                    self.assertEqual(refused.exception.code, -errno.ECONNRESET, refused.exception.message)
                    self.assertIn(f'of user {os.getuid()}', daemon.read_log())
                call('vhost_delete_controller', ctrlr='c')
        call('bdev_null_delete', name='base')

    def test_says_when_others_may_write_to_the_directory_of_sockets(self):
        directory = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory(prefix='sluice-')))
        for mode, warned in ((0o755, False), (0o777, True), (0o1777, False), (0o770, True)):
            directory.chmod(mode)
            (directory / 'log').unlink(missing_ok=True)
            with Daemon(directory=directory) as daemon:
                daemon.client().close()
                self.assertEqual(daemon.stop(), 0)
                self.assertEqual('directory of vhost sockets' in daemon.read_log(), warned, oct(mode))


if __name__ == '__main__':
    unittest.main()
