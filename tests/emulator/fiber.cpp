// Context switch: a few instructions on x86-64, where swapcontext would make two system calls for
// each of the many switches; ucontext elsewhere.
#include "fiber.h"

#include <cstdint>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace dlv3p::emulator {
namespace {

Fiber* running = nullptr;

#ifdef __SANITIZE_ADDRESS__
const void* scheduler_low = nullptr;
std::size_t scheduler_bytes = 0;

// AddressSanitizer must know on which stack the program is.
void announce_switch(void** fake_stack, const void* low, std::size_t bytes) {
  __sanitizer_start_switch_fiber(fake_stack, low, bytes);
}
void announce_arrival(void* fake_stack, const void** from_low, std::size_t* from_bytes) {
  __sanitizer_finish_switch_fiber(fake_stack, from_low, from_bytes);
}
#else
const void* scheduler_low = nullptr;
std::size_t scheduler_bytes = 0;
void announce_switch(void**, const void*, std::size_t) {}
void announce_arrival(void*, const void**, std::size_t*) {}
#endif

#ifdef __x86_64__
void* scheduler = nullptr;  // its stack pointer

// Pushes the registers that a call preserves, changes stacks, and pops those of the other side.
extern "C" void dlv3p_switch_stack(void** save, void* to);
asm(R"(
.text
.local dlv3p_switch_stack
.type dlv3p_switch_stack, @function
dlv3p_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  retq
.size dlv3p_switch_stack, .-dlv3p_switch_stack
)");
constexpr int kSavedRegisters = 6;
#else
ucontext_t scheduler;
#endif

}  // namespace

void Fiber::start(void* low, std::size_t bytes, void (*entry)()) {
  low_ = low;
  bytes_ = bytes;
  entry_ = entry;
#ifdef __x86_64__
  // A function finds its return address 8 bytes below a multiple of 16; nothing returns to this
  // one.
  const auto top = (reinterpret_cast<std::uintptr_t>(low) + bytes) & ~std::uintptr_t{15};
  auto* words = reinterpret_cast<void**>(top);
  *--words = nullptr;
  *--words = reinterpret_cast<void*>(&run_entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--words = nullptr;
  stack_pointer_ = words;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = low;
  context_.uc_stack.ss_size = bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, &run_entry, 0);
#endif
}

void Fiber::run_entry() {
  announce_arrival(nullptr, &scheduler_low, &scheduler_bytes);
  running->entry_();
  running->leave(true);
}

void Fiber::enter() {
  running = this;
  void* fake_stack = nullptr;
  announce_switch(&fake_stack, low_, bytes_);
#ifdef __x86_64__
  dlv3p_switch_stack(&scheduler, stack_pointer_);
#else
  swapcontext(&scheduler, &context_);
#endif
  announce_arrival(fake_stack, nullptr, nullptr);
}

void Fiber::leave(bool for_good) {
  announce_switch(for_good ? nullptr : &fake_stack_, scheduler_low, scheduler_bytes);
#ifdef __x86_64__
  dlv3p_switch_stack(&stack_pointer_, scheduler);
#else
  swapcontext(&context_, &scheduler);
#endif
  announce_arrival(fake_stack_, &scheduler_low, &scheduler_bytes);
}

}  // namespace dlv3p::emulator
