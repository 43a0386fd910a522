// UringChannel: a lightweight thread's access to a uring bdev: passes everything on to its host's UringGroup.
#pragma once

#include "lib/bdev/file_bdev.h"
#include "lib/bdev/uring/uring_group.h"

namespace sluice {

class UringChannel final : public FileChannel {
 public:
  explicit UringChannel(FileBdev& bdev) : FileChannel(bdev) {}
  ~UringChannel() override { release(); }

  // For the group: a request of this channel is put into the ring, or taken out. What the ring calls the file.
  static const UringFile& enter_ring(const BlockIo& io) {
    auto& self = static_cast<UringChannel&>(*io.channel);
    if (!self.in_table_) {
      self.in_table_ = true;
      self.place_ = self.group().add_file(self, self.file());
    }
    ++self.place_.in_ring;
    return self.place_.file;
  }
  void leave_ring() { --place_.in_ring; }

 private:
  UringGroup& group() const { return static_cast<UringGroup&>(queue()); }

  // The next host's ring has a name of its own for it.
  void on_leave() override {
    FileChannel::on_leave();
    release();
  }
  void release() {
    if (std::exchange(in_table_, false)) group().release_file(*this, place_);
  }

  UringGroup::Place place_;
  bool in_table_ = false;
};

}  // namespace sluice
