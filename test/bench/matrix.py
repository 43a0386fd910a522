"""What is measured: the parts, and their groups and rows."""

from functools import partial

from many import most_devices
from measures import from_guest, over_socket, with_throughput
from plan import Group, Part, Row
from programs import BUILD, MODES, bdevperf, benchmark_names, copy_limit, fio, google_benchmark, has_io_uring
from settings import AllIdle, AmongHostile, AmongMany, Neighbourhood, OfferedLoad, Restless, create_and_delete
from targets import QsdTarget, SluiceTarget
from uml import Uml
from volumes import TERABYTE, BigStore, StoreOnFile, VolumesUnderLoad

DEPTHS = (1, 32, 128)
SIZES = {'512 B': 512, '4 KiB': 4096, '16 KiB': 16 << 10, '64 KiB': 64 << 10, '256 KiB': 256 << 10, '1 MiB': 1 << 20}
ENGINES = {'aio': 'libaio', **({'uring': 'io_uring'} if has_io_uring() else {})}  # ours: fio's
SMOKE_DEVICES = 32
COPIES = 'limit: memory copies'
LINE = 'limit: a cache line there and back'
TWO_JOBS = 'fio, two jobs on two cores'
# Which form of qemu-storage-daemon a mode is compared with: what polls with what polls.
PEER_LOOP = {'poll': 'iothread', 'adaptive': 'iothread', 'interrupt': 'main'}


# --- components: the Google Benchmark programs ---

def component_groups(_):
    groups = []
    for path in sorted(path.relative_to(BUILD) for path in BUILD.glob('test/*/*_bench')):
        # Copies of other sizes are the limits of other parts.
        names = [name for name in benchmark_names(path) if 'copy_limit' not in name or '/4096/128' in name]
        rows = [Row(name, partial(google_benchmark, path=path, name=name), cost_s=0.5, at_most_s=0.25)
                for name in names]
        for row in rows:
            if 'two_cores/malloc' in row.name:
                row.against['limit'] = 'copy_limit/4096/128'
        groups.append(Group(path.name, rows))
    return groups


# --- bdev: block devices in process ---

def bdev_groups(_):
    groups = []
    for kind in ('null', 'malloc'):
        for depth in DEPTHS:
            measure = partial(bdevperf, kind=kind, depth=depth, fill=kind == 'malloc')
            rows = [Row(mode, partial(measure, mode=mode), to_poll(mode)) for mode in MODES]
            groups.append(Group(f'{kind}, depth {depth}', with_limit(rows, depth) if kind == 'malloc' else rows))
    return groups


def to_poll(mode, prefix=''):
    return {} if mode == 'poll' else {'poll': f'{prefix}poll'}


def with_limit(rows, depth, size_bytes=4096):
    """The rows, and in the same rounds the rate of bare copies that they cannot beat."""
    for row in rows:
        row.against['limit'] = COPIES
    return [*rows, Row(COPIES, partial(copy_limit, size_bytes=size_bytes, buffers=depth), cost_s=1)]


def with_line(rows):
    """The rows, at depth 1, and in the same rounds how often a cache line gets to the other core and back."""
    for row in rows:
        row.against['line'] = LINE
    measure = partial(google_benchmark, path='test/vhost/queue_bench', name='two_cores_line')
    return [*rows, Row(LINE, measure, cost_s=0.5, at_most_s=0.25)]


# --- files: ours and fio on the same file ---

def file_groups(files):
    groups = []
    for where, file in ('disk', files.disk), ('memory', files.memory):
        for workload, depth in *(('randread', depth) for depth in DEPTHS), ('randwrite', 32):
            rows = [file_row(engine, mode, file, depth, workload) for engine in ENGINES for mode in MODES]
            for engine in ENGINES.values():
                rows.append(fio_row(f'fio {engine}', engine, file, depth, workload))
                if depth > 1:
                    rows.append(fio_row(f'fio {engine} batched', engine, file, depth, workload, batched=True))
            if where == 'memory':
                rows = with_limit(rows, depth)
            else:
                for row in rows:
                    row.against['two jobs'] = TWO_JOBS
                rows.append(fio_row(TWO_JOBS, 'libaio', file, 128, workload, jobs=2))
            groups.append(Group(f'{where}, {workload}, depth {depth}', rows))
    return groups


