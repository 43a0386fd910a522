// Effect: what a method changes of that which survives a restart (--state-dir). A method does not compile without one.
//
// A method that changes objects names the parameter that tells which; what is kept is not the call but what it has
// made: the calls that make the object as it is afterwards (state_objects.h).
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::rpc {

// In the order in which they are made again.
enum class StateKind : uint8_t { kLog, kScheduler, kBdev, kStore, kController };
inline constexpr std::string_view kStateKindNames[] = {"log", "scheduler", "bdev", "lvol_store", "controller"};

struct Change {
  StateKind kind;
  std::string_view param;  // whose value names the object, or else the result does; empty: any object of this kind
  bool removes = false;
};

class Effect {
 public:
  enum class Keeping : uint8_t {
    kNothing,  // there is nothing to keep: it tells, or does something once
    kStore,    // the logical volume store keeps it on its disk
    kPassing,  // a restart undoes it
    kState,    // the state directory keeps it
  };

  static Effect without(Keeping keeping) { return Effect(keeping, {}); }
  static Effect of(Change change) { return Effect(Keeping::kState, {change}); }
  // As well as.
  Effect operator+(const Effect& other) const {
    Effect both = *this;
    both.keeping_ = Keeping::kState;
    both.changes_.insert(both.changes_.end(), other.changes_.begin(), other.changes_.end());
    return both;
  }

  Keeping keeping() const { return keeping_; }
  const std::vector<Change>& changes() const { return changes_; }

 private:
  Effect(Keeping keeping, std::vector<Change> changes) : keeping_(keeping), changes_(std::move(changes)) {}

  Keeping keeping_;
  std::vector<Change> changes_;
};

inline Effect nothing() { return Effect::without(Effect::Keeping::kNothing); }
inline Effect kept_by_store() { return Effect::without(Effect::Keeping::kStore); }
inline Effect passing() { return Effect::without(Effect::Keeping::kPassing); }
inline Effect changes(StateKind kind, std::string_view param) { return Effect::of({.kind = kind, .param = param}); }
inline Effect changes_any(StateKind kind) { return Effect::of({.kind = kind, .param = {}}); }
inline Effect removes(StateKind kind, std::string_view param) {
  return Effect::of({.kind = kind, .param = param, .removes = true});
}

}  // namespace sluice::rpc
