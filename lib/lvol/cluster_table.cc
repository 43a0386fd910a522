#include "lib/lvol/cluster_table.h"

#include <algorithm>
#include <bit>

namespace sluice::lvol {

ClusterTable::ClusterTable(const Geometry& geometry, Epochs& epochs)
    : epochs_(epochs), reserved_(geometry.reserved_clusters), chunks_(kChunks), next_(reserved_) {
  CHECK(reserved_ >= kFirstDataCluster && reserved_ <= geometry.total_clusters);
  grow(geometry.total_clusters);
}

uint32_t ClusterTable::references(ClusterIndex cluster) const {
  const uint16_t small = count(cluster).load(std::memory_order_relaxed);
  return small == kMany ? many_.at(cluster) : small;
}

void ClusterTable::set_references(ClusterIndex cluster, uint32_t references) {
  if (references >= kMany) {
    many_[cluster] = references;
  } else if (references == kMany - 1) {
    many_.erase(cluster);  // it may have been there, or come from below
  }
  // Release, for shared(): who sees that a cluster is no longer shared writes to it, after the reads that others were
  // allowed until then.
  count(cluster).store(static_cast<uint16_t>(std::min<uint32_t>(references, kMany)), std::memory_order_release);
}

void ClusterTable::set_free(ClusterIndex cluster, bool is_free) {
  uint64_t& word = free_bits_[cluster / 64];
  uint64_t& block = free_blocks_[cluster / 64 / 64];
  const uint64_t block_bit = 1ULL << (cluster / 64 % 64);
  word ^= 1ULL << (cluster % 64);
  block = word != 0 ? block | block_bit : block & ~block_bit;
  free_ = is_free ? free_ + 1 : free_ - 1;
}

ClusterIndex ClusterTable::first_free(ClusterIndex from, ClusterIndex to) const {
  uint64_t word = from / 64;
  if (const uint64_t rest = word < free_bits_.size() ? free_bits_[word] >> (from % 64) : 0; rest != 0) {
    return std::min(to, from + static_cast<uint32_t>(std::countr_zero(rest)));
  }
  // From here on whole words, 64 of them at a time.
  ++word;
  const uint64_t end = (static_cast<uint64_t>(to) + 63) / 64;
  while (word < end) {
    if (const uint64_t rest = free_blocks_[word / 64] >> (word % 64); rest != 0) {
      word += static_cast<uint64_t>(std::countr_zero(rest));
      if (word >= end) return to;
      return std::min(to, static_cast<uint32_t>(word * 64 + static_cast<uint64_t>(std::countr_zero(free_bits_[word]))));
    }
    word = (word / 64 + 1) * 64;
  }
  return to;
}

std::optional<ClusterIndex> ClusterTable::take() {
  if (free_ == 0) return std::nullopt;
  ClusterIndex cluster = first_free(next_, total_);
  if (cluster == total_) cluster = first_free(0, total_);
  CHECK(cluster < total_);
  take(cluster);
  next_ = cluster + 1;
  return cluster;
}

void ClusterTable::take(ClusterIndex cluster) {
  CHECK(cluster < total_ && is_free(cluster));
  set_free(cluster, false);
}

void ClusterTable::give_back(ClusterIndex cluster) {
  CHECK(cluster >= reserved_ && cluster < total_ && !is_free(cluster));
  CHECK(references(cluster) == 0);
  set_free(cluster, true);
}

void ClusterTable::add_reference(ClusterIndex cluster) {
  if (cluster < kFirstDataCluster) return;
  CHECK(cluster >= reserved_ && cluster < total_);
  if (is_free(cluster)) set_free(cluster, false);
  set_references(cluster, references(cluster) + 1);
}

void ClusterTable::drop_reference(ClusterIndex cluster, RecordNumber by) {
  if (cluster < kFirstDataCluster) return;
  if (by <= durable_) {
    retired_.push_back({cluster, epochs_.current()});
  } else {
    drops_.push_back({cluster, by});
  }
}

bool ClusterTable::settle(RecordNumber durable, uint32_t budget) {
  durable_ = durable;
  for (uint32_t left = budget; left > 0 && !drops_.empty() && drops_.front().by <= durable; --left) {
    retired_.push_back({drops_.front().cluster, epochs_.current()});
    drops_.pop_front();
  }
  if (retired_.empty()) return false;
  if (retired_.back().epoch == epochs_.current()) epochs_.advance();
  const uint64_t oldest = epochs_.oldest();
  for (uint32_t left = budget; left > 0 && !retired_.empty() && retired_.front().epoch < oldest; --left) {
    const ClusterIndex cluster = retired_.front().cluster;
    retired_.pop_front();
    const uint32_t before = references(cluster);
    CHECK(before > 0);
    set_references(cluster, before - 1);
    if (before == 1) set_free(cluster, true);
  }
  return (!drops_.empty() && drops_.front().by <= durable) || (!retired_.empty() && retired_.front().epoch < oldest);
}

void ClusterTable::grow(uint32_t total_clusters) {
  CHECK(total_clusters >= total_);
  for (uint64_t chunk = 0; chunk * kChunk < total_clusters; ++chunk) {
    if (chunks_[chunk] == nullptr) chunks_[chunk] = std::make_unique<Count[]>(kChunk);
  }
  free_bits_.resize((static_cast<uint64_t>(total_clusters) + 63) / 64);
  free_blocks_.resize((free_bits_.size() + 63) / 64);
  const ClusterIndex first = std::max(total_, reserved_);
  total_ = total_clusters;
  for (ClusterIndex cluster = first; cluster < total_;) {
    if (cluster % 64 != 0 || total_ - cluster < 64) {
      set_free(cluster++, true);
      continue;
    }
    free_bits_[cluster / 64] = ~0ULL;
    free_blocks_[cluster / 64 / 64] |= 1ULL << (cluster / 64 % 64);
    free_ += 64;
    cluster += 64;
  }
}

}  // namespace sluice::lvol
