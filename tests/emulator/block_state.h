// The threads of one emulated block and how they wait for each other. Used by block.cpp and
// grid.cpp.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "block.h"
#include "fiber.h"
#include "random.h"

namespace dlv3p::emulator {

constexpr int kMostThreads = 1024;

struct AsyncCopy {
  void* shared;
  const void* global;
};

struct Thread {
  enum class State { kReady, kAtBarrier, kInWarp, kReturned };

  Fiber fiber;
  uint3 index;
  State state;
  Site site;  // where it waits
  // While it waits in a warp operation:
  unsigned mask;
  Combine combine;
  void* record;

  std::vector<AsyncCopy> copies;         // under way, oldest first
  std::vector<std::size_t> copy_groups;  // how many copies each closed group has, oldest first
};

// The block that runs; one at a time.
class Block {
 public:
  Block();
  ~Block();
  Block(const Block&) = delete;

  // Throws std::runtime_error where a thread fails, or where all wait.
  void run(dim3 index, Random& random);

  struct Work {
    dim3 threads;
    void (*thread)(const void*);
    const void* arguments;
    unsigned char* shared;
    std::size_t shared_bytes;
  };
  void set_work(const Work& work);

  // The following are called from the fiber of the running thread.
  int barrier(bool predicate, const Site& site);
  void warp_operation(unsigned mask, void* record, Combine combine, const Site& site);
  unsigned lanes_alive() const;
  [[noreturn]] void fail(const std::string& message);
  bool is_dynamic_shared(const void* address, std::size_t bytes) const;

  bool in_thread() const { return current_ != nullptr; }
  int linear_index() const { return static_cast<int>(current_ - threads_.data()); }
  Thread& current() { return *current_; }
  const Work& work() const { return work_; }

 private:
  static void run_thread();
  void start(dim3 index);
  void enter(Thread& thread);
  void wait(Thread::State state, const Site& site);
  bool lanes_agree(int first, unsigned mask, Combine combine) const;
  std::string deadlock() const;

  Work work_{};
  int count_ = 0;
  std::vector<Thread> threads_;
  unsigned char* stacks_ = nullptr;
  Thread* current_ = nullptr;
  std::vector<Thread*> ready_, turn_;
  std::string failure_;

  int arrived_ = 0;  // at the barrier of the block
  int predicates_ = 0;
  int barrier_result_ = 0;
  Site barrier_site_{};  // of the first that arrived
  bool same_site_ = true;
};

Block& the_block();

}  // namespace dlv3p::emulator
