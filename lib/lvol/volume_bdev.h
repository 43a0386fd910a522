// The bdev that offers a volume: named by its uuid, with the alias "store/volume".
//
// Reads and writes of what is mapped and private go straight to the base bdev: no message, no lock. What needs a change
// of the map asks the store's owner (WriteArbiter) and goes on from there.
//
// Thread:    made on the application's thread; channels on their own.
// Ownership: borrows store, volume and base, which outlive it.
#pragma once

#include <memory>
#include <string>

#include "lib/base/result.h"

namespace sluice {
class Bdev;
}

namespace sluice::lvol {

class Store;
struct Volume;
struct VolumeRecord;

inline constexpr const char* kVolumeProductName = "Logical Volume";

// `record`: the volume's, as it is now (the owner's own copy may be changing). `origin`: the bdev that its
// external_origin names; nullptr if it has none.
std::unique_ptr<Bdev> make_volume_bdev(Store& store, Volume& volume, const VolumeRecord& record, std::string store_name,
                                       Bdev& base, Bdev* origin);

// Of one that make_volume_bdev() has made; nullptr for any other.
Store* store_of(const Bdev& bdev);
Volume* volume_of(const Bdev& bdev);

}  // namespace sluice::lvol
