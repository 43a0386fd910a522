"""Daemons with thousands of disks, front ends for all of them, and a load that measures as often as it is asked to."""

import contextlib
import ctypes
import functools
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import backends
from common import Deadline, GuestError, Missing, log_path, program, stop_process, tail
from jsonrpc import JsonRpc
from programs import (PATIENCE_S, bdev_call, bdev_config, bdevperf_command, built, call_text, cores, mask, shown,
                      shown_bdevperf)

DEVICES = 4096
LEAST_DEVICES = 128  # fewer would be another measurement
# Of the daemon: the listening socket, the connection, kick and call of each device.
DESCRIPTORS_EACH = 4
DESCRIPTORS_BESIDE = 500
MAPS_BESIDE = 1000
SMALL_BLOCKS = 1 << 15
SETTLE_S = 0.2  # until what has been begun is done


@functools.cache
def most_devices():
    """DEVICES, or as many as the machine's limits allow a daemon of an ordinary user, with a note that says so."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if descriptors == resource.RLIM_INFINITY:
        descriptors = sys.maxsize
    maps = int(pathlib.Path('/proc/sys/vm/max_map_count').read_text())
    most, name = min(((descriptors - DESCRIPTORS_BESIDE) // DESCRIPTORS_EACH, 'open files (ulimit -Hn)'),
                     (maps - MAPS_BESIDE, 'mappings (vm.max_map_count)'))
    if most < LEAST_DEVICES:
        raise Missing(f'a limit of {name} that allows {LEAST_DEVICES} devices')
    if most < DEVICES:
        print(f'bench: note: {most:,} devices instead of {DEVICES:,}: the limit of {name} allows no more', flush=True)
        return most
    return DEVICES


class ManyDisks(backends.SluiceBackend):
    """sluice-vhost on the first core with many null disks, behind the sockets vhost.0, vhost.1, ..."""

    # On tmpfs, as /run is: on a disk the file system takes most of the time in which a socket is made.
    place = '/dev/shm'

    def __init__(self, name, count, mode='interrupt', kind='null', on=None):
        super().__init__(f'bench-{name}', mode)
        self._kind = kind
        self._cores = on or self._cores
        self._names = [f'disk{i}' for i in range(count)]
        self.prefix = self.directory / 'vhost.'

    def create(self):
        self._control.call_all([call for i, name in enumerate(self._names) for call in
                                (self._disk(name),
                                 ('vhost_create_blk_controller', {'ctrlr': f'vhost.{i}', 'dev_name': name}))])

    def _disk(self, name):
        method, params = bdev_call(self._kind, name=name)
        if self._kind == 'malloc':
            params['num_blocks'] = SMALL_BLOCKS  # all of them together have to fit into memory
        return method, params

    def delete(self):
        self._control.call_all([('vhost_delete_controller', {'ctrlr': f'vhost.{i}'}) for i in range(len(self._names))])
        self._control.call_all([(f'bdev_{self._kind}_delete', {'name': name}) for name in self._names])

    def sockets(self, count):
        return [f'{self.prefix}{i}' for i in range(count)]

    @property
    def cores(self):
        return self._cores

    def change(self, method, **params):
        self._control.call(method, **params)

    def thread_ids(self):
        """Of the controllers' threads."""
        return [thread['id'] for thread in self._control.call('thread_get_stats')['threads']
                if thread['name'].startswith('vhost.')]

    def wakeups(self):
        """How often its reactor has come back from sleep."""
        return self._control.call('framework_get_reactors')['reactors'][0]['wakeups']

    def memory_kib(self):
        """Its own memory: what no other process has as well, and page tables."""
        own = ('Private_Clean:', 'Private_Dirty:', 'VmPTE:')
        text = self._proc('smaps_rollup').read_text() + self._proc('status').read_text()
        return sum(int(words[1]) for words in map(str.split, text.splitlines()) if words and words[0] in own)

    def descriptors(self):
        return len(list(self._proc('fd').iterdir()))

    def command(self):
        text = f'sluice-vhost -m {hex(sum(1 << core for core in self._cores))} --mode {self.mode}  # '
        calls = f'{call_text(*self._disk("disk0"))}; vhost_create_blk_controller'
        return text + (calls if len(self._names) == 1 else f'{len(self._names):,} times: {calls}')

    def _proc(self, name):
        return pathlib.Path(f'/proc/{self._process.pid}/{name}')


