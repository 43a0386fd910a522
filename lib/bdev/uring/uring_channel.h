// UringChannel: a lightweight thread's access to a uring bdev: passes everything on to its host's UringGroup.
#pragma once

#include "lib/bdev/file_bdev.h"
#include "lib/bdev/uring/uring_group.h"

namespace sluice {

class UringChannel final : public FileChannel {
 public:
  explicit UringChannel(FileBdev& bdev) : FileChannel(bdev) {}
  ~UringChannel() override { release(); }

  // What the ring calls the file; made with the first request.
  static const UringFile& target_of(const BlockIo& io) {
    auto& self = *static_cast<UringChannel*>(io.channel);
    if (!self.asked_) {
      self.asked_ = true;
      self.target_ = self.group().add_file(self.file());
    }
    return self.target_;
  }

 private:
  UringGroup& group() const { return static_cast<UringGroup&>(queue()); }

  // The next host's ring has a name of its own for it.
  void on_leave() override {
    FileChannel::on_leave();
    release();
  }
  void release() {
    if (std::exchange(asked_, false)) group().release_file(target_);
  }

  UringFile target_;
  bool asked_ = false;
};

}  // namespace sluice
