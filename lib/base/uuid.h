// Uuid: a 128-bit identifier (RFC 4122).
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace sluice {

struct Uuid {
  std::array<uint8_t, 16> bytes{};

  static Uuid random();
  // From the usual 36 characters, any case; nothing for other text.
  static std::optional<Uuid> parse(std::string_view text);
  // 36 characters, lower case.
  std::string to_string() const;
  bool is_nil() const { return *this == Uuid{}; }
  auto operator<=>(const Uuid&) const = default;
};

}  // namespace sluice
