#include "app/bdevperf/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

namespace sluice::bdevperf {
namespace {

using Plan = std::vector<PlannedJob>;

std::vector<IoType> types_of(const JobSpec& spec) {
  switch (spec.workload) {
    case Workload::kRead:
    case Workload::kRandRead:
      return {IoType::kRead};
    case Workload::kWrite:
    case Workload::kRandWrite:
      return {IoType::kWrite};
    case Workload::kReadWrite:
    case Workload::kRandReadWrite:
    case Workload::kVerify:
      return {IoType::kRead, IoType::kWrite};
    case Workload::kReset:
      return {IoType::kRead, IoType::kWrite, IoType::kReset};
    case Workload::kUnmap:
      return {IoType::kDiscard};
    case Workload::kWriteZeroes:
      return {IoType::kWriteZeroes};
    case Workload::kFlush:
      return {IoType::kFlush};
  }
  return {};
}

// Hands out cores.
class Cores {
 public:
  explicit Cores(const CpuMask& mask) {
    for (uint32_t core = 0; core < CpuMask::kMaxCpus; ++core) {
      if (mask.test(core)) jobs_[core] = 0;
    }
  }

  std::vector<uint32_t> within(const CpuMask& mask) const {
    std::vector<uint32_t> cores;
    for (const auto& [core, jobs] : jobs_) {
      if (mask.test(core)) cores.push_back(core);
    }
    return cores;
  }

  // The one that has the fewest jobs. Requires: not empty.
  uint32_t least_loaded(const std::vector<uint32_t>& cores) const {
    return *std::ranges::min_element(cores, {}, [this](uint32_t core) { return jobs_.at(core); });
  }
  void add_job(uint32_t core) { ++jobs_[core]; }

 private:
  std::map<uint32_t, size_t> jobs_;
};

uint64_t bytes_of(const Extent& extent, const Bdev& bdev) {
  const uint64_t unit = extent.in_blocks ? bdev.limits().block_size_bytes : 1;
  // Beyond the end of any device.
  return extent.value > UINT64_MAX / unit ? UINT64_MAX : extent.value * unit;
}

class Planner {
 public:
  Planner(const PlanOptions& options, const std::vector<Bdev*>& bdevs)
      : options_(options), bdevs_(bdevs), cores_(options.cores) {}

  std::expected<Plan, std::string> run(const std::vector<NamedJob>& requests) {
    if (bdevs_.empty()) return std::unexpected("there are no bdevs: -c names a configuration that makes some");
    for (const NamedJob& request : requests) {
      if (const auto added = add(request); !added) return std::unexpected(added.error());
    }
    return std::move(plan_);
  }

 private:
  using Checked = std::expected<void, std::string>;

  Checked add(const NamedJob& request) {
    const auto bdevs = bdevs_of(request);
    if (!bdevs) return std::unexpected(bdevs.error());
    for (Bdev* bdev : *bdevs) {
      const std::string name = request.name.empty() ? bdev->name() : request.name;
      if (const auto added = add(name, request.params, *bdev); !added) {
        return std::unexpected(fmt::format("job '{}' on bdev '{}': {}", name, bdev->name(), added.error()));
      }
    }
    return {};
  }

  std::expected<std::vector<Bdev*>, std::string> bdevs_of(const NamedJob& request) const {
    if (!request.params.filename) {
      if (!request.name.empty()) return std::unexpected(fmt::format("job '{}': filename is missing", request.name));
      return bdevs_;
    }
    std::vector<Bdev*> found;
    std::string_view names = *request.params.filename;
    while (!names.empty()) {
      const size_t end = std::min(names.find(':'), names.size());
      const std::string_view name = names.substr(0, end);
      names.remove_prefix(std::min(end + 1, names.size()));
      const auto bdev = std::ranges::find_if(bdevs_, [&](const Bdev* b) {
        return b->name() == name || std::ranges::find(b->aliases(), name) != b->aliases().end();
      });
      if (bdev == bdevs_.end())
        return std::unexpected(fmt::format("there is no bdev '{}'; there are {}", name, all_names()));
      found.push_back(*bdev);
    }
    return found;
  }

  std::string all_names() const {
    std::string names;
    for (const Bdev* bdev : bdevs_) names += (names.empty() ? "" : ", ") + bdev->name();
    return names;
  }

