"""The programs that measure, each started once per run and pinned to a core: bdevperf, fio, Google Benchmark.

Each function returns (figures, command): {'iops': ..., 'cpu_ns': ...}, and the command as one would type it.
"""

import contextlib
import ctypes
import functools
import json
import os
import pathlib
import resource
import subprocess
import tempfile

from common import REPO, GuestError, Missing, log_path, program, tail

BUILD = pathlib.Path(os.environ.get('SLUICE_BUILD_DIR', REPO / 'build/release')).resolve()
SIZE_BYTES = 512 << 20  # of each disk: far beyond any cache of a processor
BLOCK_BYTES = 512
PATIENCE_S = 60  # beyond the time a program was told to measure
MODES = ('poll', 'interrupt', 'adaptive')


def cores():
    """The first two cores that this process may use: the target's and the load's."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise Missing('two cores: the load generator and the target each need one')
    return allowed[:2]


def has_io_uring():
    """Whether the kernel has it, and lets us: containers often do not."""
    parameters = ctypes.create_string_buffer(120)
    ring = ctypes.CDLL(None).syscall(425, 1, parameters)  # io_uring_setup
    if ring >= 0:
        os.close(ring)
    return ring >= 0


def takes_direct_io(path):
    """tmpfs does since Linux 6.6 (and then ignores it)."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
        return True
    except OSError:
        return False


def mask(core):
    return hex(1 << core)


