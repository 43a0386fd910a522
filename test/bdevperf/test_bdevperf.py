"""The built sluice-bdevperf: each workload on real bdevs, its output, its options and its RPC."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get('SLUICE_BUILD_DIR', ROOT / 'build/release')).resolve()
BINARY = BUILD / 'app/bdevperf/sluice-bdevperf'
PATIENCE_S = 20
MIB = 1 << 20

WORKLOADS = ['read', 'write', 'randread', 'randwrite', 'rw', 'randrw', 'verify', 'reset', 'unmap', 'write_zeroes',
             'flush']
RESULT_FIELDS = {'job', 'bdev', 'core', 'core_mask', 'workload', 'status', 'range', 'queue_depth', 'io_size', 'runtime',
                 'iops', 'mibps', 'io_completed', 'io_failed', 'io_timeout', 'io_mismatched', 'avg_latency_us',
                 'min_latency_us', 'max_latency_us', 'p50_latency_us', 'p90_latency_us', 'p99_latency_us',
                 'p99.9_latency_us', 'p99.99_latency_us', 'cpu_seconds', 'cpu_ns_per_io'}


def first_cores(count):
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        raise unittest.SkipTest(f'needs {count} cores')
    return cores[:count]


def mask(cores):
    return hex(sum(1 << core for core in cores))


@unittest.skipUnless(BINARY.exists(), f'{BINARY} is not built (scripts/build)')
class BdevperfCase(unittest.TestCase):
    """Bdevs null0, malloc0 and aio0, and runs of the program on them."""

    def setUp(self):
        self.directory = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory(prefix='sluice-')))
        image = self.directory / 'image'
        with open(image, 'wb') as file:
            file.truncate(16 * MIB)
        calls = [
            ('bdev_null_create', {'name': 'null0', 'block_size': 512, 'num_blocks': 1 << 21}),
            ('bdev_malloc_create', {'name': 'malloc0', 'block_size': 512, 'num_blocks': 16 * MIB // 512}),
            ('bdev_aio_create', {'name': 'aio0', 'block_size': 512, 'filename': str(image)}),
        ]
        self.config = self.directory / 'config.json'
        config = [{'method': method, 'params': params} for method, params in calls]
        self.config.write_text(json.dumps({'subsystems': [{'subsystem': 'bdev', 'config': config}]}))

    def command(self, *options, cores=None):
        return [str(BINARY), '-m', mask(cores or first_cores(1)), '-c', str(self.config), *options]

    def run_raw(self, *options, cores=None):
        return subprocess.run(self.command(*options, cores=cores), capture_output=True, text=True, timeout=PATIENCE_S,
                              check=False)

    def run_json(self, *options, cores=None, code=0):
        done = self.run_raw('--json', *options, cores=cores)
        self.assertEqual(done.returncode, code, done.stderr)
        return json.loads(done.stdout)

    def assert_fails(self, code, text, *options):
        done = self.run_raw(*options)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertIn(text, done.stderr)
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)


class Workloads(BdevperfCase):
    """Each kind of I/O on each kind of bdev."""

    def check(self, bdev, workload, *options):
        result = self.run_json('-T', bdev, '-q', '8', '-o', '4K', '-w', workload, '-t', '0.2', *options)
        self.assertEqual(len(result['results']), 1)
        job = result['results'][0]
        self.assertEqual(RESULT_FIELDS - set(job), set())
        self.assertEqual((job['job'], job['workload'], job['status']), (bdev, workload, 'finished'))
        self.assertEqual((job['io_failed'], job['io_mismatched']), (0, 0))
        self.assertGreater(job['iops'], 0)
        self.assertAlmostEqual(job['runtime'], 0.2, delta=0.15)
        self.assertLessEqual(job['min_latency_us'], job['p50_latency_us'])
        self.assertLessEqual(job['p50_latency_us'], job['p99.99_latency_us'])
        self.assertLessEqual(job['p99.99_latency_us'], job['max_latency_us'])
        self.assertAlmostEqual(result['total']['iops'], job['iops'], delta=1)
        return job

    def test_every_workload_on_every_bdev(self):
        for bdev in 'null0', 'malloc0', 'aio0':
            for workload in WORKLOADS:
                # The null device keeps nothing: see below.
                if bdev == 'null0' and workload in ('verify', 'reset'):
                    continue
                with self.subTest(bdev=bdev, workload=workload):
                    self.check(bdev, workload)

    def test_every_mode(self):
        for mode in 'poll', 'interrupt', 'adaptive':
            for bdev in 'null0', 'aio0':
                with self.subTest(mode=mode, bdev=bdev):
                    self.check(bdev, 'randread', '--mode', mode)

    def test_a_given_rate_in_every_mode(self):
        for mode in 'poll', 'interrupt', 'adaptive':
            for bdev in 'null0', 'aio0':
                with self.subTest(mode=mode, bdev=bdev):
                    job = self.check(bdev, 'randread', '--mode', mode, '--rate', '10000', '--warmup', '0.1')
                    self.assertEqual(job['rate'], 10_000)
                    # What had to wait at the end, on a machine that is busy, is not lost.
                    arrived = job['io_completed'] + job['io_waiting']
                    self.assertAlmostEqual(arrived / job['runtime'], 10_000, delta=2_500)

    def test_mixed_zipf_warm_up_and_fill(self):
        job = self.check('malloc0', 'randrw', '-M', '30', '--zipf', '1.1', '--warmup', '0.1', '--fill')
        self.assertEqual(job['percentage'], 30)

    def test_verify_notices_a_device_that_keeps_nothing(self):
        done = self.run_raw('-T', 'null0', '-q', '4', '-o', '4096', '-w', 'verify', '-t', '0.2')
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, "job 'null0' on bdev 'null0': 0 requests failed, .* at offset [0-9]+ is not")
        self.assertIn('null0: verify', done.stdout)

    def test_interrupt_mode_does_not_burn_the_core_while_the_disk_works(self):
        job = self.check('aio0', 'randread', '--mode', 'interrupt')
        self.assertLess(job['cpu_seconds'], job['runtime'] + 0.05)


class Jobs(BdevperfCase):
    """Which jobs there are."""

    COMMON = ('-q', '2', '-o', '4096', '-w', 'randread', '-t', '0.2')

    def test_every_bdev_is_driven_when_none_is_named(self):
        result = self.run_json(*self.COMMON)
        self.assertEqual([job['bdev'] for job in result['results']], ['aio0', 'malloc0', 'null0'])
        self.assertAlmostEqual(result['total']['iops'], sum(job['iops'] for job in result['results']), delta=3)

    def test_jobs_are_spread_over_the_cores(self):
        cores = first_cores(2)
        result = self.run_json(*self.COMMON, '-T', 'malloc0:null0', cores=cores)
        self.assertEqual([job['core'] for job in result['results']], cores)
        self.assertEqual(result['core_count'], 2)

    def test_every_core_drives_its_part_of_every_bdev(self):
        cores = first_cores(2)
        result = self.run_json('-q', '2', '-o', '4096', '-w', 'verify', '-t', '0.2', '-T', 'malloc0', '-C', cores=cores)
        self.assertEqual([(job['core'], job['range']['offset'], job['range']['length']) for job in result['results']],
                         [(cores[0], 0, 8 * MIB), (cores[1], 8 * MIB, 8 * MIB)])

    def test_job_file(self):
        jobs = self.directory / 'jobs'
        jobs.write_text('[global]\nfilename=malloc0\nbs=4k\niodepth=4\n\n[reader]\nrw=randread\nlength=8M\n\n'
                        '[writer]\nrw=write\nbs=64k\noffset=8M\n\n[other]\nrw=flush\nfilename=null0:aio0\n')
        result = self.run_json('-j', str(jobs), '-t', '0.2')
        self.assertEqual([(job['job'], job['bdev'], job['io_size'], job['range']['offset'])
                          for job in result['results']],
                         [('reader', 'malloc0', 4096, 0), ('writer', 'malloc0', 65536, 8 * MIB),
                          ('other', 'null0', 4096, 0), ('other', 'aio0', 4096, 0)])

    def test_table(self):
        done = self.run_raw(*self.COMMON)
        self.assertEqual(done.returncode, 0)
        self.assertEqual(done.stderr, '')
        lines = done.stdout.splitlines()
        self.assertEqual(len(lines), 5)
        for title in 'IOPS', 'MiB/s', 'p99.99', 'failed', 'CPU s', 'ns/IO':
            self.assertIn(title, lines[0])
        self.assertTrue(lines[1].startswith('aio0: randread, depth 2, 4096 bytes'))
        self.assertTrue(lines[4].startswith('total'))

    def test_shows_progress_when_asked(self):
        done = self.run_raw('-q', '2', '-o', '4096', '-w', 'randread', '-t', '0.5', '-T', 'null0', '-S', '0.1', '-P', '3')
        self.assertEqual(done.returncode, 0)
        self.assertGreaterEqual(len(done.stderr.splitlines()), 3)
        self.assertRegex(done.stderr, r'IOPS +[0-9.]+ MiB/s +[0-9]+ IOPS on average')

    def test_a_signal_ends_it_early_with_its_results(self):
        with subprocess.Popen(self.command('--json', '-q', '2', '-o', '4096', '-w', 'randread', '-t', '1000', '-T', 'aio0'),
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=PATIENCE_S)
        self.assertEqual(process.returncode, 0)
        self.assertEqual(json.loads(output)['results'][0]['status'], 'terminated')


class BadOptions(BdevperfCase):
    """Each is refused with one line that says what is wrong."""

    def test_each_has_a_clear_error(self):
        good = {'-q': '1', '-o': '4096', '-w': 'read', '-t': '0.1'}

        def options(**changes):
            changed = {**good, **{f'-{name}': value for name, value in changes.items()}}
            return [part for name, value in changed.items() if value is not None for part in (name, value)]

        cases = [
            (options(q=None), '-q, the queue depth, is missing'),
            (options(o=None), '-o, the I/O size, is missing'),
            (options(w=None), '-w, the workload, is missing: one of read, write'),
            (options(t=None), '-t, the time in seconds, is missing'),
            (options(q='0'), "-q must be a number from 1 to 65536, not '0'"),
            (options(q='x'), "-q must be a number from 1 to 65536, not 'x'"),
            (options(o='4X'), "-o must be a size in bytes, such as 4096 or 4K, up to 1G, not '4X'"),
            (options(w='fast'), "-w must be one of read, write"),
            (options(t='-1'), '-t must be a number of seconds above 0'),
            (options(t='0'), '-t must be a number of seconds above 0'),
            (options(M='50'), '-M goes with -w rw or randrw only'),
            (options(w='rw', M='101'), '-M must be a percentage from 0 to 100'),
            (options(m='0x0'), '-m must be a core mask'),
            (options(P='3'), '-P needs -S'),
            ([*options(), '--zipf', '1'], '--zipf goes with -w randread'),
            ([*options(w='randread'), '--zipf', '0'], '--zipf must be a number above 0'),
            ([*options(), '--rate', '0'], '--rate must be requests per second, above 0'),
            ([*options(w='verify'), '--rate', '10'], '--rate does not go with -w verify'),
            ([*options(), '--mode', 'lazy'], '--mode must be poll, interrupt or adaptive'),
            ([*options(), '--nonsense'], '--nonsense'),
        ]
        for arguments, text in cases:
            with self.subTest(arguments=arguments):
                self.assert_fails(2, text, *arguments)

    def test_what_does_not_fit_the_bdevs_has_a_clear_error(self):
        good = ('-q', '1', '-t', '0.1')
        self.assert_fails(1, "there is no bdev 'x'; there are aio0, malloc0, null0", *good, '-o', '4096', '-w', 'read',
                          '-T', 'x')
        self.assert_fails(1, 'I/O size 1000 is not a multiple of its block size, 512', *good, '-o', '1000', '-w', 'read')
        self.assert_fails(1, 'have no room for a request', *good, '-o', '32M', '-w', 'read', '-T', 'malloc0')
        self.assert_fails(1, 'No such file', *good, '-j', '/nonexistent')
        self.config.write_text('{"subsystems": []}')
        self.assert_fails(1, 'there are no bdevs', *good, '-o', '4096', '-w', 'read')
        self.config.write_text('nonsense')
        self.assert_fails(1, f'configuration {self.config}: not JSON', *good, '-o', '4096', '-w', 'read')

    def test_help_and_version(self):
        for option, text in (('--help', '--queue-depth'), ('--version', 'Sluice')):
            done = subprocess.run([str(BINARY), option], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
            self.assertEqual(done.returncode, 0)
            self.assertIn(text, done.stdout)


class Rpc(BdevperfCase):
    """-z: tests on demand."""

    def setUp(self):
        super().setUp()
        self.path = self.directory / 'rpc.sock'

    def start(self, *options):
        process = subprocess.Popen(self.command('-z', '-r', str(self.path), *options), stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        self.addCleanup(lambda: (process.kill(), process.communicate()))
        deadline = time.monotonic() + PATIENCE_S
        while not self.path.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        return process

    def call(self, method, **params):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE_S)
            client.connect(str(self.path))
            client.sendall(json.dumps({'jsonrpc': '2.0', 'id': 1, 'method': method, 'params': params}).encode())
            reply = b''
            while not reply.endswith(b'\n'):
                chunk = client.recv(1 << 16)
                if not chunk:
                    break
                reply += chunk
        return json.loads(reply)

    def assert_refused(self, text, method, **params):
        reply = self.call(method, **params)
        self.assertIn('error', reply)
        self.assertIn(text, reply['error']['message'])

    def test_performs_tests_on_demand_with_parameters_that_last(self):
        process = self.start('-q', '2', '-o', '4096', '-w', 'randread', '-t', '0.1', '-T', 'malloc0')
        result = self.call('perform_tests')['result']
        self.assertEqual([job['workload'] for job in result['results']], ['randread'])
        result = self.call('perform_tests', queue_depth=4, workload_type='rw', rw_percentage=10, io_size='8K')['result']
        job = result['results'][0]
        self.assertEqual((job['queue_depth'], job['workload'], job['percentage'], job['io_size']), (4, 'rw', 10, 8192))
        self.assertEqual(self.call('perform_tests')['result']['results'][0]['queue_depth'], 4)
        self.assertTrue(self.call('bdev_malloc_delete', name='malloc0')['result'])
        self.assert_refused("there is no bdev 'malloc0'", 'perform_tests')
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=PATIENCE_S)
        self.assertEqual(process.returncode, 0)
        self.assertEqual(output.count('total'), 3)

    def test_refuses_bad_parameters(self):
        self.start('-T', 'null0')
        self.assert_refused('time_in_sec is missing', 'perform_tests', queue_depth=1, io_size='4K', workload_type='read')
        self.assert_refused('workload is missing', 'perform_tests', time_in_sec=1)
        self.assert_refused('workload_type must be one of', 'perform_tests', workload_type='fast')
        self.assert_refused('io_size must be', 'perform_tests', io_size='4X')
        self.assert_refused('queue_depth must be', 'perform_tests', queue_depth=0)
        self.assert_refused('rw_percentage must be', 'perform_tests', rw_percentage=101)

    def test_a_failed_test_is_an_error_and_the_program_goes_on(self):
        self.start('-q', '1', '-o', '4096', '-w', 'verify', '-t', '0.1', '-T', 'null0')
        self.assert_refused('is not what was written there', 'perform_tests')
        self.assertIn('result', self.call('perform_tests', workload_type='read'))


if __name__ == '__main__':
    unittest.main()
