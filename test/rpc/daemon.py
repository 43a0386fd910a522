"""A sluice-vhost process and a client of its RPC socket, for the tests."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get('SLUICE_BUILD_DIR', ROOT / 'build/release')).resolve()
BINARY = pathlib.Path(os.environ.get('SLUICE_VHOST', BUILD / 'app/vhost/sluice-vhost')).resolve()
RPC_PY = ROOT / 'scripts/rpc.py'
TOP_PY = ROOT / 'scripts/top.py'
IMAGE_PY = ROOT / 'scripts/image.py'
BDEVPERF = BUILD / 'app/bdevperf/sluice-bdevperf'
COPY = BUILD / 'app/copy/sluice-copy'
PATIENCE_S = 20


class RpcError(Exception):
    """What the daemon refused."""

    def __init__(self, error):
        super().__init__(f'{error["code"]}: {error["message"]}')
        self.code = error['code']
        self.message = error['message']


class Client:
    """One connection."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE_S)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise

    def send(self, data):
        self._socket.sendall(data if isinstance(data, bytes) else data.encode())

    def receive(self):
        """The next line, or what there was before the end of the stream."""
        data = b''
        while not data.endswith(b'\n'):
            try:
                chunk = self._socket.recv(1 << 16)
            except ConnectionResetError:
                break
            if not chunk:
                break
            data += chunk
        return data

    def ask(self, data):
        self.send(data)
        return json.loads(self.receive())

    def call(self, method, **params):
        reply = self.ask(json.dumps({'jsonrpc': '2.0', 'id': 1, 'method': method, 'params': params}))
        if 'error' in reply:
            raise RpcError(reply['error'])
        return reply['result']

    def close(self):
        self._socket.close()


class Daemon:
    """A process in a directory of its own, on so many cores. Use as a context."""

    def __init__(self, *options, directory=None, rpc='rpc.sock', cores=1, prepare=None):
        if not BINARY.exists():
            raise unittest.SkipTest(f'{BINARY} is not built (scripts/build)')
        self.cores = sorted(os.sched_getaffinity(0))[:cores]
        if len(self.cores) < cores:
            raise unittest.SkipTest(f'this needs {cores} cores')
        self._prepare = prepare  # called in the new process before it becomes the daemon
        self._own = directory is None
        self.directory = pathlib.Path(directory or tempfile.mkdtemp(prefix='sluice-'))
        self.socket = self.directory / rpc
        self.command = [str(BINARY), '-m', hex(sum(1 << core for core in self.cores)), '-S', str(self.directory), '-r', str(self.socket), *options]
        self.process = None
        self._clients = []

    def start(self):
        if self.process is not None:
            self.log.close()
        self.log = open(self.directory / 'log', 'ab')
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                        cwd=self.directory, preexec_fn=self._prepare)
        return self

    def wait_ready(self):
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.client().call('spdk_get_version')
                return self
            except OSError:
                time.sleep(0.005)
        raise AssertionError(f'the daemon did not start: {self.read_log()}')

    def client(self):
        client = Client(self.socket)
        self._clients.append(client)
        return client

    def read_log(self):
        return (self.directory / 'log').read_text(errors='replace')

    def wait_exit(self):
        return self.process.wait(PATIENCE_S)

    def stop(self):
        """Ends it with SIGTERM; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait_exit()

    def run_rpc_py(self, *arguments, input_text=None):
        return subprocess.run([str(RPC_PY), '-s', str(self.socket), *arguments], capture_output=True, text=True,
                              input=input_text, timeout=PATIENCE_S, check=False)

    def __enter__(self):
        self.start()
        try:
            return self.wait_ready()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        for client in self._clients:
            client.close()
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
            self.log.close()
        if self._own:
            shutil.rmtree(self.directory, ignore_errors=True)


class DaemonCase(unittest.TestCase):
    """Tests that share a daemon."""

    @classmethod
    def setUpClass(cls):
        cls.daemon = cls.enterClassContext(Daemon())

    def setUp(self):
        self.client = self.daemon.client()
        self.call = self.client.call

    def file(self, name, size):
        path = self.daemon.directory / name
        with open(path, 'wb') as file:
            file.truncate(size)
        return str(path)

    def assert_refused(self, code, texts, method, **params):
        with self.assertRaises(RpcError) as refused:
            self.call(method, **params)
        self.assertEqual(refused.exception.code, code, refused.exception.message)
        for text in [texts] if isinstance(texts, str) else texts:
            self.assertIn(text, refused.exception.message)
        self.assertTrue(refused.exception.message.startswith(method), refused.exception.message)
