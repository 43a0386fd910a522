"""sluice-conformance: the daemon passes all of it, and a target that dies is told."""

import json
import subprocess
import tempfile
import time
import unittest

from daemon import BUILD, PATIENCE_S, Daemon

CONFORMANCE = BUILD / 'app/conformance/sluice-conformance'
DISK_BYTES = 16 << 20
# Ten seconds on a quiet machine.
TIME_LIMIT_S = 120


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


if __name__ == '__main__':
    unittest.main()
