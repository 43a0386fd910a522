"""Daemons that are killed and started again with the same --state-dir."""

import contextlib
import json
import os
import pathlib
import random
import resource
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

from daemon import Client, Daemon, RpcError

ENODEV, ENOENT, EFBIG, ENOSPC, EOPNOTSUPP = 19, 2, 27, 28, 95
KILLS = 12
KILL_SEED = int(os.environ.get('SLUICE_STATE_SEED', '1'))


class StateCase(unittest.TestCase):
    """A directory for sockets and files, and one for the state."""

    def setUp(self):
        self.directory = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory(prefix='sluice-')))
        self.state = self.directory / 'state'
        self.state.mkdir()
        self.journal = self.state / 'journal'

    def daemon(self, *options, **settings):
        return Daemon('--state-dir', str(self.state), *options, directory=self.directory, **settings)

    def file(self, name, size=8 << 20):
        path = self.directory / name
        with open(path, 'wb') as file:
            file.truncate(size)
        return str(path)

    @staticmethod
    def kill(daemon):
        daemon.process.kill()
        daemon.wait_exit()

    @staticmethod
    def config(call):
        return [(name, call('framework_get_config', name=name))
                for name in (entry['subsystem'] for entry in call('framework_get_subsystems'))]

    def refuses_to_start(self):
        daemon = self.daemon()
        daemon.start()
        try:
            self.assertEqual(daemon.wait_exit(), 1)
            line = daemon.read_log().splitlines()[-1]
        finally:
            daemon.__exit__()
        return line

    @contextlib.contextmanager
    def assert_refused(self, code, *texts):
        with self.assertRaises(RpcError) as refused:
            yield
        self.assertEqual(refused.exception.code, -code, refused.exception.message)
        for text in texts:
            self.assertIn(text, refused.exception.message)