def file_row(engine, mode, file, depth, workload):
    against = {'fio': f'fio {ENGINES[engine]}', **to_poll(mode, f'{engine} ')}
    if depth > 1:
        against['batched'] = f'fio {ENGINES[engine]} batched'
    if engine == 'uring':
        against['aio'] = f'aio {mode}'
    measure = partial(bdevperf, kind=engine, place=file, depth=depth, workload=workload, mode=mode)
    return Row(f'{engine} {mode}', measure, against)


def fio_row(name, engine, file, depth, workload, **form):
    return Row(name, partial(fio, engine=engine, place=file, depth=depth, workload=workload, **form), cost_s=0.5)


# --- vhost and guest: targets behind a socket ---

def vhost_groups(files):
    groups = []
    for depth in DEPTHS:
        measure = partial(over_socket, depth=depth)
        null = [*null_rows(measure), peer_row(measure, 'null-zeroes', 'iothread')]
        malloc = [socket_row(measure, 'malloc', mode) for mode in MODES]
        groups += [Group(f'null, depth {depth}', with_line(null) if depth == 1 else null),
                   Group(f'malloc, depth {depth}', with_limit(malloc, depth)),
                   Group(f'file in memory, depth {depth}', with_limit(file_rows(measure, files.memory), depth))]
    return groups


def guest_groups(files):
    measure = partial(from_guest, uml=Uml())
    # This guest asks so seldom that adaptive mode sleeps in between, as interrupt mode does.
    modes = ('poll', 'interrupt')
    groups = [Group('null, depth 1', null_rows(measure, modes)),
              Group('file in memory, depth 1', file_rows(measure, files.memory, modes))]
    for row in (row for group in groups for row in group.rows):
        row.cost_s = 1.8  # mostly booting
    return groups


def null_rows(measure, modes=MODES):
    return [*(socket_row(measure, 'null', mode) for mode in modes),
            *(peer_row(measure, 'null', loop) for loop in ('main', 'iothread'))]


def file_rows(measure, image, modes=MODES):
    return [*(socket_row(measure, engine, mode, image) for engine in ENGINES for mode in modes),
            *(peer_row(measure, engine, loop, image) for engine in ENGINES for loop in ('main', 'iothread'))]


def socket_row(measure, backing, mode, image=None):
    against = to_poll(mode, f'sluice {backing} ')
    if backing != 'malloc':
        against['qsd'] = f'qsd {backing} {PEER_LOOP[mode]}'
    measure = partial(measure, make_target=partial(SluiceTarget, backing, mode), image=image)
    return Row(f'sluice {backing} {mode}', measure, against, cost_s=1.2 if backing == 'malloc' else 0.6)


def peer_row(measure, backing, loop, image=None):
    measure = partial(measure, make_target=partial(QsdTarget, backing, loop), image=image)
    return Row(f'qsd {backing} {loop}', measure, cost_s=0.6)


# --- sizes: copies in process, over vhost, and bare ---

def size_groups(_):
    groups = []
    for depth in (1, 32):
        for title, size_bytes in SIZES.items():
            over_vhost = partial(over_socket, make_target=partial(SluiceTarget, 'malloc', 'poll'), depth=depth,
                                 size_bytes=size_bytes)
            rows = [Row('in process', partial(bdevperf, kind='malloc', depth=depth, size_bytes=size_bytes, fill=True)),
                    Row('over vhost', over_vhost, cost_s=1.2)]
            rows = with_limit(rows, depth, size_bytes)
            for row in rows:
                row.measure = partial(with_throughput, measure=row.measure, size_bytes=size_bytes)
            groups.append(Group(f'{title}, depth {depth}', rows))
    return groups


# --- density: thousands of devices of one daemon ---

def density_groups(_):
    many = most_devices()
    groups = [among_many(1, many, depth) for depth in DEPTHS]
    return [*groups, among_many(64, many, 4), all_idle(many), creation(*sorted({min(1000, many), many}))]


