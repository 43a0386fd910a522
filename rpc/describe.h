// OpenRPC: the description of all methods as a document, made from their tables.
// Source: the OpenRPC specification 1.2.6.
#pragma once

#include <json/value.h>

#include "rpc/method.h"

namespace sluice::rpc {

// Beyond the standard: "x-type" of a parameter (u32, ...), "x-alias" of a parameter, "x-aliases" of a method, "x-kept"
// of a method: who keeps what it has changed for after a restart: "state" (the state directory), "store" (the logical
// volume store on its disk), "no" (nobody), "" (there is nothing to keep).
Json::Value describe(const MethodTable& methods);

}  // namespace sluice::rpc