class Restart(StateCase):
    """What survives kill -9."""

    def everything(self, call, foreign):
        """One of each kind of object, with all that can be said about it; the calls that did it."""
        made = []

        def do(method, **params):
            result = call(method, **params)
            made.append((method, params))
            return result

        do('log_set_level', level='INFO')
        do('log_set_print_level', level='WARNING')
        do('log_set_flag', flag='vhost')
        do('log_set_flag', flag='rpc')
        do('log_clear_flag', flag='rpc')
        do('log_enable_timestamps', enabled=False)
        do('reactor_set_mode', mode='interrupt')
        do('reactor_set_polling_options', max_poll_us=40, grow=3, grow_start_us=5, shrink=4, idle_poll_budget=30)
        do('framework_set_scheduler', name='dynamic', period=5_000_000, load_limit=30, core_limit=70, core_busy=90)
        do('bdev_malloc_create', num_blocks=2048, block_size=512, name='m', uuid='2b6601ba-eada-44fb-9a83-a20eb9eb9e90',
           physical_block_size=4096, optimal_io_boundary=16)
        do('bdev_malloc_create', num_blocks=16, block_size=512)
        do('bdev_null_create', name='n', num_blocks=256, block_size=4096, uuid='3b6601ba-eada-44fb-9a83-a20eb9eb9e90',
           physical_block_size=8192)
        call('bdev_null_create', name='resized', num_blocks=256, block_size=4096)
        do('bdev_null_resize', name='resized', new_size=2)
        do('bdev_aio_create', name='a', filename=self.file('a.img'), block_size=4096,
           uuid='4b6601ba-eada-44fb-9a83-a20eb9eb9e90', readonly=True)
        grown = self.file('grown.img')
        do('bdev_aio_create', name='grown', filename=grown)
        with open(grown, 'r+b') as file:
            file.truncate(16 << 20)
        do('bdev_aio_rescan', name='grown')
        try:
            do('bdev_uring_create', name='u', filename=self.file('u.img'), block_size=512,
               uuid='5b6601ba-eada-44fb-9a83-a20eb9eb9e90', readonly=True)
            do('bdev_uring_rescan', name='u')
        except RpcError as error:
            self.assertIn('io_uring', error.message)  # not on this machine
        do('bdev_virtio_attach_controller', name='front', trtype='user', traddr=foreign, dev_type='blk', vq_count=1,
           vq_size=64, packed_ring=True)
        do('bdev_aio_create', name='base', filename=self.file('base.img', 64 << 20))
        call('bdev_lvol_create_lvstore', bdev_name='base', lvs_name='lvs')
        do('bdev_lvol_set_enospc_policy', lvs_name='lvs', policy='hold')
        do('bdev_lvol_set_thresholds', lvs_name='lvs', percent=[50, 90])
        call('bdev_lvol_create', lvs_name='lvs', lvol_name='v', size_in_mib=8, thin_provision=True)
        call('bdev_lvol_snapshot', lvol_name='lvs/v', snapshot_name='s')
        call('bdev_lvol_clone', snapshot_name='lvs/s', clone_name='c')
        call('bdev_aio_create', name='image', filename=self.file('image.img'), readonly=True)
        call('bdev_lvol_clone_bdev', bdev='image', lvs_name='lvs', clone_name='of_image')
        core = hex(1 << min(os.sched_getaffinity(0)))
        do('vhost_create_blk_controller', ctrlr='vm0', dev_name='m', cpumask=core, packed_ring=True, queue_threads=2)
        do('vhost_controller_set_coalescing', ctrlr='vm0', delay_base_us=20, iops_threshold=5000)
        call('vhost_create_blk_controller', ctrlr='vm1', dev_name='lvs/c')
        call('bdev_lvol_rename', old_name='lvs/c', new_name='renamed')
        do('vhost_create_blk_controller', ctrlr='vm2', dev_name='a', readonly=True)
        call('vhost_create_blk_controller', ctrlr='vm3', dev_name='lvs/of_image')
        for name in 'first', 'second':
            call('bdev_null_create', name=name, num_blocks=256, block_size=512)
        do('vhost_create_blk_controller', ctrlr='vm4', dev_name='first', allowed_uids=[1000, 0], allowed_gids=[1000],
           any_memory_file=True)
        do('vhost_controller_set_bdev', ctrlr='vm4', bdev_name='second')
        for thread in call('thread_get_stats')['threads']:
            if thread['name'] == 'vhost.vm2':
                do('thread_set_cpumask', id=thread['id'], cpumask=core)
        # What is deleted is not made again.
        call('bdev_null_create', name='gone', num_blocks=8, block_size=512)
        call('vhost_create_blk_controller', ctrlr='gone', dev_name='gone')
        do('vhost_delete_controller', ctrlr='gone')
        do('bdev_null_delete', name=call('bdev_get_bdevs', name='gone')[0]['uuid'])
        call('bdev_malloc_create', name='gone', num_blocks=8, block_size=512)
        do('bdev_malloc_delete', name='gone')
        call('bdev_aio_create', name='gone', filename=self.file('gone.img'))
        call('bdev_lvol_create_lvstore', bdev_name='gone', lvs_name='gone')
        call('bdev_lvol_set_enospc_policy', lvs_name='gone', policy='hold')
        do('bdev_lvol_delete_lvstore', lvs_name='gone')
        do('bdev_aio_delete', name='gone')
        call('bdev_virtio_attach_controller', name='gone', trtype='user', traddr=foreign + '2', dev_type='blk')
        do('bdev_virtio_detach_controller', name='gone')
        return made

    def test_all_that_was_made_is_there_again(self):
        with Daemon(rpc='foreign.sock') as foreign:
            foreign_call = foreign.client().call
            foreign_call('bdev_malloc_create', name='behind', num_blocks=2048, block_size=512)
            foreign_call('vhost_create_blk_controller', ctrlr='behind', dev_name='behind', packed_ring=True)
            foreign_call('vhost_create_blk_controller', ctrlr='behind2', dev_name='behind')
            with self.daemon(cores=2) as daemon:
                call = daemon.client().call
                made = self.everything(call, str(foreign.directory / 'behind'))
                before = self.seen(call)
                self.check_that_all_methods_were_tried(call, made)
                self.check_that_all_parameters_are_kept(call, made, dict(before['config']))
                self.kill(daemon)
            with self.daemon(cores=2) as daemon:
                call = daemon.client().call
                info = call('state_get_info')
                self.assertEqual(info['failed'], [])
                for what, seen in self.seen(call).items():
                    self.assertEqual(seen, before[what], what)
                self.assertEqual((info['writes'], info['error'], info['file']), (0, None, str(self.journal)))
                # Ended properly it is no other.
                self.assertEqual(daemon.stop(), 0)
            with self.daemon(cores=2) as daemon:
                call = daemon.client().call
                self.assertEqual(self.config(call), before['config'])
                self.kill(daemon)

    def seen(self, call):
        bdevs = call('bdev_get_bdevs')
        for bdev in bdevs:
            if 'virtio' in bdev['driver_specific']:
                del bdev['driver_specific']['virtio']['queues']  # what they have done
                del bdev['uuid']  # it has none of its own, and gets one each time
        return {'config': self.config(call), 'bdevs': bdevs, 'volumes': call('bdev_lvol_get_lvols'),
                'stores': call('bdev_lvol_get_lvstores'), 'controllers': call('vhost_get_controllers'),
                'log flags': call('log_get_flags')}

    def check_that_all_methods_were_tried(self, call, made):
        kept = {method['name'] for method in call('rpc_discover')['methods'] if method['x-kept'] == 'state'}
        self.assertEqual(kept - {method for method, _ in made}, {'bdev_uring_delete'}
                         | ({'bdev_uring_create', 'bdev_uring_rescan'} - {method for method, _ in made}),
                         'everything() calls each method that changes what is kept')

    def check_that_all_parameters_are_kept(self, call, made, config):
        """Each parameter of what makes an object is tried with another value than the default, and is saved."""
        methods = {method['name']: method for method in call('rpc_discover')['methods']}
        saved = [entry for entries in config.values() for entry in entries]
        makers = {entry['method'] for entry in saved} - {'bdev_wait_for_examine'}
        for maker in makers:
            for param in methods[maker]['params']:
                # Where there is only one thing to say, and where saying it does nothing.
                idle = ('no effect', ': 0 only', 'is the only one', '; all when left out', 'or the store, by')
                if any(text in param['description'] for text in idle) or param['name'] in ('lvs_name', 'uuid', 'flag'):
                    continue
                with self.subTest(method=maker, parameter=param['name']):
                    tried = [params[param['name']] for method, params in made
                             if method == maker and param['name'] in params]
                    self.assertNotEqual([value for value in tried if value != param['schema'].get('default')], [],
                                        'everything() tries it, with another value than the default')
                    self.assertTrue(any(value in [entry['params'].get(param['name']) for entry in saved
                                                  if entry['method'] == maker] for value in tried),
                                    'it is in the saved configuration')

    def test_bdevs_that_stand_on_own_controllers_are_made_after_these(self):
        with self.daemon() as daemon:
            call = daemon.client().call
            call('bdev_malloc_create', name='behind', num_blocks=2048, block_size=512)
            call('vhost_create_blk_controller', ctrlr='loop', dev_name='behind')
            call('bdev_virtio_attach_controller', name='front', trtype='user', dev_type='blk',
                 traddr=str(self.directory / 'loop'))
            call('vhost_create_blk_controller', ctrlr='outer', dev_name='front')
            before = self.config(call)
            self.kill(daemon)
        with self.daemon() as daemon:
            call = daemon.client().call
            self.assertEqual(call('state_get_info')['failed'], [])
            self.assertEqual(self.config(call), before)
            self.kill(daemon)

    def test_what_fails_is_told_and_kept_and_can_be_tried_again(self):
        image = self.file('a.img')
        with self.daemon() as daemon:
            call = daemon.client().call
            call('bdev_aio_create', name='a', filename=image)
            call('vhost_create_blk_controller', ctrlr='vm', dev_name='a')
            call('bdev_null_create', name='n', num_blocks=8, block_size=512)
            before = self.config(call)
            self.kill(daemon)
        os.rename(image, image + '.away')
        for _ in range(2):  # it stays so
            with self.daemon() as daemon:
                call = daemon.client().call
                self.assertEqual([bdev['name'] for bdev in call('bdev_get_bdevs')], ['n'])
                failed = {(entry['kind'], entry['name']): entry for entry in call('state_get_info')['failed']}
                self.assertEqual(set(failed), {('bdev', 'a'), ('controller', 'vm')})
                self.assertIn(image, failed['bdev', 'a']['error'])
                self.assertIn('No such file or directory', failed['bdev', 'a']['error'])
                self.assertEqual(failed['controller', 'vm']['calls'][0]['method'], 'vhost_create_blk_controller')
                self.assertIn(f"cannot make bdev 'a' again: bdev_aio_create: '{image}'", daemon.read_log())
                # Calls about it that fail, and others, change nothing about that.
                with self.assert_refused(ENOENT):
                    call('bdev_aio_create', name='a', filename=image)
                with self.assert_refused(ENODEV):
                    call('vhost_controller_set_coalescing', ctrlr='vm', delay_base_us=1, iops_threshold=1)
                call('bdev_null_resize', name='n', new_size=1)
                self.kill(daemon)
        with self.daemon() as daemon:
            call = daemon.client().call
            self.assertEqual(call('state_retry')['made'], 0)
            os.rename(image + '.away', image)
            self.assertEqual(call('state_retry'), {'made': 2, 'failed': []})
            self.assertEqual(call('state_retry'), {'made': 0, 'failed': []})
            self.assertEqual(dict(self.config(call))['vhost_blk'], dict(before)['vhost_blk'])
            self.kill(daemon)
        with self.daemon() as daemon:
            self.assertEqual(daemon.client().call('state_get_info')['failed'], [])
            self.kill(daemon)

    def test_what_failed_is_dropped_when_it_is_deleted_or_forgotten(self):
        image = self.file('a.img', 64 << 20)
        with self.daemon() as daemon:
            call = daemon.client().call
            call('bdev_aio_create', name='a', filename=image)
            uuid = call('bdev_lvol_create_lvstore', bdev_name='a', lvs_name='lvs')
            call('bdev_lvol_set_enospc_policy', lvs_name='lvs', policy='hold')
            call('bdev_lvol_create', lvs_name='lvs', lvol_name='v', size_in_mib=8)
            call('vhost_create_blk_controller', ctrlr='vm', dev_name='lvs/v')
            self.kill(daemon)
        os.unlink(image)
        with self.daemon() as daemon:
            call = daemon.client().call
            self.assertEqual(len(call('state_get_info')['failed']), 3)
            self.assertIs(call('vhost_delete_controller', ctrlr='vm'), True)
            with self.assert_refused(ENODEV):
                call('vhost_delete_controller', ctrlr='vm')
            self.assertIs(call('bdev_aio_delete', name='a'), True)
            self.assertIs(call('state_forget', kind='lvol_store', name=uuid), True)
            with self.assert_refused(ENOENT, uuid):
                call('state_forget', kind='lvol_store', name=uuid)
            self.assertEqual(call('state_get_info')['failed'], [])
            self.kill(daemon)
        with self.daemon() as daemon:
            info = daemon.client().call('state_get_info')
            self.assertEqual((info['objects'], info['failed']), (0, []))
            self.kill(daemon)

    def test_a_controller_whose_disk_was_pulled_out_waits_for_it(self):
        image = self.file('a.img')
        with self.daemon() as daemon:
            call = daemon.client().call
            call('bdev_aio_create', name='a', filename=image)
            call('vhost_create_blk_controller', ctrlr='vm', dev_name='a')
            call('bdev_aio_delete', name='a', force=True)
            call('vhost_controller_set_coalescing', ctrlr='vm', delay_base_us=1, iops_threshold=1)
            self.kill(daemon)
        with self.daemon() as daemon:
            call = daemon.client().call
            self.assertEqual([entry['name'] for entry in call('state_get_info')['failed']], ['vm'])
            call('bdev_aio_create', name='a', filename=image)
            self.assertEqual(call('state_retry')['made'], 1)
            self.assertEqual(call('vhost_get_controllers')[0]['backend_specific']['block']['bdev'], 'a')
            self.kill(daemon)

    def test_a_configuration_is_for_the_first_start(self):
        config = self.directory / 'config.json'

        def write(name):
            config.write_text(json.dumps({'subsystems': [{'subsystem': 'bdev', 'config': [
                {'method': 'bdev_null_create', 'params': {'name': name, 'num_blocks': 8, 'block_size': 512}},
                {'method': 'bdev_null_create', 'params': {'name': 'other', 'num_blocks': 8, 'block_size': 512}}]}]}))

        write('other')  # twice the same name
        with self.assertRaises(AssertionError):
            self.daemon('-c', str(config)).__enter__()
        self.assertFalse(self.journal.exists(), 'a start that failed has not been')
        write('first')
        with self.daemon('-c', str(config)) as daemon:
            daemon.client().call('bdev_null_delete', name='other')
            self.kill(daemon)
        write('second')
        with self.daemon('-c', str(config)) as daemon:
            self.assertEqual([bdev['name'] for bdev in daemon.client().call('bdev_get_bdevs')], ['first'])
            self.assertIn('is not loaded', daemon.read_log())
            self.kill(daemon)

    def test_sockets_of_a_predecessor_are_replaced_and_live_ones_are_not(self):
        with self.daemon() as daemon:
            call = daemon.client().call
            call('bdev_null_create', name='n', num_blocks=8, block_size=512)
            for name in ('stale', 'taken'):
                call('vhost_create_blk_controller', ctrlr=name, dev_name='n', readonly=True)
            self.kill(daemon)
        self.assertTrue((self.directory / 'stale').is_socket())
        os.unlink(self.directory / 'taken')
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(self.directory / 'taken'))
            other.listen()
            with self.daemon() as daemon:
                failed, = daemon.client().call('state_get_info')['failed']
                self.assertEqual(failed['name'], 'taken')
                self.assertIn('another process listens on this socket', failed['error'])
                with socket.socket(socket.AF_UNIX) as guest:
                    guest.connect(str(self.directory / 'stale'))
                self.kill(daemon)

    def test_a_daemon_without_a_state_says_so(self):
        with Daemon() as daemon:
            for method, params in (('state_get_info', {}), ('state_retry', {}),
                                   ('state_forget', {'kind': 'bdev', 'name': 'x'})):
                with self.assert_refused(EOPNOTSUPP, '--state-dir'):
                    daemon.client().call(method, **params)