@contextlib.contextmanager
def running(name, command, **options):
    """A program that runs beside others, meanwhile: its process. What it has to say is in its log."""
    log = log_path(f'bench-{name}.log')
    command = [str(word) for word in command]
    with open(log, 'w', encoding='utf-8') as errors:
        errors.write(f'$ {" ".join(command)}\n')
        errors.flush()
        process = subprocess.Popen(command, stderr=errors, text=True, **options)
    try:
        yield process
        if process.poll() is not None:
            raise GuestError(f'{name} ended by itself with status {process.returncode}; see {log}:\n{tail(log)}')
    finally:
        stop_process(process)
        for stream in process.stdin, process.stdout:
            if stream:
                stream.close()


def on_second_core(command, only_when_idle=False):
    """`only_when_idle`: it gives way at once to whatever else wants the core."""
    idle = [program('chrt', 'util-linux'), '--idle', '0'] * only_when_idle
    return [program('taskset', 'util-linux'), '-c', cores()[1], *idle, *command]


@contextlib.contextmanager
def crowd(target, first, count, behave='idle', only_when_idle=False):
    """Front ends of `count` disks from `first` on, all connected: its report. See test/bench/crowd.cc."""
    command = crowd_command(target, first, count, behave)
    with running(f'crowd-{behave}', on_second_core(command, only_when_idle), stdin=subprocess.PIPE,
                 stdout=subprocess.PIPE) as process:
        line = process.stdout.readline()
        if line:
            yield json.loads(line)
        else:
            process.wait()  # its end is the error


def crowd_command(target, first, count, behave='idle'):
    return [built('test/bench/sluice-crowd'), '--socket-prefix', target.prefix, '--first', first, '--count', count,
            '--behave', behave]


def hog():
    """Keeps the second core from ever resting, and gives way to whatever else wants it."""
    return running('hog', on_second_core(['/bin/sh', '-c', 'while :; do :; done'], only_when_idle=True))


def without_timer_slack():
    """Who sleeps until a request is due shall not sleep on for another 50 us, the kernel's default."""
    pr_set_timerslack = 29
    ctypes.CDLL(None).prctl(pr_set_timerslack, 1)


class Load:
    """sluice-bdevperf on the second core, on the disks behind these sockets; it measures as often as it is asked to."""

    def __init__(self, sockets, seconds, options, mode='poll'):
        self._calls = [bdev_call('virtio', socket, f'disk{i}') for i, socket in enumerate(sockets)]
        self._options = ['-o', 4096, '-w', 'randread', '-t', round(seconds, 3), '--mode', mode, *options]
        self._patience_s = 3 * seconds + PATIENCE_S
        self._stack = contextlib.ExitStack()
        self._control = None
        self.command = None

    def __enter__(self):
        with self._stack as stack:
            folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='sluice-bench-')))
            config = stack.enter_context(bdev_config(self._calls))
            command = bdevperf_command(config, cores()[1], self._options)
            self.command = f'{shown_bdevperf(command)}  # disk.json: {call_text(*self._calls[0])}'
            process = stack.enter_context(running('load', [*command, '-z', '-r', folder / 'rpc.sock'],
                                                  stdout=subprocess.DEVNULL, preexec_fn=without_timer_slack))
            self._control = stack.enter_context(contextlib.closing(connected(folder / 'rpc.sock', process,
                                                                             self._patience_s)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        return self._stack.__exit__(*error)

    def measure(self):
        """The JSON of one test."""
        return self._control.call('perform_tests')


def connected(path, process, timeout_s):
    """A client of this program's RPC socket, once it has one."""
    deadline = Deadline(PATIENCE_S)
    while process.poll() is None and deadline.left():
        try:
            return JsonRpc(path, timeout_s)
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.01)
    raise GuestError(f'{pathlib.Path(process.args[0]).name} opened no RPC socket; see build/guest/logs')
