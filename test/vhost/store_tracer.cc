#include "test/vhost/store_tracer.h"

#include <signal.h>
#include <ucontext.h>

#include <cstdlib>
#include <cstring>

#include "lib/base/check.h"

namespace sluice::test {
namespace {

constexpr greg_t kTrapFlag = 1 << 8;
constexpr size_t kMaxImages = 1000;  // of one trace

// For the handler, which may come in the middle of an allocation: it makes none.
struct Tracing {
  std::vector<std::span<std::byte>> watched;
  std::vector<std::byte> images;  // one after the other
  size_t image_bytes = 0;
  size_t count = 0;
  volatile bool wanted = false;
};
Tracing tracing;
struct sigaction action_before;

std::byte* image_at(size_t i) { return tracing.images.data() + i * tracing.image_bytes; }

bool changed() {
  const std::byte* last = image_at(tracing.count - 1);
  for (const auto part : tracing.watched) {
    if (std::memcmp(last, part.data(), part.size()) != 0) return true;
    last += part.size();
  }
  return false;
}

void add_image() {
  if (tracing.images.size() < (tracing.count + 1) * tracing.image_bytes) abort();
  std::byte* to = image_at(tracing.count++);
  for (const auto part : tracing.watched) {
    std::memcpy(to, part.data(), part.size());
    to += part.size();
  }
}

void on_trap(int /*signal*/, siginfo_t* /*info*/, void* context) {
  greg_t& flags = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_EFL];
  if (tracing.count == 0 || changed()) add_image();
  flags = tracing.wanted ? flags | kTrapFlag : flags & ~kTrapFlag;
}

}  // namespace

StoreTracer::StoreTracer(std::vector<std::span<std::byte>> watched) : watched_(std::move(watched)) {
  struct sigaction action{};
  action.sa_sigaction = on_trap;
  action.sa_flags = SA_SIGINFO;
  CHECK(::sigaction(SIGTRAP, &action, &action_before) == 0);
  tracing.watched = watched_;
  tracing.image_bytes = 0;
  for (const auto part : watched_) tracing.image_bytes += part.size();
  tracing.images.resize(kMaxImages * tracing.image_bytes);
}

StoreTracer::~StoreTracer() { CHECK(::sigaction(SIGTRAP, &action_before, nullptr) == 0); }

void StoreTracer::begin() {
  tracing.count = 0;
  tracing.wanted = true;
  CHECK(::raise(SIGTRAP) == 0);  // the handler sets the flag
}

std::vector<StoreTracer::Image> StoreTracer::end() {
  tracing.wanted = false;
  std::vector<Image> images;
  for (size_t i = 0; i < tracing.count; ++i) images.emplace_back(image_at(i), image_at(i) + tracing.image_bytes);
  return images;
}

StoreTracer::Image StoreTracer::image() const {
  Image image;
  for (const auto part : watched_) image.insert(image.end(), part.begin(), part.end());
  return image;
}

void StoreTracer::restore(const Image& image) const {
  const std::byte* from = image.data();
  for (const auto part : watched_) {
    std::memcpy(part.data(), from, part.size());
    from += part.size();
  }
}

}  // namespace sluice::test
