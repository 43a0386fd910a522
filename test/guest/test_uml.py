"""User-Mode Linux guests: the real virtio-blk driver, at native speed, checks every byte."""

import random
import time
import unittest

from backends import CRASHES, chosen_backend
from common import skip_if_missing
from relay import Relay
from uml import Uml, verify_image

BLOCKS, EXTENTS, SIZE_BYTES = 2000, 500, 64 << 20


class UmlGuest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.backend = skip_if_missing(chosen_backend)
        cls.uml = skip_if_missing(Uml)

    def run_guest(self, disk, name, seed):
        result = self.uml.run(disk.socket, name, BLOCKS, EXTENTS, seed, disk.size_bytes)
        self.assertEqual(result['size'], disk.size_bytes)
        return result

    def test_file_holds_what_guest_wrote(self):
        # In each reactor mode; the seed differs, so data of an earlier run cannot pass.
        for seed, mode in enumerate(self.backend.modes or (None,), start=1):
            name = f'uml-file-{mode or "default"}'
            with self.subTest(mode=mode), self.backend(name, mode) as backend:
                disk = backend.add_disk('disk', SIZE_BYTES)
                self.run_guest(disk, name, seed)
                verify_image(disk.image, BLOCKS, EXTENTS, seed)

    def test_guests_one_after_another_on_one_socket(self):
        # UML leaves without a word: the next guest must find the device as new.
        with self.backend('uml-again') as backend:
            disk = backend.add_disk('disk', SIZE_BYTES)
            for seed in (7, 8, 9):
                self.uml.run(disk.socket, f'uml-again-{seed}', 200, 50, seed, disk.size_bytes)
            verify_image(disk.image, 200, 50, 9)

    def test_daemon_crash_is_survived_by_guest(self):
        # This driver does not reconnect; a relay does for it.
        if not self.backend.keeps_requests:
            self.skipTest(f'{self.backend.kind} forgets requests in flight')
        moments = random.Random(1)
        with self.backend('uml-crash') as backend:
            disk = backend.add_disk('disk', SIZE_BYTES)
            with Relay(backend.directory / 'relay', disk.socket) as relay:
                def crashes():
                    for crash in range(1, CRASHES + 1):
                        relay.wait_for_set_ups(crash, 20)
                        time.sleep(moments.uniform(0, 0.1))
                        backend.restart()
                    relay.wait_for_set_ups(CRASHES + 1, 20)
                    self.assertEqual(relay.set_ups, CRASHES + 1, 'a connection ended without a kill')

                result = self.uml.loop(relay.path, 'uml-crash', disk.image, disk.size_bytes, crashes, BLOCKS, EXTENTS)
            verify_image(disk.image, BLOCKS, EXTENTS, result['passes'])
        print(f'{CRASHES} kills during {result["passes"]} passes', flush=True)

    def test_memory_disk(self):
        if not self.backend.has_memory_disks:
            self.skipTest(f'{self.backend.kind} has no memory disks')
        with self.backend('uml-memory') as backend:
            self.run_guest(backend.add_disk('disk', SIZE_BYTES, in_memory=True), 'uml-memory', 1)


if __name__ == '__main__':
    unittest.main()
