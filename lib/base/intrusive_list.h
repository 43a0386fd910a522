// Intrusive containers: the elements carry their own links, so queueing never allocates.
#pragma once

#include <utility>

#include "lib/base/check.h"

namespace sluice {

// A link of a doubly linked list. `Tag` tells apart the lists that one element can be in at the same time.
// A hook unlinks itself when destroyed.
template <typename Tag>
class ListHook {
 public:
  ListHook() = default;
  ListHook(const ListHook&) = delete;
  ListHook& operator=(const ListHook&) = delete;
  ~ListHook() { unlink(); }

  bool linked() const { return next_ != nullptr; }
  void unlink() {
    if (!linked()) return;
    prev_->next_ = next_;
    next_->prev_ = prev_;
    next_ = prev_ = nullptr;
  }

 private:
  template <typename T, typename Tag2>
  friend class List;
  ListHook* next_ = nullptr;
  ListHook* prev_ = nullptr;
};

// A doubly linked list of T, which derives from ListHook<Tag>. Borrows its elements.
template <typename T, typename Tag>
class List {
  using Hook = ListHook<Tag>;

 public:
  List() { head_.next_ = head_.prev_ = &head_; }
  List(const List&) = delete;
  List& operator=(const List&) = delete;
  ~List() {
    while (!empty()) pop_front();
    head_.next_ = head_.prev_ = nullptr;
  }

  bool empty() const { return head_.next_ == &head_; }
  T& front() { return *owner(head_.next_); }

  void push_back(T& element) { insert_before(head_, element); }
  void push_front(T& element) { insert_before(*head_.next_, element); }

  T* pop_front() {
    if (empty()) return nullptr;
    T* element = owner(head_.next_);
    static_cast<Hook*>(element)->unlink();
    return element;
  }

  // The other's elements, behind its own; at any length the same work.
  void take_all(List& other) {
    if (other.empty()) return;
    Hook& first = *other.head_.next_;
    Hook& last = *other.head_.prev_;
    other.head_.next_ = other.head_.prev_ = &other.head_;
    first.prev_ = head_.prev_;
    last.next_ = &head_;
    head_.prev_->next_ = &first;
    head_.prev_ = &last;
  }

  // Calls fn(T&) for each element. fn may unlink the element it is given, but no other one.
  template <typename Fn>
  void for_each(Fn&& fn) {
    for (Hook* hook = head_.next_; hook != &head_;) {
      Hook* next = hook->next_;
      fn(*owner(hook));
      hook = next;
    }
  }

 private:
  static T* owner(Hook* hook) { return static_cast<T*>(hook); }
  void insert_before(Hook& position, T& element) {
    Hook& hook = element;
    CHECK(!hook.linked());
    hook.prev_ = position.prev_;
    hook.next_ = &position;
    position.prev_->next_ = &hook;
    position.prev_ = &hook;
  }

  Hook head_;
};

// A first-in, first-out queue of T through a `T* next` member named by the template argument. Borrows its elements.
template <typename T, T* T::* Next = &T::next>
class Fifo {
 public:
  Fifo() = default;
  Fifo(const Fifo&) = delete;
  Fifo& operator=(const Fifo&) = delete;
  Fifo(Fifo&& other) noexcept { take(other); }

  bool empty() const { return head_ == nullptr; }
  T* front() const { return head_; }

  void push_back(T& element) {
    element.*Next = nullptr;
    *(tail_ == nullptr ? &head_ : &(tail_->*Next)) = &element;
    tail_ = &element;
  }

  void push_front(T& element) {
    element.*Next = head_;
    head_ = &element;
    if (tail_ == nullptr) tail_ = &element;
  }

  T* pop_front() {
    T* element = head_;
    if (element == nullptr) return nullptr;
    head_ = element->*Next;
    if (head_ == nullptr) tail_ = nullptr;
    return element;
  }

 private:
  void take(Fifo& other) {
    head_ = std::exchange(other.head_, nullptr);
    tail_ = std::exchange(other.tail_, nullptr);
  }

  T* head_ = nullptr;
  T* tail_ = nullptr;
};

}  // namespace sluice
