// StateJournal: the file of a state directory: lines of text that are appended, or replaced all at once, durably.
//
// What has been appended when the power fails is there afterwards; of what was being appended, all or nothing. Damage
// is never passed over in silence: open() says where it is and what to do. A line is opaque here.
//
// Thread:    any, one at a time. Everything blocks on the disk.
// Ownership: owns the directory's lock, until its end, and the open file; borrows the system.
// Source:    docs/format-state.md
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <expected>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lib/base/result.h"
#include "lib/base/unique_fd.h"

namespace sluice::rpc {

// The calls to the kernel that change the file, so that tests can make each of them fail. As the system's: -1 and
// errno.
class StateSystem {
 public:
  virtual ~StateSystem() = default;
  virtual ssize_t write(int fd, const void* bytes, size_t size, off_t offset);
  virtual int sync_data(int fd);  // with what is needed to read it
  virtual int sync(int fd);
  virtual int allocate(int fd, off_t offset, off_t size);  // behind the end of the file too, which stays where it is
  virtual int rename(int directory, const char* from, const char* to);

  static StateSystem& real();
};

class StateJournal {
 public:
  static constexpr const char* kFileName = "journal";
  static constexpr const char* kNewFileName = "journal.new";

  struct Line {
    size_t number;  // in the file, from 1
    std::string text;
  };

  // Takes the directory, which must exist, for this process alone, and reads what is there. What was being appended
  // when a predecessor ended is cut off, which `note` tells. The error is one line: the file, the line, why, and what
  // to do; nothing has been changed then.
  static std::expected<std::unique_ptr<StateJournal>, std::string> open(const std::string& directory,
                                                                        StateSystem& system = StateSystem::real());
  // The same with a directory that another process, which writes no more, has taken: its lock is this one's as well.
  static std::expected<std::unique_ptr<StateJournal>, std::string> adopt(const std::string& directory, UniqueFd locked,
                                                                         StateSystem& system = StateSystem::real());
  StateJournal(const StateJournal&) = delete;
  StateJournal& operator=(const StateJournal&) = delete;

  // Constant after open().
  const std::string& path() const { return path_; }
  const std::vector<Line>& lines() const { return lines_; }
  const std::string& note() const { return note_; }  // for the log; empty: all is well

  // There is no file yet, or nobody knows what is in it since a failure: only replace() helps.
  bool needs_replacing() const { return !file_ || broken_; }
  uint64_t size_bytes() const { return size_bytes_; }
  // How much fits behind it for sure.
  uint64_t room_bytes() const { return allocated_bytes_ - size_bytes_; }

  // Makes room for so much. Errors: ENOSPC and others; nothing has changed.
  // Requires: !needs_replacing().
  Result<> reserve(uint64_t bytes);
  // Durable when it returns. After an error the line may be there or not, until the file is replaced.
  // Requires: !needs_replacing(); no newline in it.
  Result<> append(std::string_view text);
  // Durable when it returns. Errors: the old file is still there, or (needs_replacing()) perhaps the new one.
  Result<> replace(const std::vector<std::string>& texts);

  // The locked directory, for adopt(). Only to be destroyed afterwards.
  UniqueFd give_up() { return std::move(directory_); }

 private:
  StateJournal(std::string path, UniqueFd directory, StateSystem& system)
      : path_(std::move(path)), directory_(std::move(directory)), system_(system) {}

  std::expected<void, std::string> load();
  std::expected<size_t, std::string> parse(std::string_view content);
  Result<> write_all(int fd, std::string_view bytes, uint64_t offset);

  const std::string path_;
  UniqueFd directory_;
  StateSystem& system_;
  std::vector<Line> lines_;
  std::string note_;

  UniqueFd file_;
  bool broken_ = false;
  uint64_t size_bytes_ = 0;
  uint64_t allocated_bytes_ = 0;
};

}  // namespace sluice::rpc
