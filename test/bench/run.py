#!/usr/bin/python3
"""Measures Sluice, its peers and the machine's limits; writes results.json, results.md and plots.

Started by scripts/bench.sh, which installs and builds what this needs. (The interpreter is Debian's: its matplotlib is
installed for that one only.)
"""

import argparse
import datetime
import json
import os
import pathlib
import signal
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / 'guest')]

import machine
import plots
import programs
import report
from common import REPO, GuestError, Missing
from figures import merge
from matrix import PARTS
from measures import Files
from progress import Progress


def parse_options():
    parser = argparse.ArgumentParser(prog='scripts/bench.sh')
    parser.add_argument('--only', action='append', choices=list(PARTS), metavar='PART',
                        help=f'measure this part and keep the others\' results; may be repeated: {", ".join(PARTS)}')
    parser.add_argument('--quick', action='store_true', help='two short runs of each row, to see that it works')
    parser.add_argument('--smoke', action='store_true', help='one very short run of one group of each part')
    parser.add_argument('--seconds', type=float, help='seconds of each run (2)')
    parser.add_argument('--runs', type=int, help='runs of each row (5)')
    parser.add_argument('--out', type=pathlib.Path, metavar='DIR',
                        help='where results go (docs/benchmarks/results; build/bench/results with --quick or --smoke)')
    options = parser.parse_args()
    short = options.quick or options.smoke
    if options.seconds is None:
        options.seconds = 0.1 if options.smoke else 0.3 if options.quick else 2
    if options.runs is None:
        options.runs = 1 if options.smoke else 2 if options.quick else 5
    options.out = options.out or REPO / ('build/bench/results' if short else 'docs/benchmarks/results')
    if options.seconds <= 0 or options.runs <= 0:
        parser.error('--seconds and --runs must be above 0')
    return options


def planned(options, files):
    """{part: its groups}; the machine must be able to run them all."""
    programs.cores()
    parts = {name: PARTS[name] for name in options.only or PARTS}
    if options.smoke:
        return {name: part.smoke_groups(files) for name, part in parts.items()}
    return {name: part.groups(files) for name, part in parts.items()}


def measure(name, groups, options, progress, on_machine):
    """One part's result, as figures.py describes it."""
    part = PARTS[name]
    result = {'title': part.title, 'columns': part.columns, 'ratios': part.ratios, 'seconds': options.seconds,
              'runs': options.runs, 'date': datetime.datetime.now().strftime('%Y-%m-%d %H:%M'), 'machine': on_machine,
              'groups': []}
    for group in groups:
        others = machine.Others()
        title = f'{name}: {group.title}'
        try:
            with group.around:
                progress.done(group.cost_s)
                rows = measure_rows(title, group.rows, options, progress)
        except GuestError as error:
            raise GuestError(f'{title}: {error}') from None
        # After the end of all programs: those that run are not yet counted as ours.
        measured = {'title': group.title, 'rows': rows, 'others_cores': others.cores()}
        if group.columns:
            measured['columns'] = group.columns
        progress.group(title, rows, (group.columns or part.columns)[0])
        result['groups'].append(measured)
        warn_of_others(measured['others_cores'], 'used', progress)
    return result


def measure_rows(title, planned_rows, options, progress):
    """The rows of one group, by turns."""
    rows = [{'name': row.name, 'command': '', 'against': row.against, 'runs': []} for row in planned_rows]
    for run in range(1, options.runs + 1):
        for planned_row, row in zip(planned_rows, rows):
            progress.running(title, row['name'], run, options.runs)
            try:
                figures, row['command'] = planned_row.measure(planned_row.seconds(options.seconds))
            except GuestError as error:
                raise GuestError(f'{row["name"]}: run {run}: {error}') from None
            row['runs'].append({name: float(f'{number:.5g}') for name, number in figures.items()})
            progress.done(planned_row.seconds(options.seconds) + planned_row.cost_s)
    return rows


def expected_s(groups, options):
    """How long all of it should take."""
    return sum(group.cost_s + options.runs * sum(row.seconds(options.seconds) + row.cost_s for row in group.rows)
               for of_part in groups.values() for group in of_part)


def warn_of_others(cores, use, progress):
    if cores > machine.QUIET_CORES:
        progress.say(f'bench: warning: something else {use} {cores:g} of the {os.cpu_count()} cores: two programs that '
                     'talk to each other become much slower, and all figures spread')


def save(results, out):
    """All three kinds of output; a reader never sees half a results.json."""
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f'results.json.{os.getpid()}'
    partial.write_text(json.dumps(results, indent=1) + '\n')
    partial.rename(out / 'results.json')
    drawn = plots.draw(results, out)
    (out / 'results.md').write_text(report.markdown(results, drawn))


def load_results(out):
    try:
        return json.loads((out / 'results.json').read_text())
    except FileNotFoundError:
        return {'parts': {}}


def end_children():
    """A signal may come after a program was started and before its `with` or `try` knows of it."""
    for pid in pathlib.Path(f'/proc/self/task/{os.getpid()}/children').read_text().split():
        os.kill(int(pid), signal.SIGKILL)
        os.waitpid(int(pid), 0)


def main():
    options = parse_options()
    os.environ.setdefault('SLUICE_VHOST', str(programs.BUILD / 'app/vhost/sluice-vhost'))
    # As Ctrl-C does: through every `with`, so that no daemon and no file stays.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    failures = []
    with Files() as files:
        groups = planned(options, files)
        progress = Progress(expected_s(groups, options))
        on_machine = machine.describe()
        warn_of_others(machine.others_now(), 'uses', progress)
        results = load_results(options.out)
        for name, of_part in groups.items():
            try:
                results = merge(results, name, measure(name, of_part, options, progress, on_machine), list(PARTS))
            except (GuestError, OSError, KeyError, ValueError) as error:
                failures.append(str(error) or repr(error))
                progress.say(f'bench: FAILED: {error}')
                continue
            save(results, options.out)
    if failures:
        sys.exit('\n'.join(['bench: these parts failed, and what was known of them before was kept:', *failures]))
    print(f'bench: {options.out / "results.md"}')


if __name__ == '__main__':
    try:
        main()
    except Missing as missing:
        sys.exit(f'bench: {missing}')
    except KeyboardInterrupt:
        print('\nbench: stopped; parts that were complete are kept', file=sys.stderr)
        sys.exit(130)
    finally:
        end_children()
