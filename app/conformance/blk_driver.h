// BlkDriver: virtio-blk requests over a RingDriver, in any memory layout a driver may choose.
//
// Thread:    any one at a time; every wait has a deadline.
// Ownership: borrows `memory` and `ring`. Buffers of requests are taken from the memory and given back when none is
// left
//            in flight.
// Source:    VIRTIO 1.2, "Block Device / Device Operation"; "Message Framing".
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "app/conformance/ring_driver.h"
#include "lib/virtio/virtio.h"

namespace sluice::test {

// One request as bytes: what the device reads and how much it may write, and how both are cut into descriptors.
struct Exchange {
  Bytes readable;            // header and data to be written
  size_t writable_size = 0;  // data to be read and the status byte
  // Lengths of the descriptors of each part; the last one takes the rest. Empty: the classic layout, in which the
  // header and the status byte have descriptors of their own.
  std::vector<uint32_t> readable_split;
  std::vector<uint32_t> writable_split;
  bool indirect = false;
  size_t direct_before_indirect = 0;
  uint16_t table_flags = vhost::kDescIndirect;  // of the descriptor that refers to the table
};

struct Outcome {
  uint32_t used_len = 0;
  Bytes writable;      // all of the writable part; kUntouched where the device wrote nothing
  bool intact = true;  // nothing was written around the writable part, nor into the readable one

  uint8_t status_byte() const { return writable.empty() ? 0xff : writable.back(); }
  vhost::BlkStatus status() const { return static_cast<vhost::BlkStatus>(status_byte()); }
  Bytes data() const { return Bytes(writable.begin(), writable.end() - 1); }
};
inline constexpr uint8_t kUntouched = 0xa5;

class BlkDriver {
 public:
  BlkDriver(GuestMemory& memory, RingDriver& ring) : memory_(memory), ring_(ring) {}

  // ---- Several at a time
  uint16_t add(const Exchange& exchange);     // returns the head; visible to the device after ring().publish()
  uint16_t submit(const Exchange& exchange);  // add, publish, kick
  // The next completed request, in the device's order.
  std::optional<Outcome> complete(int timeout_ms = kTimeoutMs, bool by_call = true, uint16_t* head = nullptr);

  // ---- One at a time. Empty: not completed in time.
  std::optional<Outcome> run(const Exchange& exchange, int timeout_ms = kTimeoutMs);
  std::optional<vhost::BlkStatus> read(uint64_t sector, Bytes& data);
  std::optional<vhost::BlkStatus> write(uint64_t sector, const Bytes& data);
  std::optional<vhost::BlkStatus> flush();
  std::optional<vhost::BlkStatus> discard(std::span<const vhost::BlkDiscardSegment> segments);
  std::optional<vhost::BlkStatus> write_zeroes(std::span<const vhost::BlkDiscardSegment> segments);
  std::optional<Bytes> get_id();

  // Resets the ring and forgets what was in flight.
  void reset(uint16_t start_index = 0);
  // Completions are found by looking, not by waiting for the call descriptor.
  void poll_instead_of_calls(bool on) { by_call_ = !on; }
  RingDriver& ring() { return ring_; }

 private:
  struct Pending {
    std::vector<Segment> segments;
    Bytes readable;
  };
  std::optional<vhost::BlkStatus> status_of(const Exchange& exchange);
  uint64_t place(size_t size);

  GuestMemory& memory_;
  RingDriver& ring_;
  std::map<uint16_t, Pending> pending_;
  GuestMemory::Mark mark_;  // what was allocated before the first of the requests in flight
  size_t next_region_ = 0;
  bool by_call_ = true;
};

// ---- Requests
Exchange read_request(uint64_t sector, size_t size);
Exchange write_request(uint64_t sector, const Bytes& data);
Exchange flush_request();
Exchange get_id_request(size_t size = vhost::kBlkIdSize);
// Any type, with data that follows the header and room for an answer before the status byte.
Exchange request(uint32_t type, uint64_t sector, const Bytes& data = {}, size_t answer_size = 0);
Exchange segments_request(vhost::BlkRequestType type, std::span<const vhost::BlkDiscardSegment> segments);

// Bytes that differ from sector to sector and from seed to seed.
Bytes pattern(size_t size, uint32_t seed);

}  // namespace sluice::test