def small_density_groups(_):
    return [among_many(4, SMOKE_DEVICES, 4), all_idle(SMOKE_DEVICES), creation(SMOKE_DEVICES)]


def among_many(busy, count, depth):
    setting = AmongMany(busy, count)
    rows = [Row('alone poll', partial(setting.alone, mode='poll', depth=depth), cost_s=0.6),
            *(Row(f'among many {mode}', partial(setting.among, mode=mode, depth=depth), {'alone': 'alone poll'},
                  cost_s=0.6) for mode in MODES)]
    return Group(f'{busy} busy of {count:,}, depth {depth}', rows, setting, cost_s=count / 600)


def all_idle(count):
    setting = AllIdle(count)
    rows = [Row(f'idle {mode}', partial(setting.measure, mode=mode), times=15) for mode in ('interrupt', 'adaptive')]
    return Group(f'{count:,} idle', rows, setting, count / 600, IDLE_COLUMNS)


def creation(*counts):
    rows = [Row(f'{count:,} devices', partial(create_and_delete, count=count), cost_s=count / 500, at_most_s=0)
            for count in counts]
    return Group('created, connected and started, deleted', rows, columns=CREATION_COLUMNS)


# --- loads: requests that arrive at a given rate ---

def load_groups(files):
    return [*(load_group('null', rate) for rate in (100, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)),
            *(load_group('aio', rate, files.memory) for rate in (1_000, 10_000, 100_000))]


def load_group(backing, rate, image=None):
    setting = OfferedLoad(partial(SluiceTarget, backing, 'interrupt'), image, rate)
    # So few need longer until they tell anything.
    rows = [Row(mode, partial(setting.measure, mode=mode), cost_s=0.2, times=5 if rate < 1000 else 1) for mode in MODES]
    rows[MODES.index('adaptive')].against['better'] = ['poll', 'interrupt']
    kind = 'file in memory' if image else backing
    return Group(f'{kind}, {rate:,} per second', rows, setting, cost_s=0.5)


# --- restless: modes and threads that change under verified writes ---

def restless_groups(_):
    return [restless(64)]


def restless(count):
    setting = Restless(count)
    rows = [Row('no change', partial(setting.measure, changing=False), times=30),
            Row('a change every 10 ms', partial(setting.measure, changing=True), {'still': 'no change'}, times=30)]
    return Group(f'{count} disks', rows, setting, cost_s=2)


# --- neighbours: what bad ones do to the others ---

def neighbour_groups(_):
    return [neighbours(mode, 16, min(1000, most_devices())) for mode in ('interrupt', 'adaptive')]


def neighbours(mode, busy, count):
    setting = Neighbourhood(mode, busy, count, rate_each=1000)
    rows = [Row(behave, partial(setting.measure, behave=behave), {} if behave == 'none' else {'none': 'none'}, times=3)
            for behave in ('none', 'silent', 'half', 'kicks')]
    return Group(f'{busy} busy of {count:,}, {mode}', rows, setting, cost_s=count / 600)


# --- hostile: front ends and guests that attack, beside honest ones ---

def hostile_groups(_):
    return [among_hostile(mode, 200, 200) for mode in ('interrupt', 'adaptive')]


def among_hostile(mode, honest, hostile):
    setting = AmongHostile(mode, honest, hostile, rate_each=50)
    rows = [Row('none', partial(setting.measure, attacked=False), times=30),
            Row('attacked', partial(setting.measure, attacked=True), {'none': 'none'}, times=30, cost_s=70)]
    return Group(f'{honest} honest, {hostile} hostile, {mode}', rows, setting, cost_s=5)


# --- lvol: logical volumes on their base ---

VOLUME_BENCH = 'test/lvol/volume_bench'


def lvol_groups(files):
    return [volumes_in_memory(1), volumes_in_memory(32), chain(),
            *(volumes_on_file(title, file, depth) for title, file in (('memory', files.memory), ('disk', files.disk))
              for depth in (1, 32)),
            operations(files), snapshots(files), huge_neighbour(files)]


