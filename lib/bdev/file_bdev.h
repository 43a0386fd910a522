// FileBdev: what the modules that keep a bdev in a file or a block device of the host have in common, whatever the
// interface of the kernel that they read and write it through.
//
// Thread:    as Bdev and BdevChannel.
// Ownership: the bdev owns the file; channels borrow it.
#pragma once

#include <memory>
#include <string>

#include "lib/base/intrusive_list.h"
#include "lib/bdev/bdev.h"
#include "lib/bdev/bdev_channel.h"
#include "lib/bdev/file_backend.h"

namespace sluice {

class BdevManager;
class FileQueue;

struct FileBdevOptions {
  std::string name;
  std::string filename;
  Uuid uuid;  // nil: a random one
  // A power of two, 512 to 65,536; 0: the device's own, and for a file the least it takes.
  uint32_t block_size_bytes = 0;
  bool readonly = false;
};

class FileBdev : public Bdev {
 public:
  // What it was made from.
  const FileBdevOptions& options() const { return options_; }
  FileBackend& file() const { return *file_; }
  // The queue of the module's files on this host.
  virtual FileQueue& queue_of(ThreadHost& host) = 0;

  // Takes over the present size of the file of this device, which is in `bdevs`, and tells its users if it has changed.
  // Errors, device unchanged: EINVAL (size not a positive multiple of the block size).
  Result<> rescan(BdevManager& bdevs);

 protected:
  // Requires: the file has a size (FileBackend::open() has seen to that).
  FileBdev(const FileBdevOptions& options, const char* product_name, std::unique_ptr<FileBackend> file);

 private:
  const FileBdevOptions options_;
  const std::unique_ptr<FileBackend> file_;
};

// A channel that passes requests on to a queue that all channels of its host share: the queue finds the file by the
// request.
class FileChannel : public BdevChannel {
 public:
  explicit FileChannel(FileBdev& bdev);

  static FileBackend& file_of(const BlockIo& io) { return static_cast<FileChannel*>(io.channel)->file(); }
  // Ends a request, or hands it to its thread's queue again. On the host whose queue it was given to; the thread may
  // have gone to another one since.
  static void finish(BlockIo& io, IoStatus status);
  static void resubmit(BlockIo& io);

 protected:
  FileBackend& file() const { return bdev_.file(); }
  FileQueue& queue() const { return *queue_; }
  void on_leave() override;
  void on_arrive() override;

 private:
  void do_submit(BlockIo& io) final;

  FileBdev& bdev_;
  FileQueue* queue_;
  Fifo<Work> withdrawn_;  // on the way to another host
};

}  // namespace sluice
