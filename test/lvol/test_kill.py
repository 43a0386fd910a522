"""Logical volumes of a daemon that is killed under load, again and again.

Each round four volumes are written to through their sockets (sluice-kill-load), volumes and snapshots are made,
changed and deleted over the RPC, and the daemon is killed at a random moment. The next one must find the store at once,
with the volumes that there were, each block of them as flushed or newer, and each snapshot as it was when it was made.

By hand: python3 test/lvol/test_kill.py --rounds 200 --seed 7
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / 'rpc'))
from daemon import BUILD, Daemon, RpcError  # noqa: E402

LOAD = BUILD / 'test/lvol/sluice-kill-load'
CHECK = BUILD / 'app/lvol-check/sluice-lvol-check'
MIB = 1 << 20
DISKS = 4
USED_MIB = 16  # of each volume, from its beginning
MAX_MIB = 24
STORE_MIB = 512
MAX_FROZEN = 5
CALL_S = 0.003  # that a call may take
MAX_LOAD_S = 1.0
PATIENCE_S = 60

# A volume. `content`: what it holds and keeps, None for a disk under load and for what is empty.
Volume = collections.namedtuple('Volume', 'mib readonly content')


class Failure(AssertionError):
    """Something is not as it must be."""


class Load:
    """The sluice-kill-load process."""

    def __init__(self, seed, log):
        self.process = subprocess.Popen([str(LOAD), str(seed), str(USED_MIB)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1)

    def ask(self, *words):
        """Its answer, which comes within PATIENCE_S."""
        guard = threading.Timer(PATIENCE_S, self.process.kill)
        guard.start()
        try:
            self.process.stdin.write(' '.join(map(str, words)) + '\n')
            answer = self.process.stdout.readline().strip()
        except OSError:
            answer = ''
        finally:
            guard.cancel()
        return answer or f'no answer from {LOAD.name} to {words[0]}'

    def tell(self, *words):
        answer = self.ask(*words)
        if answer != 'ok' and not answer.startswith('ok '):
            raise Failure(f'{words[0]}: {answer}')
        return answer.split()[1:]

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.process.stdout.close()


class Killer:
    """Kills a process after a while, or earlier."""

    def __init__(self, process, after_s):
        self.at_ns = None
        self._process = process
        self._lock = threading.Lock()
        self._timers = []
        self.within(after_s)

    def within(self, after_s):
        self._timers.append(threading.Timer(after_s, self._kill))
        self._timers[-1].start()

    def _kill(self):
        with self._lock:
            if self.at_ns is None:
                self.at_ns = time.monotonic_ns()
                self._process.kill()

    def join(self):
        self._timers[-1].join()
        self._process.wait()
        for timer in self._timers:
            timer.cancel()


class Rounds:
    """A store, its volumes, and how often its daemon is killed."""

    def __init__(self, seed, check, directory=None):
        for program in (LOAD, *([CHECK] if check else [])):
            if not program.exists():
                raise unittest.SkipTest(f'{program} is not built (scripts/build)')
        self.random = random.Random(seed)
        self.check = check
        self.load_s = []
        self.changes = self.flushes = self.calls = self.checked = self.interrupted = self.completed = 0
        self.made = 0  # names
        if directory is None and os.access('/dev/shm', os.W_OK):
            directory = '/dev/shm'
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix='sluice-kill-', dir=directory))
        self.daemon = None
        self.load = None
        try:
            self.log = open(self.directory / 'load.log', 'ab')
            self.load = Load(seed, self.log)
            self._make()
        except BaseException:
            self.close()
            raise

    def close(self):
        if self.load is not None:
            self.load.close()
        if self.daemon is not None:
            self.daemon.__exit__()
        self.log.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- The daemon ---

    def _start(self):
        self.daemon = Daemon(directory=self.directory)
        self.daemon.__enter__()
        self.client = self.daemon.client()
        self.call = self.client.call
        before = time.monotonic()
        self.call('bdev_aio_create', name='disk', filename=str(self.directory / 'disk'), block_size=512)
        stores = self.call('bdev_lvol_get_lvstores')
        return time.monotonic() - before, stores

    def _socket(self, name):
        return self.directory / name

    def _serve(self, name, volume, readonly=False):
        self.call('vhost_create_blk_controller', ctrlr=name, dev_name=f'lvs/{volume}', readonly=readonly)
        return self._socket(name)

    def _make(self):
        with open(self.directory / 'disk', 'wb') as file:
            file.truncate(STORE_MIB * MIB)
        self._start()
        cluster = self.random.choice([64 << 10, 64 << 10, 256 << 10])
        self.call('bdev_lvol_create_lvstore', bdev_name='disk', lvs_name='lvs', cluster_sz=cluster)
        self.call('bdev_lvol_create', lvs_name='lvs', lvol_name='base', size_in_mib=USED_MIB, thin_provision=True)
        self.load.tell('fill', self._serve('base', 'base'))
        self.call('vhost_delete_controller', ctrlr='base')
        self.call('bdev_lvol_snapshot', lvol_name='lvs/base', snapshot_name='origin')
        self.call('bdev_lvol_delete', name='lvs/base')
        self.volumes = {'origin': Volume(USED_MIB, True, None)}
        for disk in self.disks():
            self.call('bdev_lvol_clone', snapshot_name='lvs/origin', clone_name=disk)
            self.volumes[disk] = Volume(USED_MIB, False, None)
            self._serve(disk, disk)
        self.load.tell('attach', *(self._socket(disk) for disk in self.disks()))

    def disks(self):
        return [f'disk{number}' for number in range(1, DISKS + 1)]

    def found(self):
        """The volumes, as the daemon has them: size and whether they are read-only."""
        return {bdev['aliases'][0].removeprefix('lvs/'): (bdev['num_blocks'] * 512 // MIB, bdev['readonly'])
                for bdev in self.call('bdev_get_bdevs') if bdev['product_name'] == 'Logical Volume'}

    # --- Changes ---

    def _name(self, letter):
        self.made += 1
        return f'{letter}{self.made}'

    def _frozen(self):
        return [name for name, volume in self.volumes.items() if volume.content]

    def _change(self, after, method, **params):
        """A call after which there are these volumes. If the daemon dies meanwhile, these or those there were."""
        self.maybe = after
        self.calls_left -= 1
        if self.calls_left == 0:
            self.killer.within(self.random.uniform(0, CALL_S))
        self.call(method, **params)
        self.volumes = after
        self.maybe = None
        self.calls += 1

    def _with(self, **volumes):
        return {**self.volumes, **volumes}

    def snapshot(self):
        number = self.random.randint(1, DISKS)
        disk, name = f'disk{number}', self._name('s')
        self.load.tell('begin', name, number)
        self.contents.add(name)
        self._change(self._with(**{name: Volume(self.volumes[disk].mib, True, name)}), 'bdev_lvol_snapshot',
                     lvol_name=f'lvs/{disk}', snapshot_name=name)
        self.load.tell('end', name)
        if self.random.random() < 0.3:
            self.verify(name)

    def clone(self, of):
        if not self.volumes[of].readonly:
            return
        name = self._name('c')
        self._change(self._with(**{name: self.volumes[of]._replace(readonly=False)}), 'bdev_lvol_clone',
                     snapshot_name=f'lvs/{of}', clone_name=name)

    def delete(self, name):
        after = self._with()
        del after[name]
        self._change(after, 'bdev_lvol_delete', name=f'lvs/{name}')

    def rename(self, name):
        after, new = self._with(), self._name('r')
        after[new] = after.pop(name)
        self._change(after, 'bdev_lvol_rename', old_name=f'lvs/{name}', new_name=new)

    def resize(self, name):
        if self.volumes[name].readonly:
            return
        mib = self.random.randint(USED_MIB, MAX_MIB)
        self._change(self._with(**{name: self.volumes[name]._replace(mib=mib)}), 'bdev_lvol_resize', name=f'lvs/{name}',
                     size_in_mib=mib)

    def set_read_only(self, name):
        self._change(self._with(**{name: self.volumes[name]._replace(readonly=True)}), 'bdev_lvol_set_read_only',
                     name=f'lvs/{name}')

    def own(self, name):
        if self.volumes[name].readonly:
            return
        self._change(self._with(), self.random.choice(['bdev_lvol_inflate', 'bdev_lvol_decouple_parent']),
                     name=f'lvs/{name}')

    def empty(self):
        """Makes an empty volume, or deletes the one there is."""
        there = [name for name in self.volumes if name[0] == 'e']
        if there:
            self.delete(there[0])
        else:
            mib, name = self.random.randint(1, 8), self._name('e')
            self._change(self._with(**{name: Volume(mib, False, None)}), 'bdev_lvol_create', lvs_name='lvs',
                         lvol_name=name, size_in_mib=mib, thin_provision=self.random.random() < 0.5)

    def anything(self):
        frozen = self._frozen()
        if not frozen or (len(frozen) < MAX_FROZEN and self.random.random() < 0.4):
            return self.snapshot()
        if len(frozen) >= MAX_FROZEN:
            return self.delete(self.random.choice(frozen))
        name = self.random.choice(frozen)
        return self.random.choice([
            lambda: self.clone(name), lambda: self.delete(name), lambda: self.rename(name), lambda: self.resize(name),
            lambda: self.resize(self.random.choice(self.disks())), lambda: self.set_read_only(name),
            lambda: self.own(name), self.empty])()

    # --- A round ---

    def verify(self, name):
        """Reads a volume whose content does not change."""
        answer = self.load.ask('check', self.volumes[name].content, self._serve('frozen', name, readonly=True))
        if answer.startswith('lost: ') and self.killed():
            raise ConnectionError(answer)
        if answer != 'ok':
            raise Failure(f'{name}: {answer}')
        self.call('vhost_delete_controller', ctrlr='frozen')
        self.checked += 1

    def killed(self):
        """Whether what was seen now follows from the daemon's end."""
        seen_ns = time.monotonic_ns()
        if self.killer is None:
            return False
        self.killer.join()
        return seen_ns >= self.killer.at_ns

    def round(self):
        self.contents = {volume.content for volume in self.volumes.values() if volume.content}
        self.maybe = None
        self.load.tell('run')
        # Half of the kills are meant to meet a call.
        self.calls_left = self.random.choice([0, self.random.randint(1, 15)])
        self.killer = Killer(self.daemon.process, self.random.uniform(0.02, 0.5))
        try:
            while True:
                self.anything()
                if self.random.random() < 0.5:
                    time.sleep(self.random.uniform(0, 0.02))
        except (OSError, json.JSONDecodeError) as error:
            # The connection has ended.
            if not self.killed():
                raise Failure(f'before the daemon was killed: {error!r}') from error
        finally:
            self.killer.join()
        if self.daemon.process.returncode != -signal.SIGKILL:
            raise Failure(f'the daemon ended by itself: {self.daemon.process.returncode}')
        first_failure_ns, changes, flushes, *failure = self.load.tell('down')
        if int(first_failure_ns) < self.killer.at_ns:
            raise Failure(f'a request failed before the daemon was killed: {" ".join(failure)}')
        self.changes += int(changes)
        self.flushes += int(flushes)
        self.killer = None
        self.daemon.__exit__()

        if self.check:
            checked = subprocess.run([str(CHECK), str(self.directory / 'disk')], capture_output=True, text=True,
                                     timeout=PATIENCE_S, check=False)
            if checked.returncode != 0:
                raise Failure(f'{CHECK.name}: {checked.stdout}{checked.stderr}')

        took_s, stores = self._start()
        self.load_s.append(took_s)
        if [(store['name'], store['damage']) for store in stores] != [('lvs', None)]:
            raise Failure(f'stores after the kill: {stores}')
        if took_s >= MAX_LOAD_S:
            raise Failure(f'loading the store took {took_s:.3f} s')
        self._find_volumes()
        for disk in self.disks():
            self._serve(disk, disk)
        self.load.tell('verify')
        for name in self._frozen():
            self.verify(name)
        for content in self.contents - {volume.content for volume in self.volumes.values()}:
            self.load.tell('forget', content)

    def _find_volumes(self):
        found = self.found()
        self.interrupted += self.maybe is not None
        texts = []
        for volumes in [self.volumes] if self.maybe is None else [self.volumes, self.maybe]:
            expected = {name: volume[:2] for name, volume in volumes.items()}
            if expected == found:
                self.completed += volumes is self.maybe
                self.volumes = volumes
                return
            texts.append(f'missing {sorted(expected.items() - found.items())}, '
                         f'there {sorted(found.items() - expected.items())}')
        raise Failure('volumes after the kill, (name, (MiB, read-only)): ' + '; or, with the last call: '.join(texts))

    def report(self):
        loads_ms = [1000 * took for took in self.load_s]
        return (f'{len(loads_ms)} rounds: {self.changes} changes of content, {self.flushes} flushes, '
                f'{self.calls} calls, {self.interrupted} more were interrupted, of which {self.completed} had '
                f'taken place, {self.checked} snapshots and clones compared, '
                f'{len(loads_ms) if self.check else 0} times {CHECK.name} found nothing; '
                f'store loaded in {statistics.median(loads_ms):.1f} ms (median), {max(loads_ms):.1f} ms (max)')


