"""What clients of the real daemon get wrong."""

import json
import os
import unittest

from daemon import DaemonCase

ENODEV, EEXIST, EINVAL, ENOENT, EACCES, EOPNOTSUPP = 19, 17, 22, 2, 13, 95


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


if __name__ == '__main__':
    unittest.main(verbosity=2)
