// VhostMemory: tests that give guest memory to the target themselves, region by region or by tables.
// Thread: the test's own; the target runs on others.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "app/conformance/target_fixture.h"

namespace sluice::test {

inline constexpr uint64_t kMiB = 1 << 20;

class VhostMemory : public TargetFixture {
 public:
  void open(SessionOptions options = {}) {
    session_ = opened(std::move(options));
    ASSERT_FALSE(HasFailure());
    ASSERT_TRUE(fe().set_u64(vhost::Request::kSetFeatures, session_->features())) << session_->error();
  }
  FrontEnd& fe() { return session_->front_end(); }
  GuestMemory& memory() { return session_->memory(); }
  RingDriver& ring() { return session_->ring(); }
  Verdict table(std::span<const vhost::MemoryRegion> regions) {
    return fe().judge(vhost::Request::kSetMemTable, mem_table_payload(regions), repeat(memory().fd(), regions.size()));
  }
  Verdict add(const vhost::MemoryRegion& region, int fd = -1) {
    return fe().judge(vhost::Request::kAddMemReg, mem_reg_payload(region), repeat(fd < 0 ? memory().fd() : fd, 1));
  }
  Verdict remove(const vhost::MemoryRegion& region) {
    return fe().judge(vhost::Request::kRemMemReg, mem_reg_payload(region));
  }
  void start_ring() {
    ASSERT_TRUE(session_->start_ring(0)) << session_->error();
    ASSERT_TRUE(session_->enable_all(true)) << session_->error();
  }
  // Reads sector 0 into a buffer at `gpa`, with header and status in the ring's region.
  std::optional<vhost::BlkStatus> read_into(uint64_t gpa, uint32_t size, int timeout_ms = kTimeoutMs) {
    auto mark = memory().mark();
    size_t region = memory().regions().size() - 1;
    uint64_t header = memory().allocate(region, sizeof(vhost::BlkRequestHeader));
    uint64_t status = memory().allocate(region, 1);
    memory().write(header, bytes_of(vhost::BlkRequestHeader{.type = 0}));
    memory().write(status, Bytes{kUntouched});
    ring().add_chain(std::vector<Segment>{{header, 16}, {gpa, size, true}, {status, 1, true}});
    ring().publish();
    ring().kick_always();
    auto used = ring().wait_used(timeout_ms);
    auto value = static_cast<vhost::BlkStatus>(memory().read(status, 1)[0]);
    memory().release(mark);
    if (!used) return std::nullopt;
    return value;
  }

 protected:
  std::unique_ptr<Session> session_;
};

}  // namespace sluice::test
