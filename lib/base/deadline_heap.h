// DeadlineHeap: a binary heap of elements ordered by deadline, each knowing its place, so that any can be removed.
// insert and remove O(log n), earliest O(1). Borrows its elements.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lib/base/check.h"

namespace sluice {

// What an element of a DeadlineHeap derives from.
class HeapEntry {
 public:
  HeapEntry() = default;
  HeapEntry(const HeapEntry&) = delete;
  HeapEntry& operator=(const HeapEntry&) = delete;

  bool in_heap() const { return index_ != kNotInHeap; }
  uint64_t deadline_ns() const { return deadline_ns_; }

 private:
  template <typename T>
  friend class DeadlineHeap;
  static constexpr size_t kNotInHeap = SIZE_MAX;
  size_t index_ = kNotInHeap;
  uint64_t deadline_ns_ = 0;
};

template <typename T>
class DeadlineHeap {
 public:
  bool empty() const { return entries_.empty(); }
  size_t size() const { return entries_.size(); }
  T& earliest() const { return static_cast<T&>(*entries_.front()); }
  // UINT64_MAX when empty.
  uint64_t earliest_deadline_ns() const { return empty() ? UINT64_MAX : entries_.front()->deadline_ns_; }

  // Puts the element at `deadline_ns`, whether it is in the heap already or not.
  void set(T& element, uint64_t deadline_ns) {
    HeapEntry& entry = element;
    entry.deadline_ns_ = deadline_ns;
    if (!entry.in_heap()) {
      entry.index_ = entries_.size();
      entries_.push_back(&entry);
    }
    sift_up(entry.index_);
    sift_down(entry.index_);
  }

  void remove(T& element) {
    HeapEntry& entry = element;
    if (!entry.in_heap()) return;
    const size_t hole = entry.index_;
    entry.index_ = HeapEntry::kNotInHeap;
    HeapEntry* last = entries_.back();
    entries_.pop_back();
    if (last == &entry) return;
    place(hole, last);
    sift_up(hole);
    sift_down(last->index_);
  }

  template <typename Fn>
  void for_each(Fn&& fn) const {
    for (HeapEntry* entry : entries_) fn(static_cast<T&>(*entry));
  }

 private:
  void place(size_t index, HeapEntry* entry) {
    entries_[index] = entry;
    entry->index_ = index;
  }

  void sift_up(size_t index) {
    HeapEntry* entry = entries_[index];
    while (index > 0) {
      const size_t parent = (index - 1) / 2;
      if (entries_[parent]->deadline_ns_ <= entry->deadline_ns_) break;
      place(index, entries_[parent]);
      index = parent;
    }
    place(index, entry);
  }

  void sift_down(size_t index) {
    HeapEntry* entry = entries_[index];
    for (;;) {
      size_t child = 2 * index + 1;
      if (child >= entries_.size()) break;
      if (child + 1 < entries_.size() && entries_[child + 1]->deadline_ns_ < entries_[child]->deadline_ns_) ++child;
      if (entries_[child]->deadline_ns_ >= entry->deadline_ns_) break;
      place(index, entries_[child]);
      index = child;
    }
    place(index, entry);
  }

  std::vector<HeapEntry*> entries_;
};

}  // namespace sluice
