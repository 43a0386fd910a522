"""results.json -> results.md: tables of each part, with medians, spreads, ratios and the commands."""

import itertools

from figures import quantity, ratio, spread, values
from machine import QUIET_CORES

HEAD = """# Results
Made by `scripts/bench.sh` from `results.json`, which has each single run: do not edit.
[How it is measured, and how to read it](../README.md).

A figure is the median of the runs, with the smallest and the largest. A ratio is the median of the ratios of the
rounds, in each of which the compared rows were measured one after another; it need not be the ratio of the medians.
"""


def markdown(results, plots):
    """plots: {part: [file names]}."""
    sections = [HEAD]
    for name, part in results['parts'].items():
        sections.append(section(name, part, plots.get(name, [])))
    return '\n'.join(sections)


def section(name, part, plots):
    lines = [f'## {part["title"]} (`{name}`)', conditions(part), '']
    lines += [f'![{part["title"]}]({plot})\n' for plot in plots]
    for columns, groups in by_columns(part):
        lines += [*table(columns, part['ratios'], groups), '']
    return '\n'.join([*lines, *commands(part)])


def conditions(part):
    machine = part['machine']
    text = (f'{part["date"]}, commit {machine["commit"]}; {machine["cores"]} cores of {machine["cpu"]}, '
            f'{machine["memory_gib"]} GiB, Linux {machine["kernel"]}; {", ".join(machine["versions"])}. '
            f'Runs: {part["runs"]} of {part["seconds"]:g} s. Load average at the start: {machine["load"]}.')
    return text


def by_columns(part):
    """[(columns, groups one after the other that have these)...]"""
    def columns_of(group):
        return group.get('columns', part['columns'])
    return [(columns, list(groups)) for columns, groups in itertools.groupby(part['groups'], columns_of)]


def table(columns, ratios, groups):
    """Ratio columns that no row fills are left out."""
    every_row = [(group, row) for group in groups for row in group['rows']]
    ratios = [column for column in ratios
              if any(ratio(group, row, *column[1:]) is not None for group, row in every_row)]
    titles = ['', *(title for title, _ in columns), *(title for title, *_ in ratios)]
    lines = [row_line(titles), row_line(['---'] * len(titles))]
    for group in groups:
        lines.append(row_line([f'**{group["title"]}**{disturbance(group)}', *[''] * (len(titles) - 1)]))
        for row in group['rows']:
            cells = [figure_cell(row, figure) for _, figure in columns]
            cells += [ratio_cell(ratio(group, row, *column[1:])) for column in ratios]
            lines.append(row_line([row['name'], *cells]))
    return lines


def disturbance(group):
    if group['others_cores'] <= QUIET_CORES:
        return ''
    return f' (disturbed: others used {group["others_cores"]:g} cores)'


def row_line(cells):
    return f'| {" | ".join(cells)} |'


def figure_cell(row, figure):
    numbers = values(row, figure)
    if not numbers:
        return ''
    median, low, high = spread(numbers)
    return f'{quantity(median)} ({quantity(low)}–{quantity(high)})'


def ratio_cell(number):
    return '' if number is None else f'{number:.2f}'


def commands(part):
    """Each row's command once, from the first group that has the row: the others differ in what their titles say."""
    seen = {}
    for group in part['groups']:
        for row in group['rows']:
            seen.setdefault(row['name'], (group['title'], row['command']))
    lines = ['<details><summary>Commands</summary>', '', '```sh']
    for name, (title, command) in seen.items():
        lines += [f'# {title}: {name}', command]
    return [*lines, '```', '</details>', '']
