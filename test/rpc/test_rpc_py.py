"""scripts/rpc.py and the real daemon."""

import json
import subprocess
import unittest

from daemon import ROOT, RPC_PY, DaemonCase


class RpcPy(DaemonCase):
    """scripts/rpc.py."""

    def run_ok(self, *arguments, **options):
        done = self.daemon.run_rpc_py(*arguments, **options)
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        return done.stdout

    def run_fails(self, code, *arguments):
        done = self.daemon.run_rpc_py(*arguments)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertEqual(done.stdout, '')
        self.assertTrue(done.stderr.startswith('rpc.py: '))
        return done.stderr

    def test_arguments_by_name_by_position_and_as_json(self):
        self.assertEqual(self.run_ok('bdev_malloc_create', '--block-size', '512', '--num_blocks=0x800', '--name', 'p0'), 'p0\n')
        self.assertEqual(self.run_ok('bdev_malloc_create', '512', '2048', 'p1'), 'p1\n')
        self.assertEqual(self.run_ok('bdev_malloc_create', '{"block_size": 512, "num_blocks": 2048, "name": "p2"}'), 'p2\n')
        self.assertEqual(self.run_ok('vhost_create_blk_controller', 'c0', 'p0', '--readonly'), 'true\n')
        controller, = json.loads(self.run_ok('vhost_get_controllers', 'c0'))
        self.assertTrue(controller['backend_specific']['block']['readonly'])
        iostat = json.loads(self.run_ok('bdev_get_iostat', '--names', 'p0,p1', '--names', 'p2', '--no-per-channel'))
        self.assertEqual([bdev['name'] for bdev in iostat['bdevs']], ['p0', 'p1', 'p2'])
        self.run_ok('vhost_delete_controller', 'c0')
        for name in ('p0', 'p1', 'p2'):
            self.run_ok('bdev_malloc_delete', name)

    def test_wrong_usage_is_exit_code_2(self):
        self.assertIn('no method given', self.run_fails(2))
        self.assertIn('bdev_get_bdevs', self.run_fails(2, 'get_bdevs'))
        self.assertIn('--name', self.run_fails(2, 'bdev_get_bdevs', '--colour', 'red'))
        self.assertIn('num_blocks', self.run_fails(2, 'bdev_malloc_create', '512'))
        self.assertIn('must be u32', self.run_fails(2, 'bdev_malloc_create', 'x', '1'))
        self.assertIn('NOTICE', self.run_fails(2, 'log_set_level', 'LOUD'))
        self.assertIn('too many', self.run_fails(2, 'log_set_level', 'INFO', 'more'))
        self.assertIn('needs a value', self.run_fails(2, 'bdev_get_bdevs', '--name'))
        self.assertIn('not JSON', self.run_fails(2, 'bdev_get_bdevs', '{"name'))
        self.assertIn('--colour', self.run_fails(2, '--colour', 'bdev_get_bdevs'))

    def test_refusals_are_exit_code_1(self):
        self.assertIn('No such device (-19)', self.run_fails(1, 'bdev_get_bdevs', 'nobody'))

    def test_no_daemon_is_exit_code_3_with_a_hint(self):
        done = subprocess.run([RPC_PY, '-s', '/nonexistent/s.sock', 'bdev_get_bdevs'], capture_output=True, text=True,
                              check=False)
        self.assertEqual(done.returncode, 3)
        self.assertIn('Is sluice-vhost running?', done.stderr)

    def test_help_with_and_without_a_daemon(self):
        self.assertIn('bdev_malloc_create', self.run_ok('--help'))
        self.assertIn('--block-size', self.run_ok('bdev_malloc_create', '--help'))
        done = subprocess.run([RPC_PY, '-s', '/nonexistent/s.sock', '--help'], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0)
        self.assertIn('usage: rpc.py', done.stdout)

    def test_an_answer_that_does_not_come_is_a_timeout(self):
        raw = ('-t', '0.2', 'bdev_get_bdevs', '{"name": "never", "timeout": 60000}')
        self.assertIn('no answer within 0.2 s', self.run_fails(1, *raw))

    def test_configurations_are_saved_and_loaded(self):
        self.run_ok('bdev_null_create', 'saved', '512', '8')
        self.run_ok('vhost_create_blk_controller', 'saved', 'saved')
        text = self.run_ok('save_config')
        self.run_ok('vhost_delete_controller', 'saved')
        self.run_ok('bdev_null_delete', 'saved')
        self.assertEqual(self.run_ok('load_config', input_text=text), '')
        self.assertEqual(self.run_ok('save_config'), text)
        done = self.daemon.run_rpc_py('load_config', input_text=text)
        self.assertEqual(done.returncode, 1)
        self.assertIn("subsystem 'bdev', entry 0", done.stderr)
        self.assertIn('File exists', done.stderr)
        self.run_ok('vhost_delete_controller', 'saved')
        self.run_ok('bdev_null_delete', 'saved')

    def test_the_reference_of_methods_is_up_to_date(self):
        self.assertEqual((ROOT / 'docs/rpc.md').read_text(), self.run_ok('markdown'),
                         'to fix: scripts/rpc.py -s SOCKET markdown > docs/rpc.md, with a daemon of this build on SOCKET')


if __name__ == '__main__':
    unittest.main(verbosity=2)
