// The version of this build, from CMake's project().
#pragma once

namespace sluice::rpc {

extern const int kVersionMajor;
extern const int kVersionMinor;
extern const int kVersionPatch;
// "1.2.3"
extern const char* const kVersion;

}  // namespace sluice::rpc
