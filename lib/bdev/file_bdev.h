// FileBdev: what the modules that keep a bdev in a file or a block device of the host have in common, whatever the
// interface of the kernel that they read and write it through.
//
// Thread:    as Bdev and BdevChannel.
// Ownership: the bdev owns the file; channels borrow it.
#pragma once

#include <memory>
#include <string>

#include "lib/bdev/bdev.h"
#include "lib/bdev/bdev_channel.h"
#include "lib/bdev/file_backend.h"

namespace sluice {

class BdevManager;

class FileBdev : public Bdev {
 public:
  FileBackend& file() const { return *file_; }

  // Takes over the present size of the file of this device, which is in `bdevs`, and tells its users if it has changed.
  // Errors, device unchanged: EINVAL (size not a positive multiple of the block size).
  Result<> rescan(BdevManager& bdevs);

 protected:
  struct Identity {
    std::string name;
    Uuid uuid;  // nil: a random one
    const char* product_name;
    bool readonly;
  };
  // Requires: the file has a size (FileBackend::open() has seen to that).
  FileBdev(Identity identity, std::unique_ptr<FileBackend> file);

 private:
  const std::unique_ptr<FileBackend> file_;
};

// A channel that passes requests on to a queue that all channels of its host share: the queue finds the file by the
// request.
class FileChannel : public BdevChannel {
 public:
  static FileBackend& file_of(const BlockIo& io) { return static_cast<FileChannel*>(io.channel)->file_; }
  static void finish(BlockIo& io, IoStatus status) { complete(io, status); }

 protected:
  explicit FileChannel(FileBdev& bdev) : BdevChannel(bdev), file_(bdev.file()) {}

  FileBackend& file() const { return file_; }

 private:
  FileBackend& file_;
};

}  // namespace sluice
