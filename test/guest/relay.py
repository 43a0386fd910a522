"""A vhost-user relay for front ends of one ring that cannot reconnect, as User-Mode Linux: the back end may die.

It passes messages on and keeps what sets the device up. When the back end's connection ends it connects again and
sends that once more, as QEMU does: with the same buffer for requests in flight, each ring's base at what its used
ring says (vhost-user, "Inflight I/O tracking"). Rings and interrupts do not pass through here.
"""

import mmap
import os
import select
import socket
import struct
import threading
import time

from common import GuestError

# Requests and bits of the vhost-user protocol.
SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES = 15, 16
SET_VRING_ENABLE, SET_BACKEND_REQ_FD, GET_INFLIGHT_FD, SET_INFLIGHT_FD = 18, 21, 31, 32
ANSWERED = {1, GET_VRING_BASE, GET_PROTOCOL_FEATURES, 17, 24, GET_INFLIGHT_FD}
NEED_REPLY, VERSION = 8, 1
INFLIGHT_SHMFD = 1 << 12

# What sets a device up, and a ring of it.
OF_DEVICE = {SET_OWNER, SET_FEATURES, SET_PROTOCOL_FEATURES, SET_BACKEND_REQ_FD, SET_MEM_TABLE}
OF_RING = {SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, SET_VRING_CALL, SET_VRING_ERR, SET_VRING_KICK, SET_VRING_ENABLE}

MOST_FDS = 8
ANSWER_TIMEOUT_S = 20
PAUSE_S = 0.005  # between attempts to connect


class Message:
    """A request with its payload (bytes) and descriptors, which close() closes."""

    def __init__(self, request, flags, payload, fds=()):
        self.request, self.flags, self.payload, self.fds = request, flags, payload, list(fds)

    @classmethod
    def receive(cls, connection):
        """The next message; ConnectionError at the end of the connection."""
        header, fds, _, _ = socket.recv_fds(connection, 12, MOST_FDS)
        request, flags, size = struct.unpack('<III', header + cls._rest(connection, 12 - len(header)))
        return cls(request, flags, cls._rest(connection, size), fds)

    @staticmethod
    def _rest(connection, size):
        data = b''
        while len(data) < size:
            more = connection.recv(size - len(data))
            if not more:
                raise ConnectionError('the connection ended')
            data += more
        return data

    def send(self, connection):
        data = struct.pack('<III', self.request, self.flags, len(self.payload)) + self.payload
        sent = socket.send_fds(connection, [data], self.fds) if self.fds else connection.send(data)
        connection.sendall(data[sent:])

    def close(self):
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()

    def ring(self):
        """Of a message in OF_RING: its ring's index, which has 8 bits beside a descriptor."""
        index = struct.unpack_from('<I', self.payload)[0]
        return index & 0xff if self.request in (SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR) else index


