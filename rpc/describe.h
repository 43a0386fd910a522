// OpenRPC: the description of all methods as a document, made from their tables.
// Source: the OpenRPC specification 1.2.6.
#pragma once

#include <json/value.h>

#include "rpc/method.h"

namespace sluice::rpc {

// Beyond the standard: "x-type" of a parameter (u32, ...), "x-alias" of a parameter, "x-aliases" of a method.
Json::Value describe(const MethodTable& methods);

}  // namespace sluice::rpc
