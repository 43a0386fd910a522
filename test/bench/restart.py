#!/usr/bin/env python3
"""Measures what --state-dir costs, and how soon guests have their disks back after kill -9: docs/benchmarks/restart.md.

usage: restart.py [--directory DIR] [--controllers N] [--created N] [--runs N]

  --directory DIR    where files and state are kept (default: /var/tmp)
  --controllers N    disks on files, each with a front end, when the daemon is killed (default: 100)
  --created N        null disks and controllers whose creation is timed (default: 1000)
  --runs N           of each (default: 10)

The daemon has the first core and the front ends the second. Sockets are on tmpfs.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / 'guest'))

import jsonrpc  # noqa: E402

REPO = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get('SLUICE_BUILD_DIR', REPO / 'build/release'))
DAEMON = pathlib.Path(os.environ.get('SLUICE_VHOST', BUILD / 'app/vhost/sluice-vhost'))
FRONT_ENDS = BUILD / 'test/bench/sluice-reconnect'
CORES = sorted(os.sched_getaffinity(0))
SHOWN = ('min', 'median', 'max')


def three(values):
    return f'{min(values):.1f} / {statistics.median(values):.1f} / {max(values):.1f}'


class Daemon:
    def __init__(self, sockets, state):
        self.sockets, self.state = sockets, state
        self.process = None

    def start(self):
        state = ['--state-dir', self.state] if self.state else []
        self.process = subprocess.Popen([DAEMON, '-m', hex(1 << CORES[0]), '-S', self.sockets, '-r',
                                         f'{self.sockets}/rpc', *state], stderr=subprocess.PIPE, text=True)
        return self

    def wait_ready(self):
        """Its log until it is ready."""
        lines = []
        for line in self.process.stderr:
            lines.append(line.strip())
            if 'is ready' in line:
                return lines
        raise SystemExit('restart.py: the daemon did not start:\n' + '\n'.join(lines))

    def client(self):
        return jsonrpc.JsonRpc(f'{self.sockets}/rpc', 60)

    def kill(self):
        """The time at which it was."""
        killed_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        return killed_ns


@contextlib.contextmanager
def folders(directory):
    with tempfile.TemporaryDirectory(dir='/dev/shm') as sockets, \
            tempfile.TemporaryDirectory(prefix='sluice-', dir=directory) as disk:
        yield sockets, pathlib.Path(disk)


def time_creation(directory, count, batch, with_state):
    """Milliseconds for as many null disks and controllers."""
    calls = [call for i in range(count) for call in
             (('bdev_null_create', {'name': f'disk{i}', 'num_blocks': 1 << 15, 'block_size': 512}),
              ('vhost_create_blk_controller', {'ctrlr': f'vhost.{i}', 'dev_name': f'disk{i}'}))]
    with folders(directory) as (sockets, disk):
        daemon = Daemon(sockets, disk if with_state else None).start()
        daemon.wait_ready()
        client = daemon.client()
        jsonrpc.BATCH = batch
        begin = time.monotonic()
        client.call_all(calls)
        took_ms = (time.monotonic() - begin) * 1000
        daemon.kill()
    return took_ms


def time_restarts(directory, count, runs):
    with folders(directory) as (sockets, disk):
        state = disk / 'state'
        state.mkdir()
        daemon = Daemon(sockets, state).start()
        daemon.wait_ready()
        calls = []
        for i in range(count):
            image = disk / f'disk{i}'
            with open(image, 'wb') as file:
                file.truncate(64 << 20)
            calls.append(('bdev_aio_create', {'name': f'disk{i}', 'filename': str(image), 'block_size': 512}))
            calls.append(('vhost_create_blk_controller', {'ctrlr': f'vhost.{i}', 'dev_name': f'disk{i}'}))
        daemon.client().call_all(calls)
        taskset = ['taskset', '-c', str(CORES[-1])]
        front_ends = subprocess.Popen([*taskset, FRONT_ENDS, '--socket-prefix', f'{sockets}/vhost.', '--count', str(count)],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if not front_ends.stdout.readline():
            raise SystemExit('restart.py: the front ends ended')
        figures = {'dead': [], 'made': [], 'first': [], 'median': [], 'last': []}
        for _ in range(runs):
            killed_ns = daemon.kill()
            dead_ms = (time.clock_gettime_ns(time.CLOCK_MONOTONIC) - killed_ns) / 1e6
            daemon.start()
            front_ends.stdin.write(f'{killed_ns}\n')
            front_ends.stdin.flush()
            made, = [line for line in daemon.wait_ready() if 'made again' in line]
            line = front_ends.stdout.readline()
            if not line:
                raise SystemExit('restart.py: the front ends ended')
            completed = json.loads(line)['completed_ms']
            figures['dead'].append(dead_ms)
            figures['made'].append(float(made.split(' in ')[1].split(' ms')[0]))
            figures['first'].append(completed[0])
            figures['median'].append(statistics.median(completed))
            figures['last'].append(completed[-1])
        front_ends.stdin.close()
        front_ends.wait()
        daemon.kill()
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage=argparse.SUPPRESS)
    parser.add_argument('--directory', default='/var/tmp')
    parser.add_argument('--controllers', type=int, default=100)
    parser.add_argument('--created', type=int, default=1000)
    parser.add_argument('--runs', type=int, default=10)
    options = parser.parse_args()
    for program in (DAEMON, FRONT_ENDS):
        if not program.exists():
            raise SystemExit(f'restart.py: {program} is not built (scripts/build)')
    if not shutil.which('taskset'):
        raise SystemExit('restart.py: taskset is missing (util-linux)')

    print(f'{options.created} null disks and controllers, in ms: {" / ".join(SHOWN)}')
    for batch, name in ((128, 'batches of 128 calls'), (1, 'one call at a time')):
        figures = {False: [], True: []}
        for _ in range(options.runs):
            for with_state in figures:
                figures[with_state].append(time_creation(options.directory, options.created, batch, with_state))
        for with_state, label in ((False, 'without'), (True, 'with')):
            print(f'  {name}, {label} --state-dir: {three(figures[with_state])}')
    print(f'{options.controllers} disks on files; ms from kill -9: {" / ".join(SHOWN)}')
    texts = {'dead': 'until the process has gone', 'made': 'of these: making all of it again, as the daemon says',
             'first': "until the first guest's next request has completed", 'median': 'the median guest\'s',
             'last': "the last guest's"}
    for name, values in time_restarts(options.directory, options.controllers, options.runs).items():
        print(f'  {texts[name]}: {three(values)}')


if __name__ == '__main__':
    main()
