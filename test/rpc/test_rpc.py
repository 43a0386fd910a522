"""The RPC of the real daemon: each method."""

import json
import os
import pathlib
import statistics
import time
import unittest

from daemon import DaemonCase, RpcError

ENODEV, EEXIST, EBUSY, EINVAL, ENOENT, EOPNOTSUPP = 19, 17, 16, 22, 2, 95


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


if __name__ == '__main__':
    unittest.main(verbosity=2)
