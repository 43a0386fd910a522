// What the first byte of an input of lvol_format_fuzz says of the others.
#pragma once

#include <cstdint>

namespace sluice::lvol {

enum class FuzzKind : uint8_t { kSuperblock, kJournalPage, kTable, kMapPage };
inline constexpr uint8_t kFuzzKinds = 4;

}  // namespace sluice::lvol