def run(rounds, seed, check, directory=None, progress_every=None):
    """Runs so many rounds; what there is to tell of them."""
    print(f'seed {seed}', flush=True)
    store = Rounds(seed, check, directory)
    began = time.monotonic()
    try:
        for done in range(rounds):
            try:
                store.round()
            except (Failure, RpcError) as error:
                log = store.daemon.read_log()[-2000:]
                raise Failure(f'round {done + 1}: {error}\nreplay: {__file__} --rounds {rounds} --seed {seed}\n'
                              f'the end of the log:\n{log}') from error
            if progress_every and (done + 1) % progress_every == 0:
                print(f'{time.monotonic() - began:6.1f} s, {store.report()}', flush=True)
        return store.report()
    finally:
        store.close()


class Kill(unittest.TestCase):
    ROUNDS = 5

    def test_what_was_flushed_and_what_was_made_is_there_after_kill_9(self):
        print(run(self.ROUNDS, seed=1, check=False))

    def test_lvol_check_finds_nothing_after_kill_9(self):
        print(run(self.ROUNDS, seed=2, check=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=200)
    parser.add_argument('--seed', type=int, default=random.randrange(1 << 32))
    parser.add_argument('--directory', help='for the disk and the sockets, instead of memory')
    options = parser.parse_args()
    if not CHECK.exists():
        print(f'{CHECK.name}: skipped: it is not built')
    try:
        print(run(options.rounds, options.seed, CHECK.exists(), options.directory, progress_every=10))
    except (Failure, unittest.SkipTest) as failure:
        sys.exit(str(failure))


if __name__ == '__main__':
    main()
