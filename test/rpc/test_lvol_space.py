"""Logical volumes over RPC: how much of a store is used, and what happens when that is much."""

import time
import unittest

from daemon import PATIENCE_S, RpcError
from test_lvol import CLUSTER, EINVAL, ENODEV, MIB, LvolCase


class Space(LvolCase):
    def test_lists_count_the_clusters_that_a_volume_has_and_its_parent_has_not(self):
        self.make_store()
        self.create('thick', mib=8, thin_provision=False)
        self.call('bdev_lvol_snapshot', lvol_name='lvs/thick', snapshot_name='s')
        self.call('bdev_lvol_clone', snapshot_name='lvs/s', clone_name='clone')

        def counts():
            in_bdevs = {bdev['aliases'][0]: bdev['driver_specific']['lvol']['num_allocated_clusters']
                        for bdev in self.call('bdev_get_bdevs') if bdev['product_name'] == 'Logical Volume'}
            self.assertEqual(in_bdevs, {volume['alias']: volume['num_allocated_clusters']
                                        for volume in self.call('bdev_lvol_get_lvols')})
            return in_bdevs

        clusters = 8 * MIB // CLUSTER
        self.assertEqual(counts(), {'lvs/thick': 0, 'lvs/s': clusters, 'lvs/clone': 0})
        self.call('bdev_lvol_inflate', name='lvs/clone')
        self.assertEqual(counts(), {'lvs/thick': 0, 'lvs/s': clusters, 'lvs/clone': clusters})
        self.call('bdev_lvol_delete', name='lvs/s')
        self.assertEqual(counts(), {'lvs/thick': clusters, 'lvs/clone': clusters})

    def test_the_policy_for_a_full_store_changes(self):
        uuid = self.make_store()
        self.call('bdev_lvol_set_enospc_policy', uuid=uuid, policy='hold')
        self.assertEqual(self.call('bdev_lvol_get_lvstores')[0]['enospc_policy'], 'hold')
        self.call('bdev_lvol_set_enospc_policy', lvs_name='lvs', policy='fail')
        self.assertEqual(self.call('bdev_lvol_get_lvstores')[0]['enospc_policy'], 'fail')
        with self.assertRaises(RpcError) as refused:
            self.call('bdev_lvol_set_enospc_policy', lvs_name='lvs', policy='wait')
        self.assertEqual(refused.exception.code, -32602)

    def crossings(self, first, count):
        """What is told of usage, once there is so much of it: clusters come back in the background."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            told = [(one['type'], one['ctx'], one['percent'])
                    for one in self.call('notify_get_notifications', id=first)
                    if one['type'].startswith('lvol_store_usage_')]
            if len(told) >= count:
                return told
            self.assertLess(time.monotonic(), deadline, told)

    def test_thresholds_of_usage_are_notified(self):
        uuid = self.make_store()
        types = self.call('notify_get_types')
        self.assertTrue({'lvol_store_usage_above', 'lvol_store_usage_below'} <= set(types), types)
        self.assertEqual(self.call('bdev_lvol_get_lvstores')[0]['usage_thresholds'], [])
        self.call('bdev_lvol_set_thresholds', uuid=uuid, percent=[50, 25])
        store, = self.call('bdev_lvol_get_lvstores')
        self.assertEqual(store['usage_thresholds'], [25, 50])
        first = self.call('notify_get_notifications')[-1]['id'] + 1
        self.create('thick', mib=store['total_data_clusters'] * CLUSTER * 6 // 10 // MIB, thin_provision=False)
        above = [('lvol_store_usage_above', 'lvs', 25), ('lvol_store_usage_above', 'lvs', 50)]
        self.assertEqual(self.crossings(first, len(above)), above)
        # One that has been reached already is told at once, the others stay as they are.
        self.call('bdev_lvol_set_thresholds', lvs_name='lvs', percent=[50, 55])
        above.append(('lvol_store_usage_above', 'lvs', 55))
        self.assertEqual(self.crossings(first, len(above)), above)
        self.call('bdev_lvol_delete', name='lvs/thick')
        self.assertEqual(self.crossings(first, 5), above + [('lvol_store_usage_below', 'lvs', 55),
                                                            ('lvol_store_usage_below', 'lvs', 50)])
        self.call('bdev_lvol_set_thresholds', lvs_name='lvs', percent=[])
        self.assertEqual(self.call('bdev_lvol_get_lvstores')[0]['usage_thresholds'], [])
        self.assert_refused(EINVAL, ["'lvs'", '101', '1 to 100'], 'bdev_lvol_set_thresholds', lvs_name='lvs', percent=[101])
        self.assert_refused(ENODEV, ["'none'"], 'bdev_lvol_set_thresholds', lvs_name='none', percent=[80])


if __name__ == '__main__':
    unittest.main()
