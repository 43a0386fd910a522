// Counts what the test binary takes from operator new (or malloc, in a sanitizer build), on all threads: linking this
// replaces it.
#pragma once

#include <cstdint>

namespace sluice {

uint64_t allocation_count();

}  // namespace sluice
