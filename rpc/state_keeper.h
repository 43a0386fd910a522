// StateKeeper: what clients have provisioned, in a state directory, from which a later daemon makes it again.
//
// Kept is, for each object, the calls that make it as it is now, not the calls that have led there. A method's Effect
// says which objects it may have changed; these are described after it, and what differs from what is kept is
// written: one line for all calls that have come meanwhile, so that many share a flush of the disk.
//
// Promise: a call that has been answered with success is kept. Room in the file is taken before a call runs, so that a
// full disk refuses calls that have changed nothing yet. Where writing fails all the same, the call fails and says that
// its change is in effect but not kept; from then on calls that change something are refused until the whole state
// could be written to a new file, which each of them tries first.
//
// Thread:    the application's lightweight thread; it never blocks: the file is written on a thread of the pool.
// Ownership: borrows everything it is made with.
#pragma once

#include <json/value.h>

#include <cstdint>
#include <expected>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lib/thread/await.h"
#include "lib/thread/gate.h"
#include "rpc/method.h"
#include "rpc/methods.h"

namespace sluice {
class BlockingPool;
}

namespace sluice::rpc {

class StateJournal;

// What there is, as the keeper sees it.
class StateObjects {
 public:
  virtual ~StateObjects() = default;
  // The own name of what can be found by `name`; `name` if there is nothing.
  virtual std::string name_of(StateKind kind, const std::string& name) const = 0;
  virtual Task<std::vector<StateObject>> describe(StateKind kind, std::string name) = 0;
};

// Those of a daemon.
class DaemonObjects final : public StateObjects {
 public:
  explicit DaemonObjects(RpcContext& context) : context_(context) {}
  std::string name_of(StateKind kind, const std::string& name) const override;
  Task<std::vector<StateObject>> describe(StateKind kind, std::string name) override;

 private:
  RpcContext& context_;
};

class StateKeeper {
 public:
  // What could not be made again, and why.
  struct Failure {
    StateKind kind;
    std::string name;
    Json::Value calls;
    std::string error;
  };
  struct Info {
    std::string path;
    uint64_t size_bytes = 0;
    uint64_t objects = 0;
    uint64_t writes = 0;  // of lines, since the start
    std::string error;    // why nothing can be kept now; empty: all is well
    std::vector<Failure> failures;
  };

  StateKeeper(StateJournal& journal, BlockingPool& pool, const MethodTable& methods, StateObjects& objects);
  // Requires: close() has completed, or nothing was begun.
  ~StateKeeper();

  // What the file says that nobody can understand: one line with file, line and what to do. To be called first, once.
  std::expected<void, std::string> load();
  // There was no file: this is the first start in this directory.
  bool first_start() const { return first_start_; }
  // Makes again what is kept. What fails stays kept, is logged, and is in info().
  Task<> restore();
  // From here on what changes is written; what has changed until now, first. Errors: those of writing.
  Task<std::expected<void, RpcError>> start();
  // Instead of restore() and start(), where another daemon's objects have been taken over: what is kept but not there
  // could not be made by that one either. Errors: those of writing.
  Task<std::expected<void, RpcError>> take_over();
  // Waits for what is being written.
  Task<> close();

  // Runs a method that changes something; settle() follows. Errors: the method's; that nothing can be kept now, and
  // nothing was changed.
  Task<RpcResult> run(const Method& method, const Json::Value& params);
  // Writes all that run() has changed so far; returns once it is durable. The error: it is in effect, but not kept.
  Task<std::expected<void, RpcError>> settle();

  // Tries to make again what could not be; settle() follows. Returns how much of it could.
  Task<uint64_t> retry();
  // Drops what could not be made again. False: there is nothing of this name that could not.
  Task<std::expected<bool, RpcError>> forget(StateKind kind, std::string name);
  Info info() const;
  // An object of which some calls could be made again and others could not, which only this process knows; empty if
  // there is none.
  std::string half_made() const;

 private:
  using Key = std::pair<StateKind, std::string>;
  struct Entry {
    uint64_t order = 0;  // in which they were made
    std::string calls;   // JSON
    std::string error;   // why it could not be made again; empty: it could
    uint32_t made = 0;   // how many of its calls have succeeded, if it could not
  };
  // What may have changed: an object, or any of its kind if the name is empty.
  struct Mark {
    Key key;
    bool removed;  // somebody wants it gone
  };

  std::expected<void, std::string> load_line(const std::string& text);
  bool failed(const Key& key) const;
  void mark(Key key, bool removed);

  Task<std::expected<void, std::string>> make(Key key, uint32_t& made);
  Task<uint64_t> make_all(std::vector<Key> keys);
  std::vector<Key> in_order(bool failed_only) const;

  Task<std::expected<void, RpcError>> take_room(uint64_t bytes);
  void begin_writing();
  Task<> write_marked();
  Task<Json::Value> differences(std::vector<Mark> marks);
  void note_change(Json::Value& line, const Key& key, const Json::Value* calls);
  Task<> compact();
  void note_result(const Result<>& result);
  Task<Result<>> blocking(std::function<Result<>()> work);
  void look_at_file();
  Result<> replace_file();
  RpcError explain(const Error& error, std::string_view what) const;

  StateJournal& journal_;
  BlockingPool& pool_;
  const MethodTable& methods_;
  StateObjects& objects_;

  std::map<Key, Entry> entries_;
  uint64_t next_order_ = 0;
  bool first_start_ = false;
  bool started_ = false;

  std::vector<Mark> marks_;
  uint64_t marked_ = 0;    // how many so far
  uint64_t tried_ = 0;     // of these; so many were written, or could not be
  uint64_t durable_ = 0;   // of these
  uint64_t promised_ = 0;  // room for calls that run, and marks
  uint64_t marked_room_ = 0;
  uint64_t compact_at_bytes_;
  uint64_t writes_ = 0;
  Error error_;           // the last one; code 0: none, or it is over
  bool writing_ = false;  // write_marked() runs
  bool using_file_ = false;
  // The journal's, as it was after the last use of it.
  bool needs_replacing_ = false;
  uint64_t size_bytes_ = 0;
  uint64_t room_bytes_ = 0;
  Signal changed_;  // tried_, durable_ or using_file_
  Gate gate_;
};

}  // namespace sluice::rpc
