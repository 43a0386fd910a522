"""Logical volumes: what they cost on top of their base bdev, and how long their operations take."""

import os
import pathlib
import tempfile
import threading
import time

import backends
from common import GuestError
from programs import BLOCK_BYTES, SIZE_BYTES, bdev_call, bdevperf, bdevperf_figures, call_text, cores, run_bdevperf
from settings import Setting

STORE_BYTES = 3 << 30
TERABYTE = 1 << 40
SNAPSHOTS = 100


def write_all_of(path, size_bytes):
    """A file that is all there: what its file system, or a host of virtual machines, does for new memory and blocks is
    in no figure."""
    zeros = bytes(1 << 20)
    with open(path, 'wb') as file:
        for _ in range(size_bytes // len(zeros)):
            file.write(zeros)
        os.fsync(file.fileno())


class StoreOnFile(Setting):
    """A store on a file, with a thick volume that is written, and a snapshot of another; and a plain file."""

    def __init__(self, plain):
        super().__init__()
        self._plain, self._store, self._clones = plain, None, 0

    def _set_up(self, stack):
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='sluice-bench-', dir=self._plain.parent))
        self._store = pathlib.Path(folder) / 'store.img'
        write_all_of(self._store, STORE_BYTES)
        mib = SIZE_BYTES >> 20
        make = [('bdev_lvol_create_lvstore', {'bdev_name': 'disk', 'lvs_name': 'lvs'}),
                *(('bdev_lvol_create', {'lvs_name': 'lvs', 'lvol_name': name, 'size_in_mib': mib,
                                        'thin_provision': thin})
                  for name, thin in (('flat', False), ('origin', True)))]
        for volume in 'flat', 'origin':
            self._run(0.05, make, volume, 1, 'read', ['--fill', '-o', '1M'])
            make = []
        self._run(0.05, [('bdev_lvol_snapshot', {'lvol_name': 'lvs/origin', 'snapshot_name': 'image'})], 'flat', 1, 'read')

    def base(self, seconds, depth, workload):
        return bdevperf(seconds, 'aio', self._plain, depth=depth, workload=workload)

    def volume(self, seconds, depth, workload):
        """Of what is mapped, and nobody else's."""
        return self._run(seconds, [], 'flat', depth, workload)

    def fresh_clone(self, seconds, depth):
        """Each request is a first write to its place, or nearly: a clone is as large as what was written of the image."""
        calls = [('bdev_lvol_clone', {'snapshot_name': 'lvs/image', 'clone_name': f'clone{self._clones + 1}'})]
        if self._clones > 0:
            calls.insert(0, ('bdev_lvol_delete', {'name': f'lvs/clone{self._clones}'}))
        self._clones += 1
        return self._run(seconds, calls, f'clone{self._clones}', depth, 'randwrite')

    def _run(self, seconds, calls, volume, depth, workload, options=()):
        calls = [bdev_call('aio', self._store), ('bdev_wait_for_examine', {}), *calls]
        result, process_cpu_s, command = run_bdevperf(
            seconds, calls, cores()[0],
            ['-q', depth, '-o', 4096, '-w', workload, '-t', round(seconds, 3), '-T', f'lvs/{volume}', *options])
        figures = bdevperf_figures(result)
        figures['process_cpu_ns'] = process_cpu_s * 1e9 / figures['ios']
        return figures, f'{command}  # disk.json: {"; ".join(call_text(*call) for call in calls)}'


class BigStore(Setting):
    """A daemon with a store on a sparse file of somewhat more than `size_bytes`, and a volume of that size, all mapped."""

    def __init__(self, where, size_bytes):
        super().__init__()
        self._where, self._size_bytes, self._daemon = where, size_bytes, None

    def _set_up(self, stack):
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='sluice-bench-', dir=self._where))
        image = pathlib.Path(folder) / 'store.img'
        with open(image, 'wb') as file:
            file.truncate(self._size_bytes + (self._size_bytes >> 4) + (1 << 28))
        self._daemon = stack.enter_context(LvolDaemon('bench-load', 'poll', image))
        self._daemon.call('bdev_lvol_create_lvstore', bdev_name='store', lvs_name='lvs')
        self._daemon.call('bdev_lvol_create', lvs_name='lvs', lvol_name='big', size_in_mib=self._size_bytes >> 20)

    def measure(self, seconds):
        del seconds
        self._daemon.kill_and_start()
        begin = time.monotonic()
        self._daemon.open_base()
        load_ms = (time.monotonic() - begin) * 1000
        if not self._daemon.call('bdev_get_bdevs', name='lvs/big'):
            raise GuestError('the volume is not there')
        return {'ms': load_ms, 'mib': self._daemon.memory_kib() / 1024}, 'kill -9; sluice-vhost; bdev_aio_create'


class LvolDaemon(backends.SluiceBackend):
    """sluice-vhost with the bdev "store" on a file."""

    def __init__(self, name, mode, image):
        super().__init__(name, mode)
        self._image = image

    def __enter__(self):
        super().__enter__()
        self.open_base()
        return self

    def open_base(self):
        method, params = bdev_call('aio', self._image, 'store')
        self.call(method, **params)

    def kill_and_start(self):
        self._process.kill()
        self._process.wait()
        self._control.close()
        self._start()

    def memory_kib(self):
        status = pathlib.Path(f'/proc/{self._process.pid}/status').read_text()
        return int(status.split('RssAnon:')[1].split()[0])