class Directory(StateCase):
    """What may be wrong with the directory and the file in it."""

    def test_a_second_daemon_is_refused(self):
        with self.daemon():
            other = Daemon('--state-dir', str(self.state))
            other.start()
            try:
                self.assertEqual(other.wait_exit(), 1)
                self.assertIn(f'state directory {self.state}: another daemon uses it', other.read_log())
            finally:
                other.__exit__()

    def test_a_missing_directory_is_refused(self):
        self.state.rmdir()
        line = self.refuses_to_start()
        self.assertIn('No such file or directory', line)
        self.assertIn('mkdir', line)

    @unittest.skipUnless(os.path.isdir('/sys/kernel'), 'needs sysfs, where nobody can make a file')
    def test_a_directory_that_cannot_be_written_to_is_refused(self):
        self.state.rmdir()
        self.state.symlink_to('/sys/kernel')
        line = self.refuses_to_start()
        self.assertIn(str(self.journal), line)
        self.assertIn('cannot make a new file', line)

    def test_damage_is_told_with_line_and_remedy(self):
        with self.daemon() as daemon:
            call = daemon.client().call
            for name in ('a', 'b', 'c'):
                call('bdev_null_create', name=name, num_blocks=8, block_size=512)
            self.kill(daemon)
        lines = self.journal.read_bytes().splitlines(keepends=True)
        self.assertEqual(len(lines), 4)
        damaged = bytearray(lines[2])
        damaged[len(damaged) // 2] ^= 1
        self.journal.write_bytes(b''.join([*lines[:2], damaged, lines[3]]))
        line = self.refuses_to_start()
        remedy = f"sed -i '3s/^/#/' {self.journal}"
        for text in (f'{self.journal}, line 3', 'checksum', remedy):
            self.assertIn(text, line)
        self.assertEqual(os.system(remedy), 0)
        with self.daemon() as daemon:
            self.assertEqual([bdev['name'] for bdev in daemon.client().call('bdev_get_bdevs')], ['a', 'c'])
            self.kill(daemon)

    def test_what_was_being_written_is_cut_off_and_told(self):
        with self.daemon() as daemon:
            daemon.client().call('bdev_null_create', name='a', num_blocks=8, block_size=512)
            self.kill(daemon)
        whole = self.journal.read_bytes()
        self.journal.write_bytes(whole + whole.splitlines(keepends=True)[1][:30])
        with self.daemon() as daemon:
            self.assertIn('cut off', daemon.read_log())
            self.assertEqual(len(daemon.client().call('bdev_get_bdevs')), 1)
            self.kill(daemon)
        self.assertEqual(self.journal.read_bytes(), whole)

    def make_until_it_fails(self, call):
        names = []
        with self.assertRaises(RpcError) as refused:
            for number in range(10_000):
                names.append(f'n{number}')
                call('bdev_null_create', name=names[-1], num_blocks=8, block_size=512)
        self.assertGreater(len(names), 10)
        return names, refused.exception

    def check_after_restart(self, names):
        with self.daemon() as daemon:
            call = daemon.client().call
            self.assertEqual(sorted(bdev['name'] for bdev in call('bdev_get_bdevs')), sorted(names))
            self.assertEqual(call('state_get_info')['failed'], [])
            self.kill(daemon)

    def test_a_full_disk_refuses_calls_before_they_have_done_anything(self):
        mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=512k', 'tmpfs', self.state], capture_output=True,
                                 text=True, check=False)
        if mounted.returncode != 0:
            self.skipTest(f'needs a small file system, which only root can mount: {mounted.stderr.strip()}')
        self.addCleanup(subprocess.run, ['umount', self.state], check=True)
        with self.daemon() as daemon:
            call = daemon.client().call
            names, error = self.make_until_it_fails(call)
            self.assertEqual(error.code, -ENOSPC)
            for text in (f'bdev_null_create: nothing was done, as it could not be kept: {self.journal}', 'No space left'):
                self.assertIn(text, error.message)
            del names[-1]
            self.assertEqual(len(call('bdev_get_bdevs')), len(names))
            self.assertIn('No space left', call('state_get_info')['error'])
            self.kill(daemon)
        self.check_after_restart(names)

    def test_a_write_that_fails_fails_the_call_and_those_that_follow(self):
        limit = 32 << 10  # of any file: unlike a full disk, found out only when it is written

        def limit_files():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        with self.daemon(prepare=limit_files) as daemon:
            call = daemon.client().call
            names, error = self.make_until_it_fails(call)
            self.assertEqual(error.code, -EFBIG)
            for text in ('bdev_null_create: it is done, but could not be kept', str(self.journal), 'File too large'):
                self.assertIn(text, error.message)
            with self.assert_refused(EFBIG, 'bdev_null_delete: nothing was done, as it could not be kept'):
                call('bdev_null_delete', name=names[0])
            batch = [{'id': name, 'method': 'bdev_null_delete', 'params': {'name': name}} for name in names[:2]]
            self.assertEqual([reply['error']['code'] for reply in daemon.client().ask(json.dumps(batch))], [-EFBIG] * 2)
            self.assertEqual(len(call('bdev_get_bdevs')), len(names), 'it is there, as it said')
            # Once there is room, all that is there is kept.
            resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            call('bdev_null_delete', name=names[0])
            self.assertIsNone(call('state_get_info')['error'])
            self.kill(daemon)
        self.check_after_restart(names[1:])


