"""The RPC of the real daemon: each method, bad input, start and end of the daemon, and scripts/rpc.py."""

import json
import os
import pathlib
import signal
import statistics
import subprocess
import tempfile
import time
import unittest

from daemon import BINARY, ROOT, RPC_PY, Daemon, RpcError

ENODEV, EEXIST, EBUSY, EINVAL, ENOENT, EACCES, EOPNOTSUPP = 19, 17, 16, 22, 2, 13, 95


class DaemonCase(unittest.TestCase):
    """Tests that share a daemon."""

    @classmethod
    def setUpClass(cls):
        cls.daemon = cls.enterClassContext(Daemon())

    def setUp(self):
        self.client = self.daemon.client()
        self.call = self.client.call

    def file(self, name, size):
        path = self.daemon.directory / name
        with open(path, 'wb') as file:
            file.truncate(size)
        return str(path)

    def assert_refused(self, code, texts, method, **params):
        with self.assertRaises(RpcError) as refused:
            self.call(method, **params)
        self.assertEqual(refused.exception.code, code, refused.exception.message)
        for text in [texts] if isinstance(texts, str) else texts:
            self.assertIn(text, refused.exception.message)
        self.assertTrue(refused.exception.message.startswith(method), refused.exception.message)


class Methods(DaemonCase):
    """What the methods do."""

    def test_every_method_works(self):
        image = self.file('image', 1 << 20)
        uuid = '2b6601ba-eada-44fb-9a83-a20eb9eb9e90'

        def names(bdevs):
            return sorted(bdev['name'] for bdev in bdevs)

        calls = [
            ('rpc_get_methods', {}, lambda r: 'bdev_get_bdevs' in r),
            ('rpc_discover', {}, lambda r: r['openrpc'].startswith('1.')),
            ('spdk_get_version', {}, lambda r: r['version'] and set(r['fields']) >= {'major', 'minor', 'patch', 'suffix'}),
            ('framework_start_init', {}, True),
            ('framework_wait_init', {}, True),
            ('framework_get_subsystems', {}, lambda r: [s['subsystem'] for s in r] == ['log', 'scheduler', 'bdev', 'vhost_blk']),
            ('framework_get_config', {'name': 'bdev'}, []),
            ('framework_get_config', {'name': 'scheduler'}, []),
            ('framework_get_config', {'name': 'log'}, []),
            ('framework_get_scheduler', {}, self.check_scheduler),
            ('framework_set_scheduler', {'name': 'static'}, True),
            ('log_set_level', {'level': 'DEBUG'}, True),
            ('log_get_level', {}, 'DEBUG'),
            ('log_set_print_level', {'level': 'NOTICE'}, True),
            ('log_get_print_level', {}, 'NOTICE'),
            ('log_set_flag', {'flag': 'vhost'}, True),
            ('log_get_flags', {}, lambda r: r['vhost'] and not r['bdev']),
            ('log_clear_flag', {'flag': 'all'}, True),
            ('log_enable_timestamps', {'enabled': False}, True),
            ('framework_get_reactors', {}, self.check_reactors),
            ('reactor_set_mode', {'mode': 'adaptive'}, True),
            ('reactor_set_polling_options', {'max_poll_us': 50}, True),
            ('thread_get_stats', {}, self.check_thread_stats),
            ('thread_get_pollers', {}, lambda r: 'timed_pollers' in r['threads'][0]),
            ('thread_get_io_channels', {}, lambda r: 'io_channels' in r['threads'][0]),
            ('bdev_malloc_create', {'num_blocks': 2048, 'block_size': 512, 'name': 'm0', 'uuid': uuid}, 'm0'),
            ('bdev_null_create', {'name': 'n0', 'num_blocks': 256, 'block_size': 4096}, 'n0'),
            ('bdev_null_resize', {'name': 'n0', 'new_size': 2}, True),
            ('bdev_aio_create', {'name': 'a0', 'filename': image, 'block_size': 512}, 'a0'),
            ('bdev_aio_rescan', {'name': 'a0'}, True),
            ('bdev_wait_for_examine', {}, True),
            ('notify_get_types', {}, lambda r: 'bdev_register' in r),
            ('notify_get_notifications', {'max': 1}, lambda r: set(r[0]) == {'id', 'type', 'ctx'}),
            ('bdev_get_bdevs', {}, lambda r: names(r) == ['a0', 'm0', 'n0']),
            ('bdev_get_iostat', {}, lambda r: names(r['bdevs']) == ['a0', 'm0', 'n0']),
            ('bdev_reset_iostat', {'name': 'm0', 'mode': 'maxmin'}, True),
            ('vhost_create_blk_controller', {'ctrlr': 'vm0', 'dev_name': 'm0', 'readonly': True}, True),
            ('vhost_get_controllers', {'name': 'vm0'}, self.check_controller),
            ('vhost_controller_set_coalescing', {'ctrlr': 'vm0', 'delay_base_us': 100, 'iops_threshold': 5000}, True),
            ('vhost_get_controllers', {'name': 'vm0'}, lambda r: r[0]['delay_base_us'] == 100),
            ('vhost_controller_set_bdev', {'ctrlr': 'vm0', 'bdev_name': 'm0'}, True),
            ('vhost_delete_controller', {'ctrlr': 'vm0'}, True),
            ('bdev_malloc_delete', {'name': 'm0'}, True),
            ('bdev_null_delete', {'name': 'n0'}, True),
            ('bdev_aio_delete', {'name': 'a0'}, True),
        ]
        for method, params, expected in calls:
            with self.subTest(method=method):
                result = self.call(method, **params)
                if callable(expected):
                    self.assertTrue(expected(result), result)
                else:
                    self.assertEqual(result, expected)
        # Ends the daemon: tested in Lifetime. Needs io_uring: tested in test_uring_disk.
        tested = {method for method, _, _ in calls} | {'spdk_kill_instance'}
        tested |= {'bdev_uring_create', 'bdev_uring_rescan', 'bdev_uring_delete'}
        # Needs a daemon that takes over: tested in test_upgrade.py.
        tested |= {'framework_hand_over'}
        # Needs a thread that may move: tested in test_threads.py.
        tested |= {'thread_set_cpumask'}
        # Need a disk that holds a store: tested in test_lvol.py and test_lvol_space.py.
        tested |= {name for name in self.call('rpc_get_methods') if name.startswith('bdev_lvol_')}
        # Need a daemon that keeps a state: tested in test_state.py.
        tested |= {'state_get_info', 'state_retry', 'state_forget'}
        # Need a back end: tested in test_virtio_disk.
        tested |= {'bdev_virtio_attach_controller', 'bdev_virtio_detach_controller'}
        self.assertEqual(tested, set(self.call('rpc_get_methods')), 'each method has its line in this test')

    def test_uring_disk(self):
        image = self.file('uring', 1 << 20)
        uuid = '0b7a3ea4-5c4c-4d2a-8a67-6f2cb1a0a911'
        try:
            name = self.call('bdev_uring_create', name='u0', filename=image, block_size=512, uuid=uuid)
        except RpcError as error:
            if 'bdev_aio_create' in str(error):
                self.skipTest(f'no io_uring here: {error}')
            raise
        self.addCleanup(self.call, 'bdev_uring_delete', name='u0')
        self.assertEqual(name, 'u0')
        bdev, = self.call('bdev_get_bdevs', name='u0')
        self.assertEqual((bdev['product_name'], bdev['uuid'], bdev['num_blocks']), ('URING bdev', uuid, 2048))
        self.assertEqual(bdev['driver_specific'], {'uring': {'filename': image, 'readonly': False}})
        with open(image, 'r+b') as file:
            file.truncate(2 << 20)
        self.assertIs(self.call('bdev_uring_rescan', name='u0'), True)
        self.assertEqual(self.call('bdev_get_bdevs', name='u0')[0]['num_blocks'], 4096)
        self.assertIn({'method': 'bdev_uring_create',
                       'params': {'name': 'u0', 'uuid': uuid, 'filename': image, 'block_size': 512, 'readonly': False}},
                      self.call('framework_get_config', name='bdev'))
        self.assert_refused(-ENODEV, ['URING bdev', 'AIO disk'], 'bdev_aio_delete', name='u0')

    def check_reactors(self, result):
        reactor, = result['reactors']
        self.assertEqual(result['tick_rate'], 10**9)
        self.assertEqual(result['pid'], self.daemon.process.pid)
        self.assertEqual(reactor['mode'], 'adaptive')
        self.assertTrue(reactor['in_interrupt'])
        for name in ('lcore', 'tid', 'busy', 'idle', 'asleep', 'wakeups', 'hot_pollers', 'cold_pollers', 'lw_threads'):
            self.assertIn(name, reactor)
        self.assertEqual(reactor['polling'], {'max_poll_us': 50, 'grow': 2, 'grow_start_us': 10, 'shrink': 2,
                                              'idle_poll_budget': 25})
        return True

    def check_scheduler(self, result):
        self.assertEqual(result, {'scheduler_name': 'static', 'scheduler_period': 1000000,
                                  'scheduling_core': self.daemon.cores[0], 'isolated_core_mask': '0x0', 'load_limit': 20,
                                  'core_limit': 80, 'core_busy': 95, 'moves': 0, 'cores': []})
        return True

    def check_thread_stats(self, result):
        self.assertEqual(result['tick_rate'], 10**9)
        thread = result['threads'][0]
        for name in ('id', 'cpumask', 'busy', 'idle', 'asleep', 'hot_pollers_count', 'cold_pollers_count'):
            self.assertIn(name, thread)
        self.assertGreater(thread['asleep'], 0)
        return thread['name']

    def check_controller(self, result):
        controller, = result
        self.assertEqual(controller['ctrlr'], 'vm0')
        self.assertEqual(pathlib.Path(controller['socket']), self.daemon.directory / 'vm0')
        self.assertEqual(controller['backend_specific']['block'],
                         {'readonly': True, 'packed_ring': False, 'any_memory_file': False, 'bdev': 'm0',
                          'transport': 'vhost_user_blk'})
        self.assertEqual((controller['allowed_uids'], controller['allowed_gids']), ([], []))
        self.assertEqual(controller['sessions'], [])
        self.assertRegex(controller['cpumask'], '^0x[0-9a-f]+$')
        return pathlib.Path(controller['socket']).is_socket()

    def test_virtio_disk(self):
        self.call('bdev_malloc_create', name='behind', block_size=512, num_blocks=2048)
        self.addCleanup(self.call, 'bdev_malloc_delete', name='behind')
        self.call('vhost_create_blk_controller', ctrlr='behind', dev_name='behind', packed_ring=True)
        self.addCleanup(self.call, 'vhost_delete_controller', ctrlr='behind')
        controller, = self.call('vhost_get_controllers', name='behind')
        self.assertIs(controller['backend_specific']['block']['packed_ring'], True)
        self.assertIn({'method': 'vhost_create_blk_controller',
                       'params': {'ctrlr': 'behind', 'dev_name': 'behind', 'readonly': False, 'packed_ring': True}},
                      self.call('framework_get_config', name='vhost_blk'))
        socket = str(controller['socket'])
        attach = {'name': 'front', 'trtype': 'user', 'traddr': socket, 'dev_type': 'blk', 'packed_ring': True}
        self.assertEqual(self.call('bdev_virtio_attach_controller', **attach, vq_size=128), ['front'])
        bdev, = self.call('bdev_get_bdevs', name='front')
        self.assertEqual((bdev['product_name'], bdev['block_size'], bdev['num_blocks']), ('VirtioBlk Disk', 512, 2048))
        self.assertTrue(bdev['supported_io_types']['unmap'])
        virtio = bdev['driver_specific']['virtio']
        self.assertEqual((virtio['type'], virtio['socket'], virtio['vq_size']), ('user', socket, 128))
        self.assertTrue(virtio['connected'])
        self.assertTrue(int(virtio['features'], 16) & 1 << 34, 'packed rings were asked for')
        config = self.call('framework_get_config', name='bdev')
        self.assertIn({'method': 'bdev_virtio_attach_controller', 'params': {**attach, 'vq_size': 128}}, config)
        self.assert_refused(-EEXIST, 'exists', 'bdev_virtio_attach_controller', **attach)
        self.assertTrue(self.call('bdev_virtio_detach_controller', name='front'))
        self.assert_refused(-ENODEV, 'front', 'bdev_virtio_detach_controller', name='front')
        attach['name'] = 'other'
        self.assert_refused(-ENOENT, 'nowhere', 'bdev_virtio_attach_controller', **{**attach, 'traddr': 'nowhere'})
        for wrong in {'trtype': 'pci'}, {'trtype': 'vfio-user'}, {'dev_type': 'scsi'}:
            self.assert_refused(-EOPNOTSUPP, 'only', 'bdev_virtio_attach_controller', **{**attach, **wrong})
        for wrong in {'vq_size': 100}, {'vq_size': 2048}, {'vq_count': 65}:
            self.assert_refused(-EINVAL, 'vq_', 'bdev_virtio_attach_controller', **{**attach, **wrong})

    def test_bdevs_are_described_as_clients_expect(self):
        image = self.file('described', 1 << 20)
        self.call('bdev_aio_create', name='described', filename=image, block_size=512, readonly=True)
        self.addCleanup(self.call, 'bdev_aio_delete', name='described')
        bdev, = self.call('bdev_get_bdevs', name='described')
        self.assertEqual(bdev['product_name'], 'AIO disk')
        self.assertEqual((bdev['block_size'], bdev['num_blocks']), (512, 2048))
        self.assertEqual(bdev['driver_specific']['aio']['filename'], image)
        self.assertTrue(bdev['driver_specific']['aio']['readonly'])
        self.assertTrue(bdev['supported_io_types']['read'])
        self.assertFalse(bdev['supported_io_types']['write'])
        self.assertEqual(self.call('bdev_get_bdevs', name=bdev['uuid'].upper())[0]['name'], 'described')

    def test_waits_for_a_bdev_that_appears_and_no_longer_than_asked(self):
        waiting = self.daemon.client()
        waiting.send(json.dumps({'method': 'bdev_get_bdevs', 'params': {'name': 'late', 'timeout': 10000}}))
        self.call('bdev_null_create', name='late', num_blocks=8, block_size=512)
        self.addCleanup(self.call, 'bdev_null_delete', name='late')
        self.assertEqual(json.loads(waiting.receive())['result'][0]['name'], 'late')
        self.assert_refused(-ENODEV, 'No such device', 'bdev_get_bdevs', name='never', timeout=20)

    def test_iostat_takes_both_names_of_its_parameter(self):
        self.call('bdev_null_create', name='counted', num_blocks=8, block_size=512)
        self.addCleanup(self.call, 'bdev_null_delete', name='counted')
        for params in ({'name': 'counted'}, {'names': ['counted']}, {'name': 'counted', 'reset_mode': 'all'}):
            bdev, = self.call('bdev_get_iostat', **params)['bdevs']
            self.assertEqual((bdev['name'], bdev['bytes_read']), ('counted', 0))
        self.assertEqual(self.call('bdev_get_iostat', name='counted', per_channel=True)['bdevs'],
                         [{'name': 'counted', 'channels': []}])
        self.assert_refused(-ENODEV, 'No such device', 'bdev_get_iostat', name='nobody')

    def test_malloc_bdevs_are_named_when_the_client_does_not(self):
        first = self.call('bdev_malloc_create', num_blocks=8, block_size=512)
        second = self.call('bdev_malloc_create', num_blocks=8, block_size=512)
        self.assertEqual([first, second], ['Malloc0', 'Malloc1'])
        for name in (first, second):
            self.call('bdev_malloc_delete', name=name)

    def test_force_pulls_out_a_disk_in_use(self):
        self.call('bdev_malloc_create', name='pulled', num_blocks=2048, block_size=512)
        self.call('vhost_create_blk_controller', ctrlr='pulled', dev_name='pulled')
        self.assert_refused(-EBUSY, ['Device or resource busy', 'vhost controller pulled', 'force'], 'bdev_malloc_delete',
                            name='pulled')
        self.call('bdev_malloc_delete', name='pulled', force=True)
        controller, = self.call('vhost_get_controllers', name='pulled')
        self.assertIsNone(controller['backend_specific']['block']['bdev'])
        self.call('vhost_delete_controller', ctrlr='pulled')

    def test_modes_of_reactors_change(self):
        for mode in ('poll', 'interrupt', 'adaptive'):
            self.call('reactor_set_mode', mode=mode, lcore=min(os.sched_getaffinity(0)))
            reactor, = self.call('framework_get_reactors')['reactors']
            self.assertEqual((reactor['mode'], reactor['in_interrupt']), (mode, mode != 'poll'))
        self.assert_refused(-ENODEV, 'No such device', 'reactor_set_mode', mode='poll', lcore=1000)

    def test_the_list_of_controllers_is_small(self):
        # A client exists that reads 8 KiB and no more.
        self.call('bdev_null_create', name='shared', num_blocks=8, block_size=512)
        controllers = [f'small{number}' for number in range(25)]
        for name in controllers:
            self.call('vhost_create_blk_controller', ctrlr=name, dev_name='shared', readonly=True)
        self.client.send('{"id": 1, "method": "vhost_get_controllers", "params": null}')
        reply = self.client.receive()
        for name in controllers:
            self.call('vhost_delete_controller', ctrlr=name)
        self.call('bdev_null_delete', name='shared')
        self.assertEqual(len(json.loads(reply)['result']), 25)
        self.assertLess(len(reply), 8192)

    def test_calls_are_answered_quickly(self):
        times = []
        for _ in range(1000):
            begin = time.perf_counter()
            self.call('spdk_get_version')
            times.append((time.perf_counter() - begin) * 1e6)
        times.sort()
        median = statistics.median(times)
        print(f'RPC latency: median {median:.0f} us, 99th percentile {times[989]:.0f} us, maximum {times[-1]:.0f} us')
        self.assertLess(median, 5000, 'something polls instead of waking up')