class Relay:
    """Serves one front end on `path`, from a thread of its own, until it is closed; use as a context manager."""

    def __init__(self, path, back_end_path):
        self.path = path
        self._back_end_path = str(back_end_path)
        self._kept = {}  # by (request, ring or None): the last message of each, in the order in which they came first
        self._offered = 0  # the back end's protocol features
        self._set_ups = 0
        self._gone = False  # the front end
        self._error = None
        self._changed = threading.Condition()
        self._stop, self._stopped = socket.socketpair()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self._stopped.close()
        self._thread.join()
        self._stop.close()
        self._listener.close()
        for message in self._kept.values():
            message.close()
        if kind is None and self._error:
            raise GuestError(f'the relay before {self._back_end_path} failed: {self._error}') from self._error

    @property
    def set_ups(self):
        """How often the device was set up: by the front end, and then by the relay."""
        with self._changed:
            return self._set_ups

    def wait_for_set_ups(self, count, timeout_s):
        """Until the device was set up `count` times."""
        with self._changed:
            self._changed.wait_for(lambda: self._set_ups >= count or self._gone or self._error, timeout_s)
            if self._set_ups >= count and not self._error:
                return
            why = self._error or ('the front end has gone' if self._gone else f'not within {timeout_s} s')
            raise GuestError(f'{self._back_end_path} was set up {self._set_ups} times, not {count}: {why}')

    def _run(self):
        try:
            if self._stop not in select.select([self._listener, self._stop], [], [])[0]:
                with self._listener.accept()[0] as front_end:
                    self._serve(front_end)
        except ConnectionError:
            self._tell(_gone=True)
        except Exception as error:  # of this thread: told by whoever waits
            self._tell(_error=error)

    def _tell(self, **changes):
        with self._changed:
            vars(self).update(changes)
            self._changed.notify_all()

    def _serve(self, front_end):
        """Until the relay is closed. Raises ConnectionError when the front end's connection ends."""
        back_end = self._connect()
        while back_end:
            ready = select.select([front_end, back_end, self._stop], [], [])[0]
            if self._stop in ready:
                return
            if back_end in ready:  # it says nothing unasked: this is its end
                back_end = self._set_up_again(back_end)
                continue
            message, answer = Message.receive(front_end), None
            while back_end:
                try:
                    answer = self._pass_on(message, back_end)
                    break
                except ConnectionError:
                    back_end = self._set_up_again(back_end)
            if answer:
                answer.send(front_end)

    def _connect(self):
        """A connection to the back end, which may not be there yet; None if the relay is closed before."""
        while not select.select([self._stop], [], [], 0)[0]:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self._back_end_path)
                connection.settimeout(ANSWER_TIMEOUT_S)
                return connection
            except (FileNotFoundError, ConnectionRefusedError):
                connection.close()
                time.sleep(PAUSE_S)
        return None

    def _ask(self, back_end, message):
        """Sends; the answer, or None if none is expected."""
        message.send(back_end)
        return Message.receive(back_end) if message.request in ANSWERED or message.flags & NEED_REPLY else None

    def _pass_on(self, message, back_end):
        """Returns the answer, or None."""
        if message.request == SET_PROTOCOL_FEATURES:
            bits = struct.unpack('<Q', message.payload)[0] | self._offered & INFLIGHT_SHMFD
            message.payload = struct.pack('<Q', bits)
        answer = self._ask(back_end, message)
        if message.request in OF_DEVICE:
            self._keep(message, None)
        elif message.request in OF_RING:
            self._keep(message, message.ring())
        else:
            message.close()
        if message.request == GET_PROTOCOL_FEATURES:
            self._offered = struct.unpack('<Q', answer.payload)[0]
        elif message.request == SET_VRING_NUM and (SET_INFLIGHT_FD, None) not in self._kept:
            self._keep_in_flight(back_end, message)
        elif message.request == SET_VRING_ENABLE:
            self._tell(_set_ups=self._set_ups + 1)
        return answer

    def _keep(self, message, ring):
        """Instead of an older one, in its place."""
        older = self._kept.get((message.request, ring))
        if older and older is not message:  # which may be sent twice
            older.close()
        self._kept[message.request, ring] = message

    def _keep_in_flight(self, back_end, num):
        """The buffer for requests in flight, for one ring of the size in `num`."""
        if not self._offered & INFLIGHT_SHMFD:
            raise GuestError('the back end does not track requests in flight')
        queue_size = struct.unpack('<II', num.payload)[1]
        wanted = struct.pack('<QQHH4x', 0, 0, 1, queue_size)
        buffer = self._ask(back_end, Message(GET_INFLIGHT_FD, VERSION, wanted))
        kept = Message(SET_INFLIGHT_FD, VERSION, buffer.payload, buffer.fds)
        self._ask(back_end, kept)
        self._kept[SET_INFLIGHT_FD, None] = kept

    def _set_up_again(self, back_end):
        """Returns the new connection; None if the relay is closed before."""
        while True:
            back_end.close()
            back_end = self._connect()
            if not back_end:
                return None
            try:
                for (request, ring), message in self._kept.items():
                    if request == SET_VRING_BASE and (SET_VRING_ADDR, ring) in self._kept:
                        message = Message(request, message.flags, struct.pack('<II', ring, self._used_index(ring)))
                    answer = self._ask(back_end, message)
                    if answer and any(answer.payload):
                        raise GuestError(f'{self._back_end_path} refuses request {request} of a device that it had before')
                break
            except ConnectionError:
                pass
        if (SET_VRING_ENABLE, 0) in self._kept:
            self._tell(_set_ups=self._set_ups + 1)
        return back_end

    def _used_index(self, ring):
        """What the ring's used index is, in the guest's memory."""
        _, _, _, used, _, _ = struct.unpack('<IIQQQQ', self._kept[SET_VRING_ADDR, ring].payload)
        table = self._kept[SET_MEM_TABLE, None]
        count = struct.unpack_from('<I', table.payload)[0]
        for region, fd in zip(range(count), table.fds):
            _, size, user, offset = struct.unpack_from('<QQQQ', table.payload, 8 + 32 * region)
            if user <= used < user + size:
                with mmap.mmap(fd, size + offset, prot=mmap.PROT_READ) as memory:
                    return struct.unpack_from('<H', memory, used - user + offset + 2)[0]
        raise GuestError(f'ring {ring} is at {used:#x}, in no region of the guest\'s memory')
