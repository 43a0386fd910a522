// Result<T>: a value, or an operating error. No exceptions cross our functions.
#pragma once

#include <cerrno>
#include <expected>

namespace sluice {

// An operating error: `code` is a positive errno, stable per failure and what clients of the RPC see (negated);
// `what` is static text that says which step failed. Whoever knows the object's name adds it when reporting.
struct Error {
  int code = 0;
  const char* what = "";
};

template <typename T = void>
using Result = std::expected<T, Error>;

inline std::unexpected<Error> fail(int code, const char* what) { return std::unexpected(Error{code, what}); }

// The error of a system call that has just failed.
inline std::unexpected<Error> fail_errno(const char* what) { return fail(errno, what); }

}  // namespace sluice
