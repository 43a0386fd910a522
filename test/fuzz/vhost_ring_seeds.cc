// vhost_ring_seeds DIRECTORY: writes there what vhost_ring_fuzz begins with: drivers that behave, of each kind, and
// some that do not.
#include <fstream>
#include <initializer_list>
#include <string>
#include <vector>

#include "lib/virtio/virtio.h"
#include "test/fuzz/vhost_ring_input.h"

namespace sluice::vhost {
namespace {

using Input = std::vector<uint8_t>;

uint8_t code(RingStep step) { return static_cast<uint8_t>(step); }

void add(Input& input, RingStep step, std::initializer_list<unsigned> arguments) {
  input.push_back(code(step));
  for (const unsigned argument : arguments) input.push_back(static_cast<uint8_t>(argument));
}

void write(const std::string& path, const Input& input) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(input.data()), static_cast<std::streamsize>(input.size()));
}

// Every type of request, in every layout.
Input requests(unsigned mode) {
  Input input{static_cast<uint8_t>(mode), 4};
  for (const unsigned type : {0U, 1U, 4U, 8U, 11U, 13U, 10U}) {
    for (const unsigned layout : {0U, 1U, 2U, 4U, 8U}) {
      add(input, RingStep::kRequest, {type, 3, 4, layout});
      add(input, RingStep::kTurn, {0});
    }
    add(input, RingStep::kRestart, {type});
  }
  return input;
}

// A ring that is always full, with the driver's wishes changing.
Input flood(unsigned mode) {
  Input input{static_cast<uint8_t>(mode), 3};
  for (unsigned i = 0; i < 24; ++i) {
    add(input, RingStep::kRequest, {i % 2, i, 2, i % 4 == 3 ? 1U : 0U});
    if (i % 3 == 2) add(input, RingStep::kEvent, {i % 3, 0, i, 0});
    if (i % 3 == 2) add(input, RingStep::kTurn, {1});
  }
  return input;
}

// Chains by hand: a loop, a nested table, a buffer across regions, one outside of the memory, an index that jumps.
Input broken(unsigned mode) {
  Input input{static_cast<uint8_t>(mode), 2};
  const auto descriptor = [&input](RingStep step, unsigned table, unsigned index, unsigned place, unsigned into,
                                   unsigned length, unsigned flags, unsigned next) {
    if (step == RingStep::kEntry) {
      add(input, step, {table, index, place, into, length & 255U, length >> 8, flags, next});
    } else {
      add(input, step, {index, place, into, length & 255U, length >> 8, flags, next});
    }
  };
  add(input, RingStep::kHeader, {0, 0, 1});
  descriptor(RingStep::kDescriptor, 0, 0, 0, 0, 16, kDescNext, 1);
  descriptor(RingStep::kDescriptor, 0, 1, 4, 1, 512, kDescNext | kDescWrite, 0);
  add(input, RingStep::kAvailable, {0});
  add(input, RingStep::kTurn, {1});
  add(input, RingStep::kRestart, {1});
  descriptor(RingStep::kEntry, 0, 0, 0, 0, 16, kDescNext, 1);
  descriptor(RingStep::kEntry, 0, 1, 2, 0, 513, kDescWrite, 0);
  descriptor(RingStep::kDescriptor, 0, 0, 3, 0, 32, kDescIndirect, 0);
  add(input, RingStep::kAvailable, {1});
  add(input, RingStep::kTurn, {1});
  descriptor(RingStep::kEntry, 0, 1, 3, 0, 32, kDescIndirect, 0);
  add(input, RingStep::kAvailable, {1});
  add(input, RingStep::kTurn, {1});
  add(input, RingStep::kRestart, {1});
  descriptor(RingStep::kDescriptor, 0, 0, 7, 1, 16, 0, 0);
  add(input, RingStep::kIndex, {3, 0});
  add(input, RingStep::kTurn, {1});
  return input;
}

// What the target looks at changes while it looks: descriptors, the available ring, headers.
Input changing(unsigned mode) {
  Input input{static_cast<uint8_t>(mode | kModeConcurrent), 3};
  for (const unsigned offset : {0x0U, 0x8U, 0xcU, 0xeU, 0x10U, 0x1cU, 0x402U, 0x404U, 0x602U, 0x900U, 0x90cU, 0x1100U})
    add(input, RingStep::kPoke, {offset & 255U, offset >> 8, 1U << offset % 8});
  for (unsigned i = 0; i < 12; ++i) {
    add(input, RingStep::kRequest, {i % 2, i, 3, i % 3 == 0 ? 1U : 0U});
    add(input, RingStep::kTurn, {3});
    if (i % 4 == 3) add(input, RingStep::kRestart, {1});
  }
  return input;
}

}  // namespace
}  // namespace sluice::vhost

int main(int argc, char** argv) {
  using namespace sluice::vhost;
  if (argc != 2) return 2;
  const std::string directory = argv[1];
  for (unsigned mode = 0; mode < 8; ++mode) {
    const std::string name = directory + "/" + std::to_string(mode);
    write(name + "_requests", requests(mode));
    write(name + "_flood", flood(mode));
    write(name + "_broken", broken(mode));
    write(name + "_changing", changing(mode));
  }
  return 0;
}
