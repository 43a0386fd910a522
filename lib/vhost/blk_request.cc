#include "lib/vhost/blk_request.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "lib/base/iov_cursor.h"

namespace sluice::vhost {
namespace {

// Never written to: it costs address space only.
alignas(4096) std::array<std::byte, kZeroesBytes> zeroes_to_write;

}  // namespace

BlkStatus to_blk_status(IoStatus status) {
  switch (status) {
    case IoStatus::kOk:
      return BlkStatus::kOk;
    case IoStatus::kUnsupported:
      return BlkStatus::kUnsupp;
    default:
      return BlkStatus::kIoErr;
  }
}

BlkRequest::Next BlkRequest::parse(const BlkDevice& device) {
  if (chain_.readable_bytes < sizeof(BlkRequestHeader)) return broken(RingFault::kNoHeader);
  if (chain_.writable_bytes == 0) return broken(RingFault::kNoStatus);
  BlkRequestHeader header;
  if (segments_.front().iov_len >= sizeof(header)) {
    std::memcpy(&header, segments_.front().iov_base, sizeof(header));
    // Without this the compiler may read the guest's bytes again instead of keeping the copy.
    asm volatile("" : "+m"(header) : : "memory");
  } else {
    IovCursor({segments_.data(), chain_.readable}).copy_out(std::as_writable_bytes(std::span(&header, 1)));
  }
  strip_header();
  strip_status();
  written_ = 0;
  writable_ = 0;
  range_ = range_count_ = 0;
  zeroes_end_ = 0;
  may_unmap = false;
  switch (static_cast<BlkRequestType>(header.type)) {
    case BlkRequestType::kIn:
      return parse_data(header.sector, true);
    case BlkRequestType::kOut:
      if (device.readonly()) return finished(BlkStatus::kIoErr);
      return parse_data(header.sector, false);
    case BlkRequestType::kFlush:
      type = IoType::kFlush;
      length_bytes = 0;
      return Next::kSubmit;
    case BlkRequestType::kGetId:
      return parse_id(device);
    case BlkRequestType::kDiscard:
      return parse_ranges(device, true);
    case BlkRequestType::kWriteZeroes:
      return parse_ranges(device, false);
    default:
      return finished(BlkStatus::kUnsupp);
  }
}

// The header may share its descriptor with data, or lie in several: drivers are free in that.
void BlkRequest::strip_header() {
  size_t left = sizeof(BlkRequestHeader);
  for (first_data_ = 0; left >= segments_[first_data_].iov_len && left > 0; ++first_data_)
    left -= segments_[first_data_].iov_len;
  if (left == 0) return;
  iovec& shared = segments_[first_data_];
  shared.iov_base = static_cast<std::byte*>(shared.iov_base) + left;
  shared.iov_len -= left;
}

// The status is the last byte of the last device-writable descriptor.
void BlkRequest::strip_status() {
  iovec& last = segments_.back();
  --last.iov_len;
  status_byte_ = static_cast<std::byte*>(last.iov_base) + last.iov_len;
  if (last.iov_len == 0) segments_.pop_back();
}

BlkRequest::Next BlkRequest::parse_data(uint64_t sector, bool in) {
  type = in ? IoType::kRead : IoType::kWrite;
  length_bytes = in ? chain_.writable_bytes - 1 : chain_.readable_bytes - sizeof(BlkRequestHeader);
  if (sector > UINT64_MAX >> kSectorShift || length_bytes % kSectorSize != 0) return finished(BlkStatus::kIoErr);
  offset_bytes = sector << kSectorShift;
  if (in) writable_ = length_bytes;
  const size_t first = in ? chain_.readable : first_data_;
  const size_t end = in ? segments_.size() : chain_.readable;
  iov = segments_.data() + first;
  iov_count = static_cast<uint32_t>(end - first);
  return Next::kSubmit;
}

BlkRequest::Next BlkRequest::parse_id(const BlkDevice& device) {
  std::array<std::byte, kBlkIdSize> id{};
  const std::string& name = device.name();
  std::ranges::copy(std::as_bytes(std::span(name.data(), std::min(name.size(), id.size()))), id.begin());
  written_ = static_cast<uint32_t>(IovCursor(std::span(segments_).subspan(chain_.readable)).copy_in(id));
  writable_ = written_;
  return finished(BlkStatus::kOk);
}

BlkRequest::Next BlkRequest::parse_ranges(const BlkDevice& device, bool discard) {
  range_type_ = discard ? IoType::kDiscard : IoType::kWriteZeroes;
  if (device.readonly()) return finished(BlkStatus::kIoErr);
  const uint64_t bytes = chain_.readable_bytes - sizeof(BlkRequestHeader);
  if (bytes == 0 || bytes % sizeof(BlkDiscardSegment) != 0 || bytes > sizeof(ranges_))
    return finished(BlkStatus::kIoErr);
  range_count_ = static_cast<uint32_t>(bytes / sizeof(BlkDiscardSegment));
  // Copied once, then checked: the guest may change its own at any time.
  IovCursor(std::span(segments_).subspan(first_data_, chain_.readable - first_data_))
      .copy_out(std::as_writable_bytes(std::span(ranges_).first(range_count_)));
  const uint64_t sectors = device.size_bytes() / kSectorSize;
  for (const BlkDiscardSegment& range : std::span(ranges_).first(range_count_)) {
    // "The device MUST set the status to UNSUPP if any unknown flag is set", and for unmap in a discard.
    if ((range.flags & ~(discard ? 0U : kBlkUnmapFlag)) != 0) return finished(BlkStatus::kUnsupp);
    if (range.num_sectors == 0 || range.num_sectors > kMaxDiscardSectors) return finished(BlkStatus::kIoErr);
    if (range.sector > sectors || range.num_sectors > sectors - range.sector) return finished(BlkStatus::kIoErr);
  }
  load_range();
  return Next::kSubmit;
}

void BlkRequest::load_range() {
  const BlkDiscardSegment& range = ranges_[range_];
  type = range_type_;
  offset_bytes = range.sector << kSectorShift;
  length_bytes = uint64_t{range.num_sectors} << kSectorShift;
  may_unmap = (range.flags & kBlkUnmapFlag) != 0;
}

bool BlkRequest::adapt_to(const Bdev& bdev) {
  if (type == IoType::kDiscard) return bdev.supports(IoType::kDiscard);
  if (type != IoType::kWriteZeroes || bdev.supports(IoType::kWriteZeroes)) return true;
  zeroes_end_ = offset_bytes + length_bytes;
  return write_zeroes_from(offset_bytes);
}

// False if there are none left to write.
bool BlkRequest::write_zeroes_from(uint64_t offset) {
  if (offset == zeroes_end_) return false;
  type = IoType::kWrite;
  offset_bytes = offset;
  length_bytes = std::min<uint64_t>(zeroes_end_ - offset, kZeroesBytes);
  zeroes_ = {.iov_base = zeroes_to_write.data(), .iov_len = length_bytes};
  iov = &zeroes_;
  iov_count = 1;
  return true;
}

bool BlkRequest::next_step(bool write_through) {
  if (type == IoType::kRead) written_ = static_cast<uint32_t>(length_bytes);
  if (zeroes_end_ != 0) {
    if (write_zeroes_from(offset_bytes + length_bytes)) return true;
    zeroes_end_ = 0;
  }
  if (range_ + 1 < range_count_) {
    ++range_;
    load_range();
    return true;
  }
  if (!write_through || (type != IoType::kWrite && type != IoType::kDiscard && type != IoType::kWriteZeroes))
    return false;
  range_count_ = 0;
  type = IoType::kFlush;
  length_bytes = 0;
  return true;
}

uint32_t BlkRequest::finish(BlkStatus status) {
  *status_byte_ = static_cast<std::byte>(status);
  return written_ + 1;
}

void BlkRequest::mark_written(DirtyLog& log, const MemoryMap& map) const {
  const auto mark = [&](const void* host, uint64_t length) {
    map.for_each_guest_place(host, length, [&log](uint64_t address, uint64_t bytes) { log.mark(address, bytes); });
  };
  uint64_t left = writable_;
  for (const iovec& segment : std::span(segments_).subspan(chain_.readable)) {
    if (left == 0) break;
    const uint64_t bytes = std::min<uint64_t>(left, segment.iov_len);
    mark(segment.iov_base, bytes);
    left -= bytes;
  }
  mark(status_byte_, 1);
}

}  // namespace sluice::vhost
