// UringChannel: a lightweight thread's access to a uring bdev: passes everything on to the host's UringGroup.
#pragma once

#include "lib/bdev/file_bdev.h"
#include "lib/bdev/uring/uring_group.h"

namespace sluice {

class UringChannel final : public FileChannel {
 public:
  UringChannel(FileBdev& bdev, UringGroup& group) : FileChannel(bdev, group), group_(group) {}
  ~UringChannel() override {
    if (asked_) group_.release_file(target_);
  }

  // What the ring calls the file; made with the first request.
  static const UringFile& target_of(const BlockIo& io) {
    auto& self = *static_cast<UringChannel*>(io.channel);
    if (!self.asked_) {
      self.asked_ = true;
      self.target_ = self.group_.add_file(self.file());
    }
    return self.target_;
  }

 private:
  UringGroup& group_;
  UringFile target_;
  bool asked_ = false;
};

}  // namespace sluice
