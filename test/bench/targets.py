"""What stands behind a vhost-user-blk socket on core 0: sluice-vhost, or qemu-storage-daemon with the same backing.

The daemons are started and ended by test/guest/backends.py; here they get one disk of a given kind.
"""

import backends
from common import program
from programs import BLOCK_BYTES, SIZE_BYTES, bdev_call, call_text, cores, mask, takes_direct_io


class SluiceTarget(backends.SluiceBackend):
    """sluice-vhost in one mode; `backing`: null, malloc, aio or uring."""

    def __init__(self, backing, mode):
        super().__init__(f'bench-sluice-{backing}-{mode}', mode)
        self.backing = backing

    def serve(self, image):
        """The socket of a disk that the daemon makes."""
        method, params = bdev_call(self.backing, image)
        self._control.call(method, **params)
        self._control.call('vhost_create_blk_controller', ctrlr='vhost.disk', dev_name=params['name'])
        return self.directory / 'vhost.disk'

    def command(self, image):
        made = call_text(*bdev_call(self.backing, image))
        return f'sluice-vhost -m {mask(cores()[0])} --mode {self.mode}  # {made}; vhost_create_blk_controller'


class QsdTarget(backends.QsdBackend):
    """qemu-storage-daemon; `backing`: null, null-zeroes, aio or uring.

    loop 'main': the export is served by the main loop, which sleeps whenever there is nothing to do.
    loop 'iothread': by a thread of its own that polls for up to 32 us first (QEMU's default for it).
    """

    def __init__(self, backing, loop):
        super().__init__(f'bench-qsd-{backing}-{loop}')
        self.backing, self._loop = backing, loop

    def serve(self, image):
        node, export = self._calls(image)
        if self._loop == 'iothread':
            self._control.call('object-add', **{'qom-type': 'iothread', 'id': 'io0'})
        self._control.call('blockdev-add', **node)
        path = self.directory / 'disk.sock'
        self._control.call('block-export-add', **export, addr={'type': 'unix', 'path': str(path)})
        return path

    def command(self, image):
        node, export = self._calls(image)
        if image:
            node['filename'] = image.name
        iothread = '--object iothread,id=io0 ' if self._loop == 'iothread' else ''
        return (f'taskset -c {cores()[0]} qemu-storage-daemon {iothread}--blockdev {option_text(node)} '
                f'--export {option_text(export)},addr.type=unix,addr.path=disk.sock')

    def _calls(self, image):
        if self.backing.startswith('null'):
            node = {'driver': 'null-co', 'size': SIZE_BYTES, 'read-zeroes': self.backing == 'null-zeroes'}
        else:
            direct = takes_direct_io(image)
            node = {'driver': 'file', 'filename': str(image), 'cache': {'direct': direct},
                    # Its native AIO is for direct I/O only.
                    'aio': {'aio': 'native' if direct else 'threads', 'uring': 'io_uring'}[self.backing]}
        export = {'type': 'vhost-user-blk', 'id': 'disk', 'node-name': 'disk', 'writable': True, 'num-queues': 1,
                  'logical-block-size': BLOCK_BYTES}
        if self._loop == 'iothread':
            export['iothread'] = 'io0'
        return {**node, 'node-name': 'disk'}, export

    # The threads that it starts inherit the core.
    def _spawn(self, command, **options):
        super()._spawn([program('taskset', 'util-linux'), '-c', cores()[0], *command], **options)


def option_text(arguments):
    """QMP arguments as the command line has them."""
    nested = {f'{key}.{inner}': value for key, inners in arguments.items() if isinstance(inners, dict)
              for inner, value in inners.items()}
    plain = {key: value for key, value in arguments.items() if not isinstance(value, dict)}
    return ','.join(f'{key}={str(value).lower()}' for key, value in {**plain, **nested}.items())
