// JournalUser: what a test of the journal needs around it: a store's sizes, records that are told apart by a number,
// and somebody who opens a journal on a disk, commits and replays.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "lib/base/check.h"
#include "lib/lvol/journal.h"
#include "test/support/disk_user.h"

namespace sluice::lvol {

inline constexpr Uuid kStore{{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}};
inline constexpr uint64_t kRecordsPerPage = 144;

inline Superblock superblock_of(uint32_t journal_pages) {
  return {.uuid = kStore,
          .geometry = {.cluster_bytes = 64U << 10,
                       .total_clusters = 1000,
                       .reserved_clusters = 2 + journal_pages / 16,
                       .journal_pages = journal_pages}};
}

inline Record record(uint32_t number) { return SetEntryRecord{.volume = 1, .index = number, .entry = {.own = number}}; }

// What a superblock that begins there says.
inline void begin_at(Superblock& superblock, const Journal::Position& position) {
  superblock.journal_sequence = position.sequence;
  superblock.journal_crc = position.previous_crc;
  superblock.first_record = position.next_record;
}

// A disk that somebody uses for a journal.
class JournalUser {
 public:
  explicit JournalUser(BdevWorld& world) : world_(world), user_(world), io_(user_.channel()) {}
  ~JournalUser() { close(); }

  // Runs fn() where the journal lives.
  template <typename Fn>
  auto on(Fn fn) {
    return world_.hosts.on(world_.app(), fn);
  }

  void open(const Superblock& superblock, const Journal::Position& at = {}) {
    close();
    journal_ = std::make_unique<Journal>(superblock.geometry, superblock.uuid, io_, at);
  }
  // Of the error of this replay, or 0. What it has found is in `records` and `position`.
  int replay(const Superblock& superblock) {
    records.clear();
    std::optional<Result<Journal::Position>> replayed;
    on([&] {
      start(replay_journal(superblock, io_,
                           [this](const Record& found) -> Result<> {
                             records.push_back(std::get<SetEntryRecord>(found).index);
                             return {};
                           }),
            [&](Result<Journal::Position> result) { replayed = result; });
    });
    finish([&] { return replayed.has_value(); });
    if (*replayed) position = **replayed;
    return *replayed ? 0 : replayed->error().code;
  }
  // Appends records of these numbers.
  void append(uint32_t first, uint32_t last) {
    on([&] {
      for (uint32_t number = first; number <= last; ++number) journal_->append(record(number));
    });
  }
  // Begins a commit: `code` is set at its end.
  void begin_commit(int& code) {
    code = -1;
    on([&] { start(journal_->commit(), [&code](Result<> done) { code = done ? 0 : done.error().code; }); });
  }
  int commit() {
    int code = -1;
    begin_commit(code);
    finish([&] { return code != -1; });
    return code;
  }
  Journal::Position cut() {
    return on([&] { return journal_->cut(); });
  }
  void close() {
    if (journal_ == nullptr) return;
    bool closed = false;
    on([&] { start(journal_->close(), [&closed] { closed = true; }); });
    finish([&] { return closed; });
    forget();
  }
  // It has been closed.
  void forget() { journal_.reset(); }
  // Lets time pass until it is so, or until nothing happens any more.
  void finish(const std::function<bool()>& reached) {
    for (world_.hosts.run_until_idle(); !reached(); world_.hosts.run_until_idle()) {
      const uint64_t due_ns = world_.hosts.next_deadline_ns();
      if (due_ns == UINT64_MAX) break;
      world_.hosts.advance(due_ns - std::min(due_ns, world_.hosts.now_ns()));
    }
    CHECK(reached());
  }
  Journal& journal() { return *journal_; }
  MetaIo& io() { return io_; }
  std::vector<uint32_t> records;
  Journal::Position position;

 private:
  BdevWorld& world_;
  DiskUser user_;
  MetaIo io_;
  std::unique_ptr<Journal> journal_;
};

inline std::vector<uint32_t> numbers(uint32_t first, uint32_t last) {
  std::vector<uint32_t> all;
  for (uint32_t number = first; number <= last; ++number) all.push_back(number);
  return all;
}

}  // namespace sluice::lvol
