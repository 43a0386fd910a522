#include "rpc/version.h"

namespace sluice::rpc {

const int kVersionMajor = SLUICE_VERSION_MAJOR;
const int kVersionMinor = SLUICE_VERSION_MINOR;
const int kVersionPatch = SLUICE_VERSION_PATCH;
const char* const kVersion = SLUICE_VERSION;

}  // namespace sluice::rpc
