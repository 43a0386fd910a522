"""The arithmetic and the report on given results; no program is started."""

import pathlib
import sys
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / 'guest')]

from figures import merge, quantity, ratio, spread
from report import markdown


def row(name, rates, against=None):
    return {'name': name, 'command': f'program {name}', 'against': against or {},
            'runs': [{'iops': rate, 'cpu_ns': 1e9 / rate} for rate in rates]}


def part(*rows, title='depth 1'):
    machine = {'cpu': 'A processor', 'cores': 2, 'kernel': '6.1', 'memory_gib': 8, 'load': 0.1,
               'commit': 'abc', 'versions': ['fio-3']}
    return {'title': 'A part', 'columns': [['IOPS', 'iops'], ['p50 us', 'p50_us']],
            'ratios': [['IOPS / peer', 'peer', 'iops'], ['IOPS / limit', 'limit', 'iops']], 'seconds': 2.0, 'runs': 3,
            'date': '2026-01-02 03:04', 'machine': machine,
            'groups': [{'title': title, 'rows': list(rows), 'others_cores': 0.02}]}


class Figures(unittest.TestCase):
    def test_a_spread_is_median_smallest_and_largest(self):
        self.assertEqual(spread([5, 1, 9]), (5, 1, 9))
        self.assertEqual(spread([4, 2]), (3, 2, 4))

    def test_a_ratio_is_the_median_of_the_ratios_of_each_round(self):
        # Between the rounds the machine changed its speed; the ratio of the medians would be 1.5.
        ours = row('ours', [100, 300, 1000], {'peer': 'theirs'})
        group = {'title': '', 'rows': [ours, row('theirs', [50, 200, 400])]}
        self.assertEqual(ratio(group, ours, 'peer', 'iops'), 2.0)
        self.assertEqual(ratio(group, ours, 'peer', 'cpu_ns'), 0.5)

    def test_a_ratio_to_several_others_is_to_the_smallest_in_each_round(self):
        ours = row('ours', [100, 300], {'better': ['a', 'b']})
        group = {'title': '', 'rows': [ours, row('a', [50, 200]), row('b', [200, 100])]}
        self.assertEqual(ratio(group, ours, 'better', 'iops'), 2.5)
        self.assertIsNone(ratio(group, ours, 'better', 'p50_us'))

    def test_there_is_no_ratio_without_the_other_or_its_figure(self):
        ours = row('ours', [100], {'peer': 'theirs'})
        group = {'title': '', 'rows': [ours, row('theirs', [50])]}
        self.assertIsNone(ratio(group, ours, 'limit', 'iops'))
        self.assertIsNone(ratio(group, ours, 'peer', 'p50_us'))
        self.assertRaises(KeyError, ratio, {'title': '', 'rows': [ours]}, ours, 'peer', 'iops')

    def test_a_part_replaces_its_old_results_only(self):
        before = {'parts': {'files': 'old', 'vhost': 'old'}}
        order = ['bdev', 'files', 'vhost']
        self.assertEqual(merge(before, 'files', 'new', order)['parts'], {'files': 'new', 'vhost': 'old'})
        self.assertEqual(before['parts']['files'], 'old')
        self.assertEqual(list(merge(before, 'bdev', 'new', order)['parts']), order)

    def test_quantities_have_three_digits_that_matter(self):
        for number, text in ((0.123, '0.12'), (3.21, '3.21'), (45.67, '45.7'), (999.6, '1,000'), (9876, '9,876'),
                             (12345, '12.3K'), (221_000, '221K'), (12_400_000, '12.4M'), (0, '0.00')):
            self.assertEqual(quantity(number), text)


class Report(unittest.TestCase):
    def test_a_table_has_medians_spreads_and_ratios(self):
        text = markdown({'parts': {'bdev': part(row('ours', [100, 300, 1000], {'peer': 'theirs'}),
                                                row('theirs', [50, 200, 400]))}}, {'bdev': ['bdev.svg']})
        self.assertIn('## A part (`bdev`)', text)
        self.assertIn('2026-01-02 03:04, commit abc', text)
        self.assertIn('![A part](bdev.svg)', text)
        self.assertIn('|  | IOPS | p50 us | IOPS / peer |\n', text)
        self.assertIn('| ours | 300 (100–1,000) |  | 2.00 |\n', text)
        self.assertIn('| theirs | 200 (50.0–400) |  |  |\n', text)

    def test_groups_with_columns_of_their_own_have_a_table_of_their_own(self):
        both = part(row('ours', [100]), title='depth 1')
        idle = part(row('idle', [7]), title='asleep')['groups'][0]
        both['groups'].append({**idle, 'columns': [['CPU ns', 'cpu_ns']]})
        text = markdown({'parts': {'bdev': both}}, {})
        self.assertIn('|  | IOPS | p50 us |\n', text)
        self.assertIn('| idle | 143M (143M–143M) |\n', text)
        self.assertIn('\n\n|  | CPU ns |\n', text)

    def test_a_command_is_shown_once_with_the_group_it_is_of(self):
        first = part(row('ours', [1]), title='depth 1')
        first['groups'] += part(row('ours', [1]), title='depth 2')['groups']
        text = markdown({'parts': {'bdev': first}}, {})
        self.assertEqual(text.count('program ours'), 1)
        self.assertIn('# depth 1: ours\nprogram ours\n', text)

    def test_says_which_group_something_else_disturbed(self):
        disturbed = part(row('ours', [1]))
        self.assertIn('| **depth 1** |', markdown({'parts': {'bdev': disturbed}}, {}))
        disturbed['groups'][0]['others_cores'] = 1.2
        self.assertIn('| **depth 1** (disturbed: others used 1.2 cores) |',
                      markdown({'parts': {'bdev': disturbed}}, {}))

    def test_no_results_are_no_error(self):
        self.assertIn('# Results', markdown({'parts': {}}, {}))


if __name__ == '__main__':
    unittest.main()
