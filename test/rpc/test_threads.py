"""Where lightweight threads run: masks, the scheduler, how cores poll, and scripts/top.py. On two cores."""

import errno
import json
import pathlib
import subprocess
import tempfile
import time
import unittest

from daemon import BDEVPERF, PATIENCE_S, TOP_PY, Daemon, RpcError


class Threads(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = cls.enterClassContext(Daemon(cores=2))
        cls.first, cls.second = cls.daemon.cores

    def setUp(self):
        self.call = self.daemon.client().call

    def assert_refused(self, code, text, method, **params):
        with self.assertRaises(RpcError) as refused:
            self.call(method, **params)
        self.assertEqual(refused.exception.code, -code, refused.exception.message)
        self.assertIn(text, refused.exception.message)

    def make_disk(self, name):
        """A disk in memory and its controller."""
        self.call('bdev_malloc_create', name=name, block_size=512, num_blocks=32768)
        self.addCleanup(self.call, 'bdev_malloc_delete', name=name)
        self.call('vhost_create_blk_controller', ctrlr=name, dev_name=name)
        self.addCleanup(self.call, 'vhost_delete_controller', ctrlr=name)
        return self.call('vhost_get_controllers', name=name)[0]['socket']

    def thread_id(self, name):
        return next(thread['id'] for thread in self.call('thread_get_stats')['threads'] if thread['name'] == name)

    def core_of(self, thread_id):
        """None while it is on its way."""
        return next((reactor['lcore'] for reactor in self.call('framework_get_reactors')['reactors']
                     if any(thread['id'] == thread_id for thread in reactor['lw_threads'])), None)

    def home_of(self, core):
        return self.thread_id(f'reactor_{core}')

    def test_a_thread_moves_while_its_front_end_is_connected(self):
        socket = self.make_disk('moving')
        self.call('bdev_virtio_attach_controller', name='front', trtype='user', traddr=socket, dev_type='blk')
        self.addCleanup(self.call, 'bdev_virtio_detach_controller', name='front')
        thread = self.thread_id('vhost.moving')
        for core in (self.first, self.second, self.second, self.first):
            self.assertIs(self.call('thread_set_cpumask', id=thread, cpumask=hex(1 << core)), True)
            self.assertEqual(self.core_of(thread), core)
            controller, = self.call('vhost_get_controllers', name='moving')
            self.assertEqual(controller['cpumask'], hex(1 << core))
            self.assertTrue(controller['sessions'][0]['started'])
        saved = next(call['params'] for call in self.call('framework_get_config', name='vhost_blk')
                     if call['params']['ctrlr'] == 'moving')
        self.assertEqual(saved['cpumask'], hex(1 << self.first))

    def test_a_thread_moves_while_io_runs_and_no_data_is_lost(self):
        if not BDEVPERF.exists():
            self.skipTest(f'{BDEVPERF} is not built (scripts/build)')
        socket = self.make_disk('loaded')
        thread = self.thread_id('vhost.loaded')
        attach = {'method': 'bdev_virtio_attach_controller',
                  'params': {'name': 'disk', 'trtype': 'user', 'traddr': socket, 'dev_type': 'blk'}}
        with tempfile.NamedTemporaryFile('w', suffix='.json', dir=self.daemon.directory) as config:
            json.dump({'subsystems': [{'subsystem': 'bdev', 'config': [attach]}]}, config)
            config.flush()
            load = subprocess.Popen([BDEVPERF, '-m', hex(1 << self.first), '--mode', 'interrupt', '-c', config.name,
                                     '-q', '16', '-o', '4096', '-w', 'verify', '-t', '1.5'],
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            moves = 0
            while load.poll() is None:
                core = (self.second, self.first)[moves % 2]
                self.call('thread_set_cpumask', id=thread, cpumask=hex(1 << core))
                self.assertEqual(self.core_of(thread), core)
                moves += 1
            output, errors = load.communicate(timeout=PATIENCE_S)
        self.assertEqual(load.returncode, 0, errors + output)
        self.assertGreater(moves, 10)

    def test_masks_that_cannot_be_are_refused(self):
        self.make_disk('fixed')
        thread = self.thread_id('vhost.fixed')
        self.assert_refused(errno.ENODEV, 'thread_get_stats', 'thread_set_cpumask', id=12345, cpumask='0x1')
        self.assert_refused(errno.EINVAL, 'zebra', 'thread_set_cpumask', id=thread, cpumask='zebra')
        self.assert_refused(errno.EINVAL, 'no reactor', 'thread_set_cpumask', id=thread, cpumask='[1000]')
        self.assert_refused(errno.EBUSY, "a reactor's own thread", 'thread_set_cpumask', id=self.home_of(self.second),
                            cpumask=hex(1 << self.first))

    def test_the_dynamic_scheduler_packs_idle_threads(self):
        self.addCleanup(self.call, 'framework_set_scheduler', name='static', period=1000000)
        names = [f'packed{number}' for number in range(4)]
        for name in names:
            self.make_disk(name)
        threads = [self.thread_id(f'vhost.{name}') for name in names]
        self.assertEqual({self.core_of(thread) for thread in threads}, {self.first, self.second}, 'placed by turns')
        self.call('framework_set_scheduler', name='dynamic', period=20000)
        deadline = time.monotonic() + PATIENCE_S
        while any(self.core_of(thread) != self.first for thread in threads):
            self.assertLess(time.monotonic(), deadline, self.call('framework_get_scheduler'))
            time.sleep(0.02)
        scheduler = self.call('framework_get_scheduler')
        self.assertEqual((scheduler['scheduler_name'], scheduler['scheduler_period']), ('dynamic', 20000))
        self.assertEqual(scheduler['moves'], 2)
        self.assertEqual([core['lcore'] for core in scheduler['cores']], self.daemon.cores)

    def test_options_of_the_scheduler_that_cannot_be_are_refused(self):
        self.assert_refused(32602, "'name'", 'framework_set_scheduler', name='gscheduler')
        self.assert_refused(errno.EINVAL, 'period', 'framework_set_scheduler', name='dynamic', period=0)
        self.assert_refused(errno.EINVAL, 'core_limit', 'framework_set_scheduler', name='dynamic', core_limit=101)
        self.assertEqual(self.call('framework_get_scheduler')['scheduler_name'], 'static')

    def polling(self):
        return [reactor['polling'] for reactor in self.call('framework_get_reactors')['reactors']]

    def test_polling_options_that_are_left_out_stay(self):
        before = self.polling()
        self.addCleanup(self.call, 'reactor_set_polling_options', **before[0])
        self.call('reactor_set_polling_options', max_poll_us=200, shrink=0)
        self.call('reactor_set_polling_options', grow=3, lcore=self.second)
        changed = {**before[0], 'max_poll_us': 200, 'shrink': 0}
        self.assertEqual(self.polling(), [changed, {**changed, 'grow': 3}])
        for wrong in ({'max_poll_us': 1000001}, {'grow': 0}, {'grow_start_us': 0}, {'shrink': 1001},
                      {'idle_poll_budget': 1001}):
            self.assert_refused(errno.EINVAL, next(iter(wrong)), 'reactor_set_polling_options', **wrong)
        self.assert_refused(errno.ENODEV, 'core 1000', 'reactor_set_polling_options', lcore=1000, grow=3)
        self.assertEqual(self.polling(), [changed, {**changed, 'grow': 3}])


class Saved(unittest.TestCase):
    def test_what_differs_from_the_defaults_is_saved_and_loaded(self):
        directory = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory(prefix='sluice-')))
        config = directory / 'config.json'
        with Daemon('--mode', 'adaptive', directory=directory, cores=2) as daemon:
            client = daemon.client()
            self.assertEqual(client.call('framework_get_config', name='scheduler'), [])
            client.call('reactor_set_polling_options', max_poll_us=100, lcore=daemon.cores[1])
            client.call('reactor_set_mode', mode='poll', lcore=daemon.cores[0])
            client.call('framework_set_scheduler', name='dynamic', load_limit=10)
            saved = client.call('framework_get_config', name='scheduler')
            self.assertEqual([call['method'] for call in saved],
                             ['reactor_set_mode', 'reactor_set_polling_options', 'framework_set_scheduler'])
            self.assertEqual(saved[2]['params'], {'name': 'dynamic', 'period': 1000000, 'load_limit': 10,
                                                  'core_limit': 80, 'core_busy': 95})
            daemon.run_rpc_py('save_config', str(config))
            self.assertEqual(daemon.stop(), 0)
        with Daemon('--mode', 'adaptive', '-c', str(config), directory=directory, cores=2) as daemon:
            client = daemon.client()
            self.assertEqual(client.call('framework_get_config', name='scheduler'), saved)
            self.assertEqual([reactor['mode'] for reactor in client.call('framework_get_reactors')['reactors']],
                             ['poll', 'adaptive'])
            client.call('reactor_set_mode', mode='poll')
            client.call('reactor_set_polling_options', max_poll_us=100)
            self.assertNotIn('lcore', client.call('framework_get_config', name='scheduler')[0]['params'])
            self.assertEqual(daemon.stop(), 0, 'it ends while the scheduler is dynamic')


