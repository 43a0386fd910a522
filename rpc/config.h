// Configuration files in the form {"subsystems": [{"subsystem", "config": [{"method", "params"}]}]}: calls to make, in
// order. Thread: the application's lightweight thread.
#pragma once

#include <expected>
#include <string>

#include "lib/thread/task.h"
#include "rpc/dispatcher.h"

namespace sluice::rpc {

// Makes the calls of the file, and stops at the first that fails. Nothing is called when the file has not the right
// form. The error names the file, and the entry by subsystem, number (from 0) and method.
Task<std::expected<void, std::string>> load_config(Dispatcher& dispatcher, std::string path);

}  // namespace sluice::rpc
