"""results.json -> SVG plots that can be read without the tables: Sluice blue and green, peers orange, limits dashed."""

from functools import partial

import matplotlib
from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter

from figures import quantity, spread, values

LIMIT = '#444444'
# By what a row's name contains; shades in the order of the rows.
HUES = [('fio', 'Oranges'), ('qsd', 'Oranges'), ('uring', 'Greens'), ('', 'Blues')]


def draw(results, out):
    """Draws what there are results for; returns {part: [file names]}."""
    # Text as text, and nothing random or dated: the same results make the same file.
    matplotlib.use('svg')
    pyplot.rcParams.update({'svg.fonttype': 'none', 'svg.hashsalt': 'sluice', 'font.size': 9, 'axes.grid': True,
                            'axes.grid.axis': 'y', 'axes.axisbelow': True, 'grid.color': '#dddddd'})
    drawn = {}
    for name, (part, figure, axis, draw_part) in PLOTS.items():
        if part in results['parts']:
            picture = draw_part(results['parts'][part], figure, axis)
            if picture is None:
                continue
            picture.savefig(out / f'{name}.svg', metadata={'Date': None}, bbox_inches='tight')
            pyplot.close(picture)
            drawn.setdefault(part, []).append(f'{name}.svg')
    return drawn


def bars_by_depth(part, figure, axis, depths_shown=None):
    """A panel for each kind of group ("null", "malloc", ...), in it a cluster of bars for each depth."""
    kinds = {}
    for group in part['groups']:
        kind, _, depth = group['title'].rpartition(', depth ')
        if not kind:
            continue  # a group of another form
        if depths_shown is None or depth in depths_shown:
            kinds.setdefault(kind, {})[depth] = group['rows']
    picture, panels = panels_for(kinds)
    for panel, (kind, depths) in zip(panels, kinds.items()):
        clusters(panel, depths, figure)
        decorate(panel, kind, 'requests in flight', axis)
    return picture


def clusters(panel, depths, figure):
    names = []
    for rows in depths.values():
        names += [row['name'] for row in rows if row['name'] not in names and not is_limit(row['name'])]
    colours, width = colours_of(names), 0.8 / len(names)
    labelled, limits, highest = set(), [], 0
    for at, rows in enumerate(depths.values()):
        for row in rows:
            numbers = values(row, figure)
            if not numbers:
                continue
            median, low, high = spread(numbers)
            if is_limit(row['name']):
                limits.append((row['name'], median, at))
                continue
            highest = max(highest, high)
            place = at + (names.index(row['name']) - (len(names) - 1) / 2) * width
            panel.bar(place, median, width, color=colours[row['name']], ecolor='#00000090',
                      label=row['name'] if row['name'] not in labelled else None,
                      yerr=[[median - low], [high - median]], error_kw={'elinewidth': 0.8})
            labelled.add(row['name'])
    panel.set_xticks(range(len(depths)), depths)
    if figure == 'iops' and limits:
        draw_limits(panel, limits, highest)


def draw_limits(panel, limits, highest):
    """Dashed over their clusters; only named when they would make all bars tiny."""
    name, lowest = limits[0][0], min(median for _, median, _ in limits)
    if lowest > 2.5 * highest:
        panel.plot([], [], color=LIMIT, linestyle='dashed', label=f'{name}: {quantity(lowest)}, beyond this picture')
        return
    for at_first, (_, median, at) in enumerate(limits):
        panel.hlines(median, at - 0.45, at + 0.45, colors=LIMIT, linestyles='dashed', label=None if at_first else name)


def lines_by_size(part, figure, axis):
    """A panel for each depth: throughput over the size of a request."""
    depths = {}
    for group in part['groups']:
        size, _, depth = group['title'].rpartition(', ')
        for row in group['rows']:
            depths.setdefault(depth, {}).setdefault(row['name'], {})[size] = spread(values(row, figure))
    picture, panels = panels_for(depths)
    for panel, (depth, rows) in zip(panels, depths.items()):
        colours = colours_of([name for name in rows if not is_limit(name)])
        for name, by_size in rows.items():
            panel.errorbar(list(by_size), [median for median, _, _ in by_size.values()],
                           [[median - low for median, low, _ in by_size.values()],
                            [high - median for median, _, high in by_size.values()]], label=name, marker='o',
                           color=colours.get(name, LIMIT), linestyle='dashed' if is_limit(name) else 'solid')
        decorate(panel, depth, 'size of a request', axis)
    return picture