def small_lvol_groups(files):
    return [volumes_in_memory(32), operations(files, 1 << 30), snapshots(files),
            huge_neighbour(files, 1 << 30)]


def volumes_in_memory(depth):
    rows = []
    for workload in 'read', 'write':
        rows += [Row(f'base {workload}', volume_bench(f'base/{workload}/{depth}')),
                 Row(f'volume {workload}', volume_bench(f'mapped/{workload}/{depth}'), {'base': f'base {workload}'})]
    rows.append(Row('first writes to a clone', volume_bench(f'fresh_clone/{depth}'), {'base': 'base write'}))
    for row in rows:
        row.cost_s, row.at_most_s = 1.5, 0.5
    return Group(f'malloc, depth {depth}', rows)


def volume_bench(name):
    return partial(google_benchmark, path=VOLUME_BENCH, name=name)


def chain():
    rows = [Row('no snapshot', volume_bench('mapped/read/32')),
            Row('1,000 snapshots', volume_bench('after_snapshots/read/32'), {'base': 'no snapshot'})]
    for row in rows:
        row.cost_s, row.at_most_s = 1.5, 0.5
    return Group('malloc, reads after snapshots, depth 32', rows)


def volumes_on_file(title, file, depth):
    setting = StoreOnFile(file)
    rows = []
    for workload in 'randread', 'randwrite':
        rows += [Row(f'base {workload}', partial(setting.base, depth=depth, workload=workload)),
                 Row(f'volume {workload}', partial(setting.volume, depth=depth, workload=workload),
                     {'base': f'base {workload}'})]
    rows.append(Row('first writes to a clone', partial(setting.fresh_clone, depth=depth), {'base': 'base randwrite'}))
    return Group(f'file ({title}), depth {depth}', rows, setting, cost_s=3)


def operations(files, size_bytes=TERABYTE):
    setting = BigStore(files.memory.parent, size_bytes)
    title = '1 TiB' if size_bytes == TERABYTE else '1 GiB'
    rows = [Row('a clone', with_ms(volume_bench('clones/iterations:1000')), cost_s=2, at_most_s=0),
            Row(f'load of {title} mapped, after kill -9', setting.measure, cost_s=2, at_most_s=0)]
    return Group('operations', rows, setting, cost_s=10, columns=[['ms', 'ms'], ['daemon MiB', 'mib']])


def with_ms(measure):
    def measured(seconds):
        figures, command = measure(seconds)
        return {'ms': figures['ns'] / 1e6}, command
    return measured


def snapshots(files):
    setting = VolumesUnderLoad(files.memory)
    return volumes_under_load('random writes to two volumes', setting,
                              [Row('snapshots made and deleted', setting.snapshots),
                               Row('a clone is inflated', setting.inflation)],
                              [['snapshots', 'snapshots'], ['writes held, p99 us', 'held_p99_us'],
                               ['max us', 'held_max_us']])


def huge_neighbour(files, size_bytes=TERABYTE):
    setting = VolumesUnderLoad(files.memory, store_bytes=2 * size_bytes + (64 << 30))
    title = '1 TiB' if size_bytes == TERABYTE else '1 GiB'
    return volumes_under_load(f'random writes to two volumes, beside one of {title}', setting,
                              [Row('it is deleted', partial(setting.deletion, size_bytes=size_bytes)),
                               Row('it is inflated', partial(setting.inflation_of_nothing, size_bytes=size_bytes))])


def volumes_under_load(title, setting, rows, columns=()):
    for row in rows:
        row.against = {'still': 'nothing else'}
    return Group(title, [Row('nothing else', setting.still), *rows], setting, cost_s=3, columns=[
        RATE, ['other IOPS', 'other_iops'], P99, ['other p99 us', 'other_p99_us'], *columns])