class BadInput(DaemonCase):
    """What clients get wrong: a clear error, and the daemon goes on."""

    def tearDown(self):
        self.assertTrue(self.daemon.client().call('spdk_get_version'), 'the daemon still answers')

    def code(self, text):
        return self.client.ask(text)['error']['code']

    def test_malformed_json_is_a_parse_error_and_the_connection_goes_on(self):
        self.assertEqual(self.code('{"method": }'), -32700)
        self.assertEqual(self.code('{"method": "spdk_get_version"]'), -32700)
        self.assertTrue(self.call('spdk_get_version'))

    def test_what_is_no_json_ends_the_connection(self):
        self.client.send('POST / HTTP/1.0\r\n\r\n')
        self.assertIn(b'-32700', self.client.receive())
        self.assertEqual(self.client.receive(), b'')

    def test_oversized_requests_are_refused_with_the_limit(self):
        try:
            self.client.send('{"method": "' + 'x' * (4 << 20))
        except (BrokenPipeError, ConnectionResetError):
            pass
        error = json.loads(self.client.receive())['error']
        self.assertEqual(error['code'], -32600)
        self.assertIn('1048576', error['message'])

    def test_deep_nesting_is_a_parse_error(self):
        self.assertEqual(self.code('[' * 10000 + ']' * 10000), -32700)

    def test_wrong_requests_are_told_apart(self):
        self.assertEqual(self.code('{}'), -32600)
        self.assertEqual(self.code('{"method": 1}'), -32600)
        self.assertEqual(self.code('{"method": "no_such_method"}'), -32601)
        self.assertEqual(self.code('{"method": "bdev_get_bdevs", "params": 1}'), -32602)

    def test_wrong_parameters_are_named(self):
        create = {'num_blocks': 8, 'block_size': 512}
        self.assert_refused(-32602, "'num_blocks'", 'bdev_malloc_create', block_size=512)
        self.assert_refused(-32602, ["'num_blocks'", 'an integer'], 'bdev_malloc_create', block_size=512, num_blocks='8')
        self.assert_refused(-32602, ["'block_size'", '4294967295'], 'bdev_malloc_create', block_size=1 << 32, num_blocks=8)
        self.assert_refused(-32602, "'num_blocks'", 'bdev_malloc_create', block_size=512, num_blocks=-1)
        self.assert_refused(-32602, ["'colour'", 'num_blocks'], 'bdev_malloc_create', **create, colour='red')
        self.assert_refused(-32602, ["'uuid'", 'UUID'], 'bdev_malloc_create', **create, uuid='1234')
        self.assert_refused(-32602, ["'level'", 'NOTICE'], 'log_set_level', level='LOUD')
        self.assert_refused(-EINVAL, ['Invalid argument', 'vhost'], 'log_set_flag', flag='nvmf')
        self.assert_refused(-EINVAL, ['Invalid argument', 'nvmf'], 'framework_get_config', name='nvmf')

    def test_devices_that_cannot_be_are_refused(self):
        invalid = 'Invalid argument'
        self.assert_refused(-EINVAL, invalid, 'bdev_malloc_create', num_blocks=0, block_size=512)
        self.assert_refused(-EINVAL, invalid, 'bdev_malloc_create', num_blocks=8, block_size=500)
        self.assert_refused(-EINVAL, invalid, 'bdev_malloc_create', num_blocks=(1 << 64) - 1, block_size=512)
        self.assert_refused(-EINVAL, invalid, 'bdev_null_create', name='', num_blocks=8, block_size=512)
        self.assert_refused(-EOPNOTSUPP, 'md_size', 'bdev_malloc_create', num_blocks=8, block_size=512, md_size=8)
        empty, odd = self.file('empty', 0), self.file('odd', 1000)
        self.assert_refused(-EINVAL, [invalid, empty], 'bdev_aio_create', name='e', filename=empty, block_size=512)
        self.assert_refused(-EINVAL, [invalid, odd], 'bdev_aio_create', name='o', filename=odd, block_size=512)
        self.assert_refused(-EINVAL, [invalid, '/dev/null'], 'bdev_aio_create', name='n', filename='/dev/null')
        self.assertEqual(self.call('bdev_get_bdevs'), [])

    def test_missing_files_are_named(self):
        self.assert_refused(-ENOENT, ["'/nonexistent/disk'", 'No such file or directory'], 'bdev_aio_create', name='a',
                            filename='/nonexistent/disk', block_size=512)

    @unittest.skipIf(os.geteuid() == 0, 'root may open every file')
    def test_missing_permission_is_named(self):
        path = self.file('secret', 1 << 20)
        os.chmod(path, 0)
        self.assert_refused(-EACCES, [path, 'Permission denied'], 'bdev_aio_create', name='s', filename=path, block_size=512)

    def test_duplicates_are_refused(self):
        self.call('bdev_null_create', name='twin', num_blocks=8, block_size=512)
        uuid = self.call('bdev_get_bdevs', name='twin')[0]['uuid']
        self.assert_refused(-EEXIST, "File exists", 'bdev_malloc_create', name='twin', num_blocks=8, block_size=512)
        self.assert_refused(-EEXIST, "File exists", 'bdev_null_create', name='other', num_blocks=8, block_size=512, uuid=uuid)
        self.call('vhost_create_blk_controller', ctrlr='twin', dev_name='twin')
        self.assert_refused(-EEXIST, "File exists", 'vhost_create_blk_controller', ctrlr='twin', dev_name='twin')
        self.call('vhost_delete_controller', ctrlr='twin')
        self.call('bdev_null_delete', name='twin')

    def test_unknown_devices_are_refused(self):
        missing = ["'x'", 'No such device']
        for method in ('bdev_malloc_delete', 'bdev_null_delete', 'bdev_aio_delete', 'bdev_aio_rescan', 'bdev_get_bdevs',
                       'bdev_reset_iostat', 'vhost_get_controllers'):
            self.assert_refused(-ENODEV, missing, method, name='x')
        self.assert_refused(-ENODEV, missing, 'vhost_delete_controller', ctrlr='x')
        self.assert_refused(-ENODEV, missing, 'vhost_create_blk_controller', ctrlr='c', dev_name='x')
        coalescing = {'delay_base_us': 1, 'iops_threshold': 1}
        self.assert_refused(-ENODEV, missing, 'vhost_controller_set_coalescing', ctrlr='x', **coalescing)
        self.assertFalse((self.daemon.directory / 'c').exists(), 'a failed call leaves nothing behind')

    def test_a_file_tells_whether_it_can_discard(self):
        image = self.daemon.directory / 'sparse.img'
        with open(image, 'wb') as file:
            file.truncate(1 << 20)
        self.call('bdev_aio_create', name='sparse', filename=str(image))
        disk = self.call('bdev_get_bdevs', name='sparse')[0]
        self.assertEqual(disk['driver_specific']['aio']['fallocate'], disk['supported_io_types']['unmap'])
        saved = [call['params'] for call in self.call('framework_get_config', name='bdev')
                 if call['params'].get('name') == 'sparse']
        self.assertEqual([params['fallocate'] for params in saved], [disk['supported_io_types']['unmap']])
        self.call('bdev_aio_delete', name='sparse')

    def test_devices_of_another_kind_are_left_alone(self):
        self.call('bdev_null_create', name='kind', num_blocks=8, block_size=512)
        for method in ('bdev_malloc_delete', 'bdev_aio_delete', 'bdev_aio_rescan', 'bdev_uring_rescan'):
            self.assert_refused(-ENODEV, ['No such device', 'Null disk'], method, name='kind')
        self.call('bdev_null_delete', name='kind')

    def test_wrong_controllers_are_refused(self):
        self.call('bdev_null_create', name='base', num_blocks=8, block_size=512)
        create = 'vhost_create_blk_controller'
        self.assert_refused(-EINVAL, 'Invalid argument', create, ctrlr='a/b', dev_name='base')
        self.assert_refused(-EINVAL, 'Invalid argument', create, ctrlr='c', dev_name='base', cpumask='zebra')
        self.assert_refused(-EINVAL, 'Invalid argument', create, ctrlr='c', dev_name='base', cpumask='[1000]')
        self.assert_refused(-EINVAL, 'vhost_user_blk', create, ctrlr='c', dev_name='base', transport='vfio_user')
        self.assert_refused(-32602, 'allowed_uids', create, ctrlr='c', dev_name='base', allowed_uids=['root'])
        self.assert_refused(-36, ['File name too long', '107'], create, ctrlr='c' * 120, dev_name='base')
        self.assertEqual(self.call('vhost_get_controllers'), [])
        self.call('bdev_null_delete', name='base')


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


