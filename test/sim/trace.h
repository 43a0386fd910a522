// Trace: what happens in a simulation, line by line: as a hash, to compare two runs of the same seed, and printed, to
// read one.
// Thread: the simulation's only one.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <cstdio>
#include <iterator>

#include "test/support/manual_host.h"

namespace sluice::sim {

class Trace {
 public:
  Trace(const ManualHosts& hosts, bool print) : hosts_(hosts), begin_ns_(hosts.now_ns()), print_(print) {}

  template <typename... Args>
  void note(fmt::format_string<Args...> format, Args&&... args) {
    line_.clear();
    fmt::format_to(std::back_inserter(line_), "{} ", hosts_.now_ns() - begin_ns_);
    fmt::format_to(std::back_inserter(line_), format, std::forward<Args>(args)...);
    for (const char c : line_) hash_ = (hash_ ^ static_cast<unsigned char>(c)) * 0x100000001b3U;  // FNV-1a
    ++lines_;
    if (print_) fmt::print(stderr, "{}\n", std::string_view(line_.data(), line_.size()));
  }

  uint64_t hash() const { return hash_; }
  uint64_t lines() const { return lines_; }

 private:
  const ManualHosts& hosts_;
  const uint64_t begin_ns_;
  const bool print_;
  fmt::memory_buffer line_;
  uint64_t hash_ = 0xcbf29ce484222325U;
  uint64_t lines_ = 0;
};

}  // namespace sluice::sim
