// RingDriver: the driver's side of one virtqueue in GuestMemory, split or packed.
//
// It can do what a correct driver does (add, publish, kick, wait) and, through set_desc() and publish_head() or
// add_raw(), anything that a hostile one may do. What the device does wrong (an unknown or repeated head, a used index
// that jumps) is kept in violation(), which stays empty with a correct device.
//
// Thread:    any one at a time; every wait has a deadline.
// Ownership: borrows `memory`. The rings stay allocated there.
// Source:    VIRTIO 1.2, "Split Virtqueues"; "Used Buffer Notification Suppression"; "Packed Virtqueues".
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "app/conformance/front_end.h"
#include "app/conformance/guest_memory.h"
#include "lib/base/unique_fd.h"
#include "lib/virtio/virtio.h"

namespace sluice::test {

// One descriptor's worth of guest memory.
struct Segment {
  uint64_t gpa = 0;
  uint32_t len = 0;
  bool writable = false;
};

// A place in a packed ring, and the wrap counter of the round in which it is reached.
struct RingPosition {
  uint16_t offset = 0;
  bool wrap = true;

  void advance(uint32_t count, uint16_t size);
  uint16_t encoded() const { return static_cast<uint16_t>(offset | (wrap ? vhost::kPackedWrapBit : 0)); }
  // How far it is from `earlier` to here, in two rounds.
  uint32_t since(RingPosition earlier, uint16_t size) const;
};

class RingDriver {
 public:
  struct Options {
    uint16_t size = 128;
    bool packed = false;
    bool event_idx = false;
    uint16_t start_index = 0;  // of avail and used; of a packed ring, how many descriptors have been used before
    size_t region = SIZE_MAX;  // of the rings; the last one if there are fewer
  };

  RingDriver(GuestMemory& memory, const Options& options);

  uint16_t size() const { return size_; }
  // What SET_VRING_BASE is to say, while nothing is in flight.
  uint32_t base() const;
  vhost::VringAddr vring_addr(uint32_t index) const;  // in front-end user addresses
  uint64_t desc_gpa() const { return desc_; }
  uint64_t used_gpa() const { return used_; }
  int kick_fd() const { return kick_.get(); }
  int call_fd() const { return call_.get(); }
  int err_fd() const { return err_.get(); }
  // New descriptors of the same kind; the old ones are closed.
  void renew_call_fd();
  void renew_kick_fd();

  // ---- Adding buffers
  uint16_t free_descriptors() const { return packed_ ? free_places_ : static_cast<uint16_t>(free_.size()); }
  // A chain of direct descriptors. Returns its head, or its id. Requires: enough free descriptors.
  uint16_t add_chain(std::span<const Segment> segments);
  // The first `direct` segments as direct descriptors, the others in one indirect table at the end of the chain.
  // `flags` are those of the descriptor that refers to the table.
  uint16_t add_indirect(std::span<const Segment> segments, size_t direct = 0, uint16_t flags = vhost::kDescIndirect);
  // A descriptor, or an id, taken out of use, for hand-made chains.
  uint16_t take_descriptor();
  // Packed: these descriptors as they are, but for the flags that make them available.
  void add_raw(std::span<const vhost::PackedDesc> descs);
  RingPosition avail_position() const { return offered_; }  // packed: of the next descriptor to be added
  RingPosition used_position() const { return taken_; }     // packed: of the next used descriptor to be taken
  void set_desc(uint16_t index, const vhost::SplitDesc& desc);
  // Puts a head into the avail ring. Nothing is visible before publish().
  void publish_head(uint16_t head);
  void publish();
  void set_avail_idx(uint16_t idx);  // whatever it is to say
  uint16_t avail_idx() const { return avail_idx_; }

  // ---- Notifying
  bool kick_needed() const;  // by EVENT_IDX or NO_NOTIFY, for what was published since the last kick
  void kick();               // only if needed
  void kick_always();

  // ---- Waiting for used buffers
  std::optional<vhost::SplitUsedElem> poll_used();  // takes one if there is one
  // Takes the next one; waits for the call descriptor, or looks all the time if `by_call` is false.
  std::optional<vhost::SplitUsedElem> wait_used(int timeout_ms = kTimeoutMs, bool by_call = true);
  uint16_t used_idx() const;  // as the device has published it; of a packed ring counted in chains
  uint16_t used_taken() const { return last_used_; }
  uint16_t avail_event() const;
  void set_used_event(uint16_t event);
  void set_avail_flags(uint16_t flags);
  void set_driver_event(vhost::PackedEvent event);
  vhost::PackedEvent device_event() const;
  void enable_calls();  // from the next used buffer on
  void suppress_calls();
  uint64_t drain_call();  // number of calls since the last drain
  bool err_signalled(int timeout_ms = kTimeoutMs) const;
  size_t outstanding() const { return chains_.size(); }

  const std::string& violation() const { return violation_; }

  // Forgets everything, as after a device reset: rings zeroed, all descriptors free, indices at `start_index`.
  void reset(uint16_t start_index = 0);

 private:
  uint16_t link(std::span<const vhost::SplitDesc> descs);
  uint16_t link_packed(std::span<const Segment> segments, uint16_t first_flags = 0);
  const vhost::PackedDesc& packed_desc(uint16_t offset) const;
  bool is_used(RingPosition place) const;
  std::optional<vhost::SplitUsedElem> poll_packed();
  void reset_packed();
  uint16_t* avail_entry(size_t index) const;
  uint16_t* avail_index_field() const;
  uint16_t* used_index_field() const;

  GuestMemory& memory_;
  const uint16_t size_;
  const bool packed_;
  const bool event_idx_;
  const size_t region_;
  uint64_t desc_ = 0, avail_ = 0, used_ = 0;
  UniqueFd kick_, call_, err_;
  std::vector<uint16_t> free_;
  std::map<uint16_t, std::vector<uint16_t>> chains_;  // head -> its direct descriptors, while the device has them
  uint16_t avail_idx_ = 0;                            // next to be written
  uint16_t kicked_idx_ = 0;                           // up to where the device was told
  uint16_t last_used_ = 0;
  // Of a packed ring, in which `free_` are ids and `chains_` hold as many entries as the chain takes descriptors.
  RingPosition offered_, taken_;
  uint16_t free_places_ = 0;
  struct Head {
    uint16_t offset;
    uint16_t flags;
  };
  std::vector<Head> unpublished_;
  uint32_t unkicked_ = 0;  // descriptors
  std::string violation_;
};

}  // namespace sluice::test
