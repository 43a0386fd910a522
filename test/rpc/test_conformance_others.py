"""sluice-conformance and qemu-storage-daemon: what it finds is told, and not judged."""

import json
import pathlib
import shutil
import subprocess
import tempfile
import threading
import time
import unittest

from test_conformance import CONFORMANCE, DISK_BYTES, counts, failures, run

# What is left unanswered is waited for, each time.
TIME_LIMIT_S = 200


class StorageDaemon:
    """qemu-storage-daemon with a disk; whenever it dies, there is a new one. Use as a context."""

    def __init__(self, program):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix='sluice-conformance-'))
        self.socket = self.directory / 'socket'
        image = self.directory / 'image'
        with open(image, 'wb') as file:
            file.truncate(DISK_BYTES)
        self._command = [program, '--blockdev', f'driver=file,node-name=disk,filename={image},discard=unmap', '--export',
                         'type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=2,'
                         f'addr.type=unix,addr.path={self.socket}']
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self.deaths = 0

    def _start(self):
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                         stderr=subprocess.DEVNULL)

    def _watch(self):
        while not self._stopping.wait(0.02):
            if self._process.poll() is not None:
                self.deaths += 1
                self._start()

    def __enter__(self):
        self._start()
        self._watcher.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        self._watcher.join()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.directory)


@unittest.skipUnless(CONFORMANCE.exists(), f'{CONFORMANCE} is not built (scripts/build)')
class OtherBackEndTest(unittest.TestCase):
    def test_qemu_storage_daemon_is_tried(self):
        program = shutil.which('qemu-storage-daemon')
        if program is None:
            self.skipTest('qemu-storage-daemon is not installed (scripts/setup)')
        with StorageDaemon(program) as other:
            began = time.monotonic()
            try:
                done = run(other.socket, '--json', timeout=TIME_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.skipTest(f'qemu-storage-daemon took more than {TIME_LIMIT_S} s')
            took = time.monotonic() - began
        self.assertIn(done.returncode, (0, 1), done.stderr)
        results = json.loads(done.stdout)
        print(f'qemu-storage-daemon: {counts(results)} in {took:.1f} s, died {other.deaths} times')
        for name, status, _ in failures(results):
            print(f'  {status} {name}')
        self.assertGreater(results['summary']['passed'], 0)
        if results['summary']['not_run']:  # it may hang without dying
            print(f'  not run, as it did not answer any more: {results["summary"]["not_run"]}')


if __name__ == '__main__':
    unittest.main()
