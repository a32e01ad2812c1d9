// A thread of execution with a stack of its own that runs until it hands control back.
#pragma once

#include <cstddef>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace dlv3p::emulator {

// One scheduler (the caller of `enter`) and any number of fibers; they take turns on one OS thread.
class Fiber {
 public:
  // Sets the fiber to the beginning of `entry`; the stack is [low, low + bytes).
  void start(void* low, std::size_t bytes, void (*entry)());

  // Scheduler to fiber; comes back when the fiber leaves or `entry` returns.
  void enter();

  // Fiber to scheduler; comes back with the next `enter`.
  void leave() { leave(false); }

 private:
  static void run_entry();
  void leave(bool for_good);

  void (*entry_)() = nullptr;
  void* low_ = nullptr;
  std::size_t bytes_ = 0;
  void* stack_pointer_ = nullptr;
  void* fake_stack_ = nullptr;  // of AddressSanitizer
#ifndef __x86_64__
  ucontext_t context_{};
#endif
};

}  // namespace dlv3p::emulator
