// IovCursor: walks an iovec array byte by byte: copies out of it, into it, or takes slices of it.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace sluice {

class IovCursor {
 public:
  IovCursor() = default;
  explicit IovCursor(std::span<const iovec> iov) : iov_(iov) {}

  // The next contiguous piece, at most `max` bytes; empty at the end.
  std::span<std::byte> next(size_t max) {
    while (index_ < iov_.size() && offset_ == iov_[index_].iov_len) {
      ++index_;
      offset_ = 0;
    }
    if (index_ == iov_.size()) return {};
    const iovec& piece = iov_[index_];
    const size_t length = std::min(max, piece.iov_len - offset_);
    std::span<std::byte> bytes(static_cast<std::byte*>(piece.iov_base) + offset_, length);
    offset_ += length;
    return bytes;
  }

  // How many bytes were there to copy, at most out.size().
  size_t copy_out(std::span<std::byte> out) {
    return walk(out.size(), [&out](std::span<std::byte> piece, size_t done) {
      std::memcpy(out.data() + done, piece.data(), piece.size());
    });
  }
  // How many bytes found room, at most in.size().
  size_t copy_in(std::span<const std::byte> in) {
    return walk(in.size(), [&in](std::span<std::byte> piece, size_t done) {
      std::memcpy(piece.data(), in.data() + done, piece.size());
    });
  }
  size_t fill(std::byte value, size_t length) {
    return walk(length, [value](std::span<std::byte> piece, size_t) {
      std::memset(piece.data(), static_cast<int>(value), piece.size());
    });
  }
  size_t skip(size_t length) {
    return walk(length, [](std::span<std::byte>, size_t) {});
  }

 private:
  template <typename Fn>
  size_t walk(size_t length, Fn&& fn) {
    size_t done = 0;
    while (done < length) {
      const std::span<std::byte> piece = next(length - done);
      if (piece.empty()) break;
      fn(piece, done);
      done += piece.size();
    }
    return done;
  }

  std::span<const iovec> iov_;
  size_t index_ = 0;
  size_t offset_ = 0;
};

inline uint64_t total_length(std::span<const iovec> iov) {
  uint64_t total = 0;
  for (const iovec& piece : iov) total += piece.iov_len;
  return total;
}

}  // namespace sluice
