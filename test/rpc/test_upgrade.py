"""A daemon takes the place of another: guests under load, failures on the way, what moves and what is refused."""

import json
import os
import socket
import subprocess
import time
import unittest

from daemon import BDEVPERF, BINARY, PATIENCE_S, Daemon, RpcError

EOPNOTSUPP, ENODEV = 95, 19
SIZE = 16 << 20
LOAD_S = 4
UPGRADES = int(os.environ.get('SLUICE_TEST_UPGRADES', 3))


class Upgrade(unittest.TestCase):
    def setUp(self):
        self.daemon = self.enterContext(Daemon())
        self.call = self.daemon.client().call

    def successor(self, *options, core=None):
        """Starts one beside the daemon."""
        core = self.daemon.cores[0] if core is None else core
        return subprocess.Popen([str(BINARY), '-m', hex(1 << core), '--upgrade-from', str(self.daemon.socket), *options],
                                stdin=subprocess.DEVNULL, stdout=self.daemon.log, stderr=self.daemon.log)

    def upgrade(self):
        """The successor is the daemon from then on."""
        new = self.successor()
        try:
            self.assertEqual(self.daemon.process.wait(PATIENCE_S), 0, self.daemon.read_log())
        finally:
            self.daemon.process.kill()
            self.daemon.process, old = new, self.daemon.process
            old.wait()
        self.call = self.daemon.client().call

    def fail_to_upgrade(self, *texts):
        new = self.successor()
        try:
            self.assertEqual(new.wait(PATIENCE_S), 1, self.daemon.read_log())
        finally:
            new.kill()
        self.assertIsNone(self.daemon.process.poll())
        self.call = self.daemon.client().call
        for text in texts:
            self.assertIn(text, self.daemon.read_log())

    def create_disk(self, name, **options):
        path = self.daemon.directory / f'{name}.img'
        with open(path, 'wb') as file:
            file.truncate(SIZE)
        self.call('bdev_aio_create', name=name, filename=str(path), block_size=512)
        self.call('vhost_create_blk_controller', ctrlr=f'vm.{name}', dev_name=name, **options)
        return f'vm.{name}'

    def load(self, *ctrlrs, seconds=LOAD_S):
        """Starts to write, read and compare on these disks."""
        if not BDEVPERF.exists():
            self.skipTest(f'{BDEVPERF} is not built (scripts/build)')
        calls = [{'method': 'bdev_virtio_attach_controller',
                  'params': {'name': ctrlr, 'trtype': 'user', 'traddr': str(self.daemon.directory / ctrlr), 'dev_type': 'blk'}}
                 for ctrlr in ctrlrs]
        config = self.daemon.directory / 'load.json'
        config.write_text(json.dumps({'subsystems': [{'subsystem': 'bdev', 'config': calls}]}))
        core = sorted(os.sched_getaffinity(0))[-1]
        load = subprocess.Popen([str(BDEVPERF), '-m', hex(1 << core), '-c', str(config), '-q', '16', '-o', '4K', '-w', 'verify',
                                 '-t', str(seconds), '--json', '--mode', 'interrupt'], stdout=subprocess.PIPE, stderr=self.daemon.log)
        self.addCleanup(load.stdout.close)
        self.addCleanup(load.kill)
        deadline = time.monotonic() + PATIENCE_S
        while not self.requests():
            self.assertLess(time.monotonic(), deadline, self.daemon.read_log())
            time.sleep(0.01)
        return load

    def requests(self):
        infos = [self.call('vhost_get_controllers', name=controller['ctrlr'])[0] for controller in self.call('vhost_get_controllers')]
        return sum(queue['requests'] for info in infos for session in info['sessions'] for queue in session['queues'])

    def expect_well_done(self, load):
        """The longest time that one request took, in ms."""
        output, _ = load.communicate(timeout=max(LOAD_S, 2 * UPGRADES) + PATIENCE_S)
        self.assertEqual(load.returncode, 0, output)
        jobs = json.loads(output)['results']
        for job in jobs:
            self.assertEqual((job['status'], job['io_failed'], job['io_mismatched']), ('finished', 0, 0), job)
            self.assertGreater(job['io_completed'], 0)
        self.assertNotIn('connecting again', self.daemon.read_log(), 'a front end has lost its connection')
        return max(job['max_latency_us'] for job in jobs) / 1000

    def test_guests_under_load_go_on_over_upgrades(self):
        first = self.create_disk('a')
        self.create_disk('base')
        self.call('vhost_delete_controller', ctrlr='vm.base')
        self.call('bdev_lvol_create_lvstore', bdev_name='base', lvs_name='store', cluster_sz=65536)
        self.call('bdev_lvol_create', lvs_name='store', lvol_name='volume', size_in_mib=8, thin_provision=True)
        self.call('vhost_create_blk_controller', ctrlr='vm.volume', dev_name='store/volume', queue_threads=1)
        load = self.load(first, 'vm.volume', seconds=max(LOAD_S, 2 * UPGRADES))
        pids = {self.daemon.process.pid}
        for _ in range(UPGRADES):
            self.upgrade()
            pids.add(self.daemon.process.pid)
            deadline = time.monotonic() + PATIENCE_S
            while not self.requests():
                self.assertLess(time.monotonic(), deadline, 'the new daemon serves nobody')
        self.assertIsNone(load.poll(), 'the load ran all the time')
        self.assertEqual(len(pids), UPGRADES + 1)
        longest_ms = self.expect_well_done(load)
        if 'SLUICE_TEST_UPGRADES' in os.environ:
            print(self.daemon.read_log(), flush=True)
        print(f'longest request over {UPGRADES} upgrades: {longest_ms:.1f} ms', flush=True)

    def test_everything_is_there_afterwards(self):
        self.create_disk('a', readonly=True)
        self.create_disk('b', packed_ring=True, queue_threads=1)
        self.call('vhost_controller_set_coalescing', ctrlr='vm.b', delay_base_us=20, iops_threshold=5000)
        self.call('bdev_null_create', name='n', num_blocks=256, block_size=4096)

        def state():
            return [self.call('bdev_get_bdevs'), self.call('vhost_get_controllers'),
                    self.call('framework_get_config', name='vhost_blk'), self.call('framework_get_config', name='bdev')]

        before = state()
        self.upgrade()
        self.assertEqual(state(), before)
        self.assertEqual(self.daemon.stop(), 0)
        self.assertEqual(sorted(os.listdir(self.daemon.directory)), ['a.img', 'b.img', 'log'], 'its sockets go with it')

    def test_the_state_directory_goes_along(self):
        self.daemon = self.enterContext(Daemon('--state-dir', '.'))
        self.call = self.daemon.client().call
        self.create_disk('a')
        self.create_disk('lost')
        self.daemon.stop()
        os.unlink(self.daemon.directory / 'lost.img')
        self.daemon.start().wait_ready()
        self.call = self.daemon.client().call

        def failed():
            return [entry['name'] for entry in self.call('state_get_info')['failed']]

        self.assertEqual(failed(), ['lost', 'vm.lost'])
        self.upgrade()
        self.assertEqual(failed(), ['lost', 'vm.lost'], 'they wait for their file as before')
        self.create_disk('b')
        other = subprocess.run([str(BINARY), '-m', hex(1 << self.daemon.cores[0]), '--state-dir', str(self.daemon.directory),
                                '-r', str(self.daemon.directory / 'other')], capture_output=True, text=True, timeout=PATIENCE_S,
                               check=False)
        self.assertIn('another daemon uses it', other.stdout + other.stderr)
        self.fail_to_upgrade_by_death()
        self.assertEqual(failed(), ['lost', 'vm.lost'])
        self.create_disk('c')
        before = self.call('framework_get_config', name='vhost_blk')
        self.assertEqual(len(before), 3)
        self.daemon.process.kill()
        self.daemon.process.wait()
        self.daemon.start().wait_ready()
        self.call = self.daemon.client().call
        self.assertEqual(self.call('framework_get_config', name='vhost_blk'), before)
        self.assertEqual(failed(), ['lost', 'vm.lost'])

    def test_a_successor_that_cannot_make_the_configuration_changes_nothing(self):
        self.daemon = self.enterContext(Daemon(cores=2))
        self.call = self.daemon.client().call
        disk = self.create_disk('a', cpumask=hex(1 << self.daemon.cores[0]))
        load = self.load(disk)
        new = self.successor(core=self.daemon.cores[1])
        self.addCleanup(new.kill)
        self.assertEqual(new.wait(PATIENCE_S), 1)
        self.assertIsNone(self.daemon.process.poll())
        self.call = self.daemon.client().call
        self.assertIn('vm.a', self.daemon.read_log())
        deadline = time.monotonic() + PATIENCE_S
        while not self.requests():
            self.assertLess(time.monotonic(), deadline, 'the old daemon serves nobody')
        self.expect_well_done(load)

    def fail_to_upgrade_by_death(self, bytes_read=None):
        """A successor that reads so much of what is handed over, and dies. None: all of it."""
        path = self.daemon.directory / 'successor'
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.settimeout(PATIENCE_S)
            self.call('framework_hand_over', socket=str(path))
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(PATIENCE_S)
                if bytes_read is None:
                    data = b''
                    while not data.endswith(b'}\n') and not data.endswith(b'}'):
                        data += peer.recv(1 << 16)
                elif bytes_read:
                    peer.recv(bytes_read)
        path.unlink()
        self.call = self.daemon.client().call

    def test_a_successor_that_dies_changes_nothing(self):
        load = self.load(self.create_disk('a'))
        for bytes_read in 0, 20, None:
            self.fail_to_upgrade_by_death(bytes_read)
            deadline = time.monotonic() + PATIENCE_S
            while not self.requests():
                self.assertLess(time.monotonic(), deadline, self.daemon.read_log())
        self.expect_well_done(load)
        self.assertEqual(self.daemon.stop(), 0)

    def test_what_would_be_lost_is_refused(self):
        self.call('bdev_malloc_create', name='m', num_blocks=2048, block_size=512)
        self.fail_to_upgrade("malloc bdev 'm' would lose its content")
        self.call('vhost_create_blk_controller', ctrlr='vm', dev_name='m')
        self.call('bdev_malloc_delete', name='m', force=True)
        self.fail_to_upgrade("controller 'vm' has lost its bdev")
        self.call('vhost_delete_controller', ctrlr='vm')
        self.upgrade()

    def test_a_successor_that_is_not_there_is_refused(self):
        with self.assertRaises(RpcError) as refused:
            self.call('framework_hand_over', socket=str(self.daemon.directory / 'nowhere'))
        self.assertIn('nowhere', refused.exception.message)

    def test_wrong_usage(self):
        def run(*options):
            done = subprocess.run([str(BINARY), '-m', hex(1 << self.daemon.cores[0]), *options], capture_output=True, text=True,
                                  timeout=PATIENCE_S, check=False)
            return done.returncode, done.stdout + done.stderr

        code, output = run('--upgrade-from', str(self.daemon.directory / 'nowhere'))
        self.assertEqual(code, 1)
        self.assertIn('nowhere', output)
        code, output = run('--upgrade-from', str(self.daemon.socket), '-c', 'config.json')
        self.assertEqual(code, 2)
        self.assertIn('--config', output)


if __name__ == '__main__':
    unittest.main(verbosity=2)
