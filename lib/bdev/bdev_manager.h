// BdevManager: the block devices of a process: adds, finds, opens, resizes and removes them.
//
// Thread:    all calls on the application's lightweight thread; so are the events.
// Ownership: owns the devices. Borrows the ThreadDirectory.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "lib/base/intrusive_list.h"
#include "lib/base/result.h"
#include "lib/bdev/bdev.h"
#include "lib/thread/await.h"
#include "lib/thread/thread_directory.h"

namespace sluice {

struct HandleTag;
struct WaiterTag;
struct WatcherTag;
class BdevManager;

// What the user of a device is told. Inside, it may close the handle that it is told about, but no other one.
class BdevEvents {
 public:
  virtual ~BdevEvents() = default;
  // bdev.size_bytes() has changed.
  virtual void on_resize() = 0;
  // The device is going: I/O fails from now on. Close channels, then the handle, soon.
  virtual void on_remove() = 0;
};

// What the user of a device wants to do with it, and what others may not do meanwhile.
enum class BdevAccess : uint8_t {
  kRead,
  kWrite,
  kWriteAlone,  // nobody else opens it for writing
  kReadStable,  // nobody opens it for writing; any number may hold it so
};
constexpr bool writes(BdevAccess access) { return access == BdevAccess::kWrite || access == BdevAccess::kWriteAlone; }

// Is told which devices there are. Called inside add() and remove(), on the application's lightweight thread: may look
// devices up, but not open or change any.
class BdevWatcher : public ListHook<WatcherTag> {
 public:
  virtual ~BdevWatcher() = default;
  // It can be found from now on.
  virtual void on_added(Bdev& bdev) = 0;
  // It cannot be found any more; its users are told next.
  virtual void on_removing(Bdev& bdev) = 0;
};

// An open device. While it exists, so does the device. Channels obtained through it must be closed before it.
class BdevHandle : public ListHook<HandleTag> {
 public:
  ~BdevHandle();
  Bdev& bdev() const { return bdev_; }
  // Who holds it, for messages: "vhost controller vm0".
  const std::string& user() const { return user_; }
  BdevAccess access() const { return access_; }
  bool writable() const { return writes(access_); }

 private:
  friend class BdevManager;
  BdevHandle(BdevManager& manager, Bdev& bdev, BdevEvents& events, std::string user, BdevAccess access)
      : manager_(manager), bdev_(bdev), events_(events), user_(std::move(user)), access_(access) {}

  BdevManager& manager_;
  Bdev& bdev_;
  BdevEvents& events_;
  const std::string user_;
  const BdevAccess access_;
};

enum class RemoveMode : uint8_t {
  kIfUnused,  // refuse while anybody has it open
  kForce,     // as if the hardware were pulled out: users are told, and I/O in flight ends with an error
};

class BdevManager {
 public:
  explicit BdevManager(ThreadDirectory& threads) : threads_(threads) {}
  // Requires: remove_all() has completed, or nothing was added (checked).
  ~BdevManager();

  // Errors: EEXIST (name, alias or uuid are a name, alias or uuid of another one).
  Result<Bdev*> add(std::unique_ptr<Bdev> bdev);
  // By name, alias or uuid. nullptr when there is none, or it is being removed.
  Bdev* find(std::string_view name) const;
  // The same, waiting up to timeout_ns for it to appear.
  Task<Bdev*> wait_for(std::string name, uint64_t timeout_ns);
  // Ends all waits, now and later (at shutdown).
  void cancel_waits();
  // All, by name.
  std::vector<Bdev*> list() const;

  // Errors: ENODEV; EROFS (for writing, but the device is read-only); EBUSY (it does not go with what others do).
  Result<std::unique_ptr<BdevHandle>> open(std::string_view name, BdevAccess access, BdevEvents& events,
                                           std::string user);
  // The handles of a device now.
  std::vector<const BdevHandle*> users(const Bdev& bdev) const;

  // Removes and frees the device. Errors: EBUSY (in use, and not forced); ENODEV (already on its way out).
  Task<Result<>> remove(Bdev& bdev, RemoveMode mode);
  // Forces all out, and waits for removals in progress as well.
  Task<> remove_all();

  // Called by modules when a device has changed its size.
  void set_size(Bdev& bdev, uint64_t size_bytes);
  // Called by modules to protect a device, or to end that: writes to a read-only one fail, also of those who have it
  // open already. Requests in flight go on.
  void set_readonly(Bdev& bdev, bool readonly);
  // Gives the device these aliases instead of those it has. Errors, nothing changed: EEXIST (as add()).
  Result<> set_aliases(Bdev& bdev, std::vector<std::string> aliases);

  // Tells it of devices that come and go, until it is unlinked.
  void add_watcher(BdevWatcher& watcher) { watchers_.push_back(watcher); }

  // The statistics of a device, over all its channels.
  Task<IoStats> iostat(Bdev& bdev);
  Task<> reset_iostat(Bdev& bdev, IoStatsReset mode);

  ThreadDirectory& threads() const { return threads_; }

 private:
  friend class BdevHandle;

  struct Entry {
    std::unique_ptr<Bdev> bdev;
    List<BdevHandle, HandleTag> handles;
    uint32_t users = 0;  // handles, and calls in progress that refer to the device
    bool removing = false;
    Event unused;  // set when the last user goes during removal
  };
  struct Waiter : ListHook<WaiterTag> {
    Event appeared;
  };

  // All that a device can be found by.
  static std::vector<std::string> keys_of(const Bdev& bdev);
  Entry* find_entry(const Bdev& bdev) const;
  void close(BdevHandle& handle);
  static void release(Entry& entry);

  ThreadDirectory& threads_;
  std::map<std::string, std::unique_ptr<Entry>, std::less<>> entries_;  // by name
  std::unordered_map<std::string, Entry*> index_;                       // by each key
  List<Waiter, WaiterTag> waiters_;
  List<BdevWatcher, WatcherTag> watchers_;
  bool waits_cancelled_ = false;
  Signal gone_;  // a removed device has been freed
};

}  // namespace sluice