RATE, CPU, P50, P99 = ['IOPS', 'iops'], ['CPU ns/IO', 'cpu_ns'], ['p50 us', 'p50_us'], ['p99 us', 'p99_us']
TO_POLL = [['IOPS / poll', 'poll', 'iops'], ['CPU / poll', 'poll', 'cpu_ns']]
TO_QSD = [['IOPS / qsd', 'qsd', 'iops'], ['CPU / qsd', 'qsd', 'cpu_ns']]
TO_LIMIT = ['IOPS / limit', 'limit', 'iops']
IDLE_COLUMNS = [['CPU us per s', 'cpu_us_per_s'], ['wake-ups per s', 'wakeups_per_s']]
CREATION_COLUMNS = [['create ms', 'create_ms'], ['connect and start ms', 'start_ms'], ['both ms', 'ready_ms'],
                    ['delete ms', 'delete_ms'], ['KiB each', 'kib_each'], ['descriptors each', 'descriptors_each']]
TO_LINE = ['IOPS / line', 'line', 'iops']

PARTS = {
    'parts': Part('Components', component_groups, 'queue_bench', [['ns per item', 'ns'], ['items/s', 'iops']],
                  [['rate / limit', 'limit', 'iops']]),
    'bdev': Part('Block devices in process', bdev_groups, 'malloc, depth 32', [RATE, CPU, P50, P99],
                 [*TO_POLL, TO_LIMIT]),
    'files': Part('Files', file_groups, 'memory, randread, depth 32',
                  [RATE, ['CPU ns/IO', 'process_cpu_ns'], P50, P99],
                  [ratio for title, to in (('fio', 'fio'), ('fio batched', 'batched'), ('aio', 'aio'), ('poll', 'poll'))
                   for ratio in ([f'IOPS / {title}', to, 'iops'], [f'CPU / {title}', to, 'process_cpu_ns'])]
                  + [['IOPS / two jobs', 'two jobs', 'iops'], TO_LIMIT]),
    'vhost': Part('Over vhost-user', vhost_groups, 'file in memory, depth 32',
                  [RATE, ['target CPU ns/IO', 'cpu_ns'], P50, P99], [*TO_QSD, *TO_POLL, TO_LIMIT, TO_LINE]),
    'sizes': Part('Request sizes', size_groups, '4 KiB, depth 32', [['GiB/s', 'gibps'], RATE, CPU], [TO_LIMIT]),
    'density': Part('Thousands of devices', density_groups, small_density_groups,
                    [RATE, ['slowest / mean', 'slowest'], ['target CPU ns/IO', 'cpu_ns'], P50, P99],
                    [['IOPS / alone', 'alone', 'iops']]),
    'loads': Part('Offered loads', load_groups, 'null, 10,000 per second',
                  [RATE, ['target CPU ns/IO', 'cpu_ns'], P50, P99],
                  [['CPU / better', 'better', 'cpu_ns'], ['p99 / better', 'better', 'p99_us']]),
    'restless': Part('Modes that change and threads that move', restless_groups, lambda _: [restless(8)],
                     [RATE, P50, P99, ['max ms', 'max_ms'], ['changes', 'changes']],
                     [['max / no change', 'still', 'max_ms']]),
    'neighbours': Part('Bad neighbours', neighbour_groups, lambda _: [neighbours('adaptive', 4, SMOKE_DEVICES)],
                       [P99, P50, RATE], [['p99 / none', 'none', 'p99_us']]),
    'hostile': Part('Hostile front ends', hostile_groups, lambda _: [among_hostile('adaptive', 8, 8)],
                    [P99, P50, RATE, ['cores', 'cores'], ['KiB left', 'kib_left'], ['descriptors left', 'descriptors_left']],
                    [['p99 / none', 'none', 'p99_us']]),
    'lvol': Part('Logical volumes', lvol_groups, small_lvol_groups, [RATE, ['CPU ns/IO', 'process_cpu_ns'], P50, P99],
                 [['IOPS / base', 'base', 'iops'], ['IOPS / nothing else', 'still', 'iops'],
                  ['other p99 / nothing else', 'still', 'other_p99_us']]),
    'guest': Part('A Linux guest', guest_groups, 'null, depth 1',
                  [P50, P99, ['mean us', 'mean_us'], ['target CPU ns/read, with boot', 'cpu_ns']],
                  [['p50 / qsd', 'qsd', 'p50_us'], ['CPU / qsd', 'qsd', 'cpu_ns'], ['p50 / poll', 'poll', 'p50_us']]),
}
