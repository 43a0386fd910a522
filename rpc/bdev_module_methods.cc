// bdev_malloc_*, bdev_null_*, bdev_aio_*, bdev_uring_*: making, changing and removing the devices of each module.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "lib/bdev/aio/aio_bdev.h"
#include "lib/bdev/bdev_manager.h"
#include "lib/bdev/malloc/malloc_bdev.h"
#include "lib/bdev/null/null_bdev.h"
#include "lib/bdev/uring/uring_bdev.h"
#include "lib/lvol/stores.h"
#include "rpc/bdev_json.h"
#include "rpc/methods.h"

namespace sluice::rpc {
namespace {

// What bdevs with metadata would have. Accepted when it says that there is none, as some clients always send it.
struct NoMetadata {
  uint32_t md_size = 0;
  bool md_interleave = false;
  int32_t dif_type = 0;
  bool dif_is_head_of_md = false;
  uint32_t dif_pi_format = 0;
};

struct CreateMalloc : NoMetadata {
  uint32_t block_size = 0;
  uint64_t num_blocks = 0;
  std::optional<std::string> name;
  std::optional<Uuid> uuid;
  uint32_t optimal_io_boundary = 0;
  uint32_t physical_block_size = 0;
  int32_t numa_id = -1;
};

struct CreateNull : NoMetadata {
  std::string name;
  uint32_t block_size = 0;
  uint64_t num_blocks = 0;
  std::optional<Uuid> uuid;
  uint32_t physical_block_size = 0;
  uint32_t preferred_write_granularity = 0;
  uint32_t preferred_write_alignment = 0;
  uint32_t optimal_write_size = 0;
  uint32_t preferred_unmap_granularity = 0;
  uint32_t preferred_unmap_alignment = 0;
};

struct ResizeNull {
  std::string name;
  uint64_t new_size = 0;
};

struct CreateAio {
  std::string filename;
  std::string name;
  uint32_t block_size = 0;
  bool readonly = false;
  bool fallocate = false;
  std::optional<Uuid> uuid;
  bool nowait = false;
};

struct CreateUring {
  std::string filename;
  std::string name;
  uint32_t block_size = 0;
  std::optional<Uuid> uuid;
  bool readonly = false;
};

struct Rescan {
  std::string name;
};

struct Delete {
  std::string name;
  bool force = false;
};

std::string subject(std::string_view name) { return fmt::format("bdev '{}'", name); }

// Before anything is made for a new device. Nothing when all is well.
std::optional<RpcError> refusal(const RpcContext& context, std::string_view name) {
  if (name.empty()) return errno_error(EINVAL, "a bdev needs a name");
  if (context.bdevs.find(name) != nullptr) return errno_error(EEXIST, fmt::format("bdev '{}' exists already", name));
  return std::nullopt;
}

std::optional<RpcError> refusal(const NoMetadata& params) {
  if (params.md_size == 0 && params.dif_type == 0) return std::nullopt;
  return errno_error(EOPNOTSUPP,
                     "bdevs with metadata or protection information do not exist here: leave out md_size and dif_type");
}

// With the logical volumes that are on it.
Task<RpcResult> add_bdev(RpcContext& context, std::unique_ptr<Bdev> bdev) {
  std::string name = bdev->name();
  const Result<Bdev*> added = context.bdevs.add(std::move(bdev));
  if (!added) co_return fail_rpc(added.error(), subject(name));
  co_await context.stores.wait_for_examine();
  co_return name;
}

// A device of the given kind. Errors: ENODEV.
std::expected<Bdev*, RpcError> find_bdev(const RpcContext& context, std::string_view name,
                                         std::string_view product_name) {
  Bdev* bdev = context.bdevs.find(name);
  if (bdev == nullptr) return fail_rpc(ENODEV, fmt::format("bdev '{}' does not exist", name));
  if (bdev->product_name() != product_name) {
    return fail_rpc(ENODEV, fmt::format("bdev '{}' is a {}, not a {}", name, bdev->product_name(), product_name));
  }
  return bdev;
}

std::string users(const BdevManager& bdevs, const Bdev& bdev) {
  std::vector<std::string_view> names;
  for (const BdevHandle* handle : bdevs.users(bdev)) names.push_back(handle->user());
  return fmt::format("{}", fmt::join(names, ", "));
}

Task<RpcResult> delete_bdev(RpcContext& context, std::string_view product_name, Delete params) {
  const auto bdev = find_bdev(context, params.name, product_name);
  if (!bdev) co_return std::unexpected(bdev.error());
  const std::string used_by = users(context.bdevs, **bdev);
  const Result<> removed =
      co_await context.bdevs.remove(**bdev, params.force ? RemoveMode::kForce : RemoveMode::kIfUnused);
  if (removed) co_return true;
  if (removed.error().code == EBUSY) {
    co_return fail_rpc(EBUSY,
                       fmt::format("bdev '{}' is in use by {}; delete that first, or set force to pull the disk out",
                                   params.name, used_by));
  }
  co_return fail_rpc(removed.error(), subject(params.name));
}

std::string free_malloc_name(const BdevManager& bdevs) {
  for (uint64_t number = 0;; ++number) {
    std::string name = fmt::format("Malloc{}", number);
    if (bdevs.find(name) == nullptr) return name;
  }
}

Task<RpcResult> create_malloc(RpcContext& context, CreateMalloc params) {
  const std::string name = params.name ? *params.name : free_malloc_name(context.bdevs);
  if (auto refused = refusal(context, name)) co_return std::unexpected(*refused);
  if (auto refused = refusal(params)) co_return std::unexpected(*refused);
  auto bdev = create_malloc_bdev({.name = name,
                                  .uuid = params.uuid.value_or(Uuid{}),
                                  .num_blocks = params.num_blocks,
                                  .block_size_bytes = params.block_size,
                                  .physical_block_size_bytes = params.physical_block_size,
                                  .optimal_io_boundary_blocks = params.optimal_io_boundary});
  if (!bdev) co_return fail_rpc(bdev.error(), subject(name));
  co_return co_await add_bdev(context, std::move(*bdev));
}

Task<RpcResult> delete_malloc(RpcContext& context, Delete params) {
  return delete_bdev(context, kMallocProductName, std::move(params));
}

Task<RpcResult> create_null(RpcContext& context, CreateNull params) {
  if (auto refused = refusal(context, params.name)) co_return std::unexpected(*refused);
  if (auto refused = refusal(params)) co_return std::unexpected(*refused);
  auto bdev = create_null_bdev({.name = params.name,
                                .uuid = params.uuid.value_or(Uuid{}),
                                .num_blocks = params.num_blocks,
                                .block_size_bytes = params.block_size,
                                .physical_block_size_bytes = params.physical_block_size});
  if (!bdev) co_return fail_rpc(bdev.error(), subject(params.name));
  co_return co_await add_bdev(context, std::move(*bdev));
}

Task<RpcResult> delete_null(RpcContext& context, Delete params) {
  return delete_bdev(context, kNullProductName, std::move(params));
}

Task<RpcResult> resize_null(RpcContext& context, ResizeNull params) {
  const auto bdev = find_bdev(context, params.name, kNullProductName);
  if (!bdev) co_return std::unexpected(bdev.error());
  const Result<> resized = resize_null_bdev(context.bdevs, **bdev, params.new_size);
  if (!resized) co_return fail_rpc(resized.error(), subject(params.name));
  co_return true;
}

// Of aio and uring bdevs alike.
RpcResult rescan(RpcContext& context, const std::string& name, const char* product_name) {
  const auto bdev = find_bdev(context, name, product_name);
  if (!bdev) return std::unexpected(bdev.error());
  auto& file = dynamic_cast<FileBdev&>(**bdev);
  const Result<> rescanned = file.rescan(context.bdevs);
  if (!rescanned) return fail_rpc(rescanned.error(), fmt::format("'{}'", file.options().filename));
  return true;
}

Task<RpcResult> create_aio(RpcContext& context, CreateAio params) {
  if (auto refused = refusal(context, params.name)) co_return std::unexpected(*refused);
  auto bdev = context.aio.create({.name = params.name,
                                  .filename = params.filename,
                                  .uuid = params.uuid.value_or(Uuid{}),
                                  .block_size_bytes = params.block_size,
                                  .readonly = params.readonly});
  if (!bdev) co_return fail_rpc(bdev.error(), fmt::format("'{}'", params.filename));
  co_return co_await add_bdev(context, std::move(*bdev));
}

Task<RpcResult> delete_aio(RpcContext& context, Delete params) {
  return delete_bdev(context, kAioProductName, std::move(params));
}

Task<RpcResult> rescan_aio(RpcContext& context, Rescan params) {
  co_return rescan(context, params.name, kAioProductName);
}

Task<RpcResult> create_uring(RpcContext& context, CreateUring params) {
  if (auto refused = refusal(context, params.name)) co_return std::unexpected(*refused);
  auto bdev = context.uring.create({.name = params.name,
                                    .filename = params.filename,
                                    .uuid = params.uuid.value_or(Uuid{}),
                                    .block_size_bytes = params.block_size,
                                    .readonly = params.readonly});
  if (!bdev) co_return fail_rpc(bdev.error(), fmt::format("'{}'", params.filename));
  co_return co_await add_bdev(context, std::move(*bdev));
}

Task<RpcResult> delete_uring(RpcContext& context, Delete params) {
  return delete_bdev(context, kUringProductName, std::move(params));
}

Task<RpcResult> rescan_uring(RpcContext& context, Rescan params) {
  co_return rescan(context, params.name, kUringProductName);
}

Json::Value make_call(const char* method, const Bdev& bdev) {
  Json::Value call(Json::objectValue);
  call["method"] = method;
  call["params"]["name"] = bdev.name();
  call["params"]["uuid"] = bdev.uuid().to_string();
  return call;
}

void put_geometry(Json::Value& params, const Bdev& bdev) {
  params["block_size"] = bdev.limits().block_size_bytes;
  params["num_blocks"] = bdev.size_bytes() / bdev.limits().block_size_bytes;
  params["physical_block_size"] = bdev.limits().physical_block_size_bytes;
}

template <typename P>
void add_metadata_fields(std::vector<Field<P>>& fields) {
  const auto add = [&fields]<typename T>(std::string_view name, T NoMetadata::* member, std::string_view help) {
    fields.push_back(optional(name, static_cast<T P::*>(member), help));
  };
  add("md_size", &NoMetadata::md_size, "metadata bytes per block: 0 only");
  add("md_interleave", &NoMetadata::md_interleave, "no effect without metadata");
  add("dif_type", &NoMetadata::dif_type, "protection information: 0 only");
  add("dif_is_head_of_md", &NoMetadata::dif_is_head_of_md, "no effect without metadata");
  add("dif_pi_format", &NoMetadata::dif_pi_format, "no effect without metadata");
}

constexpr ResultInfo kName{"string", "the name of the new bdev"};

void add_delete(MethodTable& table, RpcContext& context, const char* name, const char* help,
                Task<RpcResult> (*handler)(RpcContext&, Delete)) {
  table.add(make_method<Delete>(
      {name, help, kTrue, removes(StateKind::kBdev, "name") + changes_any(StateKind::kStore)},
      {required("name", &Delete::name, "which"),
       optional("force", &Delete::force, "even if it is in use: its users see the disk vanish, and their I/O fails")},
      bind_context(context, handler)));
}

void add_malloc_methods(MethodTable& table, RpcContext& context) {
  std::vector<Field<CreateMalloc>> fields{
      required("block_size", &CreateMalloc::block_size, "bytes; a power of two, 512 to 65536"),
      required("num_blocks", &CreateMalloc::num_blocks, "capacity"),
      optional("name", &CreateMalloc::name, "Malloc0, Malloc1, ... when left out"),
      optional("uuid", &CreateMalloc::uuid, "a random one when left out"),
      optional("optimal_io_boundary", &CreateMalloc::optimal_io_boundary,
               "blocks; requests are split there; 0: nowhere"),
      optional("physical_block_size", &CreateMalloc::physical_block_size, "bytes; 0: the block size"),
      optional("numa_id", &CreateMalloc::numa_id, "no effect: memory is taken where it is first written"),
  };
  add_metadata_fields(fields);
  table.add(make_method({"bdev_malloc_create", "Makes a disk in memory.", kName, changes(StateKind::kBdev, "name")},
                        std::move(fields), bind_context(context, create_malloc)));
  add_delete(table, context, "bdev_malloc_delete", "Removes a disk in memory and what it holds.", delete_malloc);
}

void add_null_methods(MethodTable& table, RpcContext& context) {
  const char* const no_effect = "accepted for compatibility; no effect";
  std::vector<Field<CreateNull>> fields{
      required("name", &CreateNull::name, "its name"),
      required("block_size", &CreateNull::block_size, "bytes; a power of two, 512 at least"),
      required("num_blocks", &CreateNull::num_blocks, "capacity"),
      optional("uuid", &CreateNull::uuid, "a random one when left out"),
      optional("physical_block_size", &CreateNull::physical_block_size, "bytes; 0: the block size"),
      optional("preferred_write_granularity", &CreateNull::preferred_write_granularity, no_effect),
      optional("preferred_write_alignment", &CreateNull::preferred_write_alignment, no_effect),
      optional("optimal_write_size", &CreateNull::optimal_write_size, no_effect),
      optional("preferred_unmap_granularity", &CreateNull::preferred_unmap_granularity, no_effect),
      optional("preferred_unmap_alignment", &CreateNull::preferred_unmap_alignment, no_effect),
  };
  add_metadata_fields(fields);
  table.add(
      make_method({"bdev_null_create", "Makes a disk that drops what is written and reads as whatever is in memory.",
                   kName, changes(StateKind::kBdev, "name")},
                  std::move(fields), bind_context(context, create_null)));
  add_delete(table, context, "bdev_null_delete", "Removes a null disk.", delete_null);
  table.add(make_method<ResizeNull>(
      {"bdev_null_resize", "Makes a null disk larger.", kTrue, changes(StateKind::kBdev, "name")},
      {required("name", &ResizeNull::name, "which"),
       required("new_size", &ResizeNull::new_size, "MiB; not less than now")},
      bind_context(context, resize_null)));
}

void add_aio_methods(MethodTable& table, RpcContext& context) {
  table.add(make_method<CreateAio>(
      {"bdev_aio_create", "Makes a disk of a file or of a block device of the host.", kName,
       changes(StateKind::kBdev, "name")},
      {required("filename", &CreateAio::filename, "the file, or the device node"),
       required("name", &CreateAio::name, "its name"),
       optional("block_size", &CreateAio::block_size, "bytes; a power of two, 512 to 65536; 0: what the file asks for"),
       optional("readonly", &CreateAio::readonly, "open it for reading only"),
       optional("fallocate", &CreateAio::fallocate, "no effect: discard works wherever the file can do it"),
       optional("uuid", &CreateAio::uuid, "a random one when left out"),
       optional("nowait", &CreateAio::nowait, "accepted for compatibility; no effect")},
      bind_context(context, create_aio)));
  add_delete(table, context, "bdev_aio_delete", "Removes a disk; its file stays.", delete_aio);
  table.add(make_method<Rescan>(
      {"bdev_aio_rescan", "Takes over the present size of the file.", kTrue, changes(StateKind::kBdev, "name")},
      {required("name", &Rescan::name, "which")}, bind_context(context, rescan_aio)));
}

void add_uring_methods(MethodTable& table, RpcContext& context) {
  table.add(make_method<CreateUring>(
      {"bdev_uring_create", "Makes a disk of a file or of a block device of the host, through io_uring.", kName,
       changes(StateKind::kBdev, "name")},
      {required("filename", &CreateUring::filename, "the file, or the device node"),
       required("name", &CreateUring::name, "its name"),
       optional("block_size", &CreateUring::block_size,
                "bytes; a power of two, 512 to 65536; 0: what the file asks for"),
       optional("uuid", &CreateUring::uuid, "a random one when left out"),
       optional("readonly", &CreateUring::readonly, "open it for reading only")},
      bind_context(context, create_uring)));
  add_delete(table, context, "bdev_uring_delete", "Removes a disk; its file stays.", delete_uring);
  table.add(make_method<Rescan>(
      {"bdev_uring_rescan", "Takes over the present size of the file.", kTrue, changes(StateKind::kBdev, "name")},
      {required("name", &Rescan::name, "which")}, bind_context(context, rescan_uring)));
}

}  // namespace

Json::Value driver_specific(const Bdev& bdev) {
  Json::Value json(Json::objectValue);
  if (const auto* disk = dynamic_cast<const FileBdev*>(&bdev)) {
    const bool aio = bdev.product_name() == std::string_view(kAioProductName);
    Json::Value& file = json[aio ? "aio" : "uring"];
    file["filename"] = disk->options().filename;
    file["readonly"] = disk->options().readonly;
    if (aio) {
      file["block_size_override"] = disk->options().block_size_bytes != 0;
      file["fallocate"] = bdev.supports(IoType::kDiscard);
      file["nowait"] = false;
    }
  }
  describe_virtio(bdev, json);
  return json;
}

Json::Value creating_call(const Bdev& bdev) {
  const std::string_view product_name = bdev.product_name();
  if (const auto* disk = dynamic_cast<const FileBdev*>(&bdev)) {
    const bool aio = product_name == kAioProductName;
    Json::Value call = make_call(aio ? "bdev_aio_create" : "bdev_uring_create", bdev);
    call["params"]["filename"] = disk->options().filename;
    call["params"]["block_size"] = disk->options().block_size_bytes;
    call["params"]["readonly"] = disk->options().readonly;
    if (aio) call["params"]["fallocate"] = bdev.supports(IoType::kDiscard);  // for others that read it
    return call;
  }
  if (product_name == kMallocProductName) {
    Json::Value call = make_call("bdev_malloc_create", bdev);
    put_geometry(call["params"], bdev);
    const BdevLimits& limits = bdev.limits();
    call["params"]["optimal_io_boundary"] = limits.optimal_boundary_bytes / limits.block_size_bytes;
    return call;
  }
  if (product_name == kNullProductName) {
    Json::Value call = make_call("bdev_null_create", bdev);
    put_geometry(call["params"], bdev);
    return call;
  }
  return attaching_call(bdev);
}

void add_bdev_module_methods(MethodTable& table, RpcContext& context) {
  add_malloc_methods(table, context);
  add_null_methods(table, context);
  add_aio_methods(table, context);
  add_uring_methods(table, context);
  add_virtio_methods(table, context);
}

}  // namespace sluice::rpc
