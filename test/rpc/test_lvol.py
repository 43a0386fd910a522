"""Logical volumes over the RPC of the real daemon: their whole life, and what is left of it after restarts."""

import json
import os
import pathlib
import re
import shutil
import signal
import tempfile
import unittest

from daemon import Daemon, RpcError

ENODEV, EEXIST, EBUSY, EINVAL, EPERM, ENOSPC = 19, 17, 16, 22, 1, 28
MIB = 1 << 20
CLUSTER = 256 << 10
UUID = re.compile('^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$')


class LvolCase(unittest.TestCase):
    """A directory with a disk in a file, which outlives the daemons of a test."""

    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix='sluice-lvol-'))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.daemon = None
        self.addCleanup(self.end)

    def disk(self, name='disk', size=64 * MIB):
        path = self.directory / name
        with open(path, 'ab') as file:
            file.truncate(size)
        return str(path)

    def start(self, *options, attach=('disk',)):
        """A daemon that has these files as bdevs of their names."""
        self.daemon = Daemon(*options, directory=self.directory)
        self.daemon.__enter__()
        self.call = self.daemon.client().call
        for name in attach:
            self.call('bdev_aio_create', name=name, filename=str(self.directory / name), block_size=512)

    def end(self, with_signal=signal.SIGTERM):
        if self.daemon is None:
            return
        daemon, self.daemon = self.daemon, None
        daemon.process.send_signal(with_signal)
        try:
            code = daemon.wait_exit()
            self.assertEqual(code, 0 if with_signal == signal.SIGTERM else -with_signal, daemon.read_log())
        finally:
            daemon.__exit__()

    def restart(self, with_signal=signal.SIGTERM, attach=('disk',)):
        self.end(with_signal)
        self.start(attach=attach)

    def make_store(self, **params):
        self.disk()
        self.start()
        return self.call('bdev_lvol_create_lvstore', bdev_name='disk', lvs_name='lvs', **params)

    def create(self, name, mib=8, **params):
        return self.call('bdev_lvol_create', lvs_name='lvs', lvol_name=name, size_in_mib=mib,
                         **{'thin_provision': True, **params})

    def bdev(self, name):
        bdev, = self.call('bdev_get_bdevs', name=name)
        return bdev

    def volumes(self):
        return {volume['name']: volume for volume in self.call('bdev_lvol_get_lvols')}

    def aliases(self):
        return sorted(alias for bdev in self.call('bdev_get_bdevs') for alias in bdev['aliases'])

    def assert_refused(self, code, texts, method, **params):
        with self.assertRaises(RpcError) as refused:
            self.call(method, **params)
        self.assertEqual(refused.exception.code, -code, refused.exception.message)
        for text in [texts] if isinstance(texts, str) else texts:
            self.assertIn(text, refused.exception.message)
        self.assertTrue(refused.exception.message.startswith(method), refused.exception.message)


