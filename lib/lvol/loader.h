// Loader: makes of a base bdev what was there: newest superblock, volume table, every page of every map once, in large
// reads; then replays the journal. The same after a crash as after a clean end. Writes nothing.
//
// Thread: the store's owner.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lib/lvol/journal.h"
#include "lib/lvol/maps.h"
#include "lib/lvol/meta_io.h"
#include "lib/lvol/page_places.h"
#include "lib/lvol/volume_table.h"

namespace sluice::lvol {

// The newest valid one of the two. Errors: ENODATA: there is no store on this device; EILSEQ, ENOTSUP: there is one
// that cannot be read; EIO.
Task<Result<Superblock>> read_superblock(MetaIo& io, uint64_t base_bytes);

struct Loaded {
  Journal::Position journal;
  std::vector<PageNumber> table_places;
  std::string name;             // as the journal left it
  uint32_t total_clusters = 0;  //
  std::string damage;           // empty: none. Else the first thing found: the store must not be written to
};

// Fills empty parts. Pages that cannot be read make the volumes above them damaged, and then the journal is not
// replayed beyond what fits: the rest stays readable.
// Errors: EILSEQ: the volume table or the journal is damaged; EIO.
Task<Result<Loaded>> load(const Superblock& superblock, MetaIo& io, ClusterTable& clusters, PagePlaces& places,
                          Maps& maps, VolumeTable& volumes);

}  // namespace sluice::lvol
