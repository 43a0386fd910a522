// Configuration files in the form {"subsystems": [{"subsystem", "config": [{"method", "params"}]}]}: calls to make, in
// order. Thread: the application's lightweight thread.
#pragma once

#include <json/value.h>

#include <expected>
#include <string>

#include "lib/thread/task.h"
#include "rpc/dispatcher.h"

namespace sluice::rpc {

// Makes the calls of the file, and stops at the first that fails. Nothing is called when the file has not the right
// form. The error names the file, and the entry by subsystem, number (from 0) and method.
Task<std::expected<void, std::string>> load_config(Dispatcher& dispatcher, std::string path);
// The same with what such a file holds; `origin` names it in errors.
Task<std::expected<void, std::string>> load_config(Dispatcher& dispatcher, Json::Value config, std::string origin);

}  // namespace sluice::rpc
