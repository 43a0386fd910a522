"""Controllers of the real daemon with front ends: what is told of queues, and another bdev behind a disk in use."""

import array
import mmap
import os
import socket
import struct
import time
import unittest

from daemon import PATIENCE_S, Daemon, RpcError

ENODEV, EINVAL, EROFS = 19, 22, 30
SET_FEATURES, SET_MEM_TABLE, SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_KICK = 2, 5, 8, 9, 12
VERSION_1 = 1 << 32


class FrontEnd:
    """As little of a front end as makes queues run: 64 KiB of memory at address 0, with a ring of 64 in each 16 KiB."""

    SIZE, RING = 1 << 16, 1 << 14
    AVAIL, USED = 0x1000, 0x2000

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._memory_fd = os.memfd_create('guest')
        os.ftruncate(self._memory_fd, self.SIZE)
        self._memory = mmap.mmap(self._memory_fd, self.SIZE)
        self._send(SET_FEATURES, struct.pack('<Q', VERSION_1))
        self._send(SET_MEM_TABLE, struct.pack('<IIQQQQ', 1, 0, 0, self.SIZE, 0, 0), self._memory_fd)

    def _send(self, request, payload, *fds):
        data = struct.pack('<III', request, 1, len(payload)) + payload
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else []
        self._socket.sendmsg([data], ancillary)

    def start_ring(self, index):
        base = index * self.RING
        self._send(SET_VRING_NUM, struct.pack('<II', index, 64))
        self._send(SET_VRING_ADDR, struct.pack('<IIQQQQ', index, 0, base, base + self.USED, base + self.AVAIL, 0))
        kick = os.eventfd(0)
        self._send(SET_VRING_KICK, struct.pack('<Q', index), kick)
        return kick

    def make_available(self, index, count):
        """Without any descriptor to go with it."""
        struct.pack_into('<H', self._memory, index * self.RING + self.AVAIL + 2, count)

    def close(self):
        self._socket.close()
        self._memory.close()
        os.close(self._memory_fd)


class Controllers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = cls.enterClassContext(Daemon())

    def setUp(self):
        self.call = self.daemon.client().call
        self.call('bdev_malloc_create', name='disk', num_blocks=2048, block_size=512)
        self.call('vhost_create_blk_controller', ctrlr='vm', dev_name='disk')
        self.addCleanup(self.tear_down)

    def tear_down(self):
        self.call('vhost_delete_controller', ctrlr='vm')
        for bdev in self.call('bdev_get_bdevs'):
            self.call('bdev_malloc_delete', name=bdev['name'])

    def controller(self):
        controller, = self.call('vhost_get_controllers', name='vm')
        return controller

    def wait_for_queues(self, condition):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            queues = [queue for session in self.controller()['sessions'] for queue in session['queues']]
            if condition(queues):
                return queues
            self.assertLess(time.monotonic(), deadline, queues)
            time.sleep(0.005)

    def test_queues_tell_their_state_and_why_they_are_broken(self):
        front_end = FrontEnd(self.controller()['socket'])
        self.addCleanup(front_end.close)
        kicks = [front_end.start_ring(index) for index in range(2)]
        for kick in kicks:
            self.addCleanup(os.close, kick)
        queues = self.wait_for_queues(lambda queues: [queue['state'] for queue in queues] == ['running'] * 2)
        threads = {thread['id'] for thread in self.call('thread_get_stats')['threads']}
        for index, queue in enumerate(queues):
            self.assertIn(queue.pop('thread_id'), threads)
            self.assertEqual(queue.pop('calls'), 0)
            self.assertGreaterEqual(queue.pop('kicks'), 0)
            self.assertEqual(queue, {'index': index, 'state': 'running', 'fault': None, 'size': 64, 'kind': 'split',
                                     'requests': 0, 'in_flight': 0})
        front_end.make_available(1, 1000)
        os.eventfd_write(kicks[1], 1)
        first, second = self.wait_for_queues(lambda queues: queues[1]['state'] == 'broken')
        self.assertIn('available index', second['fault'])
        self.assertEqual((first['state'], first['fault']), ('running', None))

    def test_a_packed_queue_is_called_so(self):
        self.call('bdev_malloc_create', name='behind', num_blocks=2048, block_size=512)
        self.call('vhost_create_blk_controller', ctrlr='behind', dev_name='behind', packed_ring=True)
        self.addCleanup(self.call, 'vhost_delete_controller', ctrlr='behind')
        controller, = self.call('vhost_get_controllers', name='behind')
        self.call('bdev_virtio_attach_controller', name='front', trtype='user', traddr=controller['socket'],
                  dev_type='blk', packed_ring=True)
        self.addCleanup(self.call, 'bdev_virtio_detach_controller', name='front')
        controller, = self.call('vhost_get_controllers', name='behind')
        self.assertEqual({queue['kind'] for queue in controller['sessions'][0]['queues']}, {'packed'})

    def test_another_bdev_is_used_saved_and_may_be_a_larger_one(self):
        self.call('bdev_malloc_create', name='larger', num_blocks=4096, block_size=512)
        self.assertIs(self.call('vhost_controller_set_bdev', ctrlr='vm', bdev_name='larger'), True)
        self.assertEqual(self.controller()['backend_specific']['block']['bdev'], 'larger')
        self.call('bdev_malloc_delete', name='disk')
        config = self.call('framework_get_config', name='vhost_blk')
        self.assertEqual([call['params']['dev_name'] for call in config], ['larger'])

    def test_a_disk_that_was_pulled_out_gets_another_one(self):
        self.call('bdev_malloc_create', name='spare', num_blocks=2048, block_size=512)
        self.call('bdev_malloc_delete', name='disk', force=True)
        self.assertIsNone(self.controller()['backend_specific']['block']['bdev'])
        self.call('vhost_controller_set_bdev', ctrlr='vm', bdev_name='spare')
        self.assertEqual(self.controller()['backend_specific']['block']['bdev'], 'spare')

    def test_what_does_not_fit_is_refused_with_the_reason(self):
        self.call('bdev_malloc_create', name='small', num_blocks=1024, block_size=512)
        self.call('bdev_malloc_create', name='blocks', num_blocks=2048, block_size=4096)
        for ctrlr, bdev, code, text in (('vm', 'none', ENODEV, "'none'"), ('vm', 'small', EINVAL, 'smaller'),
                                        ('vm', 'blocks', EINVAL, 'larger'), ('nobody', 'disk', ENODEV, "'nobody'")):
            with self.assertRaises(RpcError) as refused:
                self.call('vhost_controller_set_bdev', ctrlr=ctrlr, bdev_name=bdev)
            self.assertEqual(refused.exception.code, -code)
            self.assertIn(text, refused.exception.message)
        self.assertEqual(self.controller()['backend_specific']['block']['bdev'], 'disk')


if __name__ == '__main__':
    unittest.main()
