#include "lib/bdev/file_jobs.h"

#include <algorithm>

#include "lib/base/check.h"
#include "lib/bdev/file_bdev.h"

namespace sluice {

FileJobs::FileJobs(ThreadHost& host, BlockingPool& pool) : pool_(pool) {
  for (Job& job : jobs_) {
    job.owner = this;
    job.target = &host.home();
    job.execute = &FileJobs::execute;
    job.run = [](Work& work) {
      auto& self = static_cast<Job&>(work);
      self.owner->on_done(self);
    };
    free_.push_back(job);
  }
}

FileJobs::~FileJobs() {
  CHECK(waiting_.empty());
  pool_.settle();
}

void FileJobs::submit(BlockIo& io) {
  if (Work* job = free_.pop_front()) {
    start(static_cast<Job&>(*job), io);
  } else {
    waiting_.push_back(io);
  }
}

void FileJobs::start(Job& job, BlockIo& io) {
  job.io = &io;
  job.file = &FileChannel::file_of(io);
  job.done_bytes = 0;
  job.error = 0;
  pool_.submit(job);
}

// On a thread of the pool: one slice.
bool FileJobs::execute(BlockingJob& base) {
  auto& job = static_cast<Job&>(base);
  const BlockIo& io = *job.io;
  if (io.type == IoType::kFlush) {
    job.error = job.file->flush();
    return true;
  }
  const bool discard = io.type == IoType::kDiscard;
  const uint64_t slice_bytes = discard ? FileBackend::kDiscardSliceBytes : FileBackend::kZeroSliceBytes;
  const uint64_t begin = io.offset_bytes + job.done_bytes;
  // At multiples of the slice size, so that no unit of allocation is cut in two.
  const uint64_t end = std::min(io.offset_bytes + io.length_bytes, (begin / slice_bytes + 1) * slice_bytes);
  job.error =
      discard ? job.file->discard(begin, end - begin) : job.file->write_zeroes(begin, end - begin, io.may_unmap);
  job.done_bytes += end - begin;
  return job.error != 0 || job.done_bytes == io.length_bytes;
}

void FileJobs::on_done(Job& job) {
  BlockIo& io = *job.io;
  const int error = job.pool_error != 0 ? job.pool_error : job.error;
  if (Work* next = waiting_.pop_front()) {
    start(job, static_cast<BlockIo&>(*next));
  } else {
    free_.push_back(job);
  }
  FileChannel::finish(io, io_status_from_errno(error));
}

}  // namespace sluice
