// What the methods about bdevs in general need to know of the modules.
#pragma once

#include <json/value.h>

#include "rpc/methods.h"

namespace sluice {
class Bdev;
namespace lvol {
struct VolumeInfo;
}
}  // namespace sluice

namespace sluice::rpc {

// bdev_malloc_*, bdev_null_*, bdev_aio_*, bdev_uring_*.
void add_bdev_module_methods(MethodTable& table, RpcContext& context);

// bdev_virtio_*.
void add_virtio_methods(MethodTable& table, RpcContext& context);
// If it is a virtio bdev: adds what only these have.
void describe_virtio(const Bdev& bdev, Json::Value& driver_specific);
// The call that attaches it again; null if it is another bdev.
Json::Value attaching_call(const Bdev& bdev);

// Adds what only logical volumes have.
void describe_volume(const lvol::VolumeInfo& volume, Json::Value& driver_specific);

// What only bdevs of this module have.
Json::Value driver_specific(const Bdev& bdev);
// The call that makes this bdev again; null if there is none.
Json::Value creating_call(const Bdev& bdev);

}  // namespace sluice::rpc
