// CpuMask: a set of logical cores.
#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "lib/base/result.h"

namespace sluice {

class CpuMask {
 public:
  static constexpr size_t kMaxCpus = 1024;

  // From a hexadecimal mask ("0x5", "5") or a list of cores and ranges ("[0,2-3]").
  static Result<CpuMask> parse(std::string_view text);
  // The cores this process may run on.
  static CpuMask available();

  bool test(uint32_t cpu) const { return cpu < kMaxCpus && bits_.test(cpu); }
  void set(uint32_t cpu) { bits_.set(cpu); }
  bool none() const { return bits_.none(); }
  size_t count() const { return bits_.count(); }
  CpuMask operator&(const CpuMask& other) const;
  bool operator==(const CpuMask&) const = default;
  // "0x5"
  std::string to_string() const;

 private:
  std::bitset<kMaxCpus> bits_;
};

}  // namespace sluice
