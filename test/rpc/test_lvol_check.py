"""scripts/lvol-check on stores that the real daemon has left behind."""

import hashlib
import json
import signal
import subprocess
import unittest

from daemon import ROOT
from test_lvol import CLUSTER, LvolCase

PAGE = 4096


def lvol_check(*arguments):
    return subprocess.run([ROOT / 'scripts/lvol-check', *arguments], capture_output=True, text=True, timeout=60)


class LvolCheckTest(LvolCase):
    def left_behind(self, with_signal):
        self.make_store()
        self.create('a')
        self.create('thick', thin_provision=False)
        self.call('bdev_lvol_snapshot', lvol_name='lvs/a', snapshot_name='s')
        self.call('bdev_lvol_clone', snapshot_name='lvs/s', clone_name='c')
        self.end(with_signal)
        return str(self.directory / 'disk')

    def digest(self, path):
        with open(path, 'rb') as file:
            return hashlib.file_digest(file, 'sha256').hexdigest() if hasattr(hashlib, 'file_digest') \
                else hashlib.sha256(file.read()).hexdigest()

    def test_finds_stores_sound_and_writes_nothing(self):
        for with_signal in (signal.SIGTERM, signal.SIGKILL):
            with self.subTest(with_signal=with_signal):
                disk = self.left_behind(with_signal)
                before = self.digest(disk)
                done = lvol_check(disk, '--json')
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                report = json.loads(done.stdout)
                self.assertEqual((report['volumes'], report['snapshots'], report['findings']), (4, 1, []))
                self.assertEqual(report['data_clusters'], 8 * (1 << 20) // CLUSTER)
                self.assertEqual(report['total_clusters'],
                                 sum(report[f'{kind}_clusters'] for kind in ('data', 'metadata', 'free', 'reserved')))
                self.assertEqual(self.digest(disk), before)
                text = lvol_check(disk)
                self.assertEqual(text.returncode, 0)
                self.assertIn('4 volumes, 1 of them snapshots', text.stdout)
                self.assertIn('clean', text.stdout)
            (self.directory / 'disk').unlink()

    def test_finds_damage(self):
        disk = self.left_behind(signal.SIGTERM)
        with open(disk, 'r+b') as file:
            file.seek(0)
            superblocks = bytearray(file.read(2 * PAGE))
            for slot in range(2):
                superblocks[slot * PAGE + 200] ^= 1
            file.seek(0)
            file.write(superblocks)
        done = lvol_check(disk)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn('disk', done.stderr)

    def test_says_what_it_cannot_check(self):
        disk = self.disk()
        for arguments in ([disk], [str(self.directory / 'missing')], [], [disk, '--what']):
            with self.subTest(arguments=arguments):
                done = lvol_check(*arguments)
                self.assertEqual(done.returncode, 2, done.stdout + done.stderr)
                self.assertTrue(done.stderr)


if __name__ == '__main__':
    unittest.main()
