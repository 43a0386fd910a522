// What the tests of the state directory share: a directory, and a system whose calls fail when they are told to.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "rpc/state_journal.h"

namespace sluice::rpc::test {

class TempDirectory {
 public:
  TempDirectory() : path_(::testing::TempDir() + "sluice-state-XXXXXX") { EXPECT_NE(::mkdtemp(path_.data()), nullptr); }
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;
  ~TempDirectory() { std::filesystem::remove_all(path_); }

  const std::string& path() const { return path_; }
  std::string journal() const { return path_ + "/" + StateJournal::kFileName; }
  std::string content() const {
    std::ifstream file(journal(), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void set_content(std::string_view bytes) const {
    std::ofstream(journal(), std::ios::binary | std::ios::trunc) << bytes;
  }

 private:
  std::string path_;
};

// Fails from the call number `fail_at` on, `failures` times, and a write that fails has written half.
class FailingSystem final : public StateSystem {
 public:
  static constexpr uint64_t kNever = UINT64_MAX;

  uint64_t calls = 0;
  uint64_t fail_at = kNever;
  uint64_t failures = 1;
  int error = ENOSPC;
  bool full = false;  // allocate() fails, nothing else

  ssize_t write(int fd, const void* bytes, size_t size, off_t offset) override {
    if (!fails()) return StateSystem::write(fd, bytes, size, offset);
    if (size > 1) EXPECT_GT(StateSystem::write(fd, bytes, size / 2, offset), 0);
    errno = error;
    return -1;
  }
  int sync_data(int fd) override { return fails() ? -1 : StateSystem::sync_data(fd); }
  int sync(int fd) override { return fails() ? -1 : StateSystem::sync(fd); }
  int allocate(int fd, off_t offset, off_t size) override {
    if (full) errno = error;
    return full || fails() ? -1 : StateSystem::allocate(fd, offset, size);
  }
  int rename(int directory, const char* from, const char* to) override {
    return fails() ? -1 : StateSystem::rename(directory, from, to);
  }

 private:
  bool fails() {
    const uint64_t number = calls++;
    const bool now = number >= fail_at && number - fail_at < failures;
    if (now) errno = error;
    return now;
  }
};

}  // namespace sluice::rpc::test