class Life(LvolCase):
    """From the making of a store to its end."""

    def test_a_store_is_described_as_clients_expect(self):
        uuid = self.make_store(cluster_sz=1 * MIB, clear_method='none')
        self.assertRegex(uuid, UUID)
        store, = self.call('bdev_lvol_get_lvstores')
        self.assertEqual((store['uuid'], store['name'], store['base_bdev']), (uuid, 'lvs', 'disk'))
        self.assertEqual((store['cluster_size'], store['block_size']), (1 * MIB, 512))
        self.assertEqual(store['free_clusters'], store['total_data_clusters'])
        self.assertGreater(store['total_data_clusters'], 50)
        self.assertEqual(self.call('bdev_lvol_get_lvstores', lvs_name='lvs'), [store])
        self.assertEqual(self.call('bdev_lvol_get_lvstores', uuid=uuid), [store])
        base = self.bdev('disk')
        self.assertEqual((base['claimed'], base['claim_type']), (True, 'exclusive_write'))

    def test_a_volume_is_described_as_clients_expect(self):
        store = self.make_store()
        uuid = self.create('vol', mib=8)
        self.assertRegex(uuid, UUID)
        bdev = self.bdev('lvs/vol')
        self.assertEqual((bdev['name'], bdev['uuid'], bdev['aliases']), (uuid, uuid, ['lvs/vol']))
        self.assertEqual((bdev['product_name'], bdev['block_size'], bdev['num_blocks']), ('Logical Volume', 512, 16384))
        self.assertFalse(bdev['claimed'])
        self.assertEqual(bdev['driver_specific'], {'lvol': {
            'lvol_store_uuid': store, 'base_bdev': 'disk', 'thin_provision': True, 'num_allocated_clusters': 0,
            'snapshot': False, 'clone': False, 'esnap_clone': False}})
        self.assertIn(bdev, self.call('bdev_get_bdevs'))
        volume, = self.call('bdev_lvol_get_lvols', lvs_uuid=store)
        self.assertEqual(volume, {
            'alias': 'lvs/vol', 'uuid': uuid, 'name': 'vol', 'is_thin_provisioned': True, 'is_snapshot': False,
            'is_clone': False, 'is_esnap_clone': False, 'is_degraded': False, 'num_allocated_clusters': 0,
            'lvs': {'name': 'lvs', 'uuid': store}})

    def test_thick_volumes_take_their_clusters_at_once_and_give_them_back(self):
        self.make_store()
        free = self.call('bdev_lvol_get_usage', lvs_name='lvs')['free_clusters']
        self.create('thick', mib=8, thin_provision=False)
        usage = self.call('bdev_lvol_get_usage', name='lvs/thick')
        clusters = 8 * MIB // CLUSTER
        self.assertEqual((usage['allocated_clusters'], usage['exclusive_clusters'], usage['shared_clusters']),
                         (clusters, clusters, 0))
        self.assertEqual(usage['allocated_bytes'], 8 * MIB)
        self.assertEqual(self.call('bdev_lvol_get_usage', lvs_name='lvs')['free_clusters'], free - clusters)
        self.call('bdev_lvol_delete', name='lvs/thick')
        self.assertEqual(self.call('bdev_lvol_get_usage', lvs_name='lvs')['free_clusters'], free)
        self.assert_refused(ENOSPC, ['No space left on device', 'huge'], 'bdev_lvol_create', lvs_name='lvs',
                            lvol_name='huge', size_in_mib=1024)
        self.assertEqual(self.volumes(), {})

    def test_sizes_are_taken_in_bytes_or_mib_and_rounded_up_to_clusters(self):
        self.make_store()
        self.call('bdev_lvol_create', lvs_name='lvs', lvol_name='bytes', size=CLUSTER + 1, thin_provision=True)
        self.assertEqual(self.bdev('lvs/bytes')['num_blocks'] * 512, 2 * CLUSTER)
        self.call('bdev_lvol_resize', name='lvs/bytes', size=3 * CLUSTER)
        self.assertEqual(self.bdev('lvs/bytes')['num_blocks'] * 512, 3 * CLUSTER)
        self.call('bdev_lvol_resize', name='lvs/bytes', size_in_mib=16)
        self.assertEqual(self.bdev('lvs/bytes')['num_blocks'] * 512, 16 * MIB)
        self.call('bdev_lvol_resize', name='lvs/bytes', size_in_mib=1)
        self.assertEqual(self.bdev('lvs/bytes')['num_blocks'] * 512, 1 * MIB)
        self.assert_refused(EINVAL, ['size_in_mib', 'size'], 'bdev_lvol_resize', name='lvs/bytes')
        self.assert_refused(EINVAL, 'size', 'bdev_lvol_resize', name='lvs/bytes', size=0)
        self.assert_refused(EINVAL, 'size', 'bdev_lvol_create', lvs_name='lvs', lvol_name='x', size=1, size_in_mib=1)

    def test_snapshots_and_clones_know_each_other(self):
        self.make_store()
        self.create('vol', thin_provision=False)
        snapshot = self.call('bdev_lvol_snapshot', lvol_name='lvs/vol', snapshot_name='snap')
        clone = self.call('bdev_lvol_clone', snapshot_name=snapshot, clone_name='clone')
        lvol = {name: self.bdev(f'lvs/{name}')['driver_specific']['lvol'] for name in ('vol', 'snap', 'clone')}
        self.assertEqual(sorted(lvol['snap']['clones']), ['clone', 'vol'])
        self.assertTrue(lvol['snap']['snapshot'])
        for name in ('vol', 'clone'):
            self.assertEqual((lvol[name]['clone'], lvol[name]['base_snapshot']), (True, 'snap'))
        self.assertTrue(self.bdev(snapshot)['readonly'])
        self.assertFalse(self.bdev(clone)['readonly'])
        usage = self.call('bdev_lvol_get_usage', name='lvs/clone')
        self.assertEqual((usage['exclusive_clusters'], usage['shared_clusters']), (0, 8 * MIB // CLUSTER))
        self.assert_refused(EPERM, 'lvs/vol', 'bdev_lvol_clone', snapshot_name='lvs/vol', clone_name='no')
        self.assert_refused(EPERM, 'snapshot', 'bdev_lvol_resize', name='lvs/snap', size_in_mib=4)
        self.assertEqual(self.bdev('lvs/snap')['num_blocks'], 16384)

    def test_everything_is_deleted_in_any_order(self):
        self.make_store()
        for order in (('vol', 'one', 'two', 'clone'), ('one', 'clone', 'vol', 'two'), ('two', 'one', 'clone', 'vol')):
            free = self.call('bdev_lvol_get_lvstores')[0]['free_clusters']
            self.create('vol', thin_provision=False)
            self.call('bdev_lvol_snapshot', lvol_name='lvs/vol', snapshot_name='one')
            self.call('bdev_lvol_snapshot', lvol_name='lvs/vol', snapshot_name='two')
            self.call('bdev_lvol_clone', snapshot_name='lvs/one', clone_name='clone')
            left = set(order)
            for name in order:
                self.assertIs(self.call('bdev_lvol_delete', name=f'lvs/{name}'), True)
                left.remove(name)
                self.assertEqual(set(self.volumes()), left)
                self.assertEqual(self.aliases(), sorted(f'lvs/{other}' for other in left))
            self.assertLessEqual(free - self.call('bdev_lvol_get_lvstores')[0]['free_clusters'], 4)

    def test_names_change(self):
        self.make_store()
        vol = self.create('vol')
        self.create('other')
        self.call('bdev_lvol_rename', old_name='lvs/vol', new_name='new')
        self.assertEqual(self.aliases(), ['lvs/new', 'lvs/other'])
        self.assertEqual(self.bdev('lvs/new')['name'], vol)
        self.assert_refused(EEXIST, ['lvs/new', 'other', 'File exists'], 'bdev_lvol_rename', old_name='lvs/new',
                            new_name='other')
        self.assert_refused(EINVAL, 'a/b', 'bdev_lvol_rename', old_name='lvs/new', new_name='a/b')
        self.assertEqual(self.aliases(), ['lvs/new', 'lvs/other'])
        self.call('bdev_lvol_rename_lvstore', old_name='lvs', new_name='store')
        self.assertEqual(self.aliases(), ['store/new', 'store/other'])
        self.assertEqual(self.call('bdev_lvol_get_lvstores')[0]['name'], 'store')
        self.assert_refused(EINVAL, 'a/b', 'bdev_lvol_rename_lvstore', old_name='store', new_name='a/b')
        self.assert_refused(ENODEV, ['lvs', 'No such device'], 'bdev_lvol_rename_lvstore', old_name='lvs', new_name='x')
        self.assertEqual(self.aliases(), ['store/new', 'store/other'])
        self.restart()
        self.assertEqual(self.aliases(), ['store/new', 'store/other'])

    def test_a_volume_becomes_read_only_for_good(self):
        self.make_store()
        self.create('vol')
        self.call('bdev_lvol_set_read_only', name='lvs/vol')
        self.assertTrue(self.bdev('lvs/vol')['readonly'])
        self.assertFalse(self.bdev('lvs/vol')['supported_io_types']['write'])
        self.call('bdev_lvol_clone', snapshot_name='lvs/vol', clone_name='clone')
        self.restart()
        self.assertTrue(self.bdev('lvs/vol')['readonly'])
        self.assertFalse(self.bdev('lvs/clone')['readonly'])

    def test_a_store_grows_with_its_disk(self):
        self.make_store()
        before = self.call('bdev_lvol_get_lvstores')[0]['total_data_clusters']
        os.truncate(self.directory / 'disk', 128 * MIB)
        self.call('bdev_aio_rescan', name='disk')
        self.assertEqual(self.call('bdev_lvol_get_lvstores')[0]['total_data_clusters'], before)
        self.call('bdev_lvol_grow_lvstore', lvs_name='lvs')
        after = self.call('bdev_lvol_get_lvstores')[0]['total_data_clusters']
        self.assertEqual(after - before, 64 * MIB // CLUSTER)
        self.create('large', mib=100, thin_provision=False)
        self.restart(signal.SIGKILL)
        self.assertEqual(self.call('bdev_lvol_get_lvstores')[0]['total_data_clusters'], after)

    def test_a_store_is_deleted_with_its_volumes(self):
        uuid = self.make_store()
        self.create('vol')
        self.call('bdev_lvol_snapshot', lvol_name='lvs/vol', snapshot_name='snap')
        self.call('vhost_create_blk_controller', ctrlr='vm0', dev_name='lvs/vol')
        self.assert_refused(EBUSY, ['lvs/vol', 'vhost controller vm0'], 'bdev_lvol_delete_lvstore', uuid=uuid)
        self.assertEqual(self.aliases(), ['lvs/snap', 'lvs/vol'])
        self.call('vhost_delete_controller', ctrlr='vm0')
        self.call('bdev_lvol_delete_lvstore', uuid=uuid)
        self.assertEqual(self.call('bdev_lvol_get_lvstores'), [])
        self.assertEqual([bdev['name'] for bdev in self.call('bdev_get_bdevs')], ['disk'])
        self.assertFalse(self.bdev('disk')['claimed'])
        self.restart()
        self.assertEqual(self.call('bdev_lvol_get_lvstores'), [])
        self.call('bdev_lvol_create_lvstore', bdev_name='disk', lvs_name='lvs')

    def test_a_volume_in_use_is_not_deleted(self):
        self.make_store()
        vol = self.create('vol')
        self.call('vhost_create_blk_controller', ctrlr='vm0', dev_name='lvs/vol')
        self.assert_refused(EBUSY, ['lvs/vol', 'vhost controller vm0', 'Device or resource busy'], 'bdev_lvol_delete',
                            name=vol)
        self.assertEqual(self.bdev(vol)['users'], ['vhost controller vm0'])
        self.call('vhost_delete_controller', ctrlr='vm0')
        self.call('bdev_lvol_delete', name=vol)
        self.assert_refused(ENODEV, [vol, 'No such device'], 'bdev_lvol_delete', name=vol)

    def test_what_happens_is_notified(self):
        self.make_store()
        self.assertIn('bdev_register', self.call('notify_get_types'))
        before = self.call('notify_get_notifications')[-1]['id'] + 1
        vol = self.create('vol')
        self.call('bdev_lvol_delete', name=vol)
        self.assertEqual(self.call('notify_get_notifications', id=before),
                         [{'id': before, 'type': 'bdev_register', 'ctx': vol},
                          {'id': before + 1, 'type': 'bdev_unregister', 'ctx': vol}])
        self.assertEqual(len(self.call('notify_get_notifications', id=before, max=1)), 1)


class Refusals(LvolCase):
    """What is refused leaves nothing behind."""

    def test_stores_that_cannot_be(self):
        self.make_store()
        self.disk('second')
        self.call('bdev_aio_create', name='second', filename=str(self.directory / 'second'), block_size=512)
        self.create('vol')
        create = 'bdev_lvol_create_lvstore'
        self.assert_refused(ENODEV, ['nowhere', 'No such device'], create, bdev_name='nowhere', lvs_name='x')
        self.assert_refused(EEXIST, ['disk', 'delete that one first'], create, bdev_name='disk', lvs_name='x')
        self.assert_refused(EEXIST, 'lvs', create, bdev_name='second', lvs_name='lvs')
        self.assert_refused(EINVAL, 'volume', create, bdev_name='lvs/vol', lvs_name='x')
        self.assert_refused(EINVAL, 'name', create, bdev_name='second', lvs_name='a/b')
        self.assert_refused(EINVAL, 'cluster size', create, bdev_name='second', lvs_name='x', cluster_sz=100000)
        self.call('bdev_malloc_create', name='small', block_size=512, num_blocks=256)
        self.assert_refused(ENOSPC, 'small', create, bdev_name='small', lvs_name='x')
        self.call('vhost_create_blk_controller', ctrlr='vm0', dev_name='second')
        self.assert_refused(EBUSY, ['second', 'vhost controller vm0'], create, bdev_name='second', lvs_name='x')
        self.call('vhost_delete_controller', ctrlr='vm0')
        self.assertEqual(len(self.call('bdev_lvol_get_lvstores')), 1)
        threads = [thread['name'] for thread in self.call('thread_get_stats')['threads']]
        self.assertEqual([name for name in threads if name.startswith('lvol')], ['lvol.lvs'])
        self.call(create, bdev_name='second', lvs_name='x')

    def test_volumes_that_cannot_be(self):
        self.make_store()
        self.create('vol')
        self.call('bdev_malloc_create', name='lvs/taken', block_size=512, num_blocks=256)
        create = {'lvs_name': 'lvs', 'size_in_mib': 1}
        self.assert_refused(EEXIST, ['vol', 'File exists'], 'bdev_lvol_create', lvol_name='vol', **create)
        self.assert_refused(EEXIST, 'taken', 'bdev_lvol_create', lvol_name='taken', **create)
        self.assert_refused(EINVAL, 'name', 'bdev_lvol_create', lvol_name='', **create)
        self.assert_refused(EINVAL, 'name', 'bdev_lvol_create', lvol_name='x' * 256, **create)
        self.assert_refused(ENODEV, 'nowhere', 'bdev_lvol_create', lvol_name='x', lvs_name='nowhere', size_in_mib=1)
        self.assert_refused(EINVAL, 'uuid', 'bdev_lvol_create', lvol_name='x', size_in_mib=1)
        self.assert_refused(EEXIST, 'taken', 'bdev_lvol_snapshot', lvol_name='lvs/vol', snapshot_name='taken')
        self.assert_refused(EEXIST, 'vol', 'bdev_lvol_snapshot', lvol_name='lvs/vol', snapshot_name='vol')
        self.assert_refused(ENODEV, 'lvs/no', 'bdev_lvol_snapshot', lvol_name='lvs/no', snapshot_name='x')
        for method in ('bdev_lvol_delete', 'bdev_lvol_set_read_only', 'bdev_lvol_get_usage'):
            self.assert_refused(ENODEV, 'disk', method, name='disk')
        self.assertEqual(list(self.volumes()), ['vol'])
        self.restart()
        self.assertEqual(list(self.volumes()), ['vol'])

    def test_the_base_of_a_store_is_not_deleted_and_not_written_by_others(self):
        self.make_store()
        self.create('vol')
        self.assert_refused(EBUSY, ['disk', 'logical volume store'], 'bdev_aio_delete', name='disk')
        self.assert_refused(EBUSY, ['disk', 'claimed'], 'vhost_create_blk_controller', ctrlr='vm0', dev_name='disk')
        self.call('vhost_create_blk_controller', ctrlr='vm0', dev_name='disk', readonly=True)
        self.call('vhost_delete_controller', ctrlr='vm0')


class Restarts(LvolCase):
    """What the next daemon finds."""

    def make_volumes(self):
        self.make_store()
        self.create('vol', thin_provision=False)
        self.call('bdev_lvol_snapshot', lvol_name='lvs/vol', snapshot_name='snap')
        self.call('bdev_lvol_clone', snapshot_name='lvs/snap', clone_name='clone')
        self.create('doomed')
        self.call('bdev_lvol_delete', name='lvs/doomed')
        self.call('bdev_lvol_resize', name='lvs/clone', size_in_mib=16)
        self.call('bdev_lvol_rename', old_name='lvs/clone', new_name='renamed')

    def state(self):
        stores = self.call('bdev_lvol_get_lvstores')
        for store in stores:
            store.pop('free_clusters')
        bdevs = sorted(self.call('bdev_get_bdevs'), key=lambda bdev: bdev['aliases'])
        for bdev in bdevs:
            if bdev['product_name'] != 'Logical Volume':
                bdev.pop('uuid')
        return stores, sorted(self.volumes().items()), bdevs

    def test_everything_is_there_after_a_clean_end(self):
        self.make_volumes()
        before = self.state()
        self.restart()
        self.assertEqual(self.state(), before)

    def test_everything_is_there_after_a_kill(self):
        self.make_volumes()
        before = self.state()
        for _ in range(3):
            self.restart(signal.SIGKILL)
            self.assertEqual(self.state(), before)

    def test_a_disk_that_is_pulled_out_and_comes_back_brings_its_volumes(self):
        self.make_volumes()
        before = self.state()
        self.call('vhost_create_blk_controller', ctrlr='vm0', dev_name='lvs/vol')
        self.call('bdev_aio_delete', name='disk', force=True)
        self.assertEqual(self.call('bdev_get_bdevs'), [])
        self.assertEqual(self.call('bdev_lvol_get_lvstores'), [])
        self.assertIsNone(self.call('vhost_get_controllers', name='vm0')[0]['backend_specific']['block']['bdev'])
        self.call('vhost_delete_controller', ctrlr='vm0')
        self.call('bdev_aio_create', name='disk', filename=self.disk(), block_size=512)
        self.assertEqual(self.state(), before)

    def test_a_copy_of_a_disk_is_left_alone(self):
        self.make_volumes()
        self.end()
        shutil.copy(self.directory / 'disk', self.directory / 'copy')
        self.start(attach=('disk', 'copy'))
        store, = self.call('bdev_lvol_get_lvstores')
        self.assertEqual(store['base_bdev'], 'disk')
        self.assertFalse(self.bdev('copy')['claimed'])
        self.assertIn('same uuid', self.daemon.read_log())

    def test_a_saved_configuration_finds_stores_by_itself(self):
        self.make_volumes()
        self.call('bdev_lvol_set_enospc_policy', lvs_name='lvs', policy='hold')
        self.assertEqual(self.daemon.run_rpc_py('bdev_lvol_set_thresholds', '80,95', '--lvs-name', 'lvs').stderr, '')
        self.call('vhost_create_blk_controller', ctrlr='vm0', dev_name='lvs/vol')
        config = self.directory / 'config.json'
        self.assertEqual(self.daemon.run_rpc_py('save_config', str(config)).stderr, '')
        methods = [call['method'] for subsystem in json.loads(config.read_text())['subsystems']
                   for call in subsystem['config'] or []]
        self.assertEqual(methods, ['bdev_aio_create', 'bdev_wait_for_examine', 'bdev_lvol_set_enospc_policy',
                                   'bdev_lvol_set_thresholds', 'vhost_create_blk_controller'])
        before = self.state()
        self.end()
        self.start('-c', str(config), attach=())
        self.assertEqual(self.state(), before)
        self.assertEqual(self.daemon.run_rpc_py('save_config').stdout, config.read_text())

    def test_a_damaged_store_is_told_and_not_overwritten(self):
        self.make_volumes()
        self.end()
        with open(self.directory / 'disk', 'r+b') as file:
            for slot in (0, 4096):
                file.seek(slot + 100)
                file.write(b'\xff' * 64)
        self.start()
        self.assertEqual(self.call('bdev_lvol_get_lvstores'), [])
        self.assertIn('bdev disk: looking for a logical volume store', self.daemon.read_log())
        self.assert_refused(EEXIST, ['disk', 'damaged'], 'bdev_lvol_create_lvstore', bdev_name='disk', lvs_name='new')


class ExternalClones(LvolCase):
    """Clones of bdevs that are no volumes."""

    def make_clone(self):
        self.make_store()
        image = self.disk('image', 4 * MIB)
        self.call('bdev_aio_create', name='image', filename=image, block_size=512, readonly=True)
        return self.call('bdev_lvol_clone_bdev', bdev='image', lvs_name='lvs', clone_name='clone')

    def test_is_described(self):
        clone = self.make_clone()
        bdev = self.bdev(clone)
        self.assertEqual(bdev['num_blocks'] * 512, 4 * MIB)
        lvol = bdev['driver_specific']['lvol']
        self.assertEqual((lvol['esnap_clone'], lvol['external_snapshot_name']), (True, 'image'))
        self.assertTrue(self.volumes()['clone']['is_esnap_clone'])
        image = self.bdev('image')
        self.assertEqual((image['claimed'], image['claim_type']), (True, 'read_many_write_none'))
        self.assert_refused(EBUSY, ['image', 'lvs/clone'], 'bdev_aio_delete', name='image')
        self.call('bdev_lvol_delete', name=clone)
        self.assertFalse(self.bdev('image')['claimed'])

    def test_waits_for_its_origin_after_a_restart(self):
        clone = self.make_clone()
        self.restart()
        self.assertTrue(self.volumes()['clone']['is_degraded'])
        self.assert_refused(ENODEV, clone, 'bdev_get_bdevs', name=clone)
        self.call('bdev_aio_create', name='image', filename=str(self.directory / 'image'), block_size=512)
        self.assertFalse(self.volumes()['clone']['is_degraded'])
        self.assertEqual(self.bdev('lvs/clone')['name'], clone)

    def test_goes_with_its_origin_and_comes_back_with_it(self):
        clone = self.make_clone()
        self.call('bdev_lvol_snapshot', lvol_name=clone, snapshot_name='snap')
        self.call('bdev_aio_delete', name='image', force=True)
        self.assertEqual(self.aliases(), [])
        self.assertEqual([volume['is_degraded'] for volume in self.volumes().values()], [True, True])
        self.call('bdev_aio_create', name='image', filename=str(self.directory / 'image'), block_size=512)
        self.assertEqual(self.aliases(), ['lvs/clone', 'lvs/snap'])
        self.call('bdev_aio_delete', name='image', force=True)
        self.call('bdev_lvol_delete', name='lvs/clone')
        self.call('bdev_lvol_delete', name='lvs/snap')
        self.assertEqual(self.volumes(), {})

    def test_refusals_leave_nothing(self):
        self.make_store()
        self.create('vol')
        clone = {'lvs_name': 'lvs', 'clone_name': 'clone'}
        self.assert_refused(ENODEV, 'nowhere', 'bdev_lvol_clone_bdev', bdev='nowhere', **clone)
        self.assert_refused(EBUSY, ['disk', 'logical volume store'], 'bdev_lvol_clone_bdev', bdev='disk', **clone)
        self.assert_refused(EINVAL, 'bdev_lvol_clone', 'bdev_lvol_clone_bdev', bdev='lvs/vol', **clone)
        self.call('bdev_malloc_create', name='m', block_size=4096, num_blocks=256)
        self.assert_refused(EINVAL, 'blocks', 'bdev_lvol_clone_bdev', bdev='m', **clone)
        self.assertFalse(self.bdev('m')['claimed'])
        self.assertEqual(list(self.volumes()), ['vol'])


class Copies(LvolCase):
    """Operations that copy data between volumes, or tell what would have to be copied."""

    def setUp(self):
        super().setUp()
        self.make_store()
        self.clusters = 8 * MIB // CLUSTER
        self.create('origin', thin_provision=False)  # all of it is mapped
        self.call('bdev_lvol_snapshot', lvol_name='lvs/origin', snapshot_name='s')
        self.call('bdev_lvol_clone', snapshot_name='lvs/s', clone_name='clone')

    def lvol(self, name):
        return self.bdev(f'lvs/{name}')['driver_specific']['lvol']

    def exclusive(self, name):
        return self.call('bdev_lvol_get_usage', name=f'lvs/{name}')['exclusive_clusters']

    def test_an_inflated_or_decoupled_volume_shares_nothing(self):
        self.assertEqual((self.exclusive('clone'), self.lvol('clone')['base_snapshot']), (0, 's'))
        self.assertTrue(self.call('bdev_lvol_decouple_parent', name='lvs/clone'))
        self.assertEqual(self.exclusive('clone'), self.clusters)
        self.assertNotIn('base_snapshot', self.lvol('clone'))
        self.create('empty')
        self.assertTrue(self.call('bdev_lvol_inflate', name='lvs/empty'))
        self.assertEqual(self.exclusive('empty'), self.clusters)
        self.assertFalse(self.lvol('empty')['thin_provision'])
        self.assert_refused(EPERM, ['lvs/s', 'snapshot'], 'bdev_lvol_inflate', name='lvs/s')
        self.assert_refused(EINVAL, ['disk', 'not a logical volume'], 'bdev_lvol_inflate', name='disk')
        self.restart(signal.SIGKILL)
        self.assertEqual(self.exclusive('clone'), self.clusters)

    def test_a_shallow_copy_tells_how_far_it_is(self):
        self.call('bdev_malloc_create', name='target', num_blocks=8 * MIB // 512, block_size=512)
        self.call('bdev_malloc_create', name='small', num_blocks=MIB // 512, block_size=512)
        started = self.call('bdev_lvol_start_shallow_copy', src_lvol_name='lvs/s', dst_bdev_name='target')
        while (state := self.call('bdev_lvol_check_shallow_copy', **started))['state'] == 'in progress':
            self.assertLessEqual(state['copied_clusters'], state['total_clusters'])
        self.assertEqual(state, {'state': 'complete', 'copied_clusters': self.clusters,
                                 'total_clusters': self.clusters})
        self.assert_refused(EPERM, ['lvs/clone', 'read-only'], 'bdev_lvol_start_shallow_copy',
                            src_lvol_name='lvs/clone', dst_bdev_name='target')
        self.assert_refused(ENOSPC, ['small', 'smaller'], 'bdev_lvol_start_shallow_copy',
                            src_lvol_name='lvs/s', dst_bdev_name='small')
        self.assert_refused(2, 'no shallow copy 99', 'bdev_lvol_check_shallow_copy', operation_id=99)

    def test_a_volume_gets_another_parent(self):
        self.create('other', thin_provision=False)
        self.call('bdev_lvol_snapshot', lvol_name='lvs/other', snapshot_name='t')
        self.assertTrue(self.call('bdev_lvol_set_parent', lvol_name='lvs/clone', parent_name='lvs/t'))
        self.assertEqual(self.lvol('clone')['base_snapshot'], 't')
        self.assertEqual(self.lvol('s')['clones'], ['origin'])
        self.call('vhost_create_blk_controller', ctrlr='vm', dev_name='lvs/clone')
        self.assert_refused(EBUSY, 'lvs/clone', 'bdev_lvol_set_parent', lvol_name='lvs/clone', parent_name='lvs/s')
        self.call('vhost_delete_controller', ctrlr='vm')
        self.assert_refused(EPERM, 'read-only', 'bdev_lvol_set_parent', lvol_name='lvs/clone', parent_name='lvs/other')
        self.call('bdev_malloc_create', name='image', num_blocks=8 * MIB // 512, block_size=512)
        self.assertTrue(self.call('bdev_lvol_set_parent_bdev', lvol_name='lvs/clone', parent_name='image'))
        self.assertEqual(self.lvol('clone')['external_snapshot_name'], 'image')
        self.assertNotIn('base_snapshot', self.lvol('clone'))

    def test_changed_blocks_are_listed_in_pages(self):
        def changes(**params):
            return self.call('bdev_lvol_get_changed_blocks', to='lvs/s', **params)
        everything = changes()
        self.assertEqual((everything['cluster_size'], everything['num_clusters']), (CLUSTER, self.clusters))
        self.assertEqual(everything['clusters'], list(range(self.clusters)))
        self.assertNotIn('next', everything)
        first = changes(count=10)
        self.assertEqual((first['clusters'], first['next']), (list(range(10)), 10))
        self.assertEqual(changes(start=first['next'])['clusters'], list(range(10, self.clusters)))
        self.assertEqual(changes(**{'from': 'lvs/clone'})['clusters'], [])
        self.assert_refused(ENODEV, 'nothing', 'bdev_lvol_get_changed_blocks', to='lvs/s', **{'from': 'nothing'})


if __name__ == '__main__':
    unittest.main()
