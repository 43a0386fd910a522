"""What the user sees while it runs: which row, which run, its figure, and how much time is left."""

import sys
import time

from figures import quantity, spread, values


class Progress:
    """`expected_s`: how long all runs should take; corrected by how long they do take."""

    def __init__(self, expected_s):
        self._expected_s, self._done_s = expected_s, 0.0
        self._began = time.monotonic()
        self._terminal = sys.stdout.isatty()

    def running(self, group, row, run, runs):
        """Before a run. On a terminal this line is overwritten; elsewhere only results are printed."""
        if self._terminal:
            print(f'\r\033[K{self._left():>14}  {group}: {row}: run {run} of {runs}', end='', flush=True)

    def done(self, expected_s):
        self._done_s += expected_s

    def group(self, title, rows, column):
        """A finished group: each row with its first figure."""
        print(f'{self._clear()}{title}{"" if self._terminal else f"   ({self._left()})"}')
        for row in rows:
            median, low, high = spread(values(row, column[1]))
            print(f'    {row["name"]:36} {quantity(median):>7} {column[0]}   ({quantity(low)} to {quantity(high)})',
                  flush=True)

    def say(self, text):
        print(f'{self._clear()}{text}', flush=True)

    def _clear(self):
        return '\r\033[K' if self._terminal else ''

    def _left(self):
        elapsed_s = time.monotonic() - self._began
        if self._done_s == 0:
            left_s = self._expected_s
        else:
            left_s = elapsed_s / self._done_s * (self._expected_s - self._done_s)
        return f'{left_s / 60:.0f} min left' if left_s > 90 else f'{max(left_s, 0):.0f} s left'