class VolumesUnderLoad(Setting):
    """A daemon with two volumes under random writes, while something is done to one of them, or to a third."""

    def __init__(self, plain, store_bytes=STORE_BYTES):
        super().__init__()
        self._plain, self._store_bytes, self._daemon, self._image = plain, store_bytes, None, False

    def _set_up(self, stack):
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='sluice-bench-', dir=self._plain.parent))
        image = pathlib.Path(folder) / 'store.img'
        write_all_of(image, STORE_BYTES)
        os.truncate(image, self._store_bytes)
        self._daemon = stack.enter_context(LvolDaemon('bench-volumes', 'poll', image))
        self._daemon.call('bdev_lvol_create_lvstore', bdev_name='store', lvs_name='lvs')
        for name in 'snapped', 'other':
            self._daemon.call('bdev_lvol_create', lvs_name='lvs', lvol_name=name, size_in_mib=SIZE_BYTES >> 20)
            self._export(name)
            self._write_all(name)

    def _export(self, name):
        self._daemon.call('vhost_create_blk_controller', ctrlr=f'vhost.{name}', dev_name=f'lvs/{name}')

    def _write_all(self, name):
        run_bdevperf(0.05, [bdev_call('virtio', self._daemon.directory / f'vhost.{name}', name)], cores()[1],
                     ['-q', 1, '-w', 'read', '-o', '1M', '-t', 0.05, '--fill'])

    def still(self, seconds):
        return self._measure(seconds)

    def snapshots(self, seconds):
        made = []

        def make(stop):
            while not stop.wait(0.005):
                self._daemon.call('bdev_lvol_snapshot', lvol_name='lvs/snapped', snapshot_name='s')
                self._daemon.call('bdev_lvol_delete', name='lvs/s')
                made.append(1)

        figures, command = self._measure(seconds, make)
        holds = self._daemon.call('bdev_lvol_get_usage', lvs_name='lvs')['write_holds']
        return figures | {'snapshots': len(made), 'held_p99_us': holds['p99_us'], 'held_max_us': holds['max_us']}, command

    def deletion(self, seconds, size_bytes):
        """The load goes on for as long as it takes to give the clusters back, or nearly."""
        self._create('big', size_bytes, thin=False)

        def delete(stop):
            self._daemon.call('bdev_lvol_delete', name='lvs/big')

        return self._measure(seconds, delete)

    def inflation_of_nothing(self, seconds, size_bytes):
        """Of a volume that nobody has written to: it takes clusters for as long as the load runs."""
        self._create('big', size_bytes, thin=True)
        return self._inflation(seconds, 'big')

    def inflation(self, seconds):
        """Of a clone of what is written: all of it is copied, or as much as the load leaves time for."""
        if not self._image:
            self._create('image', SIZE_BYTES, thin=True)
            self._export('image')
            self._write_all('image')
            self._daemon.call('vhost_delete_controller', ctrlr='vhost.image')
            self._daemon.call('bdev_lvol_snapshot', lvol_name='lvs/image', snapshot_name='i')
            self._image = True
        self._daemon.call('bdev_lvol_clone', snapshot_name='lvs/i', clone_name='clone')
        return self._inflation(seconds, 'clone')

    def _inflation(self, seconds, volume):
        def inflate(stop):
            try:
                self._daemon.call('bdev_lvol_inflate', name=f'lvs/{volume}')
            except (GuestError, OSError):
                if not stop.is_set():
                    raise

        figures, command = self._measure(seconds, inflate, end=self._start_again)
        self._daemon.call('bdev_lvol_delete', name=f'lvs/{volume}')
        return figures, command

    def _create(self, name, size_bytes, thin):
        self._daemon.call('bdev_lvol_create', lvs_name='lvs', lvol_name=name, size_in_mib=size_bytes >> 20,
                          thin_provision=thin)

    def _start_again(self):
        self._daemon.kill_and_start()
        self._daemon.open_base()
        for name in 'snapped', 'other':
            self._export(name)

    def _measure(self, seconds, meanwhile=None, end=None):
        stop = threading.Event()

        def act():
            # Not on the daemon's core: time slices of some milliseconds would be in the figures.
            os.sched_setaffinity(0, {cores()[1]})
            time.sleep(0.05)  # the load has begun by then
            meanwhile(stop)

        thread = threading.Thread(target=act)
        if meanwhile:
            thread.start()
        try:
            result, command = self._load(seconds, ['-q', 16, '-o', 4096, '-w', 'randwrite'])
        finally:
            stop.set()
            if end:
                end()
            if meanwhile:
                thread.join()
        snapped, other = (next(job for job in result['results'] if job['bdev'] == name) for name in ('snapped', 'other'))
        return {'iops': snapped['iops'], 'other_iops': other['iops'], 'p99_us': snapped['p99_latency_us'],
                'other_p99_us': other['p99_latency_us']}, command

    def _load(self, seconds, options):
        calls = [bdev_call('virtio', self._daemon.directory / f'vhost.{name}', name) for name in ('snapped', 'other')]
        result, _, command = run_bdevperf(seconds, calls, cores()[1],
                                          ['--mode', 'interrupt', '-t', round(seconds, 3), *options])
        bdevperf_figures(result)
        return result, command