def lines_by_load(part, figures, axis, kind):
    """A panel for each figure: how it grows with the requests that are offered. None if there are no such groups."""
    rows = {}
    for group in part['groups']:
        if group['title'].startswith(f'{kind}, '):
            for row in group['rows']:
                rows.setdefault(row['name'], []).append(row)
    if not rows:
        return None
    picture, panels = panels_for(figures)
    colours = colours_of(list(rows))
    for panel, (figure, title) in zip(panels, figures.items()):
        for name, by_load in rows.items():
            offered = [spread(values(row, 'offered'))[0] for row in by_load]
            medians, lows, highs = zip(*(spread(values(row, figure)) for row in by_load))
            panel.errorbar(offered, medians, [[m - low for m, low in zip(medians, lows)],
                                              [high - m for m, high in zip(medians, highs)]],
                           label=name, marker='o', color=colours[name])
        panel.set_xscale('log')
        panel.set_yscale('log')
        panel.set_title(kind)
        panel.set_xlabel(axis)
        panel.set_ylabel(title)
        for scale in panel.xaxis, panel.yaxis:
            scale.set_major_formatter(FuncFormatter(lambda number, _: quantity(number)))
        panel.legend(fontsize=7)
    return picture


def panels_for(kinds):
    """Two in a row."""
    columns = min(2, len(kinds))
    lines = -(-len(kinds) // columns)
    picture, panels = pyplot.subplots(lines, columns, figsize=(5.5 * columns, 4.2 * lines), squeeze=False,
                                      layout='constrained')
    panels = list(panels.flat)
    for panel in panels[len(kinds):]:
        panel.set_visible(False)
    return picture, panels


def decorate(panel, title, x_axis, y_axis):
    panel.set_title(title)
    panel.set_xlabel(x_axis)
    panel.set_ylabel(y_axis)
    panel.set_ylim(bottom=0, top=panel.get_ylim()[1] * 1.5)  # room for the legend
    panel.yaxis.set_major_formatter(FuncFormatter(lambda number, _: quantity(number) if number else '0'))
    panel.legend(fontsize=7, loc='upper left', ncols=2)


def is_limit(name):
    return name.startswith('limit')


def colours_of(names):
    """A hue for each kind of row, a shade for each row of it."""
    by_hue = {}
    for name in names:
        by_hue.setdefault(next(hue for part, hue in HUES if part in name), []).append(name)
    return {name: matplotlib.colormaps[hue](0.9 - 0.5 * i / max(1, len(alike) - 1))
            for hue, alike in by_hue.items() for i, name in enumerate(alike)}


LOAD_FIGURES = {'cpu_ns': "ns of the target's processor time per request", 'p99_us': 'us until 99 of 100 are done'}
# {file: (part, figure or figures with their titles, axis, how)}
PLOTS = {
    'bdev': ('bdev', 'iops', 'IOPS (4 KiB, one core)', bars_by_depth),
    'files-iops': ('files', 'iops', 'IOPS (4 KiB, one core)', bars_by_depth),
    # One request at a time takes so much more than many together that its bars would hide the others.
    'files-cpu': ('files', 'process_cpu_ns', 'ns of processor time per request', partial(bars_by_depth,
                                                                                       depths_shown=('32', '128'))),
    'vhost': ('vhost', 'iops', 'IOPS (4 KiB random reads, target on one core)', bars_by_depth),
    'sizes': ('sizes', 'gibps', 'GiB/s (random reads)', lines_by_size),
    'density': ('density', 'iops', 'IOPS of all busy devices (4 KiB)', bars_by_depth),
    'loads': ('loads', LOAD_FIGURES, 'requests offered per second', partial(lines_by_load, kind='null')),
    'loads-file': ('loads', LOAD_FIGURES, 'requests offered per second', partial(lines_by_load, kind='file in memory')),
    'guest': ('guest', 'p50_us', 'us per 4 KiB read in the guest (median)', bars_by_depth),
}
