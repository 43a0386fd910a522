"""Pure arithmetic on results: medians, spreads, ratios by rounds, and the merging of parts.

A part's result is what results.json holds for it:

    {'columns': [[title, figure]...], 'ratios': [[title, against, figure]...], 'groups': [group...], ...}
    group: {'title': ..., 'rows': [row...], 'others_cores': what other processes used of the processors meanwhile,
            'columns': if they are not the part's}
           The rows of a group were measured by turns: A B C A B C ...
    row:   {'name': ..., 'command': ..., 'runs': [run...],
            'against': {against: name of another row of the group, or a list of names}}
    run:   {figure: number}                          run i of each row of a group belongs to round i
"""

import statistics


def values(row, figure):
    """The figure in each run; empty if the row does not have it."""
    return [run[figure] for run in row['runs'] if figure in run]


def spread(numbers):
    """(median, smallest, largest)."""
    return statistics.median(numbers), min(numbers), max(numbers)


def row_named(group, name):
    for row in group['rows']:
        if row['name'] == name:
            return row
    raise KeyError(f'{group["title"]}: no row {name!r}')


def ratio(group, row, against, figure):
    """The median over the rounds of row / other; None if the row has no such other, or one of them no such figure.

    Of several others the one counts that has the smallest figure in that round.

    Both sides of a quotient were measured within seconds of each other: what the machine does over minutes
    (frequency, neighbours) is in both and cancels out.
    """
    if against not in row['against']:
        return None
    names = row['against'][against]
    others = [row_named(group, name) for name in ([names] if isinstance(names, str) else names)]
    quotients = [mine[figure] / min(run[figure] for run in theirs)
                 for mine, *theirs in zip(row['runs'], *(other['runs'] for other in others))
                 if mine.get(figure) and all(run.get(figure) for run in theirs)]
    return statistics.median(quotients) if quotients else None


def merge(results, part, measured, order):
    """`results` with one part replaced, the others as they were, in this order."""
    parts = {**results['parts'], part: measured}
    return {'parts': {name: parts[name] for name in order if name in parts}}


def quantity(number):
    """Three digits that matter: 12.4M, 221K, 3.21, 0.42."""
    for factor, unit in (1e9, 'G'), (1e6, 'M'), (1e4, 'K'):
        if abs(number) >= factor:
            scaled = number / (1e3 if unit == 'K' else factor)
            return f'{scaled:.{_decimals(scaled)}f}{unit}'
    return f'{number:,.{_decimals(number)}f}'


def _decimals(number):
    number = abs(number)
    return 0 if number >= 99.5 else 1 if number >= 9.95 else 2
