"""Paths, program look-up and waiting, shared by all guest tests."""

import os
import pathlib
import select
import shutil
import subprocess
import time
import unittest

REPO = pathlib.Path(__file__).resolve().parents[2]
HERE = REPO / 'test' / 'guest'
CACHE = REPO / 'build' / 'guest'  # everything made here can be deleted at any time
LOGS = CACHE / 'logs'

# Debian keeps several of the programs out of an ordinary user's PATH.
_SEARCH = os.environ.get('PATH', '') + ':/usr/sbin:/sbin'


class GuestError(Exception):
    """A guest, a back end or a tool did not do what it should; the text says what and where to look."""


class Missing(Exception):
    """A program or package is not installed; the text names it."""


def program(name, package):
    """The path of `name`. Raises Missing, which a test turns into a skip that names the package."""
    path = shutil.which(name, path=_SEARCH)
    if path is None:
        raise Missing(f'{name} is not installed (apt-get install {package})')
    return path


def skip_if_missing(prepare, *args):
    """Calls prepare(*args); a missing program becomes a skip with its name."""
    try:
        return prepare(*args)
    except Missing as missing:
        raise unittest.SkipTest(str(missing)) from None


def run(command, **options):
    """Runs a tool and returns its output; a failure shows the command and everything it printed."""
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False, **options)
    if done.returncode != 0:
        raise GuestError(f'`{" ".join(map(str, command))}` failed with status {done.returncode}:\n{done.stdout}')
    return done.stdout


def log_path(name):
    """A file below build/guest/logs; an older log of the same name is replaced."""
    LOGS.mkdir(parents=True, exist_ok=True)
    path = LOGS / name
    path.unlink(missing_ok=True)
    return path


def tail(path, lines=15):
    """The end of a log, for an error message; without "$ COMMAND", which a log may begin with."""
    try:
        text = pathlib.Path(path).read_text(errors='replace').splitlines()
        return '\n'.join(line for line in text[-lines:] if not line.startswith('$ '))
    except OSError as error:
        return f'({path}: {error.strerror})'


def stop_process(process, timeout_s=5):
    """Ends a child politely, then by force; returns its exit status."""
    if process.poll() is None:
        process.terminate()
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


class Deadline:
    """An absolute time limit: passed down so that steps share it instead of adding up."""

    def __init__(self, seconds):
        self.at = time.monotonic() + seconds

    def left(self):
        return max(0.0, self.at - time.monotonic())


class LineReader:
    """Complete lines from a socket or pipe, waited for with a deadline instead of a sleep."""

    def __init__(self, source):
        self._fd = source.fileno()
        self._source = source  # keeps the descriptor open
        self._buffer = b''

    def rest(self):
        """What has arrived but was not taken; it is gone from here."""
        while select.select([self._fd], [], [], 0)[0]:
            chunk = os.read(self._fd, 65536)
            if not chunk:
                break
            self._buffer += chunk
        rest, self._buffer = self._buffer, b''
        return rest

    def begin_with(self, data):
        """Lets `data` be read before what arrives here."""
        self._buffer = data + self._buffer

    def line(self, deadline):
        """The next line without its end; None at the deadline; EOFError when the other side has gone."""
        while b'\n' not in self._buffer:
            if not select.select([self._fd], [], [], deadline.left())[0]:
                return None
            chunk = os.read(self._fd, 65536)
            if not chunk:
                raise EOFError
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b'\n', 1)
        return line.decode(errors='replace').rstrip('\r')
