// JsonFramer: finds the end of each JSON value in a stream of bytes: clients send no newline and no length.
// It counts brackets outside strings; whether the value is JSON at all is for the parser.
// Thread: any, one at a time.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace sluice::rpc {

class JsonFramer {
 public:
  enum class Status {
    kValue,     // `value` is an object or an array, brackets and all
    kNeedMore,  // no complete value is here
    kGarbage,   // something begins that is no object and no array: the stream cannot be followed any more
    kTooLong,   // the value is longer than the limit: likewise
  };

  explicit JsonFramer(size_t max_value_bytes) : max_value_bytes_(max_value_bytes) {}

  void append(std::string_view bytes);
  // Takes the next value out. After kGarbage and kTooLong every answer is the same.
  Status next(std::string& value);

  // Whether the stream stops in the midst of a value.
  bool inside_value() const { return depth_ > 0; }

 private:
  bool find_start();
  bool find_end();

  const size_t max_value_bytes_;
  std::string buffer_;
  size_t start_ = 0;  // of the present value; what is before it is used up
  size_t scan_ = 0;   // the first byte that was not looked at
  size_t depth_ = 0;
  bool in_string_ = false;
  bool escaped_ = false;
};

}  // namespace sluice::rpc
