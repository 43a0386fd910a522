#!/usr/bin/env python3
"""Runs the guest tests and prints how long each took.

    test/guest/run.py                      all, against build/release/app/vhost/sluice-vhost
    test/guest/run.py -k uml               those whose name contains "uml"
    test/guest/run.py --backend qsd        against qemu-storage-daemon: checks the tests themselves
"""

import argparse
import os
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


class TimedResult(unittest.TextTestResult):
    def startTest(self, test):
        self._started = time.monotonic()
        super().startTest(test)

    def stopTest(self, test):
        super().stopTest(test)
        self.stream.writeln(f'    {time.monotonic() - self._started:.1f} s')
        self.stream.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--backend', choices=['sluice', 'qsd'], help='default: $SLUICE_GUEST_BACKEND, or sluice')
    parser.add_argument('-k', action='append', metavar='PATTERN', help='only tests whose name contains PATTERN')
    options = parser.parse_args()
    if options.backend:
        os.environ['SLUICE_GUEST_BACKEND'] = options.backend
    loader = unittest.TestLoader()
    if options.k:
        loader.testNamePatterns = [f'*{pattern}*' for pattern in options.k]
    tests = loader.discover(os.path.dirname(os.path.abspath(__file__)), 'test_*.py')
    if tests.countTestCases() == 0:
        sys.exit(f'no test matches {options.k}')
    result = unittest.TextTestRunner(verbosity=2, resultclass=TimedResult).run(tests)
    return 0 if result.wasSuccessful() else 1


if __name__ == '__main__':
    sys.exit(main())
