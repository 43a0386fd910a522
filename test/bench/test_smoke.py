"""Everything from the programs to the plots, with a few very short runs. Whether it works, not how fast anything is."""

import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import unittest

HERE = pathlib.Path(__file__).resolve().parent
PARTS = ['parts', 'bdev', 'files', 'vhost', 'sizes', 'density', 'loads', 'restless', 'neighbours',
         'hostile', 'lvol', 'guest']
PLOTS = ['bdev', 'files-iops', 'files-cpu', 'vhost', 'sizes', 'density', 'loads', 'guest']
# Of what is idle, left as it is, or small.
MAY_BE_0 = {'cpu_us_per_s', 'wakeups_per_s', 'changes', 'kib_each', 'kib_left', 'descriptors_left'}
PATIENCE_S = 240


def start(out, *options):
    return subprocess.Popen([HERE / 'run.py', '--smoke', '--out', out, *options], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def output_of(process):
    try:
        return process.communicate(timeout=PATIENCE_S)[0]
    except subprocess.TimeoutExpired:
        process.terminate()  # it ends its daemons, and removes its files
        raise AssertionError(f'no end after {PATIENCE_S} s:\n{process.communicate()[0]}') from None


def files():
    return {path for folder in ('/dev/shm', '/tmp') for path in pathlib.Path(folder).glob('sluice-*')}


def run(out, *options):
    """Its output; and what results.json then holds."""
    with start(out, *options) as process:
        output = output_of(process)
    if process.returncode != 0:
        raise AssertionError(output)
    return output, json.loads((out / 'results.json').read_text())['parts']


@unittest.skipIf(len(os.sched_getaffinity(0)) < 2, 'needs two cores: the target and its load have one each')
class Smoke(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.out = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix='sluice-bench-')))
        cls.output, cls.parts = run(cls.out)

    def test_each_row_has_figures_and_its_line_in_the_report(self):
        self.assertTrue(self.output.rstrip().endswith(f'bench: {self.out / "results.md"}'), self.output)
        self.assertEqual(list(self.parts), PARTS)
        report = (self.out / 'results.md').read_text()
        for name, part in self.parts.items():
            self.assertTrue(part['groups'])
            for group in part['groups']:
                for row in group['rows']:
                    with self.subTest(part=name, group=group['title'], row=row['name']):
                        self.assertTrue(row['runs'] and row['command'])
                        for run_ in row['runs']:
                            for figure, number in run_.items():
                                self.assertGreaterEqual(number, 0, figure)
                                self.assertTrue(number or figure in MAY_BE_0, figure)
                        self.assertIn(f'| {row["name"]} |', report)

    def test_the_report_shows_the_plots(self):
        report = (self.out / 'results.md').read_text()
        for name in PLOTS:
            self.assertIn(f'({name}.svg)', report)
            self.assertIn('</svg>', (self.out / f'{name}.svg').read_text())

    def test_a_part_measured_again_leaves_the_others_as_they_were(self):
        _, after = run(self.out, '--only', 'bdev')
        self.assertNotEqual(after.pop('bdev'), self.parts['bdev'])
        self.assertEqual(after, {name: part for name, part in self.parts.items() if name != 'bdev'})

    def test_a_signal_leaves_nothing_behind(self):
        # A target and its load; with neighbours also a crowd, and what keeps the core busy.
        for part, count in ('vhost', 2), ('neighbours', 4):
            with self.subTest(part=part):
                self.check_signal(part, count)

    def check_signal(self, part, count):
        before = files()
        with start(self.out, '--only', part, '--seconds', '100') as process:
            deadline = time.monotonic() + 20
            while (len(programs := children(process.pid)) < count and process.poll() is None
                   and time.monotonic() < deadline):
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            output = output_of(process)
        self.assertEqual(process.returncode, 143, output)
        self.assertEqual(len(programs), count, 'so many programs should have run')
        self.assertEqual([pid for pid in programs if pathlib.Path(f'/proc/{pid}').exists()], [])
        self.assertEqual(files(), before)


def children(pid):
    try:
        return pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    except FileNotFoundError:
        return []


if __name__ == '__main__':
    unittest.main()
