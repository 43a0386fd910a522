// DriverRing: a virtqueue of either kind, split or packed, on the driver's side: what VirtioQueue puts requests into.
//
// Which one it is, is decided when it is reset, and stays so for a connection: the processor foresees each of the
// branches in here.
//
// Thread, ownership: as of the two kinds.
#pragma once

#include <bit>
#include <cstdint>
#include <span>

#include "lib/bdev/virtio/packed_ring.h"
#include "lib/bdev/virtio/split_ring.h"

namespace sluice::virtio {

class DriverRing {
 public:
  // Of both kinds, which have their parts in the same places.
  using Layout = SplitRing::Layout;

  // An empty ring in `memory`, which is zeroed. Requires: `size` is a power of two.
  void reset(std::span<std::byte> memory, uint16_t size, bool event_idx, bool packed) {
    is_packed_ = packed;
    packed ? packed_.reset(memory, size, event_idx) : split_.reset(memory, size, event_idx);
  }
  // What SET_VRING_BASE says of an empty ring.
  uint32_t base() const { return is_packed_ ? PackedRing::kBase : 0; }

  uint16_t free_descriptors() const { return is_packed_ ? packed_.free_descriptors() : split_.free_descriptors(); }
  // Takes a free descriptor, or the id of one. Requires: there is one.
  uint16_t take() { return is_packed_ ? packed_.take() : split_.take(); }
  // Gives back a chain of `count` descriptors that were taken in succession, `head` first. Packed: of one.
  void give_back(uint16_t head, uint16_t count) {
    is_packed_ ? packed_.give_back(head) : split_.give_back(head, count);
  }

  // Split only: a descriptor of a chain, and the one that the next take() gives.
  void set_direct(uint16_t index, uint64_t address, uint32_t length, uint16_t flags, uint16_t next) {
    split_.set(index, address, length, flags, next);
  }
  uint16_t next() const { return split_.next(); }
  // A descriptor that names an indirect table of so many bytes.
  void set_indirect(uint16_t head, uint64_t table, uint32_t length) {
    is_packed_ ? packed_.set(head, table, length, vhost::kDescIndirect)
               : split_.set(head, table, length, vhost::kDescIndirect, 0);
  }
  // An entry of such a table, of which `index` more come before it. Both kinds of entries have 16 bytes.
  vhost::SplitDesc table_entry(uint64_t address, uint32_t length, uint16_t flags, uint16_t index) const {
    if (!is_packed_) {
      return {.addr = address, .len = length, .flags = flags, .next = static_cast<uint16_t>(index + 1)};
    }
    const auto known = static_cast<uint16_t>(flags & vhost::kDescWrite);
    return std::bit_cast<vhost::SplitDesc>(vhost::PackedDesc{.addr = address, .len = length, .id = 0, .flags = known});
  }

  // Makes a chain available, which may have been so before; the back end sees it after publish().
  void offer(uint16_t head) { is_packed_ ? packed_.offer(head) : split_.offer(head); }
  // Shows the back end all that was offered; true if it wants to be kicked for it.
  bool publish() { return is_packed_ ? packed_.publish() : split_.publish(); }

  // How many chains have come back, as far as the back end is to be believed.
  uint16_t used_count() const { return is_packed_ ? packed_.used_count() : split_.used_count(); }
  bool has_used() const { return is_packed_ ? packed_.has_used() : split_.used_count() > 0; }
  // The next of them. Requires: has_used().
  vhost::SplitUsedElem pop_used() { return is_packed_ ? packed_.pop_used() : split_.pop_used(); }

  // Asks for a call at the next chain that comes back; true if one has come back all the same.
  bool enable_calls() { return is_packed_ ? packed_.enable_calls() : split_.enable_calls(); }
  void disable_calls() { is_packed_ ? packed_.disable_calls() : split_.disable_calls(); }

 private:
  bool is_packed_ = false;
  SplitRing split_;
  PackedRing packed_;
};

}  // namespace sluice::virtio
