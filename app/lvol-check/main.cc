// sluice-lvol-check: loads the logical volume store of a file or a device, as a start would after a crash, and proves
// that it is sound. Writes nothing.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstring>

#include "app/common/app.h"
#include "app/lvol-check/report.h"
#include "lib/base/log.h"
#include "lib/bdev/aio/aio_bdev.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/lvol/store.h"
#include "rpc/version.h"

namespace {

using namespace sluice;
using namespace sluice::lvol_check;

constexpr int kClean = 0;
constexpr int kFindings = 1;
constexpr int kTrouble = 2;

struct Nobody final : BdevEvents, lvol::StoreEvents {
  void on_resize() override {}
  void on_remove() override {}
  void on_no_space(bool) override {}
  void on_usage(uint32_t, bool) override {}
  void on_failed(const Error&) override {}
};

// The store's blocks must be the device's: tells how large they are. Errors: those of lvol::read_superblock().
Task<Result<uint64_t>> block_bytes_of_store(BdevChannel& channel) {
  lvol::MetaIo io(channel);
  auto superblock = co_await lvol::read_superblock(io, channel.bdev().size_bytes());
  if (!superblock) co_return std::unexpected(superblock.error());
  co_return superblock->base_block_bytes;
}

Task<Result<>> check_store(BdevChannel& channel, Report& report) {
  Nobody events;
  auto loaded = co_await lvol::Store::load(*LwThread::current(), channel, events);
  if (!loaded) co_return std::unexpected(loaded.error());
  lvol::Store& store = **loaded;
  co_await store.settle();
  report.store = store.name();
  report.uuid = store.uuid().to_string();
  report.cluster_bytes = store.geometry().cluster_bytes;
  report.check = lvol::check(store);
  co_await store.close();
  co_return Result<>{};
}

// `block_bytes`: 0: the device's own. Set to what the store needs, where that is something else: then nothing was done.
Task<Result<>> open_and_check(App& app, BdevManager& bdevs, const std::string& file, uint32_t& block_bytes,
                              Report& report) {
  auto made = app.aio.create(
      {.name = "store", .filename = file, .uuid = {}, .block_size_bytes = block_bytes, .readonly = true});
  if (!made) co_return std::unexpected(made.error());
  auto added = bdevs.add(std::move(*made));
  if (!added) co_return std::unexpected(added.error());
  Bdev& bdev = **added;
  Result<> result;
  {
    Nobody events;
    auto handle = bdevs.open("store", BdevAccess::kRead, events, "sluice-lvol-check");
    CHECK(handle.has_value());
    auto channel = LwThread::current()->get_channel(bdev);
    if (!channel) {
      result = std::unexpected(channel.error());
    } else {
      auto& base = static_cast<BdevChannel&>(*channel->get());
      const Result<uint64_t> needed = co_await block_bytes_of_store(base);
      if (!needed) {
        result = std::unexpected(needed.error());
      } else if (block_bytes == 0 && *needed != bdev.limits().block_size_bytes) {
        block_bytes = static_cast<uint32_t>(*needed);
      } else {
        block_bytes = 0;
        result = co_await check_store(base, report);
      }
    }
  }
  std::ignore = co_await bdevs.remove(bdev, RemoveMode::kIfUnused);
  co_return result;
}

Task<int> run(App& app, std::string file, bool json) {
  BdevManager bdevs(app.threads);
  Report report{.file = file};
  uint32_t block_bytes = 0;
  Result<> checked = co_await open_and_check(app, bdevs, file, block_bytes, report);
  if (checked && block_bytes != 0) checked = co_await open_and_check(app, bdevs, file, block_bytes, report);
  co_await bdevs.remove_all();
  if (!checked) {
    const Error& error = checked.error();
    fmt::print(stderr, "sluice-lvol-check: {}: {} ({})\n", file, error.what, std::strerror(error.code));
    // A store that is too damaged to be loaded has been looked at all the same.
    co_return error.code == EILSEQ ? kFindings : kTrouble;
  }
  fmt::print("{}", json ? to_json(report) : to_text(report));
  co_return report.check.findings.empty() ? kClean : kFindings;
}

}  // namespace

int main(int argc, char** argv) {
  std::string file;
  bool json = false;
  CLI::App app(
      "Checks the logical volume store of a file or a block device that nobody else has open: loads it as a\n"
      "start would, in memory only, and counts everything anew. Writes nothing.\n"
      "Exit status: 0 it is sound, 1 it is not, 2 it could not be checked.",
      "sluice-lvol-check");
  app.set_version_flag("-v,--version", std::string("Sluice ") + rpc::kVersion);
  app.add_option("file", file, "the file or block device that the store is on")->required();
  app.add_flag("--json", json, "print one line of JSON");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& help_or_error) {
    return app.exit(help_or_error) == 0 ? kClean : kTrouble;
  }
  set_log_print_level(LogLevel::kError);
  bool began = false;
  const int result = run_app({.cpumask = CpuMask::available(), .mode = PollMode::kInterrupt}, [&](App& parts) {
    began = true;
    return run(parts, file, json);
  });
  return began ? result : kTrouble;
}