def bdev_call(kind, place=None, name='disk'):
    """The RPC that makes a bdev; place: the file of aio and uring, the socket of virtio."""
    blocks = {'num_blocks': SIZE_BYTES // BLOCK_BYTES, 'block_size': BLOCK_BYTES}
    if kind in ('null', 'malloc'):
        return f'bdev_{kind}_create', {'name': name, **blocks}
    if kind in ('aio', 'uring'):
        return f'bdev_{kind}_create', {'name': name, 'filename': str(place), 'block_size': BLOCK_BYTES}
    return 'bdev_virtio_attach_controller', {'name': name, 'trtype': 'user', 'traddr': str(place), 'dev_type': 'blk',
                                             'vq_count': 1}


def call_text(method, params):
    return ' '.join([method, *(f'{key}={pathlib.Path(str(value)).name}' for key, value in params.items())])


def bdevperf(seconds, kind, place=None, *, core=0, depth=1, size_bytes=4096, workload='randread', mode='poll',
             fill=False):
    """sluice-bdevperf on a bdev of its own. `core`: index into cores()."""
    call = bdev_call(kind, place)
    options = ['-q', depth, '-o', size_bytes, '-w', workload, '-t', round(seconds, 3), '--mode', mode]
    result, process_cpu_s, command = run_bdevperf(seconds, [call], cores()[core], [*options, *['--fill'] * fill])
    figures = bdevperf_figures(result)
    figures['process_cpu_ns'] = process_cpu_s * 1e9 / figures['ios']
    return figures, f'{command}  # disk.json: {call_text(*call)}'


def run_bdevperf(seconds, calls, core, options):
    """(its JSON, its CPU seconds, the command to show), with bdevs that these calls make."""
    with bdev_config(calls) as config:
        command = bdevperf_command(config, core, options)
        output, process_cpu_s = run_pinned([*command, '--json'], core, 'bench-bdevperf', seconds)
    return json.loads(output), process_cpu_s, shown_bdevperf(command)


@contextlib.contextmanager
def bdev_config(calls):
    """The path of a configuration file, while it exists."""
    with tempfile.NamedTemporaryFile('w', prefix='sluice-bench-', suffix='.json') as config:
        calls = [{'method': method, 'params': params} for method, params in calls]
        json.dump({'subsystems': [{'subsystem': 'bdev', 'config': calls}]}, config)
        config.flush()
        yield config.name


def bdevperf_command(config, core, options):
    return [built('app/bdevperf/sluice-bdevperf'), '-m', mask(core), '-c', config, *options]


def shown_bdevperf(command):
    return shown([*command[:4], 'disk.json', *command[5:]])


def bdevperf_figures(result):
    """Of all jobs together."""
    total = result['total']
    if total['io_failed'] or not total['io_completed']:
        raise GuestError(f'bdevperf: {total["io_completed"]} requests completed, {total["io_failed"]} failed')
    return {'iops': total['iops'], 'cpu_ns': total['cpu_ns_per_io'], 'p50_us': total['p50_latency_us'],
            'p99_us': total['p99_latency_us'], 'ios': total['io_completed']}


# What makes fio cheapest: no map of the blocks done, no new content per write, a thread instead of a process, one
# latency per request instead of three. Left out, as they gained nothing: userspace_reap, gtod_reduce (no latencies).
FIO_OPTIONS = ['--name=bench', '--thread', '--norandommap', '--randrepeat=0', '--scramble_buffers=0',
               '--disable_clat=1', '--disable_slat=1', '--lat_percentiles=1', '--group_reporting']
FIO_ENGINES = {'libaio': ['--ioengine=libaio'],
               'io_uring': ['--ioengine=io_uring', '--fixedbufs', '--registerfiles', '--nonvectored=1']}
# Less CPU time per request, but on a disk, which then waits for the batch to fill, fewer requests: both are shown.
FIO_BATCH = ['--iodepth_batch_submit=8', '--iodepth_batch_complete_min=1']


def fio(seconds, engine, place, depth, workload='randread', jobs=1, batched=False):
    """fio on a file; with several jobs each has a core."""
    where = ','.join(str(core) for core in cores()[:jobs])
    batch = [*FIO_BATCH, f'--iodepth_batch_complete_max={depth}'] if batched else []
    command = [program('taskset', 'util-linux'), '-c', where, program('fio', 'fio'), *FIO_OPTIONS,
               f'--direct={int(takes_direct_io(place))}',
               *FIO_ENGINES[engine], *batch, f'--rw={workload}', '--bs=4k', f'--iodepth={depth}', f'--numjobs={jobs}',
               f'--filename={place}', f'--size={SIZE_BYTES}']
    timed = [*command, '--time_based', f'--runtime={int(seconds * 1000)}ms']
    output, process_cpu_s = run_pinned([*timed, '--output-format=json'], None, 'bench-fio', seconds)
    job = json.loads(output[output.index('{'):])['jobs'][0]
    side = job['write' if 'write' in workload else 'read']
    if job['error'] or not side['total_ios']:
        raise GuestError(f'fio: {side["total_ios"]} requests completed, error {job["error"]}')
    percentiles = side['lat_ns']['percentile']
    cpu_ns = (process_cpu_s - fio_start_s(*command)) * 1e9
    if cpu_ns <= 0:
        raise GuestError('fio: it took less CPU time than it takes to start; measure for longer (--seconds)')
    figures = {'iops': side['iops'], 'process_cpu_ns': cpu_ns / side['total_ios'], 'ios': side['total_ios'],
               'p50_us': percentiles['50.000000'] / 1000, 'p99_us': percentiles['99.000000'] / 1000}
    return figures, shown(timed)


@functools.cache
def fio_start_s(*command):
    """CPU seconds that fio takes to start and end, around a single request, at least: some 100 ms."""
    return min(run_pinned([*command, '--number_ios=1'], None, 'bench-fio', 0)[1] for _ in range(3))


def google_benchmark(seconds, path, name):
    """One benchmark of one program, on the first core: ns per item, and items per second as 'iops'."""
    core = None if name.startswith('two_cores') else cores()[0]  # those pin their threads themselves
    command = [built(path), f'--benchmark_filter=^{name}(/real_time)?$', f'--benchmark_min_time={seconds:g}']
    output, _ = run_pinned([*command, '--benchmark_format=json'], core, 'bench-google', seconds)
    result = json.loads(output)['benchmarks'][0]
    if result.get('error_occurred'):
        raise GuestError(f'{name}: {result["error_message"]}')
    return {'iops': result['items_per_second'], 'ns': 1e9 / result['items_per_second']}, shown(command)


def benchmark_names(path):
    """The benchmarks of one program: "serve/null/32". What they count the time by is not told."""
    output, _ = run_pinned([built(path), '--benchmark_list_tests'], None, 'bench-google', 0)
    return [name.removesuffix('/real_time') for name in output.split()]


def copy_limit(seconds, size_bytes, buffers):
    """What nothing that copies can beat, on the core where ours is measured: see test/vhost/queue_bench.cc."""
    return google_benchmark(seconds, 'test/vhost/queue_bench', f'copy_limit/{size_bytes}/{buffers}')


def built(path):
    if not (BUILD / path).exists():
        raise Missing(f'{BUILD / path} is not built (scripts/build)')
    return BUILD / path


def run_pinned(command, core, name, seconds):
    """(standard output, CPU seconds of the process and of the kernel's threads that work for it)."""
    command = [str(word) for word in command]
    if core is not None:
        command = [program('taskset', 'util-linux'), '-c', str(core), *command]
    log = log_path(f'{name}.log')
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(log, 'w', encoding='utf-8') as errors:
        errors.write(f'$ {" ".join(command)}\n')
        errors.flush()
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
                                  timeout=seconds * 3 + PATIENCE_S, check=False)
        except subprocess.TimeoutExpired as late:
            raise GuestError(f'no end after {late.timeout:.0f} s; see {log}') from None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise GuestError(f'status {done.returncode}; see {log}:\n{tail(log)}')
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def shown(command):
    """For the report: programs and files without their folders, which are this machine's."""
    words = []
    for word in map(str, command):
        key, equals, value = word.rpartition('=')
        value = pathlib.Path(value).name if value.startswith('/') else value
        words.append(f"'{key}{equals}{value}'" if set(value) & set('^$') else f'{key}{equals}{value}')
    return ' '.join(words)
