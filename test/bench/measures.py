"""Measurements that take more than one program: a load on a target behind a socket, and the files below a target.

Like the functions of programs.py, a measurement returns (figures, command).
"""

import functools
import os
import pathlib
import random
import tempfile

from common import CACHE
from programs import SIZE_BYTES, bdevperf, cores

GUEST_READS_PER_S = 6_000  # about what a guest does, one at a time: how many reads stand for so many seconds


class Files:
    """The files behind aio and uring, full of random bytes: made when first asked for, removed at the end."""

    def __enter__(self):
        self._folders = []
        return self

    def __exit__(self, *_):
        for folder in self._folders:
            folder.cleanup()

    @functools.cached_property
    def disk(self):
        return self._make(CACHE.parent / 'bench', 'disk.img')

    @functools.cached_property
    def memory(self):
        """On tmpfs: no disk is in the way, so the processor is the limit."""
        return self._make(pathlib.Path('/dev/shm'), 'memory.img')

    def _make(self, where, name):
        where.mkdir(parents=True, exist_ok=True)
        self._folders.append(tempfile.TemporaryDirectory(prefix='sluice-bench-', dir=where))
        path = pathlib.Path(self._folders[-1].name) / name
        data = random.Random(1).randbytes(1 << 20)
        with open(path, 'wb') as file:
            for _ in range(SIZE_BYTES // len(data)):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())  # or its write-back falls into what is measured
        return path


def over_socket(seconds, make_target, image=None, depth=1, size_bytes=4096):
    """bdevperf polls on the second core; the target serves it on the first. cpu_ns is the target's."""
    with make_target() as target:
        socket = target.serve(image)
        if target.backing == 'malloc':  # memory that was never written reads faster than a disk in use
            bdevperf(0.05, 'virtio', socket, core=1, depth=32, size_bytes=1 << 20, workload='write', fill=True)
        before_ns = target.cpu_ns()
        figures, command = bdevperf(seconds, 'virtio', socket, core=1, depth=depth, size_bytes=size_bytes)
        figures['cpu_ns'] = (target.cpu_ns() - before_ns) / figures['ios']
        return figures, f'{target.command(image)}\n{command}'


def from_guest(seconds, uml, make_target, image=None):
    """A User-Mode Linux guest on the second core reads 4 KiB at a time; the target is on the first.

    cpu_ns is the target's, and has in it what booting cost.
    """
    reads = int(seconds * GUEST_READS_PER_S)
    with make_target() as target:
        socket = target.serve(image)
        before_ns = target.cpu_ns()
        result = uml.measure(socket, 'bench-uml', reads, cores()[1], timeout_s=60 + 10 * seconds)
        cpu_ns = (target.cpu_ns() - before_ns) / reads
        command = f'taskset -c {cores()[1]} linux.uml mem=64M virtio_uml.device=disk.sock:2 reads={reads}'
        figures = {**{f'{name}_us': result[f'{name}_ns'] / 1000 for name in ('p50', 'p99', 'mean')}, 'cpu_ns': cpu_ns}
        return figures, f'{target.command(image)}\n{command}'


def with_throughput(seconds, measure, size_bytes):
    figures, command = measure(seconds)
    return {**figures, 'gibps': figures['iops'] * size_bytes / (1 << 30)}, command