class Kills(StateCase):
    """kill -9 at any moment: what was answered is there, and of what was not, all or nothing."""

    def client(self, daemon, number, model, doubt, stop):
        """Makes and deletes bdevs and controllers until the daemon is gone."""
        random_numbers = random.Random(KILL_SEED * 1000 + number)
        client = Client(daemon.socket)
        try:
            while not stop.is_set():
                name = f'{number}.{random_numbers.randrange(8)}'
                if name not in model:
                    method, params, after = 'bdev_null_create', {'name': name, 'num_blocks': 8, 'block_size': 512}, 'bdev'
                elif model[name] == 'bdev' and random_numbers.random() < 0.7:
                    method, params, after = 'vhost_create_blk_controller', {'ctrlr': name, 'dev_name': name}, 'controller'
                elif model[name] == 'bdev':
                    method, params, after = 'bdev_null_delete', {'name': name}, None
                else:
                    method, params, after = 'vhost_delete_controller', {'ctrlr': name}, 'bdev'
                doubt[number] = name, after
                client.call(method, **params)
                doubt[number] = None
                if after is None:
                    del model[name]
                else:
                    model[name] = after
        except (OSError, json.JSONDecodeError):
            pass
        finally:
            client.close()

    @staticmethod
    def present(call):
        found = {bdev['name']: 'bdev' for bdev in call('bdev_get_bdevs')}
        found.update({controller['ctrlr']: 'controller' for controller in call('vhost_get_controllers')})
        return found

    def test_what_was_answered_is_there(self):
        random_numbers = random.Random(KILL_SEED)
        models = [{} for _ in range(4)]
        answered = 0
        for kill in range(KILLS):
            with self.daemon() as daemon:
                found = self.present(daemon.client().call)
                self.assertEqual(daemon.client().call('state_get_info')['failed'], [])
                if kill > 0:
                    for model, (name, after) in zip(models, [entry or (None, None) for entry in doubt]):
                        if name is not None and found.get(name) == after:
                            model.pop(name, None) if after is None else model.__setitem__(name, after)
                self.assertEqual(found, {name: what for model in models for name, what in model.items()},
                                 f'SLUICE_STATE_SEED={KILL_SEED}, kill {kill}')
                doubt = [None] * len(models)
                stop = threading.Event()
                clients = [threading.Thread(target=self.client, args=(daemon, number, model, doubt, stop))
                           for number, model in enumerate(models)]
                for thread in clients:
                    thread.start()
                time.sleep(random_numbers.uniform(0.01, 0.2))
                daemon.process.send_signal(signal.SIGKILL)
                daemon.wait_exit()
                stop.set()
                for thread in clients:
                    thread.join()
                answered += sum(map(len, models))
        self.assertGreater(answered, 0)


if __name__ == '__main__':
    unittest.main(verbosity=2)
