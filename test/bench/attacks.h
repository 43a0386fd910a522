// Attacker: a front end, and its guest, that does the worst it can think of, at random, to one vhost-user-blk socket.
//
// Each step is one attack and returns soon, mostly without waiting for what comes of it: what it has begun (half a
// message, a ring that runs, memory that is about to go) stays, until a later step goes on from there or begins anew.
//
// Thread: any one at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "app/conformance/session.h"

namespace sluice::test {

class Attacker {
 public:
  Attacker(std::string path, uint64_t seed) : path_(std::move(path)), random_(seed) {}

  // One attack. Returns its place in names().
  size_t step();
  static const std::vector<std::string_view>& names();

 private:
  struct Attack {
    std::string_view name;
    void (Attacker::*run)();
    bool on_ring;  // wants a ring that runs
  };
  static const std::vector<Attack>& attacks();

  uint64_t below(uint64_t limit) { return random_() % limit; }
  bool connected() const { return session_ != nullptr; }
  bool begin(bool running);
  void end() { session_.reset(); }
  FrontEnd& front_end() { return session_->front_end(); }
  RingDriver& ring() { return session_->ring(0); }
  GuestMemory& memory() { return session_->memory(); }
  bool packed() const { return session_->has(vhost::kFeatureRingPacked); }
  // Sends without waiting for room. False: there is none, or nobody.
  bool send_now(std::span<const uint8_t> bytes);
  void send_region(uint64_t address, uint64_t size, uint64_t offset, int fd);
  void offer(std::vector<vhost::SplitDesc> descs);

  // On connections.
  void half_a_message();
  void reads_nothing();
  void wrong_sizes();
  void too_many_descriptors();
  void no_such_ring();
  void misplaced_rings();
  void overlapping_regions();
  void huge_region();
  void tiny_regions();
  void memory_tables();
  void inflight_rubbish();
  void log_rubbish();
  void many_rings();
  void random_bytes();
  void random_messages();
  void connects_and_goes();
  void keeps_its_connection();
  // On rings.
  void loop();
  void index_jump();
  void bad_address();
  void bad_id();
  void nested_table();
  void changing_descriptors();
  void large_requests();
  void truncated_memory();
  void blocking_call();
  void drained_kicks();
  void dies_with_requests();

  const std::string path_;
  std::mt19937_64 random_;
  std::unique_ptr<Session> session_;
  bool running_ = false;
  uint64_t buffer_ = 0;  // in the guest's memory
  uint64_t data_ = 0;
};

}  // namespace sluice::test
