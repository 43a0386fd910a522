"""Boots Debian's kernel in QEMU, without KVM, on vhost-user-blk sockets, and runs scenarios in it.

    with Qemu([socket_path], 'my-test') as guest:
        guest.run('ext4')
        guest.run('loop', limit_s=5)

One boot (about 2 s) serves any number of scenarios: they travel over a second serial port, see
busybox/init. Its lines and the console go to build/guest/logs/NAME.{control,console}.log.
"""

import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import common
from common import Deadline, GuestError, LineReader, program
from image import busybox_image
from jsonrpc import Qmp

BOOT_TIMEOUT_S = 60
SCENARIO_TIMEOUT_S = 60
MIGRATION_TIMEOUT_S = 120
POLL_S = 0.02

# The only serial ports are the two isa-serial devices of the command line; microvm would add its own.
MACHINES = {'q35': 'q35', 'microvm': 'microvm,pcie=on,isa-serial=off,usb=off'}


class Qemu:
    """A running guest. `queues` is the number of virtqueues of each disk, and of virtual CPUs."""

    def __init__(self, sockets, name, machine='q35', queues=1, memory_mib=192, scenario=None, reconnect=False,
                 console=None, loglevel=4, root=None, packed=False, incoming=None,
                 queue_size=128):
        """Starts the guest; run() or wait_ready() wait for it. `scenario` runs first, without run().

        reconnect: QEMU comes back when the back end was restarted, instead of leaving a dead disk.
        console: a socket which gets the console's bytes too.
        loglevel: the least kernel message that reaches the console; 4 includes I/O errors.
        packed: the guest may have packed virtqueues, if the back end offers them.
        queue_size: of each disk's virtqueues.
        incoming: the path of a socket on which the guest arrives from another Qemu of the same shape; see migrate_to().
        root: the guest's root file system is on this disk ("vda"), not in memory; see image.root_directory().
        """
        self.name = name
        self.queues = queues
        self.console_log = common.log_path(f'{name}.console.log')
        self.control_log = common.log_path(f'{name}.control.log')
        self.qemu_log = common.log_path(f'{name}.qemu.log')
        self._ready = False
        self._control, control_end = socket.socketpair()
        self._lines = LineReader(self._control)
        monitor, monitor_end = socket.socketpair()
        given = [control_end, monitor_end] + ([console] if console else [])
        command = [*self._machine(MACHINES[machine], memory_mib, loglevel, scenario, root),
                   *self._ports(control_end, monitor_end, console), *self._disks(sockets, reconnect, packed, queue_size)]
        self.incoming = incoming
        if incoming:
            command += ['-incoming', f'unix:{incoming}', '-S']
        with open(self.qemu_log, 'wb') as log:
            log.write(f'$ {" ".join(command)}\n'.encode())
            log.flush()
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                             pass_fds=[end.fileno() for end in given])
        for end in given:
            end.close()
        try:
            self.qmp = Qmp(monitor)
        except GuestError as error:
            common.stop_process(self._process)
            raise GuestError(f'{error}\nQEMU says:\n{common.tail(self.qemu_log)}') from None

    # ---- scenarios ----

    def run(self, scenario, timeout_s=SCENARIO_TIMEOUT_S, **parameters):
        """Runs a scenario of busybox/scenarios.sh to its end; returns the fields of its RESULT line."""
        self.start(scenario, **parameters)
        return self.result(timeout_s)

    def start(self, scenario, **parameters):
        """Begins a scenario; follow it with wait_for() and result()."""
        self.wait_ready()
        words = [scenario] + [f'{key}={value}' for key, value in parameters.items()]
        try:
            self._control.sendall(' '.join(words).encode() + b'\n')
        except BrokenPipeError:
            raise self._error(f'QEMU died before "{scenario}"') from None

    def wait_ready(self):
        if not self._ready:
            self.wait_for('READY', BOOT_TIMEOUT_S)
            self._ready = True

    def result(self, timeout_s=SCENARIO_TIMEOUT_S):
        """Waits for `RESULT ok`; returns its key=value words as a dict of strings."""
        line = self.wait_for('RESULT ok', timeout_s)
        return dict(re.findall(r'(\w+)=(\S+)', line))

    def wait_for(self, prefix, timeout_s=SCENARIO_TIMEOUT_S):
        """Waits for a control line that begins with `prefix` and returns it."""
        deadline = Deadline(timeout_s)
        while True:
            line = self._next_line(deadline, prefix)
            if line.startswith(prefix):
                return line
            if line.startswith('RESULT fail'):
                raise self._error(f'the guest reports: {line}')
            if line.startswith(('RESULT ok', 'READY')) and self._ready:
                raise self._error(f'the guest said "{line}" while "{prefix}" was expected')

    def latest(self, prefix):
        """The last control line so far that begins with `prefix`; None if there was none. Takes all that are there."""
        found = None
        while (line := self._lines.line(Deadline(0))) is not None:
            if line.startswith('RESULT'):
                raise self._error(f'the guest reports: {line}')
            if line.startswith(prefix):
                found = line
        return found

    def say(self, words):
        """A line for the scenario that runs."""
        self._control.sendall(words.encode() + b'\n')

    # ---- the machine ----

    def reset(self):
        """Presses the reset button: the guest boots again, without a shutdown."""
        self._ready = False
        self.qmp.call('system_reset')

    def migrate_to(self, target, passes=2, timeout_s=MIGRATION_TIMEOUT_S):
        """Moves the running guest to `target`, in the middle of what it does; returns QEMU's figures of it.

        The last step is put off until all memory has been copied once, and the guest has told of so many passes since. It
        stands still over there until go_on(). This one still exists, without a guest but with its memory.
        """
        self.wait_ready()
        # So little may be left for the last step that there is always more.
        self.qmp.call('migrate-set-parameters', **{'downtime-limit': 1, 'max-bandwidth': 16 << 20})
        self.qmp.call('migrate', uri=f'unix:{target.incoming}')
        deadline = Deadline(timeout_s)
        while (info := self.qmp.call('query-migrate')).get('status') != 'completed':
            if info.get('status') not in (None, 'setup', 'active', 'device') or not deadline.left():
                raise self._error(f'the migration has not succeeded: {info}')
            told = self.latest('PASS')
            if told and passes > 0 and info.get('ram', {}).get('dirty-sync-count', 0) > 1:
                passes -= 1
                if passes == 0:
                    self.qmp.call('migrate-set-parameters', **{'downtime-limit': 1000, 'max-bandwidth': 1 << 30})
            time.sleep(POLL_S)
        while target.qmp.call('query-status')['status'] == 'inmigrate':
            if not deadline.left():
                raise target._error('the guest has not arrived')
            time.sleep(POLL_S)
        target._lines.begin_with(self._lines.rest())  # what the guest has told before it moved
        target._ready = True
        return info

    def go_on(self):
        self.qmp.call('cont')

    def memory(self):
        """All of the guest's, as it is now."""
        descriptors = pathlib.Path(f'/proc/{self._process.pid}/fd')
        for descriptor in descriptors.iterdir():
            if 'memfd:memory' in os.readlink(descriptor):
                return descriptor.read_bytes()
        raise self._error('QEMU has no memory file')

    def used_rings(self, disk=0):
        """[(guest physical address, bytes)...] of what the device writes into the rings of a disk, if these are split."""
        path = f'/machine/peripheral/blk{disk}/virtio-backend'
        status = [self.qmp.call('x-query-virtio-queue-status', path=path, queue=i) for i in range(self.queues)]
        return [(ring['vring-used'], 6 + 8 * ring['vring-num']) for ring in status]

    def kill(self):
        """SIGKILL to QEMU: the guest and its connections vanish in mid-request."""
        self._process.kill()
        self._process.wait()

    def power_off(self):
        """A clean end: the guest's driver resets the disk, then QEMU exits."""
        self.run('poweroff')
        try:
            status = self._process.wait(20)
        except subprocess.TimeoutExpired:
            raise self._error('QEMU did not exit after the guest had powered off') from None
        if status != 0:
            raise self._error(f'QEMU exited with status {status}')

    def close(self):
        common.stop_process(self._process)
        self._control.close()
        self.qmp.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    # ---- details ----

    def _machine(self, machine, memory_mib, loglevel, scenario, root):
        kernel, initrd = busybox_image()
        words = f'console=ttyS0 loglevel={loglevel} panic=-1 edd=off tsc_early_khz={tsc_khz()}'
        if scenario:
            words += f' scenario={scenario}'
        if root:
            words += f' newroot=/dev/{root}'
        return [qemu_program(), '-nodefaults', '-no-user-config', '-display', 'none', '-name', self.name,
                '-machine', f'{machine},memory-backend=memory',
                # One thread for all CPUs: the tests' host has few, and runs two guests at once.
                '-accel', 'tcg,thread=single', '-cpu', 'max', '-smp', str(self.queues), '-m', f'{memory_mib}M',
                # share=on: the back end maps the guest's memory.
                '-object', f'memory-backend-memfd,id=memory,size={memory_mib}M,share=on',
                '-kernel', str(kernel), '-initrd', str(initrd), '-append', words]

    def _ports(self, control, monitor, console):
        """Serial port 1: the console; 2: the control line. Sockets made here, so that nothing need be waited for."""
        if console:
            first = f'socket,id=console,fd={console.fileno()},logfile={self.console_log}'
        else:
            first = f'file,id=console,path={self.console_log}'
        return ['-chardev', first, '-device', 'isa-serial,chardev=console',
                '-chardev', f'socket,id=control,fd={control.fileno()},logfile={self.control_log}',
                '-device', 'isa-serial,chardev=control',
                '-chardev', f'socket,id=monitor,fd={monitor.fileno()}', '-mon', 'chardev=monitor,mode=control']

    def _disks(self, sockets, reconnect, packed, queue_size):
        words = []
        for i, path in enumerate(sockets):
            words += ['-chardev', f'socket,id=disk{i},path={path}' + (',reconnect=1' if reconnect else ''),
                      '-device', f'vhost-user-blk-pci,chardev=disk{i},num-queues={self.queues},'
                      f'queue-size={queue_size},id=blk{i}'
                      + (',packed=on' if packed else '')]
        return words

    def _next_line(self, deadline, wanted):
        try:
            line = self._lines.line(deadline)
        except (EOFError, ConnectionError):
            raise self._error(f'QEMU died while "{wanted}" was expected') from None
        if line is None:
            raise self._error(f'"{wanted}" did not come in time')
        return line

    def _error(self, text):
        logs = [log for log in (self.qemu_log, self.control_log, self.console_log) if log.exists()]
        ends = '\n'.join(f'--- {log}:\n{common.tail(log, 12)}' for log in logs)
        return GuestError(f'guest {self.name}: {text}\n{ends}')


def qemu_program():
    return program('qemu-system-x86_64', 'qemu-system-x86')


def tsc_khz():
    """For tsc_early_khz=: without, a busy host can make microvm's clock calibration hang the boot for ever."""
    cpuinfo = pathlib.Path('/proc/cpuinfo').read_text()
    found = re.search(r'cpu MHz\s*: ([0-9.]+)', cpuinfo)
    if not found:
        sys.exit('/proc/cpuinfo has no "cpu MHz": the guests of test/guest need an x86 host')
    return int(float(found.group(1)) * 1000)
