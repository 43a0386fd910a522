#include "test/vhost/in_process_fixture.h"

namespace sluice::test {
namespace {

class TargetForOneCase final : public TestedTarget {
 public:
  explicit TargetForOneCase(const TargetOptions& options)
      : num_controllers_(options.num_controllers),
        readonly_(options.readonly),
        target_({.size_bytes = options.size_bytes,
                 .block_size = options.block_size,
                 .readonly = options.readonly,
                 .packed_ring = options.packed_ring,
                 .num_controllers = options.num_controllers}) {}

  std::string socket_path(unsigned controller) const override {
    return controller < num_controllers_ ? target_.socket_path(controller) : std::string();
  }
  bool readonly() const override { return readonly_; }
  InProcessTarget& get() { return target_; }

 private:
  const unsigned num_controllers_;
  const bool readonly_;
  InProcessTarget target_;
};

}  // namespace

std::unique_ptr<TestedTarget> make_target(const TargetOptions& options) {
  return std::make_unique<TargetForOneCase>(options);
}

InProcessTarget& in_process_target(TestedTarget& target) { return static_cast<TargetForOneCase&>(target).get(); }

}  // namespace sluice::test
