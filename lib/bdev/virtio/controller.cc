#include "lib/bdev/virtio/controller.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "lib/base/unix_socket.h"
#include "lib/bdev/virtio/limits.h"

namespace sluice::virtio {

Controller::Controller(BdevManager& bdevs, VirtioBdevOptions options)
    : bdevs_(bdevs), options_(std::move(options)), thread_(*LwThread::current()) {}

Controller::~Controller() { CHECK(state_ == State::kNew || state_ == State::kClosed); }

Task<Result<>> Controller::attach() {
  CHECK(state_ == State::kNew);
  Result<> up = co_await connect();
  if (up) {
    device_ = present_;
    up = make_queues();
  }
  if (up) up = co_await bring_up();
  if (!up) co_return up;
  CHECK(gate_.spawn(keep_up()));
  co_return Result<>{};
}

Task<Result<>> Controller::connect() {
  auto socket = connect_unix(options_.socket_path, SOCK_NONBLOCK);
  if (!socket) co_return std::unexpected(socket.error());
  config_changed_ = false;
  FrontEnd::Events& events = *this;
  front_end_ = std::make_unique<FrontEnd>(thread_, std::move(*socket), events);
  auto device = co_await front_end_->negotiate(options_.vq_size, options_.packed_ring);
  if (!device) co_return std::unexpected(device.error());
  present_ = *device;
  co_return Result<>{};
}

Result<> Controller::make_queues() {
  const auto hosts = static_cast<uint32_t>(bdevs_.threads().all_cpus().count());
  if (options_.vq_count > device_.num_queues) return fail(EINVAL, "the back end has not as many queues");
  const uint32_t wanted = options_.vq_count != 0 ? options_.vq_count : std::max(hosts, 1U);
  const uint32_t queues = std::min({wanted, uint32_t{device_.num_queues}, kMaxQueues});
  const auto size = static_cast<uint16_t>(options_.vq_size);
  auto memory = SharedMemory::create(queues * VirtioQueue::memory_bytes(size) + kBufferBytes);
  if (!memory) return std::unexpected(memory.error());
  memory_ = std::move(*memory);
  places_ = std::vector<Place>(queues);
  for (uint32_t i = 0; i < queues; ++i) {
    auto queue = VirtioQueue::create(i, size, memory_, *this);
    if (!queue) return std::unexpected(queue.error());
    queues_.push_back(std::move(*queue));
    FaultMessage& fault = places_[i].fault;
    fault.controller = this;
    fault.target = &thread_;
    fault.run = [](Work& work) {
      auto& message = static_cast<FaultMessage&>(work);
      Controller& controller = *message.controller;
      const QueueFault fault_seen = message.fault;
      message.queued = false;
      // If that connection has ended meanwhile, this ends the next one: it will be tried again.
      if (controller.front_end_ == nullptr) return;
      log(LogLevel::kWarning, LogFlag::kBdev, "bdev {}: the back end breaks the protocol: {}", controller.options_.name,
          to_string(fault_seen));
      controller.front_end_->shut_down();
    };
  }
  return {};
}

// Gives the back end memory and rings, and lets requests through.
Task<Result<>> Controller::bring_up() {
  if (present_.num_queues < queues_.size()) co_return fail(EPROTO, "the back end has fewer queues than before");
  if (!present_.can_replace(device_)) co_return fail(EPROTO, "the back end has another kind of device than before");
  const auto started = co_await front_end_->start(*memory_, queues_, present_);
  if (!started) co_return started;
  state_ = State::kConnected;
  co_await for_each_queue([this](VirtioQueue& queue) { queue.go_up(present_); });
  co_return Result<>{};
}

Task<> Controller::take_down() {
  co_await for_each_queue([](VirtioQueue& queue) { queue.go_down(); });
  if (front_end_ == nullptr) co_return;
  co_await front_end_->close();
  front_end_.reset();
}

// From one connection to the next, until close() or give_up().
Task<> Controller::keep_up() {
  for (;;) {
    co_await serve();
    state_ = State::kLost;
    co_await take_down();
    state_ = State::kDisconnected;
    if (!given_up_) {
      log(LogLevel::kWarning, LogFlag::kBdev, "bdev {}: the back end on {} has gone; connecting again", options_.name,
          options_.socket_path);
    }
    for (uint64_t wait_ns = kFirstRetryNs; state_ != State::kConnected; wait_ns = std::min(2 * wait_ns, kLastRetryNs)) {
      co_await pause(wait_ns);
      if (given_up_) co_return;
      state_ = State::kConnecting;
      Result<> up = co_await connect();
      if (up) up = co_await bring_up();
      if (up) break;
      co_await take_down();
      state_ = State::kDisconnected;
      if (uint64_t held_back = 0; log_limiter_.allow(thread_.now_ns(), held_back)) {
        log(LogLevel::kInfo, LogFlag::kBdev, "bdev {}: {}: {} ({} such lines held back)", options_.name,
            options_.socket_path, up.error().what, held_back);
      }
    }
    ++reconnects_;
    log(LogLevel::kNotice, LogFlag::kBdev, "bdev {}: connected to {} again", options_.name, options_.socket_path);
    config_changed_ = true;
  }
}

// While the connection lasts.
Task<> Controller::serve() {
  while (!front_end_->lost() && !given_up_) {
    if (std::exchange(config_changed_, false)) {
      co_await refresh();
    } else {
      co_await changed_.wait();
    }
  }
}

// Returns early when the controller is given up.
Task<> Controller::pause(uint64_t ns) {
  const uint64_t deadline_ns = thread_.now_ns() + ns;
  Timer timer("virtio_reconnect", [this] { changed_.set(); });
  timer.arm_at(thread_, deadline_ns);
  while (!given_up_ && thread_.now_ns() < deadline_ns) co_await changed_.wait();
}

Task<> Controller::refresh() {
  const auto device = co_await front_end_->read_config(options_.vq_size);
  if (!device) {
    log(LogLevel::kWarning, LogFlag::kBdev, "bdev {}: the new configuration cannot be read: {}", options_.name,
        device.error().what);
    co_return;
  }
  if (bdev_ != nullptr) bdevs_.set_size(*bdev_, device->size_bytes);
}

void Controller::give_up() {
  given_up_ = true;
  if (front_end_ != nullptr) front_end_->shut_down();
  changed_.set();
}

Task<> Controller::close() {
  give_up();
  co_await gate_.close();
  co_await take_down();  // what a failed attach() has left
  state_ = State::kClosed;
}

void Controller::on_connection_lost() { changed_.set(); }

void Controller::on_config_change() {
  config_changed_ = true;
  changed_.set();
}

// --- Queues and hosts ---

Result<VirtioQueue*> Controller::open_queue() {
  ThreadHost& host = *ThreadHost::current();
  VirtioQueue* queue = nullptr;
  {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < places_.size(); ++i) {
      if (places_[i].owner == &host) queue = queues_[i].get();
    }
    for (size_t i = 0; i < places_.size() && queue == nullptr; ++i) {
      if (places_[i].owner != nullptr) continue;
      places_[i].owner = &host;
      queue = queues_[i].get();
    }
  }
  if (queue == nullptr) return fail(EBUSY, "each queue of the device is in use by another core: attach it with more");
  queue->open(host);
  return queue;
}

