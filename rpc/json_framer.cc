#include "rpc/json_framer.h"

namespace sluice::rpc {

void JsonFramer::append(std::string_view bytes) {
  buffer_.erase(0, start_);
  scan_ -= start_;
  start_ = 0;
  buffer_.append(bytes);
}

JsonFramer::Status JsonFramer::next(std::string& value) {
  if (depth_ == 0) {
    if (!find_start()) return Status::kNeedMore;
    const char first = buffer_[start_];
    if (first != '{' && first != '[') return Status::kGarbage;
  }
  const bool complete = find_end();
  if (scan_ - start_ > max_value_bytes_) {
    // As deep as before, so that the next call comes here again.
    depth_ = 1;
    return Status::kTooLong;
  }
  if (!complete) return Status::kNeedMore;
  value.assign(buffer_, start_, scan_ - start_);
  start_ = scan_;
  return Status::kValue;
}

// Moves `start_` to the first byte that is not white space; false if there is none.
bool JsonFramer::find_start() {
  start_ = buffer_.find_first_not_of(" \t\r\n", scan_);
  if (start_ == std::string::npos) {
    buffer_.clear();
    start_ = scan_ = 0;
    return false;
  }
  scan_ = start_;
  return true;
}

// Moves `scan_` behind the value; false if its end is not here.
bool JsonFramer::find_end() {
  while (scan_ < buffer_.size()) {
    const char c = buffer_[scan_++];
    if (escaped_) {
      escaped_ = false;
    } else if (in_string_) {
      escaped_ = c == '\\';
      in_string_ = c != '"';
    } else if (c == '"') {
      in_string_ = true;
    } else if (c == '{' || c == '[') {
      ++depth_;
    } else if ((c == '}' || c == ']') && --depth_ == 0) {
      return true;
    }
  }
  return false;
}

}  // namespace sluice::rpc
