"""Live migration: a QEMU guest moves, while it writes and verifies, from one controller of a disk to another.

The guest completes a pass or two of that while it moves. After each move the memories of both sides are compared while it
stands still. A page that only the back end has written must not differ. One that the guest's processors have written may:
without KVM, QEMU 7.2 sometimes loses such writes on a busy host, with disks of its own just as well; that guest is not to be
trusted any more, and another one takes its place.

SLUICE_MIGRATIONS=20 moves it as often.
"""

import os
import pathlib
import statistics
import unittest

from backends import chosen_backend
from common import skip_if_missing
from hostdisk import verify_ext4
from image import busybox_image
from qemu import Qemu, qemu_program

SIZE_BYTES = 128 << 20
PAGE = 4096
MAX_COPIES = 32  # pages in pipes and buffers
MIGRATIONS = int(os.environ.get('SLUICE_MIGRATIONS', '1'))
# Large rings have pages that only the back end writes.
SHAPE = {'queues': 2, 'queue_size': 1024}


class Migration(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.backend = skip_if_missing(chosen_backend)
        if not cls.backend.can_share_disks:
            raise unittest.SkipTest(f'{cls.backend.kind} has no second controller for a disk')
        skip_if_missing(qemu_program)
        skip_if_missing(busybox_image)

    def setUp(self):
        self.downtimes, self.totals, self.passes, self.compared, self.lost_by_qemu = [], [], 0, 0, 0

    def check_moving(self, name, packed=False):
        with self.backend(name) as backend:
            disk = backend.add_disk('disk', SIZE_BYTES, packed=packed)
            sockets = [disk.socket, backend.add_controller(disk)]
            sums = None
            while sums is None:
                sums = self.life_of_a_guest(backend, name, disk, sockets, packed)
        self.assertEqual(verify_ext4(disk.image, sums), 9)
        print(f'{len(self.totals)} migrations during {self.passes} passes: {statistics.mean(self.totals):.0f} ms each, the guest '
              f'stood still for {statistics.mean(self.downtimes):.0f} ms, {max(self.downtimes)} at most; {self.compared} '
              f'memories were compared, in {self.lost_by_qemu} QEMU had lost writes of its processors', flush=True)

    def life_of_a_guest(self, backend, name, disk, sockets, packed):
        """Moves it to and fro; returns what it has written in the end, or None if QEMU has spoilt it."""
        moved = len(self.totals)
        guest = Qemu([sockets[moved % 2]], f'{name}-{moved}', packed=packed, **SHAPE)
        try:
            guest.start('move', packed=int(packed))
            passes = self.passes_after_two_more(guest)
            while len(self.totals) < MIGRATIONS:
                moved = len(self.totals) + 1
                with_rings = [] if packed else guest.used_rings()
                target = Qemu([sockets[moved % 2]], f'{name}-{moved}', packed=packed,
                              incoming=backend.directory / f'incoming-{moved}', **SHAPE)
                source, guest = guest, target  # both are closed, whatever happens
                try:
                    info = source.migrate_to(target)
                    self.totals.append(info['total-time'])
                    self.downtimes.append(info['downtime'])
                    lost = self.compare(source.memory(), target.memory(), disk.image, with_rings)
                finally:
                    source.close()
                if lost:
                    self.lost_by_qemu += 1
                    self.assertLessEqual(self.lost_by_qemu, 2 + MIGRATIONS // 2, f'too often to be QEMU: {lost} pages now')
                    return None
                target.go_on()
                now = self.passes_after_two_more(target)
                self.passes += now - passes
                passes = now
            guest.say('enough')
            self.assertGreaterEqual(int(guest.result()['passes']), passes)
            sums = guest.run('ext4')['sums']
            guest.power_off()
            return sums
        finally:
            guest.close()

    def compare(self, before, after, image, rings):
        """Fails if pages that the back end alone has written differ; returns how many of the guest's own do."""
        self.compared += 1
        differ = [at for at in range(0, len(before), PAGE) if before[at:at + PAGE] != after[at:at + PAGE]]
        # Not the page that the used ring may begin in: the available ring ends there.
        ring_pages = {page * PAGE for start, size in rings
                      for page in range((start + PAGE - 1) // PAGE, (start + size - 1) // PAGE + 1)}
        self.assertEqual(ring_pages.intersection(differ), set(), 'pages of the used rings are not as they were')
        data = pathlib.Path(image).read_bytes() if differ else b''
        from_disk = [at for at in differ if any(before[at:at + PAGE]) and data.find(before[at:at + PAGE]) >= 0]
        # The processors copy what was read, too, and the last of that may be lost by QEMU; but not what pages cached.
        self.assertLessEqual(len(from_disk), MAX_COPIES, f'of {len(differ)} pages that differ, these were read from the disk')
        return len(differ)

    @staticmethod
    def passes_after_two_more(guest):
        """The second of them began and ended here."""
        guest.latest('PASS')
        guest.wait_for('PASS')
        return int(guest.wait_for('PASS').split()[1])

    def test_guest_moves_while_it_writes_and_verifies(self):
        self.check_moving('migrate')

    def test_guest_with_packed_rings_moves(self):
        if not self.backend.has_packed_rings:
            self.skipTest(f'{self.backend.kind} has no packed rings')
        self.check_moving('migrate-packed', packed=True)


if __name__ == '__main__':
    unittest.main()