  Checked add(const std::string& name, const JobParams& params, Bdev& bdev) {
    auto spec = make_spec(params, bdev);
    if (!spec) return std::unexpected(spec.error());
    const std::vector<uint32_t> cores = cores_.within(params.cpumask.value_or(options_.cores));
    if (cores.empty()) {
      return std::unexpected(fmt::format("its core mask {} has no core of {} (-m)", params.cpumask->to_string(),
                                         options_.cores.to_string()));
    }
    const size_t parts = options_.every_core ? cores.size() : 1;
    const uint64_t places = spec->length_bytes / spec->io_size_bytes / parts;
    if (places == 0) {
      return std::unexpected(fmt::format("{} bytes have no room for {} of {}", spec->length_bytes,
                                         parts == 1 ? "a request" : fmt::format("{} requests", parts),
                                         spec->io_size_bytes));
    }
    spec->length_bytes = places * spec->io_size_bytes;
    for (size_t part = 0; part < parts; ++part) {
      PlannedJob job{.name = name, .bdev = &bdev, .core = cores[part], .spec = *spec};
      if (!options_.every_core) job.core = cores_.least_loaded(cores);
      job.spec.begin_bytes += part * spec->length_bytes;
      job.spec.seed = plan_.size() + 1;
      if (is_verified(spec->workload) && places < spec->queue_depth) {
        job.spec.queue_depth = static_cast<uint32_t>(places);
        job.queue_depth_cut = true;
      }
      cores_.add_job(job.core);
      plan_.push_back(std::move(job));
    }
    return {};
  }

  std::expected<JobSpec, std::string> make_spec(const JobParams& params, const Bdev& bdev) const {
    if (!params.workload) return std::unexpected("the workload is missing (-w, rw=)");
    if (!params.queue_depth) return std::unexpected("the queue depth is missing (-q, iodepth=)");
    if (!params.io_size_bytes) return std::unexpected("the I/O size is missing (-o, bs=)");
    JobSpec spec{.workload = *params.workload,
                 .queue_depth = *params.queue_depth,
                 .io_size_bytes = *params.io_size_bytes,
                 .read_percent = params.read_percent.value_or(50),
                 .zipf_theta = params.zipf_theta.value_or(0),
                 .rate = params.rate.value_or(0),
                 .continue_on_failure = options_.continue_on_failure};
    if (spec.rate > 0 && is_verified(spec.workload)) return std::unexpected("a rate does not go with verify and reset");
    const uint64_t block_bytes = bdev.limits().block_size_bytes;
    if (spec.io_size_bytes % block_bytes != 0) {
      return std::unexpected(
          fmt::format("I/O size {} is not a multiple of its block size, {}", spec.io_size_bytes, block_bytes));
    }
    for (const IoType type : types_of(spec)) {
      if (!bdev.supports(type)) return std::unexpected(fmt::format("it does not support {}", to_string(type)));
    }
    if (writes(spec) && bdev.readonly()) return std::unexpected("it is read-only");
    const uint64_t size = bdev.size_bytes();
    spec.begin_bytes = bytes_of(params.offset.value_or(Extent{}), bdev);
    if (spec.begin_bytes % block_bytes != 0) return std::unexpected("offset is not a multiple of its block size");
    if (spec.begin_bytes >= size) return std::unexpected(fmt::format("offset is beyond its end, {}", size));
    const uint64_t length = bytes_of(params.length.value_or(Extent{}), bdev);
    if (length > size - spec.begin_bytes)
      return std::unexpected(fmt::format("offset + length is beyond its end, {}", size));
    spec.length_bytes = length == 0 ? size - spec.begin_bytes : length;
    return spec;
  }

  const PlanOptions& options_;
  const std::vector<Bdev*>& bdevs_;
  Cores cores_;
  Plan plan_;
};

}  // namespace

std::expected<Plan, std::string> make_plan(const PlanOptions& options, const std::vector<NamedJob>& requests,
                                           const std::vector<Bdev*>& bdevs) {
  return Planner(options, bdevs).run(requests);
}

std::vector<PlannedJob> make_fill_plan(const std::vector<PlannedJob>& plan) {
  constexpr uint32_t kQueueDepth = 32;
  Plan fill = plan;
  for (PlannedJob& job : fill) {
    job.spec.workload = Workload::kWrite;
    job.spec.zipf_theta = 0;
    job.spec.rate = 0;
    job.spec.queue_depth = kQueueDepth;
    job.spec.once = true;
    job.spec.continue_on_failure = false;
  }
  return fill;
}

bool writes(const JobSpec& spec) {
  return std::ranges::any_of(types_of(spec),
                             [](IoType type) { return type != IoType::kRead && type != IoType::kFlush; });
}

}  // namespace sluice::bdevperf
