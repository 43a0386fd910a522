"""What stands around a group of rows: daemons, front ends and loads that stay from row to row.

Each is a context manager whose methods are the rows' measurements: seconds -> (figures, command).
"""

import contextlib
import threading
import time
from random import Random as random_of

from common import GuestError
from many import SETTLE_S, Load, ManyDisks, crowd, crowd_command, hog
from programs import MODES, bdev_call, bdevperf_figures, call_text, cores, mask, run_bdevperf, shown


class Setting(contextlib.AbstractContextManager):
    """Has a stack for what it starts."""

    def __init__(self):
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        with self._stack as stack:
            self._set_up(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        return self._stack.__exit__(*error)


class AmongMany(Setting):
    """A daemon with `count` disks, all but `busy` of them with idle front ends; and one with `busy` disks alone.

    They have the first core by turns: who is not measured sleeps.
    """

    def __init__(self, busy, count):
        super().__init__()
        self._busy, self._count = busy, count
        self._alone = self._among = None

    def _set_up(self, stack):
        self._alone = stack.enter_context(ManyDisks('alone', self._busy))
        self._alone.create()
        self._among = stack.enter_context(ManyDisks('among', self._count))
        self._among.create()
        stack.enter_context(crowd(self._among, self._busy, self._count - self._busy))

    def alone(self, seconds, mode, depth):
        return self._measure(seconds, self._alone, mode, depth)

    def among(self, seconds, mode, depth):
        figures, command = self._measure(seconds, self._among, mode, depth)
        idle = shown(crowd_command(self._among, self._busy, self._count - self._busy))
        return figures, f'{command}\n{idle}'

    def _measure(self, seconds, target, mode, depth):
        """bdevperf polls on the second core. cpu_ns is the target's."""
        calls = [bdev_call('virtio', socket, f'disk{i}') for i, socket in enumerate(target.sockets(self._busy))]
        with polling(target, mode):
            before_ns = target.cpu_ns()
            result, _, command = run_bdevperf(seconds, calls, cores()[1],
                                              ['-q', depth, '-o', 4096, '-w', 'randread', '-t', round(seconds, 3)])
            figures = bdevperf_figures(result)
            figures['cpu_ns'] = (target.cpu_ns() - before_ns) / figures['ios']
            rates = [job['iops'] for job in result['results']]
            figures['slowest'] = min(rates) * len(rates) / sum(rates)
            return figures, f'{target.command()}\n{command}  # disk.json: {call_text(*calls[0])}'


@contextlib.contextmanager
def polling(target, mode):
    """The target in this mode; asleep afterwards."""
    target.set_mode(mode)
    target.mode = mode
    try:
        yield
    finally:
        target.set_mode('interrupt')


class AllIdle(Setting):
    """A daemon with `count` disks whose front ends are all idle."""

    def __init__(self, count):
        super().__init__()
        self._count, self._target = count, None

    def _set_up(self, stack):
        self._target = stack.enter_context(ManyDisks('idle', self._count))
        self._target.create()
        stack.enter_context(crowd(self._target, 0, self._count))

    def measure(self, seconds, mode):
        with polling(self._target, mode):
            time.sleep(SETTLE_S)
            to_answer = -self._target.wakeups() + self._target.wakeups()
            time.sleep(SETTLE_S)
            wakeups, cpu_ns = self._target.wakeups(), self._target.cpu_ns()
            time.sleep(seconds)
            cpu_ns, wakeups = self._target.cpu_ns() - cpu_ns, self._target.wakeups() - wakeups
            figures = {'cpu_us_per_s': cpu_ns / 1000 / seconds,
                       'wakeups_per_s': max(0, wakeups - to_answer) / seconds}
            return figures, f'{self._target.command()}\n{shown(crowd_command(self._target, 0, self._count))}'


def create_and_delete(seconds, count):
    """Makes the disks and controllers by RPC, connects and starts all, and deletes them under their front ends."""
    del seconds
    with ManyDisks('create', count) as target:
        memory_kib, descriptors = target.memory_kib(), target.descriptors()
        create_ms = ms_of(target.create)
        with crowd(target, 0, count) as report:
            figures = {'create_ms': create_ms, 'start_ms': (report['connect_s'] + report['start_s']) * 1000,
                       # A few devices may take less than what the daemon gave back meanwhile.
                       'kib_each': max(0, target.memory_kib() - memory_kib) / count,
                       'descriptors_each': (target.descriptors() - descriptors) / count}
            figures['ready_ms'] = figures['create_ms'] + figures['start_ms']
            figures['delete_ms'] = ms_of(target.delete)
            return figures, f'{target.command()}\n{shown(crowd_command(target, 0, count))}'


def ms_of(act):
    began = time.monotonic()
    act()
    return (time.monotonic() - began) * 1000


class Restless(Setting):
    """A daemon on both cores, whose reactors change their modes and whose threads move all the time."""

    EVERY_S = 0.01

    def __init__(self, count):
        super().__init__()
        self._count, self._target = count, None

    def _set_up(self, stack):
        self._target = stack.enter_context(ManyDisks('restless', self._count, kind='malloc', on=cores()))
        self._target.create()

    def measure(self, seconds, changing):
        """Verified writes on all disks, with changes (mode switches and moves) meanwhile, or without."""
        calls = [bdev_call('virtio', socket, f'disk{i}') for i, socket in enumerate(self._target.sockets(self._count))]
        # Memory that was never written is given out by the kernel, and below it the hypervisor, in its own time.
        run_bdevperf(0.3, calls, cores()[1], ['-q', 4, '-o', 1 << 20, '-w', 'write', '-t', 0.3, '--fill'])
        with restless(self._target, self.EVERY_S) if changing else contextlib.nullcontext([]) as changes:
            result, _, command = run_bdevperf(seconds, calls, cores()[1],
                                              ['-q', 1, '-o', 4096, '-w', 'verify', '-t', round(seconds, 3),
                                               '--mode', 'adaptive'])
        figures = {**bdevperf_figures(result), 'max_ms': result['total']['max_latency_us'] / 1000,
                   'changes': len(changes)}
        return figures, f'{self._target.command()}\n{command}  # disk.json: {call_text(*calls[0])}'


@contextlib.contextmanager
def restless(target, every_s):
    """Changes the target this often: by turns the mode of a reactor and the core of a controller's thread."""
    changes, stop, failed = [], threading.Event(), []

    def run():
        threads, random = target.thread_ids(), random_of(1)
        try:
            while not stop.wait(every_s):
                core = random.choice(target.cores)
                if len(changes) % 2:
                    target.change('reactor_set_mode', lcore=core, mode=random.choice(MODES))
                else:
                    target.change('thread_set_cpumask', id=random.choice(threads), cpumask=mask(core))
                changes.append(core)
        except GuestError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield changes
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


class OfferedLoad(Setting):
    """A daemon with one disk, and a load that offers so many requests per second, whatever completes."""

    def __init__(self, make_target, image, rate):
        super().__init__()
        self._make_target, self._image, self._rate = make_target, image, rate
        self._target = self._socket = self._load = None

    def _set_up(self, stack):
        self._target = stack.enter_context(self._make_target())
        self._socket = self._target.serve(self._image)

    def measure(self, seconds, mode):
        """cpu_ns is the target's, of the time in which the load runs."""
        if self._load is None:
            options = ['-q', 128, '--rate', self._rate, '--warmup', round(min(seconds / 2, 0.1), 3)]
            self._load = self._stack.enter_context(Load([self._socket], seconds, options))
        with polling(self._target, mode):
            before_ns, began = self._target.cpu_ns(), time.monotonic_ns()
            result = self._load.measure()
            share = (self._target.cpu_ns() - before_ns) / (time.monotonic_ns() - began)
            figures = {**bdevperf_figures(result), 'offered': self._rate}
            figures['cpu_ns'] = share * 1e9 / figures['iops']
            return figures, f'{self._target.command(self._image)}\n{self._load.command}'


class Neighbourhood(Setting):
    """A daemon with `count` disks, of which `busy` have a modest load and the others idle guests; and one more disk.

    The load sleeps between requests. It shares its core with the bad neighbour, or with what takes as much of the core
    without being one: both give way to it at once. So the rows differ only in what the target has to bear.
    """

    def __init__(self, mode, busy, count, rate_each):
        super().__init__()
        self._mode, self._busy, self._count, self._rate_each = mode, busy, count, rate_each
        self._target = self._load = None

    def _set_up(self, stack):
        self._target = stack.enter_context(ManyDisks(f'neighbours-{self._mode}', self._count + 1, self._mode))
        self._target.create()
        stack.enter_context(crowd(self._target, self._busy, self._count - self._busy))

    def measure(self, seconds, behave):
        if self._load is None:
            options = ['-q', 16, '--rate', self._rate_each, '--warmup', round(min(seconds / 2, 0.1), 3)]
            sockets = self._target.sockets(self._busy)
            self._load = self._stack.enter_context(Load(sockets, seconds, options, mode='interrupt'))
        command = f'{self._target.command()}\n{self._load.command}'
        with contextlib.ExitStack() as stack:
            if behave != 'kicks':
                stack.enter_context(hog())
            if behave != 'none':
                stack.enter_context(crowd(self._target, self._count, 1, behave, only_when_idle=True))
                command += '\n' + shown(crowd_command(self._target, self._count, 1, behave))
            return bdevperf_figures(self._load.measure()), command


class AmongHostile(Setting):
    """A daemon with `honest` disks under a modest load, and `hostile` ones whose front ends attack it at random.

    The load sleeps between requests, and shares its core as in Neighbourhood.
    """

    LEAVE_S = 30  # until what the hostile ones had is given back

    def __init__(self, mode, honest, hostile, rate_each):
        super().__init__()
        self._mode, self._honest, self._hostile, self._rate_each = mode, honest, hostile, rate_each
        self._target = self._load = None

    def _set_up(self, stack):
        self._target = stack.enter_context(ManyDisks(f'hostile-{self._mode}', self._honest + self._hostile, self._mode))
        self._target.create()

    def measure(self, seconds, attacked):
        """A request of an honest one that fails ends the measurement. What is left of the hostile ones is counted."""
        if self._load is None:
            options = ['-q', 16, '--rate', self._rate_each, '--warmup', round(min(seconds / 2, 2), 3)]
            self._load = self._stack.enter_context(Load(self._target.sockets(self._honest), seconds, options,
                                                        mode='interrupt'))
        command = f'{self._target.command()}\n{self._load.command}'
        if not attacked:
            with hog():
                return bdevperf_figures(self._load.measure()), command
        memory_kib, descriptors = self._target.memory_kib(), self._target.descriptors()
        with crowd(self._target, self._honest, self._hostile, 'hostile', only_when_idle=True):
            before_ns, began = self._target.cpu_ns(), time.monotonic_ns()
            figures = bdevperf_figures(self._load.measure())
            figures['cores'] = (self._target.cpu_ns() - before_ns) / (time.monotonic_ns() - began)
        deadline = time.monotonic() + self.LEAVE_S
        while self._target.descriptors() > descriptors and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(2)  # pools shrink every second
        figures['kib_left'] = max(0, self._target.memory_kib() - memory_kib)
        figures['descriptors_left'] = max(0, self._target.descriptors() - descriptors)
        return figures, command + '\n' + shown(crowd_command(self._target, self._honest, self._hostile, 'hostile'))
