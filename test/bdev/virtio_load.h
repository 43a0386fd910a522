// Load for tests of the virtio bdev: requests of all shapes whose content is compared, and streams of the same request.
// Thread: the test's own; the requests run on the user's.
#pragma once

#include <atomic>
#include <filesystem>
#include <future>
#include <string>
#include <vector>

#include "test/bdev/virtio_world.h"

namespace sluice::test {

// Several tasks at a time, each on `bytes_each` of the device, from `begin` on: write, read back and compare, discard,
// write zeroes and flush, with buffers of all shapes, shared with the back end or not. For each task the number of the
// first round that went wrong, or -1.
std::vector<int> exercise_all(VirtioUser& user, size_t tasks, uint64_t bytes_each, int rounds, uint32_t seed = 1,
                              uint64_t begin = 0);

// Keeps requests in flight: each is submitted again when it completes, `total` times in all. For speed, and to look at
// what a stream of requests does.
class Stream {
 public:
  Stream(VirtioUser& user, size_t depth, uint64_t total, uint64_t bytes = 512)
      : user_(user), left_(total), ios_(depth), buffer_(user.bdev().allocate_buffer(depth * bytes).value()) {
    for (size_t i = 0; i < depth; ++i) {
      Io& io = ios_[i];
      io.stream = this;
      io.buffer = {.iov_base = buffer_.bytes().data() + i * bytes, .iov_len = bytes};
      io.iov = &io.buffer;
      io.iov_count = 1;
      io.length_bytes = bytes;
      io.offset_bytes = i * bytes;
      io.run = [](Work& work) {
        auto& done = static_cast<Io&>(work);
        done.stream->on_done(done);
      };
    }
  }
  void start() {
    post_to(user_.thread(), [this] {
      for (Io& io : ios_) submit(io);
    });
  }
  // Issues no more.
  void stop() { stopping_ = true; }
  void wait() { ended_.get_future().wait(); }
  void run() {
    start();
    wait();
  }
  uint64_t completed() const { return completed_; }
  uint64_t failed() const { return failed_; }
  IoStatus last_failure() const { return last_failure_; }

 private:
  struct Io : BlockIo {
    Stream* stream = nullptr;
    iovec buffer{};
  };

  void submit(Io& io) {
    if (left_ == 0) return;
    --left_;
    ++in_flight_;
    user_.channel().submit(io);
  }
  void on_done(Io& io) {
    --in_flight_;
    ++completed_;
    if (io.status != IoStatus::kOk) {
      ++failed_;
      last_failure_ = io.status;
    }
    if (stopping_) left_ = 0;
    submit(io);
    if (in_flight_ == 0 && left_ == 0 && !std::exchange(told_, true)) ended_.set_value();
  }

  VirtioUser& user_;
  uint64_t left_;
  uint32_t in_flight_ = 0;
  bool told_ = false;
  std::vector<Io> ios_;
  IoBuffer buffer_;
  std::promise<void> ended_;
  std::atomic<bool> stopping_ = false;
  std::atomic<uint64_t> completed_ = 0;
  std::atomic<uint64_t> failed_ = 0;
  std::atomic<IoStatus> last_failure_ = IoStatus::kOk;
};

// A directory for sockets and images, while it exists.
struct TestDirectory {
  TestDirectory();
  ~TestDirectory() { std::filesystem::remove_all(path); }
  std::string file(const char* name) const { return (path / name).string(); }
  std::filesystem::path path;
};

}  // namespace sluice::test
