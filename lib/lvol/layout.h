// What a store's parts are called and how large they are. docs/format-lvol.md describes the disk byte by byte.
#pragma once

#include <bit>
#include <cstdint>

#include "lib/base/check.h"

namespace sluice::lvol {

// Unit of metadata. Places of pages on the base bdev are counted in pages, from its beginning.
inline constexpr uint64_t kPageBytes = 4096;
using PageNumber = uint64_t;
inline constexpr PageNumber kNoPage = 0;  // the first superblock: no page of a map is there

// Unit of allocation; counted from the beginning of the base bdev. The first ones hold superblocks and journal.
using ClusterIndex = uint32_t;
inline constexpr ClusterIndex kNoCluster = 0;

inline constexpr uint64_t kMinClusterBytes = 64U << 10;
inline constexpr uint64_t kMaxClusterBytes = 16U << 20;
inline constexpr uint64_t kDefaultClusterBytes = 256U << 10;
inline constexpr uint32_t kMaxSubclusters = 64;
inline constexpr uint64_t kMinSubclusterBytes = 4096;

// Entries of a leaf, references of an interior page.
inline constexpr uint32_t kFanOut = 256;
inline constexpr uint32_t kFanOutBits = 8;

// What the sub-clusters of an entry that are not in `own` come from, if it is not a cluster.
inline constexpr ClusterIndex kBaseOrigin = 0;  // what the volume stands on: zeros, or its external origin
inline constexpr ClusterIndex kBaseZeros = 1;   // zeros, whatever it stands on
inline constexpr ClusterIndex kFirstDataCluster = 2;

// Where one cluster of a volume is.
struct Entry {
  ClusterIndex own = kNoCluster;    // holds the sub-clusters in `valid`; kNoCluster: there are none
  ClusterIndex base = kBaseOrigin;  // where the others are; kBaseOrigin when `valid` is full
  uint64_t valid = 0;               // bit i: sub-cluster i is in `own`

  bool operator==(const Entry&) const = default;
};

// Sizes of one store. Constant but for total_clusters, which grows.
struct Geometry {
  uint64_t cluster_bytes = kDefaultClusterBytes;  // a power of two
  uint32_t total_clusters = 0;                    // whole clusters of the base bdev
  uint32_t reserved_clusters = 0;                 // the first ones: superblocks and journal; kFirstDataCluster at least
  uint32_t journal_pages = 0;                     // they begin at kJournalFirstPage

  uint32_t subclusters() const {
    const uint64_t fit = cluster_bytes / kMinSubclusterBytes;
    return static_cast<uint32_t>(fit < kMaxSubclusters ? fit : kMaxSubclusters);
  }
  uint64_t subcluster_bytes() const { return cluster_bytes / subclusters(); }
  // `valid` of an entry that owns all of its cluster.
  uint64_t full() const { return subclusters() == 64 ? ~0ULL : (1ULL << subclusters()) - 1; }
  // The bits of sub-clusters first to last.
  uint64_t bits(uint32_t first, uint32_t last) const { return (~0ULL >> (63 - (last - first))) << first; }
  uint32_t pages_per_cluster() const { return static_cast<uint32_t>(cluster_bytes / kPageBytes); }
  uint64_t offset_bytes(ClusterIndex cluster) const { return cluster * cluster_bytes; }
  ClusterIndex cluster_of(PageNumber page) const { return static_cast<ClusterIndex>(page / pages_per_cluster()); }

  bool operator==(const Geometry&) const = default;
};

// Pages 0 and 1 are the superblock's slots; the journal follows.
inline constexpr uint32_t kSuperblockSlots = 2;
inline constexpr PageNumber kJournalFirstPage = kSuperblockSlots;

// A page on disk, with its CRC-32C: finds a write that was lost or went astray.
struct PageRef {
  PageNumber page = kNoPage;
  uint32_t crc = 0;

  bool operator==(const PageRef&) const = default;
};

// Counts records of the journal since the store was made: the first one is 1. A change is durable when its number is.
using RecordNumber = uint64_t;

// Never used again in the same store. 0: none.
using VolumeId = uint32_t;
inline constexpr VolumeId kNoVolume = 0;

// Pages between a root and the leaves, by the root's level: a leaf is level 0.
inline constexpr uint32_t kMaxLevel = 3;
constexpr uint64_t clusters_below(uint32_t level) { return 1ULL << (kFanOutBits * (level + 1)); }
constexpr uint32_t level_for(uint64_t clusters) {
  uint32_t level = 0;
  while (clusters_below(level) < clusters) ++level;
  return level;
}

}  // namespace sluice::lvol
