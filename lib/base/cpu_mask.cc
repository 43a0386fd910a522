#include "lib/base/cpu_mask.h"

#include <sched.h>

#include <charconv>

namespace sluice {
namespace {

constexpr const char* kSyntax = "a core mask is hexadecimal (0x3) or a list ([0,2-3])";

Result<CpuMask> parse_list(std::string_view list) {
  CpuMask mask;
  if (list.ends_with(',')) return fail(EINVAL, kSyntax);
  while (!list.empty()) {
    const std::string_view item = list.substr(0, list.find(','));
    list.remove_prefix(item.size() == list.size() ? item.size() : item.size() + 1);
    uint32_t first = 0;
    const char* end = item.data() + item.size();
    auto [rest, error] = std::from_chars(item.data(), end, first);
    if (error != std::errc{}) return fail(EINVAL, kSyntax);
    uint32_t last = first;
    if (rest != end) {
      if (*rest != '-') return fail(EINVAL, kSyntax);
      auto [rest2, error2] = std::from_chars(rest + 1, end, last);
      if (error2 != std::errc{} || rest2 != end) return fail(EINVAL, kSyntax);
    }
    if (last < first || last >= CpuMask::kMaxCpus) return fail(EINVAL, "a core number is out of range");
    for (uint32_t cpu = first; cpu <= last; ++cpu) mask.set(cpu);
  }
  return mask;
}

}  // namespace

Result<CpuMask> CpuMask::parse(std::string_view text) {
  if (text.starts_with('[') && text.ends_with(']') && text.size() >= 2)
    return parse_list(text.substr(1, text.size() - 2));
  if (text.starts_with("0x") || text.starts_with("0X")) text.remove_prefix(2);
  if (text.empty() || text.size() > kMaxCpus / 4) return fail(EINVAL, kSyntax);
  CpuMask mask;
  for (size_t i = 0; i < text.size(); ++i) {
    uint32_t digit = 0;
    const char* place = text.data() + text.size() - 1 - i;
    auto [rest, error] = std::from_chars(place, place + 1, digit, 16);
    if (error != std::errc{} || rest != place + 1) return fail(EINVAL, kSyntax);
    for (uint32_t bit = 0; bit < 4; ++bit) {
      if ((digit >> bit & 1U) != 0) mask.set(static_cast<uint32_t>(4 * i) + bit);
    }
  }
  return mask;
}

CpuMask CpuMask::available() {
  CpuMask mask;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof(set), &set) != 0) return mask;
  for (uint32_t cpu = 0; cpu < CPU_SETSIZE && cpu < kMaxCpus; ++cpu) {
    if (CPU_ISSET(cpu, &set)) mask.set(cpu);
  }
  return mask;
}

CpuMask CpuMask::operator&(const CpuMask& other) const {
  CpuMask both;
  both.bits_ = bits_ & other.bits_;
  return both;
}

std::string CpuMask::to_string() const {
  std::string digits;
  for (size_t low = 0; low < kMaxCpus; low += 4) {
    uint32_t digit = 0;
    for (size_t bit = 0; bit < 4; ++bit) digit |= static_cast<uint32_t>(bits_.test(low + bit)) << bit;
    digits.insert(digits.begin(), "0123456789abcdef"[digit]);
  }
  const size_t first = digits.find_first_not_of('0');
  return "0x" + (first == std::string::npos ? "0" : digits.substr(first));
}

}  // namespace sluice
