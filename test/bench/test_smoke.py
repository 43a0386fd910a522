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
PARTS = ['parts', 'bdev', 'files', 'vhost', 'sizes', 'guest']
PLOTS = ['bdev', 'files-iops', 'files-cpu', 'vhost', 'sizes', 'guest']
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
                            self.assertGreater(min(run_.values()), 0)
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
        before = files()
        with start(self.out, '--only', 'vhost', '--seconds', '100') as process:
            deadline = time.monotonic() + 20
            while len(programs := children(process.pid)) < 2 and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            output = output_of(process)
        self.assertEqual(process.returncode, 143, output)
        self.assertEqual(len(programs), 2, 'there should have been a target and its load')
        self.assertEqual([pid for pid in programs if pathlib.Path(f'/proc/{pid}').exists()], [])
        self.assertEqual(files(), before)


def children(pid):
    try:
        return pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    except FileNotFoundError:
        return []


if __name__ == '__main__':
    unittest.main()
