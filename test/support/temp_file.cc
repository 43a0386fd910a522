#include "test/support/temp_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "lib/base/check.h"

namespace sluice {

TempFile::TempFile(uint64_t size_bytes, Kind kind) : linked_(kind == Kind::kDisk) {
  if (kind == Kind::kMemory) {
    fd_.reset(::memfd_create("sluice_test", MFD_CLOEXEC));
    path_ = fmt::format("/proc/self/fd/{}", fd_.get());
  } else {
    path_ = std::filesystem::temp_directory_path() / "sluice_test_XXXXXX";
    fd_.reset(::mkostemp(path_.data(), O_CLOEXEC));
  }
  CHECK(fd_);
  resize(size_bytes);
}

TempFile::~TempFile() {
  if (linked_) ::unlink(path_.c_str());
}

void TempFile::resize(uint64_t size_bytes) const { CHECK(::ftruncate(fd_.get(), static_cast<off_t>(size_bytes)) == 0); }

std::vector<std::byte> TempFile::contents(uint64_t offset_bytes, uint64_t length_bytes) const {
  std::vector<std::byte> bytes(length_bytes);
  const ssize_t got = ::pread(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset_bytes));
  CHECK(got == static_cast<ssize_t>(length_bytes));
  return bytes;
}

uint64_t TempFile::allocated_bytes() const {
  struct stat status{};
  CHECK(::fsync(fd_.get()) == 0);  // delayed allocation does not show before
  CHECK(::fstat(fd_.get(), &status) == 0);
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

}  // namespace sluice
