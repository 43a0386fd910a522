"""Boots User-Mode Linux on one vhost-user-blk socket: the real Linux driver at native speed, no KVM.

The guest's only program is init.c; it writes, verifies, discards, zeroes and reports one RESULT line; or it
measures how long reads take.
"""

import os
import pathlib
import struct
import subprocess
import sys
import tempfile

import common
from common import CACHE, GuestError, HERE, Missing, program, run
from initramfs import Initramfs

SOURCES = HERE / 'uml'
BLOCK, EXTENT, SECTOR = 4096, 65536, 512


class Uml:
    """Everything a run needs, built once: the initramfs with init, and the ptrace library."""

    def __init__(self):
        self.kernel = program('linux.uml', 'user-mode-linux')
        self.directory = CACHE / 'uml'
        self.directory.mkdir(parents=True, exist_ok=True)
        self.initrd = self.directory / 'initrd.cpio'
        self.no_xstate = self.directory / 'no_xstate.so'
        self._build()

    def run(self, socket_path, name, blocks=2000, extents=500, seed=1, size_bytes=0, timeout_s=60):
        """Writes and verifies; returns the RESULT line's fields, e.g. {'discard_max': 1048576}."""
        return self._boot(socket_path, name, timeout_s, blocks=blocks, extents=extents, seed=seed, size=size_bytes)

    def loop(self, socket_path, name, image, size_bytes, meanwhile, blocks=2000, extents=500, timeout_s=60):
        """Writes and verifies pass after pass, with seeds from 1, while meanwhile() runs, and ends then.

        Returns the RESULT line's fields; the last seed is its `passes`. The limit counts from meanwhile()'s end.
        """
        def work():
            meanwhile()
            with open(image, 'r+b') as file:
                file.seek(size_bytes - BLOCK)
                file.write(b'end' + bytes(BLOCK - 3))
        return self._boot(socket_path, name, timeout_s, meanwhile=work, blocks=blocks, extents=extents,
                          size=size_bytes, loop=1)

    def measure(self, socket_path, name, reads, core, timeout_s=60):
        """On one core of the host, reads of 4 KiB one at a time: {'mean_ns': ..., 'p50_ns': ..., 'p99_ns': ...}."""
        on_core = [program('taskset', 'util-linux'), '-c', str(core)]
        return self._boot(socket_path, name, timeout_s, on_core, reads=reads)

    def _boot(self, socket_path, name, timeout_s, on_core=(), meanwhile=None, **parameters):
        """Boots, calls meanwhile(), waits for power-off and returns the RESULT line's fields.

        Raises GuestError unless the guest said `RESULT ok`; the log is build/guest/logs/NAME.log.
        """
        log = common.log_path(f'{name}.log')
        # UML keeps guest memory in a file in TMPDIR and sends its descriptor to the back end.
        with tempfile.TemporaryDirectory(prefix='sluice-uml-', dir='/dev/shm') as memory:
            command = [*on_core, self.kernel, 'mem=64M', 'rootfstype=ramfs', f'initrd={self.initrd}', 'con=null',
                       'con0=null,fd:1', f'uml_dir={memory}', f'virtio_uml.device={socket_path}:2', 'quiet',
                       'panic=-1', *(f'{key}={value}' for key, value in parameters.items())]
            environment = {'TMPDIR': memory, 'HOME': memory, 'PATH': os.environ.get('PATH', '')}
            if host_needs_no_xstate():
                environment['LD_PRELOAD'] = str(self.no_xstate)
            with open(log, 'wb') as output:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                           env=environment, start_new_session=True)
                try:
                    if meanwhile:
                        meanwhile()
                    process.wait(timeout_s)
                except subprocess.TimeoutExpired:
                    raise GuestError(f'UML did not power off within {timeout_s} s; see {log}:\n{common.tail(log)}') \
                        from None
                except GuestError:
                    if process.poll() is not None:
                        parse_result(log)  # what it says is the reason
                    raise
                finally:
                    kill_session(process)
        return parse_result(log)

    def _build(self):
        """Compiles init.c and no_xstate.c if they, or this file, are newer than what exists."""
        sources = [*SOURCES.iterdir(), *HERE.glob('*.py')]
        newest = max(source.stat().st_mtime for source in sources)
        if all(p.exists() and p.stat().st_mtime > newest for p in (self.initrd, self.no_xstate)):
            return
        compiler = program('clang-19', 'clang-19')
        program('ld.lld-19', 'lld-19')
        init = self.directory / 'init'
        run([compiler, '-O2', '-Wall', '-Wextra', '-Werror', '-ffreestanding', '-nostdlib', '-static',
             '-fuse-ld=lld-19', '-fno-stack-protector', '-o', init, SOURCES / 'init.c'])
        run([compiler, '-O2', '-Wall', '-Wextra', '-Werror', '-shared', '-fPIC', '-fuse-ld=lld-19', '-o',
             self.no_xstate, SOURCES / 'no_xstate.c'])
        image = Initramfs()
        image.file('init', init.read_bytes(), 0o755)
        image.file('virtio_blk.ko', self._module().read_bytes())
        image.write(self.initrd)

    def _module(self):
        release = run([self.kernel, '--version']).strip()
        module = pathlib.Path(f'/usr/lib/uml/modules/{release}/kernel/drivers/block/virtio_blk.ko')
        if not module.exists():
            raise Missing(f'{module} is not installed (apt-get install --reinstall user-mode-linux)')
        return module


def host_needs_no_xstate():
    """AVX-512 or AMX makes the register state larger than UML's buffer; see no_xstate.c."""
    flags = pathlib.Path('/proc/cpuinfo').read_text()
    return 'avx512f' in flags or 'amx_tile' in flags


def kill_session(process):
    """UML runs guest processes as host processes: end the whole session, which only this run created."""
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        pass
    process.wait()


def parse_result(log):
    for line in pathlib.Path(log).read_text(errors='replace').splitlines():
        if line.startswith('RESULT ok'):
            return {key: int(value) for key, value in (word.split('=') for word in line.split()[2:])}
        if line.startswith('RESULT fail'):
            raise GuestError(f'the UML guest reports: {line}; see {log}')
    raise GuestError(f'the UML guest died without a RESULT line; see {log}:\n{common.tail(log)}')


def pattern_sector(seed, sector):
    """What init.c's pattern_word() puts into one 512-byte sector."""
    first = sector * SECTOR // 8 + seed * 1000003
    return struct.pack('<64Q', *((first + i) * 0x9e3779b97f4a7c15 & (1 << 64) - 1 for i in range(64)))


def verify_image(image, blocks, extents, seed):
    """The host's own check of what the guest wrote: all but the extents that were discarded or zeroed."""
    end = blocks * BLOCK + extents * EXTENT
    discarded = range(blocks * BLOCK, blocks * BLOCK + EXTENT)
    zeroed = range(blocks * BLOCK + 2 * EXTENT, blocks * BLOCK + 3 * EXTENT)
    with open(image, 'rb') as file:
        for at in range(0, end, SECTOR):
            data = file.read(SECTOR)
            if at in zeroed:
                good = not any(data)
            else:
                good = data == pattern_sector(seed, at // SECTOR) or (at in discarded and not any(data))
            if not good:
                raise GuestError(f'{image}: sector {at // SECTOR} is not what the guest wrote')


if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit('usage: uml.py SOCKET   (writes to the disk behind SOCKET!)')
    print(Uml().run(sys.argv[1], 'uml-manual'))
