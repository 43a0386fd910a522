// LogFile: the dirty log of a front end, in a file of its own, and which pages of the guest are marked in it.
// Thread: any one at a time, while the back end marks.
// Source: Vhost-user Protocol, "Migration", "Log description".
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <set>

#include "lib/base/unique_fd.h"
#include "lib/virtio/wire.h"

namespace sluice::test {

inline constexpr uint64_t kPage = vhost::kLogPageSize;

// Page numbers.
struct Pages : std::set<uint64_t> {
  Pages operator|(const Pages& other) const {
    Pages all = *this;
    all.insert(other.begin(), other.end());
    return all;
  }
};

inline Pages pages_of(uint64_t gpa, uint64_t size) {
  Pages pages;
  for (uint64_t page = gpa / kPage; page <= (gpa + size - 1) / kPage; page++) pages.insert(page);
  return pages;
}
class LogFile {
 public:
  static constexpr size_t kBytes = (0x1'0000'0000 + (8 << 20)) / kPage / 8;  // all of the default layout

  // The log begins `offset` bytes into the file.
  explicit LogFile(size_t offset = 0) : offset_(offset), fd_(::memfd_create("log", MFD_CLOEXEC)) {
    EXPECT_EQ(::ftruncate(fd_.get(), static_cast<off_t>(offset_ + kBytes)), 0);
    void* map = ::mmap(nullptr, offset_ + kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
    EXPECT_NE(map, MAP_FAILED);
    map_ = static_cast<uint8_t*>(map);
  }
  LogFile(const LogFile&) = delete;
  LogFile& operator=(const LogFile&) = delete;
  ~LogFile() { ::munmap(map_, offset_ + kBytes); }

  int fd() const { return fd_.get(); }
  vhost::LogDescription description() const { return {kBytes, offset_}; }
  Pages marked() const {
    Pages pages;
    for (uint64_t i = 0; i < kBytes; i++) {
      for (uint64_t bit = 0; bit < 8; bit++)
        if ((__atomic_load_n(&map_[offset_ + i], __ATOMIC_SEQ_CST) >> bit & 1) != 0) pages.insert(8 * i + bit);
    }
    return pages;
  }
  bool marked(uint64_t gpa) const {
    const uint64_t page = gpa / kPage;
    return (__atomic_load_n(&map_[offset_ + page / 8], __ATOMIC_SEQ_CST) >> (page % 8) & 1) != 0;
  }
  // Bytes of the file outside of the log, which nobody may touch.
  bool intact_before() const {
    return std::all_of(map_, map_ + offset_, [](uint8_t byte) { return byte == 0; });
  }
  void clear() {
    for (size_t i = 0; i < offset_ + kBytes; i++) __atomic_store_n(&map_[i], uint8_t{0}, __ATOMIC_SEQ_CST);
  }

 private:
  const size_t offset_;
  UniqueFd fd_;
  uint8_t* map_ = nullptr;
};

}  // namespace sluice::test
