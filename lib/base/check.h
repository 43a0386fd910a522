// CHECK: a programmer error ends the process at once, in release builds too, naming file, line and condition.
// Never for bytes that come from a disk, a guest, a socket or JSON: those are parsed and become an Error.
#pragma once

namespace sluice {

[[noreturn]] void check_failed(const char* file, int line, const char* condition);

}  // namespace sluice

#define CHECK(condition)                                                    \
  (__builtin_expect(static_cast<bool>(condition), 1) ? static_cast<void>(0) \
                                                     : ::sluice::check_failed(__FILE__, __LINE__, #condition))
