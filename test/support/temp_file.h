// Files for tests, gone with the object.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "lib/base/unique_fd.h"

namespace sluice {

class TempFile {
 public:
  enum class Kind : uint8_t {
    kDisk,    // in the folder for temporary files, usually a file system with direct I/O
    kMemory,  // memory only: a file system without direct I/O
  };

  explicit TempFile(uint64_t size_bytes, Kind kind = Kind::kDisk);
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;
  ~TempFile();

  const std::string& path() const { return path_; }
  int fd() const { return fd_.get(); }
  void resize(uint64_t size_bytes) const;
  // What the file holds, past every bdev.
  std::vector<std::byte> contents(uint64_t offset_bytes, uint64_t length_bytes) const;
  uint64_t allocated_bytes() const;

 private:
  UniqueFd fd_;
  std::string path_;
  bool linked_ = false;
};

}  // namespace sluice
