// Journal: the ring of pages in which every change of maps and volumes is written before it counts as durable.
//
// Records are collected in memory and written by commits, each of them for all who wait: (1) flush of the base bdev, so
// that data are durable before the metadata that expose them; (2) the pages; (3) flush. What is appended while a commit
// runs is the next one's. A page is written once: a commit leaves the rest of its last page empty.
//
// Thread:    the store's owner.
// Ownership: borrows `io`.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "lib/bdev/io_buffer.h"
#include "lib/lvol/format.h"
#include "lib/lvol/meta_io.h"
#include "lib/thread/await.h"
#include "lib/thread/gate.h"

namespace sluice::lvol {

class Journal {
 public:
  // Where it goes on: of a new store the defaults, else what replay_journal() found.
  struct Position {
    uint64_t sequence = 1;         // of the next page
    uint32_t previous_crc = 0;     // of the page before it
    RecordNumber next_record = 1;
    uint64_t first_sequence = 1;   // of the oldest page that replay would need
  };

  Journal(const Geometry& geometry, const Uuid& store, MetaIo& io, const Position& position);
  ~Journal();

  // Adds a change to those of the next commit. Requires: fits(record), and has_room() (checked).
  RecordNumber append(const Record& record);
  // Whether there is room for some more records until a checkpoint has made room: a few pages are kept for the
  // volume list's own changes.
  bool has_room() const;
  // The same for a record of the volume list, which may use what is kept.
  bool has_room_for_lists() const;
  // Of the ring's pages, in percent: written or waiting.
  uint32_t used_percent() const;

  RecordNumber appended() const { return next_record_ - 1; }
  RecordNumber durable() const { return durable_; }
  bool dirty() const { return appended() != durable_; }
  uint64_t pending_pages() const;
  // The next page to be closed has this number.
  uint64_t next_sequence() const;

  // Returns when all that was appended before the call is durable, with data completed before. Joins a commit that
  // waits to begin. Errors: EIO, ENODEV: nothing can be made durable any more: all later ones fail likewise.
  Task<Result<>> commit();
  // Called after each commit with what is durable now, on the owner's thread.
  void on_durable(std::function<void(RecordNumber)> fn) { on_durable_ = std::move(fn); }

  // Where a checkpoint's replay begins: everything appended up to now is before it, what comes later behind. Closes
  // the page that is being filled. What was closed so is still written by the next commit.
  Position cut();
  // A superblock that begins at `position` is durable: pages before it may be written over.
  void release_before(const Position& position);

  // Waits for commits in progress. Nothing may be appended any more.
  Task<> close();

 private:
  // As whoever implements it needs.
  RecordNumber next_record_ = 1;
  RecordNumber durable_ = 0;
  std::function<void(RecordNumber)> on_durable_;
};

// Reads the journal from where the superblock says, in large reads, calls apply(record) for each record in order, and
// returns where it goes on. Pages that a power failure has cut off end it; they are recognised as such.
// Errors: EILSEQ: a page is damaged that had been durable; EIO; what `apply` returns.
Task<Result<Journal::Position>> replay_journal(const Superblock& superblock, MetaIo& io,
                                               std::function<Result<>(const Record&)> apply);

}  // namespace sluice::lvol