class Top(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = cls.enterClassContext(Daemon())

    def run_top(self, *arguments, socket=None):
        return subprocess.run([TOP_PY, '-s', str(socket or self.daemon.socket), *arguments], capture_output=True,
                              text=True, timeout=PATIENCE_S, check=False)

    def test_once_shows_reactors_and_threads(self):
        done = self.run_top('--once', '-i', '0.2')
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        lines = done.stdout.splitlines()
        core = self.daemon.cores[0]
        self.assertIn('1 reactors, 1 threads; scheduler static', lines[0])
        self.assertRegex(lines[3], rf'^ +{core}  adaptive   \[#*-*\.+\] +[\d.]+ +[\d.]+ +[\d.]+ +\d+ +\d+ +\d+ +1$')
        self.assertTrue(any(line.endswith(f'  reactor_{core}') for line in lines[5:]), done.stdout)
        self.assertNotIn('\033', done.stdout)

    def test_a_reactor_that_polls_is_not_shown_as_asleep(self):
        client = self.daemon.client()
        self.addCleanup(client.call, 'reactor_set_mode', mode='adaptive')
        client.call('reactor_set_mode', mode='poll')
        line = self.run_top('--once', '-i', '0.2').stdout.splitlines()[3]
        self.assertIn('poll', line)
        self.assertLess(float(line.split(']')[1].split()[2]), 50)

    def test_wrong_usage_and_no_daemon_are_told_apart(self):
        self.assertEqual(self.run_top('--colour').returncode, 2)
        self.assertEqual(self.run_top('-i', '0').returncode, 2)
        self.assertEqual(self.run_top('--once', socket='/nonexistent/s.sock').returncode, 3)
        self.assertIn('usage: top.py', self.run_top('--help').stdout)


if __name__ == '__main__':
    unittest.main(verbosity=2)
