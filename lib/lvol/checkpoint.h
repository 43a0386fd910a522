// Checkpoint: writes all that has changed of maps and volumes since the last one, and a superblock that names it, so
// that the journal up to there is not needed any more. Goes on in small steps beside I/O: see Maps on how it freezes
// what it writes.
//
// Order: pages to free places, the volume table to others, flush; superblock into the slot of the older one; flush.
// Until the last flush the previous superblock and the journal after it hold everything.
//
// Thread: the store's owner. One at a time.
#pragma once

#include <memory>
#include <vector>

#include "lib/bdev/io_buffer.h"
#include "lib/lvol/format.h"
#include "lib/lvol/journal.h"
#include "lib/lvol/maps.h"
#include "lib/lvol/meta_io.h"
#include "lib/lvol/volume_table.h"

namespace sluice::lvol {

class Checkpoint {
 public:
  // Borrows everything; `superblock` is the newest one on disk, and replaced when a checkpoint is complete.
  Checkpoint(Superblock& superblock, VolumeTable& volumes, Maps& maps, PagePlaces& places, MetaIo& io)
      : superblock_(superblock), volumes_(volumes), maps_(maps), places_(places), io_(io) {}

  // Where the volume table of the newest superblock is (the loader has found it there).
  void set_table_places(std::vector<PageNumber> places) { table_places_ = std::move(places); }
  const std::vector<PageNumber>& table_places() const { return table_places_; }

  // Pages that run() would need now: an upper bound.
  uint64_t pages_needed() const { return maps_.unplaced_pages() + table_pages(); }
  // The same if everything that there is changed.
  uint64_t pages_at_most() const { return maps_.pages() + table_pages(); }

  // `name` and `geometry`: the store's, now. Errors: ENOSPC: there are not enough places for the pages. After any
  // error what is on disk is as before, but nothing more may be written: look at pages_needed() first.
  Task<Result<>> run(Journal& journal, std::string name, Geometry geometry);

 private:
  struct Frozen {
    std::shared_ptr<const VolumeRecord> record;
    MapPage* root;
  };

  uint64_t table_pages() const;
  Task<Result<>> write_map(MapPage& root);
  Task<Result<>> write_page(MapPage& page);
  Task<Result<>> write_table(const std::vector<Frozen>& volumes, Superblock& next);
  Task<Result<PageRef>> put(PageView bytes);
  Task<Result<>> write_out();

  Superblock& superblock_;
  VolumeTable& volumes_;
  Maps& maps_;
  PagePlaces& places_;
  MetaIo& io_;
  std::vector<PageNumber> table_places_;
  std::vector<PageNumber> new_table_places_;

  // Pages with consecutive places, which are written together.
  IoBuffer run_;
  PageNumber run_first_ = kNoPage;
  uint32_t run_pages_ = 0;
  uint32_t step_ = 0;  // pages since others had their turn
};

}  // namespace sluice::lvol
