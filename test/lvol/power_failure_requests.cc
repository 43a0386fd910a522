#include <algorithm>

#include "test/lvol/power_failure_run.h"

namespace sluice::lvol {
namespace power_failure {
namespace {

constexpr size_t kMaxRequests = 24;

}  // namespace

ModelVolume* Run::pick(const std::function<bool(const ModelVolume&)>& fits) {
  std::vector<ModelVolume*> candidates;
  for (ModelVolume& model : volumes_) {
    if (fits(model)) candidates.push_back(&model);
  }
  return candidates.empty() ? nullptr : candidates[below(candidates.size())];
}

bool Run::has_requests(const ModelVolume& model) const {
  return std::ranges::any_of(requests_, [&](const Request& request) { return request.volume == &model; });
}

BlockRange Run::pick_range(const ModelVolume& model, IoType type) {
  const uint64_t blocks = model.size_bytes / block_bytes();
  const uint64_t cluster_blocks = cluster_bytes() / block_bytes();
  const uint64_t subcluster_blocks = std::max<uint64_t>(cluster_bytes() / 64, 4096) / block_bytes();
  const uint64_t spot = model.spots[below(model.spots.size())];
  BlockRange range{.first = spot * cluster_blocks, .count = 1};
  switch (below(6)) {
    case 0:  // few blocks
      range.first += below(cluster_blocks);
      range.count = 1 + below(8);
      break;
    case 1:  // sub-clusters
      range.first += below(cluster_blocks / subcluster_blocks) * subcluster_blocks;
      range.count = (1 + below(4)) * subcluster_blocks;
      break;
    case 2:  // from one sub-cluster to another, any length
      range.first += below(cluster_blocks);
      range.count = 1 + below(3 * subcluster_blocks);
      break;
    case 3:  // over the end of the cluster
      range.first += cluster_blocks - 1 - below(std::min<uint64_t>(cluster_blocks - 1, 2 * subcluster_blocks));
      range.count = 1 + below(4 * subcluster_blocks);
      break;
    case 4:  // the cluster, and some more
      range.count = cluster_blocks + (chance(50) ? 0 : below(cluster_blocks));
      break;
    case 5:  // at its beginning
      range.count = 1 + below(subcluster_blocks + 1);
      break;
  }
  if ((type == IoType::kDiscard || type == IoType::kWriteZeroes) && chance(30)) range.count += 2 * cluster_blocks;
  if (type == IoType::kDiscard && chance(10)) range = {.first = 0, .count = blocks};
  range.first = std::min(range.first, blocks - 1);
  range.count = std::min(range.count, blocks - range.first);
  return range;
}

void Run::submit_one() {
  if (requests_.size() >= kMaxRequests) return;
  static constexpr IoType kTypes[] = {IoType::kWrite, IoType::kWrite,       IoType::kWrite, IoType::kWrite,
                                      IoType::kRead,  IoType::kRead,        IoType::kFlush, IoType::kDiscard,
                                      IoType::kWrite, IoType::kWriteZeroes, IoType::kWrite, IoType::kRead};
  const IoType type = kTypes[below(std::size(kTypes))];
  const bool changes = type != IoType::kRead && type != IoType::kFlush;
  ModelVolume* model =
      pick([&](const ModelVolume& at) { return !at.unsure && !at.quiet && !(changes && at.readonly); });
  if (model == nullptr) return;
  const BlockRange range = type == IoType::kFlush ? BlockRange{} : pick_range(*model, type);
  const auto meets = [&](const Request& other) {
    return other.volume == model && other.range.meets(range) && (changes || other.changes());
  };
  if (std::ranges::any_of(requests_, meets)) return;

  Request& request = requests_.emplace_back();
  request.type = type;
  request.volume = model;
  request.range = range;
  request.number = ++outcome_.requests;
  request.begin_ns = hosts().now_ns();
  request.submitted = ++events_;
  request.offset_bytes = range.first * block_bytes();
  request.length_bytes = range.count * block_bytes();
  if (type == IoType::kRead || type == IoType::kWrite) {
    request.memory = std::make_unique<PageBuffer>(request.length_bytes);
    const std::span<std::byte> bytes = request.memory->bytes();
    if (type == IoType::kWrite) {
      request.version = ++versions_;
      model->content.fill(bytes, range.first, request.version);
    }
    const uint64_t first = chance(60) ? bytes.size() : 1 + below(bytes.size() - 1);
    request.buffers.push_back({.iov_base = bytes.data(), .iov_len = first});
    if (first < bytes.size()) {
      request.buffers.push_back({.iov_base = bytes.data() + first, .iov_len = bytes.size() - first});
    }
    request.iov = request.buffers.data();
    request.iov_count = static_cast<uint32_t>(request.buffers.size());
  }
  if (type == IoType::kDiscard) {
    // What lies in whole clusters goes.
    const uint64_t cluster_blocks = cluster_bytes() / block_bytes();
    const uint64_t first = (range.first + cluster_blocks - 1) / cluster_blocks * cluster_blocks;
    const uint64_t end = range.end() / cluster_blocks * cluster_blocks;
    discarded_[request.number] = {.first = first, .count = end > first ? end - first : 0};
  }
  const size_t user = below(2);
  note("{}: {} {} of {}, {}+{}, user {}, version {}", request.number, to_string(type), "", model->name, range.first,
       range.count, user, request.version);
  if (request.changes()) {
    for (const Operation& operation : operations_) {
      if (operation.source == model) operation.snapshot->content.maybe_set(changed_by(request), request.version);
    }
  }
  world_->user(model->name, user).submit(request);
}

BlockRange Run::changed_by(const Request& request) const {
  return request.type == IoType::kDiscard ? discarded_.at(request.number) : request.range;
}

void Run::finish(Request& request) {
  note("{}: {}", request.number, to_string(request.status));
  ++events_;
  const bool good = request.status == IoStatus::kOk;
  CrashModel& content = request.volume->content;
  if (!good) check_status(request);
  if (request.type == IoType::kRead && good) {
    const std::string found =
        content.check(request.memory->bytes(), request.range.first, CrashModel::When::kRunning, events_);
    if (!found.empty()) fail("request {}, {}: {}", request.number, request.volume->name, found);
  } else if (request.type == IoType::kFlush && good) {
    content.flushed(request.submitted);
  } else if (request.changes() && good) {
    content.set(changed_by(request), request.version, events_);
  } else if (request.changes()) {
    content.maybe_set(changed_by(request), request.version);
  }
  discarded_.erase(request.number);
}

void Run::check_status(const Request& request) {
  if (trouble()) return;
  if (request.status == IoStatus::kNoSpace && request.changes()) {
    ++outcome_.refused;
    return;
  }
  fail("request {} ends with {}", request.number, to_string(request.status));
}

}  // namespace power_failure

}  // namespace sluice::lvol
