// Poller: a source of work (virtqueue, completion queue) that can be polled or can notify.
//
// A hot poller is polled each turn of its thread and its notification is off; a cold one costs nothing until its
// notification arrives. In poll mode pollers stay hot; otherwise one goes cold that finds nothing while its host is
// idle: at once in interrupt mode, after a window that it learns in adaptive mode.
//
// Thread: all calls on the lightweight thread that the poller is added to.
// Source: the four verbs follow the poll functions of the Seastar framework.
#pragma once

#include <cstdint>
#include <optional>

#include "lib/base/intrusive_list.h"
#include "lib/thread/event_source.h"
#include "lib/thread/polling.h"

namespace sluice {

struct PollerTag;

class Poller : public ListHook<PollerTag> {
 public:
  // `name` is static text, for thread_get_pollers.
  explicit Poller(const char* name) : name_(name), notification_(*this) {}
  // Requires: it has been removed from its thread (checked).
  virtual ~Poller();

  // Does what work there is, up to a fair share; true if there was any.
  virtual bool poll() = 0;
  // Only looks whether there is work.
  virtual bool pure_poll() = 0;
  // Turns the notification on, then looks again: false, with the notification off again, if work is there.
  virtual bool try_sleep() = 0;
  // Turns the notification off.
  virtual void wake_up() = 0;

  // Puts a cold poller back on the poll list, as its notification does.
  void make_hot();
  // Takes it off the poll list, in any mode, until make_hot() or its notification: for a poller that knows that no work
  // can come. Also from within poll().
  void make_cold();

  const char* name() const { return name_; }
  bool hot() const { return hot_; }
  LwThread* thread() const { return thread_; }
  const PollWindow& window() const { return window_; }
  uint64_t run_count() const { return run_count_; }
  uint64_t busy_count() const { return busy_count_; }

 protected:
  // The descriptor that tells of work while cold: edge-triggered, so it is never read. Borrowed; -1 for none, where
  // whoever makes work calls make_hot(). May be changed while the poller is added.
  // If the descriptor cannot be watched, the poller is as without one (see has_notification()).
  void set_notification(int fd);
  // Whether something will tell of work while cold. Meaningful while added.
  bool has_notification() const { return notification_.thread() != nullptr; }

 private:
  friend class LwThread;

  class Notification : public EventSource {
   public:
    explicit Notification(Poller& poller) : poller_(poller) {}
    void on_event(uint32_t events) override;

   private:
    Poller& poller_;
  };

  void learn(uint64_t gap_ns);

  const char* const name_;
  LwThread* thread_ = nullptr;
  int notification_fd_ = -1;
  bool hot_ = false;
  uint64_t last_work_ns_ = 0;
  uint32_t vain_polls_ = 0;  // since there was work
  PollWindow window_;
  // Since its notification made it hot: how long after its last work that was. Learned once it has found work.
  std::optional<uint64_t> woken_after_ns_;
  uint64_t run_count_ = 0;
  uint64_t busy_count_ = 0;
  Notification notification_;
};

}  // namespace sluice