class RpcPy(DaemonCase):
    """scripts/rpc.py."""

    def run_ok(self, *arguments, **options):
        done = self.daemon.run_rpc_py(*arguments, **options)
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        return done.stdout

    def run_fails(self, code, *arguments):
        done = self.daemon.run_rpc_py(*arguments)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertEqual(done.stdout, '')
        self.assertTrue(done.stderr.startswith('rpc.py: '))
        return done.stderr

    def test_arguments_by_name_by_position_and_as_json(self):
        self.assertEqual(self.run_ok('bdev_malloc_create', '--block-size', '512', '--num_blocks=0x800', '--name', 'p0'), 'p0\n')
        self.assertEqual(self.run_ok('bdev_malloc_create', '512', '2048', 'p1'), 'p1\n')
        self.assertEqual(self.run_ok('bdev_malloc_create', '{"block_size": 512, "num_blocks": 2048, "name": "p2"}'), 'p2\n')
        self.assertEqual(self.run_ok('vhost_create_blk_controller', 'c0', 'p0', '--readonly'), 'true\n')
        controller, = json.loads(self.run_ok('vhost_get_controllers', 'c0'))
        self.assertTrue(controller['backend_specific']['block']['readonly'])
        iostat = json.loads(self.run_ok('bdev_get_iostat', '--names', 'p0,p1', '--names', 'p2', '--no-per-channel'))
        self.assertEqual([bdev['name'] for bdev in iostat['bdevs']], ['p0', 'p1', 'p2'])
        self.run_ok('vhost_delete_controller', 'c0')
        for name in ('p0', 'p1', 'p2'):
            self.run_ok('bdev_malloc_delete', name)

    def test_wrong_usage_is_exit_code_2(self):
        self.assertIn('no method given', self.run_fails(2))
        self.assertIn('bdev_get_bdevs', self.run_fails(2, 'get_bdevs'))
        self.assertIn('--name', self.run_fails(2, 'bdev_get_bdevs', '--colour', 'red'))
        self.assertIn('num_blocks', self.run_fails(2, 'bdev_malloc_create', '512'))
        self.assertIn('must be u32', self.run_fails(2, 'bdev_malloc_create', 'x', '1'))
        self.assertIn('NOTICE', self.run_fails(2, 'log_set_level', 'LOUD'))
        self.assertIn('too many', self.run_fails(2, 'log_set_level', 'INFO', 'more'))
        self.assertIn('needs a value', self.run_fails(2, 'bdev_get_bdevs', '--name'))
        self.assertIn('not JSON', self.run_fails(2, 'bdev_get_bdevs', '{"name'))
        self.assertIn('--colour', self.run_fails(2, '--colour', 'bdev_get_bdevs'))

    def test_refusals_are_exit_code_1(self):
        self.assertIn('No such device (-19)', self.run_fails(1, 'bdev_get_bdevs', 'nobody'))

    def test_no_daemon_is_exit_code_3_with_a_hint(self):
        done = subprocess.run([RPC_PY, '-s', '/nonexistent/s.sock', 'bdev_get_bdevs'], capture_output=True, text=True,
                              check=False)
        self.assertEqual(done.returncode, 3)
        self.assertIn('Is sluice-vhost running?', done.stderr)

    def test_help_with_and_without_a_daemon(self):
        self.assertIn('bdev_malloc_create', self.run_ok('--help'))
        self.assertIn('--block-size', self.run_ok('bdev_malloc_create', '--help'))
        done = subprocess.run([RPC_PY, '-s', '/nonexistent/s.sock', '--help'], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0)
        self.assertIn('usage: rpc.py', done.stdout)

    def test_an_answer_that_does_not_come_is_a_timeout(self):
        raw = ('-t', '0.2', 'bdev_get_bdevs', '{"name": "never", "timeout": 60000}')
        self.assertIn('no answer within 0.2 s', self.run_fails(1, *raw))

    def test_configurations_are_saved_and_loaded(self):
        self.run_ok('bdev_null_create', 'saved', '512', '8')
        self.run_ok('vhost_create_blk_controller', 'saved', 'saved')
        text = self.run_ok('save_config')
        self.run_ok('vhost_delete_controller', 'saved')
        self.run_ok('bdev_null_delete', 'saved')
        self.assertEqual(self.run_ok('load_config', input_text=text), '')
        self.assertEqual(self.run_ok('save_config'), text)
        done = self.daemon.run_rpc_py('load_config', input_text=text)
        self.assertEqual(done.returncode, 1)
        self.assertIn("subsystem 'bdev', entry 0", done.stderr)
        self.assertIn('File exists', done.stderr)
        self.run_ok('vhost_delete_controller', 'saved')
        self.run_ok('bdev_null_delete', 'saved')

    def test_the_reference_of_methods_is_up_to_date(self):
        self.assertEqual((ROOT / 'docs/rpc.md').read_text(), self.run_ok('markdown'),
                         'to fix: scripts/rpc.py -s SOCKET markdown > docs/rpc.md, with a daemon of this build on SOCKET')


if __name__ == '__main__':
    unittest.main(verbosity=2)
