"""On what machine, with which versions of what, and beside what else a part was measured."""

import os
import pathlib
import platform
import re
import resource
import subprocess
import time

from common import REPO, Missing, program

QUIET_CORES = 0.1
SAMPLE_S = 0.5


class Others:
    """What processes that are not ours, and other virtual machines, use of the processors from now on.

    What two programs on two cores do for each other suffers much from a third that wants one of them.
    """

    def __init__(self):
        self._began, self._busy_s = time.monotonic(), self._busy_and_not_ours_s()

    def cores(self):
        """On average so far."""
        elapsed_s = time.monotonic() - self._began
        return round(max(0, self._busy_and_not_ours_s() - self._busy_s) / elapsed_s, 2)

    @staticmethod
    def _busy_and_not_ours_s():
        ticks = list(map(int, pathlib.Path('/proc/stat').read_text().split('\n', 1)[0].split()[1:9]))
        busy_s = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf('SC_CLK_TCK')  # without idle, and idle for a disk
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return busy_s - sum(usage.ru_utime + usage.ru_stime for usage in usages)


def others_now():
    others = Others()
    time.sleep(SAMPLE_S)
    return others.cores()


def describe():
    return {'cpu': cpu_model(), 'cores': os.cpu_count(), 'kernel': platform.release(),
            'memory_gib': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30)),
            'load': round(os.getloadavg()[0], 2), 'commit': commit(),
            'versions': [text for text in (version('fio'), version('qemu-storage-daemon')) if text]}


def cpu_model():
    text = pathlib.Path('/proc/cpuinfo').read_text()
    found = re.search(r'^model name\s*: (.*)$', text, re.MULTILINE)
    return found.group(1) if found else platform.machine()


def commit():
    """The commit of the tree; "+" after it when sources were changed since."""
    def git(*words):
        done = subprocess.run(['git', '-C', REPO, *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()
    name = git('rev-parse', '--short=10', 'HEAD') or 'unknown'
    return name + '+' * bool(git('status', '--porcelain', '--', 'lib', 'rpc', 'app', 'test', 'cmake'))


def version(name):
    try:
        done = subprocess.run([program(name, name), '--version'], capture_output=True, text=True, check=False)
        return done.stdout.splitlines()[0]
    except (Missing, IndexError):
        return None
