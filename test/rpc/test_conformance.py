"""sluice-conformance: the daemon passes all of it; what it says of qemu-storage-daemon is told, and not judged."""

import json
import pathlib
import shutil
import subprocess
import tempfile
import threading
import time
import unittest

from daemon import BUILD, PATIENCE_S, Daemon

CONFORMANCE = BUILD / 'app/conformance/sluice-conformance'
DISK_BYTES = 16 << 20
# Ten seconds on a quiet machine. Back ends that leave things unanswered take longer: each is waited for.
TIME_LIMIT_S = 120
OTHER_TIME_LIMIT_S = 200


def run(*arguments, timeout=TIME_LIMIT_S):
    return subprocess.run([str(CONFORMANCE), *map(str, arguments)], capture_output=True, text=True, timeout=timeout,
                          check=False)


def counts(results):
    return {status: count for status, count in results['summary'].items() if count}


def failures(results):
    return [(case['name'], case['status'], case['messages']) for case in results['cases']
            if case['status'] not in ('passed', 'skipped')]


@unittest.skipUnless(CONFORMANCE.exists(), f'{CONFORMANCE} is not built (scripts/build)')
class ConformanceTest(unittest.TestCase):
    def daemon(self, mode='adaptive', directory=None, **controller):
        daemon = self.enterContext(Daemon('--mode', mode, directory=directory))
        call = daemon.client().call
        call('bdev_malloc_create', name='disk', num_blocks=DISK_BYTES // 512, block_size=512)
        call('vhost_create_blk_controller', ctrlr='c', dev_name='disk', **controller)
        return daemon

    def expect_all_good(self, daemon, at_least):
        began = time.monotonic()
        done = run(daemon.directory / 'c', '--json')
        took = time.monotonic() - began
        self.assertIn(done.returncode, (0, 1), done.stderr)
        results = json.loads(done.stdout)
        print(f'sluice-vhost, {daemon.command[-1]}: {counts(results)} in {took:.1f} s')
        self.assertEqual(failures(results), [])
        self.assertEqual(done.returncode, 0)
        self.assertGreaterEqual(results['summary']['passed'], at_least)
        self.assertEqual(daemon.stop(), 0)
        return results

    def test_the_daemon_passes_all_cases(self):
        for mode in ('interrupt', 'adaptive'):
            with self.subTest(mode=mode):
                results = self.expect_all_good(self.daemon(mode), at_least=230)
                for case in results['cases']:
                    self.assertTrue(case['section'], case['name'])
                    if case['status'] == 'skipped':
                        self.assertTrue(case['messages'], case['name'])

    def test_a_read_only_disk_passes_what_is_about_it(self):
        results = self.expect_all_good(self.daemon(readonly=True), at_least=2)
        passed = {case['name'] for case in results['cases'] if case['status'] == 'passed'}
        self.assertIn('BlkReadOnly.FailsWritesDiscardsAndWriteZeroes', passed)

    def test_cases_can_be_listed_and_chosen(self):
        listed = dict(line.split('\t') for line in run('--list').stdout.splitlines())
        self.assertGreater(len(listed), 100)
        self.assertTrue(all(listed.values()))
        daemon = self.daemon()
        for pattern, count in (('Protocol.AcksEachSetMessageExactlyOnce', 1), ('BlkLayout.*/Classic', 1),
                               ('RingState', sum('RingState' in name for name in listed))):
            results = json.loads(run(daemon.directory / 'c', '--json', '--only', pattern).stdout)
            self.assertEqual(len(results['cases']), count, pattern)
        text = run(daemon.directory / 'c', '--only', 'BlkLayout.*/Classic').stdout
        self.assertRegex(text, r'passed +BlkLayout.ReadsAndWrites/Classic')

    def test_what_cannot_be_tried_is_told(self):
        with tempfile.TemporaryDirectory() as directory:
            for arguments, words in (((), 'socket is required'), ((f'{directory}/none',), 'no back end answers'),
                                     ((f'{directory}/none', '--only', 'nothing'), 'no case is named')):
                done = run(*arguments)
                self.assertEqual(done.returncode, 2, arguments)
                self.assertIn(words, done.stderr)

    def test_a_target_that_dies_is_told_and_the_others_run_when_it_is_back(self):
        for comes_back in (False, True):
            with self.subTest(comes_back=comes_back), tempfile.TemporaryDirectory(prefix='sluice-') as directory:
                first = self.daemon(directory=directory)
                program = subprocess.Popen([str(CONFORMANCE), f'{directory}/c', '--only', 'BlkLayout', '--wait',
                                            str(PATIENCE_S if comes_back else 0)], stdout=subprocess.PIPE, text=True)
                with program:
                    while not program.stdout.readline().startswith('passed'):
                        self.assertIsNone(program.poll())
                    first.process.kill()
                    first.process.wait()
                    if comes_back:
                        self.daemon(directory=directory)
                    lines = program.stdout.read().splitlines()
                self.assertEqual(program.returncode, 1)
                statuses = [line.split()[0] for line in lines if ' BlkLayout.' in line]
                self.assertEqual(statuses.count('crashed'), 1)
                after = set(statuses[statuses.index('crashed') + 1:])
                self.assertEqual(after, {'passed' if comes_back else 'not_run'})


class StorageDaemon:
    """qemu-storage-daemon with a disk; whenever it dies, there is a new one. Use as a context."""

    def __init__(self, program):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix='sluice-conformance-'))
        self.socket = self.directory / 'socket'
        image = self.directory / 'image'
        with open(image, 'wb') as file:
            file.truncate(DISK_BYTES)
        self._command = [program, '--blockdev', f'driver=file,node-name=disk,filename={image},discard=unmap', '--export',
                         'type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=2,'
                         f'addr.type=unix,addr.path={self.socket}']
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self.deaths = 0

    def _start(self):
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                         stderr=subprocess.DEVNULL)

    def _watch(self):
        while not self._stopping.wait(0.02):
            if self._process.poll() is not None:
                self.deaths += 1
                self._start()

    def __enter__(self):
        self._start()
        self._watcher.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        self._watcher.join()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.directory)


@unittest.skipUnless(CONFORMANCE.exists(), f'{CONFORMANCE} is not built (scripts/build)')
class OtherBackEndTest(unittest.TestCase):
    def test_qemu_storage_daemon_is_tried(self):
        program = shutil.which('qemu-storage-daemon')
        if program is None:
            self.skipTest('qemu-storage-daemon is not installed (scripts/setup)')
        with StorageDaemon(program) as other:
            began = time.monotonic()
            try:
                done = run(other.socket, '--json', timeout=OTHER_TIME_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.skipTest(f'qemu-storage-daemon took more than {OTHER_TIME_LIMIT_S} s')
            took = time.monotonic() - began
        self.assertIn(done.returncode, (0, 1), done.stderr)
        results = json.loads(done.stdout)
        print(f'qemu-storage-daemon: {counts(results)} in {took:.1f} s, died {other.deaths} times')
        for name, status, _ in failures(results):
            print(f'  {status} {name}')
        self.assertGreater(results['summary']['passed'], 0)
        self.assertEqual(results['summary']['not_run'], 0)


if __name__ == '__main__':
    unittest.main()
