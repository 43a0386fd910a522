"""Live migration: a QEMU guest moves, while it writes and verifies, from one controller of a disk to another.

SLUICE_MIGRATIONS=20 moves it as often; SLUICE_MIGRATION_QUEUES=2 with as many queues.
"""

import os
import statistics
import unittest

from backends import chosen_backend
from common import skip_if_missing
from hostdisk import verify_ext4
from image import busybox_image
from qemu import Qemu, qemu_program

SIZE_BYTES = 128 << 20
MIGRATIONS = int(os.environ.get('SLUICE_MIGRATIONS', '1'))
QUEUES = int(os.environ.get('SLUICE_MIGRATION_QUEUES', '2'))


class Migration(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.backend = skip_if_missing(chosen_backend)
        if not cls.backend.can_share_disks:
            raise unittest.SkipTest(f'{cls.backend.kind} has no second controller for a disk')
        skip_if_missing(qemu_program)
        skip_if_missing(busybox_image)

    def move_about(self, name, packed=False):
        """A guest that goes to and fro between two controllers; it counts its passes, and each finds what it wrote."""
        downtimes, totals = [], []
        with self.backend(name) as backend:
            disk = backend.add_disk('disk', SIZE_BYTES, packed=packed)
            controllers = [disk.socket, backend.add_controller(disk)]
            # Large enough for the used ring to have pages that only the back end writes.
            shape = {'queues': QUEUES, 'queue_size': 1024, 'packed': packed}
            guest = Qemu([controllers[0]], f'{name}-0', **shape)
            try:
                guest.start('move', packed=int(packed))
                passes = self.passes_after(guest, 0)
                for i in range(1, MIGRATIONS + 1):
                    target = Qemu([controllers[i % 2]], f'{name}-{i}', incoming=backend.directory / f'incoming-{i}', **shape)
                    try:
                        info = guest.migrate_to(target)
                    except BaseException:
                        target.close()
                        raise
                    guest.close()
                    guest = target
                    passes = self.passes_after(guest, passes)
                    downtimes.append(info['downtime'])
                    totals.append(info['total-time'])
                guest.say('enough')
                self.assertGreaterEqual(int(guest.result()['passes']), passes)
                sums = guest.run('ext4')['sums']
                guest.power_off()
            finally:
                guest.close()
        self.assertEqual(verify_ext4(disk.image, sums), 9)
        print(f'{MIGRATIONS} migrations during {passes} passes: {statistics.mean(totals):.0f} ms each, '
              f'the guest stood still for {statistics.mean(downtimes):.0f} ms, {max(downtimes)} at most', flush=True)

    @staticmethod
    def passes_after(guest, passes):
        """Two passes more than there are: the second began and ended here."""
        latest = guest.latest('PASS')
        passes = int(latest.split()[1]) if latest else passes
        return int(guest.wait_for(f'PASS {passes + 2}').split()[1])

    def test_guest_moves_while_it_writes_and_verifies(self):
        self.move_about('migrate')

    def test_guest_with_packed_rings_moves(self):
        if not self.backend.has_packed_rings:
            self.skipTest(f'{self.backend.kind} has no packed rings')
        self.move_about('migrate-packed', packed=True)


if __name__ == '__main__':
    unittest.main()
