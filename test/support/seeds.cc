#include "test/support/seeds.h"

#include <fmt/format.h>
#include <unistd.h>

#include <charconv>
#include <csignal>
#include <cstdlib>
#include <cstring>

#include "lib/base/check.h"
#include "lib/base/clock.h"

// Of sanitizers, where there is one.
extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

namespace sluice {
namespace {

// What a signal handler can print.
char replay_text[256] = "";
bool in_use = false;

void print_replay() { std::ignore = ::write(STDERR_FILENO, replay_text, std::strlen(replay_text)); }

void on_abort(int) {
  print_replay();
  std::signal(SIGABRT, SIG_DFL);
}

uint64_t parse(std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  CHECK(error == std::errc{} && end == text.data() + text.size());
  return number;
}

}  // namespace

Seeds::Seeds(uint64_t usual, uint64_t patience_ns, std::string_view program, std::string_view filter)
    : program_(program), filter_(filter), last_(usual), end_ns_(now_ns() + patience_ns) {
  CHECK(!in_use);
  in_use = true;
  std::string_view first;
  if (const char* one = std::getenv("SLUICE_SIM_SEED")) {
    first = one;
    last_ = parse(one);
    print_ = true;
  } else if (const char* range = std::getenv("SLUICE_SIM_SEEDS")) {
    const std::string_view text = range;
    const size_t dash = text.find('-');
    CHECK(dash != std::string_view::npos);
    first = text.substr(0, dash);
    last_ = parse(text.substr(dash + 1));
  }
  if (!first.empty()) {
    seed_ = parse(first) - 1;
    end_ns_ = UINT64_MAX;
  }
  std::signal(SIGABRT, on_abort);
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(print_replay);
}

Seeds::~Seeds() {
  std::signal(SIGABRT, SIG_DFL);
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(nullptr);
  replay_text[0] = '\0';
  in_use = false;
}

bool Seeds::next() {
  if (seed_ == last_ || now_ns() >= end_ns_) return false;
  set(seed_ + 1);
  return true;
}

void Seeds::set(uint64_t seed) {
  seed_ = seed;
  ++runs_;
  const auto end = fmt::format_to_n(replay_text, sizeof(replay_text) - 1,
                                    "seed {} has failed; to replay it:\n  SLUICE_SIM_SEED={} build/release/test/{} "
                                    "--gtest_filter={}\n",
                                    seed, seed, program_, filter_);
  *end.out = '\0';
}

const char* Seeds::replay() const { return replay_text; }

}  // namespace sluice
