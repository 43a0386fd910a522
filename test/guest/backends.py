"""What serves the disks: sluice-vhost, or qemu-storage-daemon as a second opinion on the tests themselves.

Chosen by SLUICE_GUEST_BACKEND=sluice|qsd (default sluice). A test that fails against sluice and passes
against qsd has found a bug in sluice; one that fails against both has a bug itself.
"""

import os
import pathlib
import resource
import shutil
import socket
import subprocess
import tempfile
import time

import common
from common import CACHE, Deadline, GuestError, Missing, REPO, program
from jsonrpc import JsonRpc, Qmp

START_TIMEOUT_S = 20
CRASHES = int(os.environ.get('SLUICE_TEST_CRASHES', 4))  # how often a test kills a daemon under load


class Disk:
    """`socket` is what a guest attaches to; `image` the file behind it, None for memory."""

    def __init__(self, name, socket_path, image, size_bytes, packed=False):
        self.name, self.socket, self.image, self.size_bytes = name, socket_path, image, size_bytes
        self.packed = packed


class Store(Disk):
    """A store of logical volumes, itself not for guests."""


class Volume(Disk):
    """A logical volume, of a Store that was added before; its name begins with the store's and a slash."""


class Backend:
    """A daemon of its own for one test; use as a context manager.

    Ends with an error if the daemon died on its own, or does not exit with status 0 on SIGTERM.
    """

    kind = None
    modes = ()  # what the `mode` argument and set_mode() take; empty: there is only one way to run
    has_memory_disks = False
    has_volumes = False
    has_packed_rings = False
    can_share_disks = False  # add_controller()
    tells_growth = False  # guests see a new size without a reboot
    replaces_disks = False  # replace()
    upgrades = False  # upgrade()
    keeps_requests = False  # requests in flight survive restart()
    breaks_all_disks = False  # break_disk() hits the other disks too
    place = None  # where its directory is; None: where temporary files are

    def __init__(self, name, mode=None):
        self.name = name
        self.mode = mode
        self.log = common.log_path(f'{name}.daemon.log')
        # Not below build/: a UNIX socket's path has at most 107 characters.
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix='sluice-guest-', dir=self.place))
        self._disks = []
        self._process = None
        self._control = None  # the client of the daemon's RPC or QMP socket

    # Each back end has its own: _start, _socket_path, _export, grow, break_disk; set_mode if it has modes.

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(self, kind, value, trace):
        try:
            died = self._process.poll()
            status = common.stop_process(self._process, timeout_s=10)
        finally:
            self._clean_up()
        if kind is None and (died is not None or status != 0):
            when = 'died during the test' if died is not None else 'did not end cleanly on SIGTERM'
            raise GuestError(f'{self.kind} {when} (status {status}); see {self.log}:\n{common.tail(self.log)}')

    def add_disk(self, name, size_bytes, in_memory=False, packed=False):
        """A new disk full of zeros, ready for a guest; `packed`: packed virtqueues are offered."""
        image = None if in_memory else self._new_image(name, size_bytes)
        disk = Disk(name, self._socket_path(name), image, size_bytes, packed)
        self._export(disk)
        self._disks.append(disk)
        return disk

    def _new_image(self, name, size_bytes):
        image = CACHE / 'disks' / f'{self.name}.{name}.img'
        image.parent.mkdir(parents=True, exist_ok=True)
        with open(image, 'wb') as file:
            file.truncate(size_bytes)
        return image

    def restart(self):
        """SIGKILL, then a new daemon with the same disks. Old sockets stay, as after a real crash."""
        self._process.kill()
        self._process.wait()
        self._control.close()
        self._start()
        for disk in self._disks:
            self._export(disk)

    def cpu_ns(self):
        """CPU time of all the daemon's threads so far, including those which have ended."""
        # clock_getcpuclockid(3), which Python lacks: the kernel's number for "CPU time of that process".
        return time.clock_gettime_ns((~self._process.pid << 3) | 2)

    def _spawn(self, command, **options):
        with open(self.log, 'ab') as log:
            log.write(f'$ {" ".join(map(str, command))}\n'.encode())
            log.flush()
            self._process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                                             stdout=log, stderr=log, **options)

    def _clean_up(self):
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._control:
            self._control.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class SluiceBackend(Backend):
    """Our daemon on one core. SLUICE_VHOST=PATH takes another build of it."""

    kind = 'sluice-vhost'
    modes = ('interrupt', 'poll', 'adaptive')
    has_memory_disks = True
    has_volumes = True
    has_packed_rings = True
    can_share_disks = True
    tells_growth = True
    replaces_disks = True
    upgrades = True
    keeps_requests = True

    def __init__(self, name, mode=None):
        super().__init__(name, mode)
        self._cores = [min(os.sched_getaffinity(0))]  # core 0 need not be ours in a container
        self.rpc_path = self.directory / 'rpc.sock'

    def add_store(self, name, size_bytes):
        """An empty store of logical volumes, on a file."""
        store = Store(name, None, self._new_image(name, size_bytes), size_bytes)
        self._export(store)
        self.call('bdev_lvol_create_lvstore', bdev_name=name, lvs_name=name)
        self._disks.append(store)
        return store

    def add_volume(self, name):
        """A volume that exists, "store/volume", ready for a guest."""
        volume = Volume(name, self._socket_path(name.replace('/', '.')), None, None)
        self._export(volume)
        self._disks.append(volume)
        return volume

    def add_controller(self, disk):
        """A second socket of a disk, for a guest that moves there from the first."""
        path = self._socket_path(f'{disk.name}-second')
        self.call('vhost_create_blk_controller', ctrlr=path.name, dev_name=disk.name, packed_ring=disk.packed)
        return path

    def call(self, method, **params):
        return self._control.call(method, **params)

    def grow(self, disk, size_bytes):
        os.truncate(disk.image, size_bytes)
        self._control.call('bdev_aio_rescan', name=disk.name)
        disk.size_bytes = size_bytes

    def replace(self, disk, name, size_bytes):
        """Another bdev, full of zeros, behind a disk in use; its own is deleted."""
        image = self._new_image(name, size_bytes)
        self._control.call('bdev_aio_create', name=name, filename=str(image), block_size=512)
        self._control.call('vhost_controller_set_bdev', ctrlr=disk.socket.name, bdev_name=name)
        self._control.call('bdev_aio_delete', name=disk.name)
        disk.name, disk.image, disk.size_bytes = name, image, size_bytes

    def upgrade(self):
        """Another process takes the place of this one, which ends."""
        old, self._process = self._process, None
        try:
            self._control.close()
            self._spawn([self.require(), '-m', hex(sum(1 << core for core in self._cores)), '--upgrade-from', self.rpc_path,
                         '--mode', self.mode or 'interrupt'])
            if old.wait(START_TIMEOUT_S) != 0:
                raise GuestError(f'{self.kind} handed nothing over; see {self.log}:\n{common.tail(self.log)}')
        finally:
            old.kill()
            old.wait()
        self._control = JsonRpc(self.rpc_path)

    def break_disk(self, disk):
        """Hot removal under a running guest."""
        self._control.call('bdev_aio_delete', name=disk.name, force=True)

    def set_mode(self, mode):
        for core in self._cores:
            self._control.call('reactor_set_mode', lcore=core, mode=mode)

    @staticmethod
    def require():
        path = pathlib.Path(os.environ.get('SLUICE_VHOST', REPO / 'build/release/app/vhost/sluice-vhost'))
        if not path.exists():
            raise Missing(f'{path} is not built (scripts/build)')
        return path

    def _socket_path(self, name):
        return self.directory / f'vhost.{name}'

    def _export(self, disk):
        if isinstance(disk, Volume):
            self._control.call('bdev_wait_for_examine')
        elif disk.image is None:
            self._control.call('bdev_malloc_create', name=disk.name, num_blocks=disk.size_bytes // 512, block_size=512)
        else:
            self._control.call('bdev_aio_create', name=disk.name, filename=str(disk.image), block_size=512)
        if isinstance(disk, Store):
            return
        self._control.call('vhost_create_blk_controller', ctrlr=disk.socket.name, dev_name=disk.name, packed_ring=disk.packed)

    def _start(self):
        self._spawn([self.require(), '-m', hex(sum(1 << core for core in self._cores)), '-S', self.directory, '-r', self.rpc_path,
                     '--mode', self.mode or 'interrupt'])
        # The daemon's only sign that it is ready is its socket: try until it answers.
        deadline = Deadline(START_TIMEOUT_S)
        while True:
            try:
                self._control = JsonRpc(self.rpc_path)
                return
            except (FileNotFoundError, ConnectionRefusedError):
                pass
            if self._process.poll() is not None or not deadline.left():
                raise GuestError(f'{self.kind} opened no RPC socket; see {self.log}:\n{common.tail(self.log)}')
            time.sleep(0.01)


class QsdBackend(Backend):
    """qemu-storage-daemon 7.2: one process, a vhost-user-blk export for each disk."""

    kind = 'qemu-storage-daemon'
    breaks_all_disks = True

    def break_disk(self, disk):
        """The nearest to hot removal: with a file size limit of 0, each of the daemon's writes fails."""
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (0, 0))

    @staticmethod
    def require():
        return program('qemu-storage-daemon', 'qemu-utils')

    def _socket_path(self, name):
        return self.directory / f'{name}.sock'

    def _export(self, disk):
        self._control.call('blockdev-add', **{'driver': 'file', 'node-name': disk.name, 'filename': str(disk.image),
                                          'discard': 'unmap'})
        self._control.call('block-export-add', **{'type': 'vhost-user-blk', 'id': disk.name, 'node-name': disk.name,
                                              'writable': True, 'num-queues': 2,
                                              'addr': {'type': 'unix', 'path': str(disk.socket)}})

    def _start(self):
        monitor, monitor_end = socket.socketpair()
        # restore_signals=False keeps SIGXFSZ ignored, as it is in Python: break_disk() counts on EFBIG.
        self._spawn([self.require(), '--chardev', f'socket,id=monitor,fd={monitor_end.fileno()}',
                     '--monitor', 'chardev=monitor'], pass_fds=[monitor_end.fileno()], restore_signals=False)
        monitor_end.close()
        self._control = Qmp(monitor)


def chosen_backend():
    """The class that SLUICE_GUEST_BACKEND names; Missing if its program is."""
    name = os.environ.get('SLUICE_GUEST_BACKEND', 'sluice')
    classes = {'sluice': SluiceBackend, 'qsd': QsdBackend}
    if name not in classes:
        raise GuestError(f'SLUICE_GUEST_BACKEND={name}: must be one of {", ".join(classes)}')
    classes[name].require()
    return classes[name]