void Controller::on_queue_closed(VirtioQueue& queue) {
  const std::lock_guard lock(mutex_);
  places_[queue.index()].owner = nullptr;
}

void Controller::on_queue_fault(VirtioQueue& queue, QueueFault fault) {
  FaultMessage& message = places_[queue.index()].fault;
  if (message.queued.exchange(true)) return;
  message.fault = fault;
  thread_.send(message);
}

// Runs fn(VirtioQueue&) for each queue on the host that owns it, or here while nobody does.
template <typename Fn>
Task<> Controller::for_each_queue(Fn fn) {
  for (size_t i = 0; i < queues_.size(); ++i) {
    VirtioQueue& queue = *queues_[i];
    for (bool done = false; !done;) {
      ThreadHost* owner = nullptr;
      {
        const std::lock_guard lock(mutex_);
        owner = places_[i].owner;
        if (owner == nullptr) {
          fn(queue);  // a host that wants the queue waits for the lock
          done = true;
        }
      }
      if (done) continue;
      // It may have changed hands by the time the message arrives. Only its owner gives it away: there it stays.
      done = co_await call_on(owner->home(), [this, i, owner, &queue, &fn] {
        {
          const std::lock_guard lock(mutex_);
          if (places_[i].owner != owner) return false;
        }
        fn(queue);
        return true;
      });
    }
  }
}

}  // namespace sluice::virtio
