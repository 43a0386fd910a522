"""Clients for the two JSON protocols the tests speak over UNIX sockets: JSON-RPC 2.0 and QMP."""

import json
import socket

from common import Deadline, GuestError, LineReader


BATCH = 128  # calls in one text of call_all()


class JsonRpc:
    """Calls methods of sluice-vhost. Not thread-safe."""

    def __init__(self, path, timeout_s=10):
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._next_id = 1
        self._decoder = json.JSONDecoder()
        self._text = ''

    def call(self, method, **params):
        """The method's result. Raises GuestError with the daemon's own message if it refuses."""
        request = {'jsonrpc': '2.0', 'id': self._next_id, 'method': method}
        if params:
            request['params'] = params
        self._next_id += 1
        try:
            self._socket.sendall(json.dumps(request).encode() + b'\n')
            reply = self._reply(method)
        except ConnectionError:
            raise GuestError(f'the daemon closed {self._path} during {method}: see its log') from None
        if 'error' in reply:
            raise GuestError(f'{method}({params}) failed: {reply["error"]}')
        return reply.get('result')

    def call_all(self, calls):
        """Makes many calls, [(method, params)...], in order. Raises GuestError for the first that is refused.

        In batches, two of which are on their way: the daemon always has one to work at, and never waits for us to
        read.
        """
        batches = [calls[at:at + BATCH] for at in range(0, len(calls), BATCH)]
        for at in range(len(batches) + 1):
            if at < len(batches):
                requests = [{'jsonrpc': '2.0', 'id': i, 'method': method, 'params': params}
                            for i, (method, params) in enumerate(batches[at])]
                self._socket.sendall(json.dumps(requests).encode() + b'\n')
            if at > 0:
                self._check_all(batches[at - 1], self._reply(f'{len(batches[at - 1])} calls'))

    @staticmethod
    def _check_all(calls, replies):
        for reply in replies if isinstance(replies, list) else [replies]:
            if 'error' in reply:
                method, params = calls[reply.get('id') or 0]
                raise GuestError(f'{method}({params}) failed: {reply["error"]}')

    def close(self):
        self._socket.close()

    def _reply(self, method):
        # Replies are not framed: an object ends where its JSON ends.
        while True:
            self._text = self._text.lstrip()
            try:
                reply, end = self._decoder.raw_decode(self._text)
                self._text = self._text[end:]
                return reply
            except json.JSONDecodeError:
                pass
            try:
                chunk = self._socket.recv(65536)
            except TimeoutError:
                raise GuestError(f'no answer to {method} on {self._path} within '
                                 f'{self._socket.gettimeout():.0f} s: the daemon hangs') from None
            if not chunk:
                raise GuestError(f'the daemon closed {self._path} during {method}: see its log')
            self._text += chunk.decode()


class Qmp:
    """QEMU's monitor protocol on a connected socket; events between replies are dropped."""

    def __init__(self, connected, timeout_s=20):
        self._socket = connected
        self._lines = LineReader(connected)
        self._timeout_s = timeout_s
        self._read('greeting')
        self.call('qmp_capabilities')

    def call(self, command, **arguments):
        request = {'execute': command}
        if arguments:
            request['arguments'] = arguments
        try:
            self._socket.sendall(json.dumps(request).encode() + b'\n')
        except ConnectionError:
            raise GuestError(f'the QMP monitor was closed before {command}') from None
        while True:
            message = self._read(command)
            if 'error' in message:
                raise GuestError(f'QMP {command}({arguments}) failed: {message["error"]["desc"]}')
            if 'return' in message:
                return message['return']

    def close(self):
        self._socket.close()

    def _read(self, command):
        try:
            line = self._lines.line(Deadline(self._timeout_s))
        except (EOFError, ConnectionError):
            raise GuestError(f'the QMP monitor closed during {command}') from None
        if line is None:
            raise GuestError(f'no QMP reply to {command} within {self._timeout_s} s')
        return json.loads(line)
