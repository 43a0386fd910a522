"""QEMU guests with Debian's kernel: file systems, several queues, reboots, kills, resizing, removal."""

import time
import unittest

from backends import CRASHES, chosen_backend
from common import skip_if_missing
from hostdisk import verify_ext4
from image import busybox_image
from qemu import SCENARIO_TIMEOUT_S, Qemu, qemu_program

SIZE_BYTES = 128 << 20
SWITCH_PERIOD_S = 0.1
IDLE_S = 20


class QemuGuest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.backend = skip_if_missing(chosen_backend)
        skip_if_missing(qemu_program)
        skip_if_missing(busybox_image)

    def check_side_by_side(self, name, kinds):
        """Two guests on two disks of one daemon, in step, so that each scenario meets the other's load."""
        with self.backend(name) as backend:
            disks = [backend.add_disk(f'disk{i}', SIZE_BYTES) for i in range(len(kinds))]
            guests = []
            try:
                for disk, (machine, queues) in zip(disks, kinds):
                    guests.append(Qemu([disk.socket], f'{name}-{machine}', machine, queues))
                for guest in guests:
                    guest.start('raw', size_bytes=SIZE_BYTES, queues=guest.queues)
                for guest in guests:
                    guest.result()
                    guest.start('loop', limit_s=3)
                for guest in guests:
                    self.assertGreater(int(guest.result()['passes']), 0)
                    guest.start('ext4')
                sums = [guest.result()['sums'] for guest in guests]
                for guest in guests:
                    guest.power_off()
            finally:
                for guest in guests:
                    guest.close()
            for disk, guest_sums in zip(disks, sums):
                self.assertEqual(verify_ext4(disk.image, guest_sums), 9)

    def test_q35_with_one_queue_beside_microvm_with_two(self):
        self.check_side_by_side('pair-a', [('q35', 1), ('microvm', 2)])

    def test_q35_with_two_queues_beside_microvm_with_one(self):
        self.check_side_by_side('pair-b', [('q35', 2), ('microvm', 1)])

    def test_packed_rings(self):
        if not self.backend.has_packed_rings:
            self.skipTest(f'{self.backend.kind} has no packed rings')
        with self.backend('packed') as backend:
            disk = backend.add_disk('disk', SIZE_BYTES, packed=True)
            with Qemu([disk.socket], 'packed', 'microvm', queues=2, packed=True) as guest:
                guest.run('loop', limit_s=2, packed=1)
                guest.reset()  # the rings begin anew
                sums = guest.run('ext4')['sums']
                guest.power_off()
            verify_ext4(disk.image, sums)

    def test_synced_files_survive_reset_in_mid_write(self):
        with self.backend('reset') as backend:
            disk = backend.add_disk('disk', SIZE_BYTES)
            with Qemu([disk.socket], 'reset', queues=2) as guest:
                guest.start('files')
                guest.wait_for('SYNCED 10')
                guest.reset()
                guest.run('verify', files=10)
                # The disk must be as good as new for the second boot.
                sums = guest.run('ext4')['sums']
                guest.power_off()
            verify_ext4(disk.image, sums)

    def test_synced_files_survive_kill_in_mid_write(self):
        with self.backend('kill') as backend:
            disk = backend.add_disk('disk', SIZE_BYTES)
            with Qemu([disk.socket], 'kill-first', 'microvm', queues=2) as first:
                first.start('files')
                first.wait_for('SYNCED 10')
                first.kill()
            with Qemu([disk.socket], 'kill-second', 'microvm') as second:
                second.run('verify', files=10)
                sums = second.run('ext4')['sums']
                second.power_off()
            verify_ext4(disk.image, sums)

    def check_crash(self, name, packed):
        """A daemon that is killed: under load, again and again, if it keeps requests in flight, and without load."""
        with self.backend(name) as backend:
            disk = backend.add_disk('disk', SIZE_BYTES, packed=packed)
            with Qemu([disk.socket], name, 'microvm', queues=2, reconnect=True, packed=packed) as guest:
                guest.start('loop', limit_s=3 * CRASHES + 3, packed=int(packed))
                for crash in range(CRASHES if backend.keeps_requests else 0):
                    guest.wait_for('PASS')
                    time.sleep(0.02 * (crash % 10))  # not always at the same point of a pass
                    backend.restart()
                self.assertGreater(int(guest.result(3 * CRASHES + SCENARIO_TIMEOUT_S)['passes']), CRASHES)
                sums = guest.run('ext4')['sums']
                backend.restart()
                guest.run('verify')
                guest.power_off()
            verify_ext4(disk.image, sums)

    def test_upgrades_under_load(self):
        if not self.backend.upgrades:
            self.skipTest(f'{self.backend.kind} cannot be upgraded while it serves')
        with self.backend('upgrade') as backend:
            disk = backend.add_disk('disk', SIZE_BYTES)
            with Qemu([disk.socket], 'upgrade', 'microvm', queues=2) as guest:
                guest.start('loop', limit_s=6)
                guest.wait_for('PASS 1')
                for _ in range(3):
                    backend.upgrade()
                guest.wait_for('PASS 3')
                guest.result()
                sums = guest.run('ext4')['sums']
                backend.upgrade()
                guest.run('verify')
                guest.power_off()
            verify_ext4(disk.image, sums)

    def test_daemon_crash_is_survived_by_guest(self):
        self.check_crash('crash', packed=False)

    def test_daemon_crash_is_survived_by_guest_with_packed_rings(self):
        if not self.backend.has_packed_rings:
            self.skipTest(f'{self.backend.kind} has no packed rings')
        self.check_crash('crash-packed', packed=True)

    def test_mode_switches_under_load(self):
        if not self.backend.modes:
            self.skipTest(f'{self.backend.kind} has no reactor modes')
        with self.backend('modes', 'interrupt') as backend:
            disk = backend.add_disk('disk', SIZE_BYTES)
            with Qemu([disk.socket], 'modes', 'microvm', queues=2) as guest:
                guest.start('loop', limit_s=8)
                guest.wait_for('PASS 1')
                switches = 0
                end = time.monotonic() + 6
                while time.monotonic() < end:
                    backend.set_mode(('poll', 'interrupt')[switches % 2])
                    switches += 1
                    time.sleep(SWITCH_PERIOD_S)
                passes = int(guest.result()['passes'])
                guest.power_off()
        self.assertGreater(passes, 1)
        print(f'{switches} mode switches during {passes} passes', flush=True)

    def test_growth_is_seen_live(self):
        if not self.backend.tells_growth:
            self.skipTest(f'{self.backend.kind} does not tell guests about a new size')
        with self.backend('grow') as backend:
            disk = backend.add_disk('disk', SIZE_BYTES)
            with Qemu([disk.socket], 'grow', 'microvm') as guest:
                guest.start('resize', to_sectors=2 * SIZE_BYTES // 512)
                guest.wait_for('WAITING')
                backend.grow(disk, 2 * SIZE_BYTES)
                guest.result()
                guest.power_off()

    def test_another_disk_is_seen_live(self):
        if not self.backend.replaces_disks:
            self.skipTest(f'{self.backend.kind} cannot replace what is behind a disk')
        with self.backend('replace') as backend:
            disk = backend.add_disk('disk', SIZE_BYTES)
            with Qemu([disk.socket], 'replace', 'microvm') as guest:
                guest.start('resize', to_sectors=2 * SIZE_BYTES // 512)
                guest.wait_for('WAITING')
                backend.replace(disk, 'larger', 2 * SIZE_BYTES)
                guest.result()
                sums = guest.run('ext4')['sums']
                guest.power_off()
            verify_ext4(disk.image, sums)

    def test_hot_removal_gives_errors_and_guest_lives_on(self):
        with self.backend('remove') as backend:
            disks = [backend.add_disk(f'disk{i}', SIZE_BYTES) for i in range(2)]
            with Qemu([disk.socket for disk in disks], 'remove', 'microvm', queues=2) as guest:
                guest.run('loop', device='vdb', limit_s=1)
                guest.start('ioerror', device='vda')
                guest.wait_for('PASS 3')
                backend.break_disk(disks[0])
                guest.result()
                if not backend.breaks_all_disks:
                    guest.run('loop', device='vdb', limit_s=1)
                guest.power_off()

    def test_idle_guest_costs_next_to_nothing(self):
        # Prints the figure; how much is too much depends on the host, so only a busy loop fails.
        with self.backend('idle', 'interrupt') as backend:
            disk = backend.add_disk('disk', SIZE_BYTES)
            with Qemu([disk.socket], 'idle', 'microvm', queues=2) as guest:
                guest.run('raw')  # rings that have worked and fell silent, not rings never used
                before = backend.cpu_ns()
                time.sleep(IDLE_S)
                percent = (backend.cpu_ns() - before) / (IDLE_S * 1e9) * 100
                print(f'idle CPU: {percent:.4f} %', flush=True)
                guest.power_off()
        self.assertLess(percent, 50, 'the daemon polls although it should sleep')


if __name__ == '__main__':
    unittest.main()
