#include "block.h"

#include <sys/mman.h>

#include <cstring>
#include <map>
#include <new>
#include <stdexcept>

#include "block_state.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace dlv3p::emulator {
namespace {

constexpr std::size_t kPage = 4096;
#ifdef __SANITIZE_ADDRESS__
constexpr std::size_t kStackBytes = 64 * kPage;  // frames have red zones
#else
constexpr std::size_t kStackBytes = 16 * kPage;
#endif
// Below each stack lies a page that nobody may touch: an overflow stops the program.
constexpr std::size_t kStackStride = kStackBytes + kPage;
// Stacks begin at shifted places, or their hot ends would compete for the same cache lines.
constexpr std::size_t kStackShift = 192;
constexpr std::size_t kStackShifts = 16;

std::string text(const dim3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}
std::string text(const uint3& index) { return text(dim3(index.x, index.y, index.z)); }

bool same(const Site& a, const Site& b) {
  return a.line == b.line && a.call == b.call && std::strcmp(a.file, b.file) == 0;
}

}  // namespace

Block& the_block() {
  static Block block;
  return block;
}

Block::Block() : threads_(kMostThreads) {
  void* memory = mmap(nullptr, kMostThreads * kStackStride, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  stacks_ = static_cast<unsigned char*>(memory);
  for (int i = 0; i < kMostThreads; ++i) mprotect(stacks_ + i * kStackStride, kPage, PROT_NONE);
}

Block::~Block() { munmap(stacks_, kMostThreads * kStackStride); }

void Block::set_work(const Work& work) {
  work_ = work;
  count_ = static_cast<int>(work.threads.x * work.threads.y * work.threads.z);
  blockDim = work.threads;
}

void Block::start(dim3 index) {
  blockIdx = {index.x, index.y, index.z};
  arrived_ = predicates_ = 0;
  same_site_ = true;
  failure_.clear();
  ready_.clear();
  for (int i = 0; i < count_; ++i) {
    Thread& thread = threads_[i];
    const unsigned row = i / blockDim.x;
    thread.index = {i % blockDim.x, row % blockDim.y, row / blockDim.y};
    thread.state = Thread::State::kReady;
    thread.copies.clear();
    thread.copy_groups.clear();
    const std::size_t shift = i % kStackShifts * kStackShift;
    thread.fiber.start(stacks_ + i * kStackStride + kPage, kStackBytes - shift, &run_thread);
    ready_.push_back(&thread);
  }
}

void Block::run_thread() {
  Block& block = the_block();
  block.work_.thread(block.work_.arguments);
  block.current_->state = Thread::State::kReturned;
}

void Block::enter(Thread& thread) {
  current_ = &thread;
  threadIdx = thread.index;
  thread.fiber.enter();
  current_ = nullptr;
}

void Block::run(dim3 index, Random& random) {
  start(index);
  while (!ready_.empty() && failure_.empty()) {
    turn_.swap(ready_);
    ready_.clear();
    random.shuffle(turn_);
    for (Thread* thread : turn_) {
      enter(*thread);
      if (!failure_.empty()) break;
    }
  }
  if (failure_.empty()) failure_ = deadlock();
  if (failure_.empty()) return;
#ifdef __SANITIZE_ADDRESS__
  // Threads that stopped half way left the red zones of their frames behind.
  for (int i = 0; i < count_; ++i) {
    __asan_unpoison_memory_region(stacks_ + i * kStackStride + kPage, kStackBytes);
  }
#endif
  throw std::runtime_error("block " + text(index) + ", " + failure_);
}

void Block::wait(Thread::State state, const Site& site) {
  current_->state = state;
  current_->site = site;
  current_->fiber.leave();
}

int Block::barrier(bool predicate, const Site& site) {
  Thread& thread = *current_;
  if (arrived_ == 0) barrier_site_ = site;
  same_site_ = same_site_ && same(barrier_site_, site);
  predicates_ += predicate ? 1 : 0;
  if (++arrived_ == count_ && same_site_) {
    barrier_result_ = predicates_;
    arrived_ = predicates_ = 0;
    for (int i = 0; i < count_; ++i) {
      threads_[i].state = Thread::State::kReady;
      ready_.push_back(&threads_[i]);
    }
    thread.fiber.leave();
  } else {
    wait(Thread::State::kAtBarrier, site);
  }
  return barrier_result_;
}

bool Block::lanes_agree(int first, unsigned mask, Combine combine) const {
  for (int lane = 0; lane < warpSize; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const Thread& other = threads_[first + lane];
    if (&other == current_) continue;
    if (other.state != Thread::State::kInWarp || other.mask != mask || other.combine != combine) {
      return false;
    }
  }
  return true;
}

void Block::warp_operation(unsigned mask, void* record, Combine combine, const Site& site) {
  Thread& thread = *current_;
  const int lane = lane_of_thread();
  const int first = linear_index() - lane;
  if (!(mask >> lane & 1)) fail(std::string(site.call) + ": the mask leaves out the calling lane");
  // The last warp of a block may have fewer lanes; masks of the whole warp are usual there too.
  if (count_ - first < warpSize) mask &= (1u << (count_ - first)) - 1;
  thread.mask = mask;
  thread.combine = combine;
  thread.record = record;
  if (!lanes_agree(first, mask, combine)) {
    wait(Thread::State::kInWarp, site);
    return;
  }
  void* records[warpSize] = {};
  for (int i = 0; i < warpSize; ++i) {
    if (!(mask >> i & 1)) continue;
    Thread& other = threads_[first + i];
    records[i] = other.record;
    if (&other == &thread) continue;
    other.state = Thread::State::kReady;
    ready_.push_back(&other);
  }
  combine(records);
}

unsigned Block::lanes_alive() const {
  const int first = linear_index() - lane_of_thread();
  unsigned mask = 0;
  for (int lane = 0; lane < warpSize && first + lane < count_; ++lane) {
    if (threads_[first + lane].state != Thread::State::kReturned) mask |= 1u << lane;
  }
  return mask;
}

// What the threads of a block that can not go on are doing; empty if all of them returned.
std::string Block::deadlock() const {
  std::map<std::string, int> places;
  int returned = 0;
  for (int i = 0; i < count_; ++i) {
    const Thread& thread = threads_[i];
    if (thread.state == Thread::State::kReturned) {
      ++returned;
    } else {
      ++places[std::string(thread.site.call) + " in " + thread.site.file + ":" +
               std::to_string(thread.site.line)];
    }
  }
  if (places.empty()) return {};
  std::string message = "divergent barrier: ";
  for (const auto& [place, threads] : places) {
    message += std::to_string(threads) + " of " + std::to_string(count_) + " threads wait at " +
               place + ", ";
  }
  return message + std::to_string(returned) + " have returned";
}

void Block::fail(const std::string& message) {
  failure_ = "thread " + text(current_->index) + ": " + message;
  current_->fiber.leave();
  __builtin_unreachable();
}

bool Block::is_dynamic_shared(const void* address, std::size_t bytes) const {
  const auto* p = static_cast<const unsigned char*>(address);
  return p >= work_.shared && p + bytes <= work_.shared + work_.shared_bytes;
}

int block_barrier(bool predicate, const Site& site) { return the_block().barrier(predicate, site); }
void warp_operation(unsigned mask, void* record, Combine combine, const Site& site) {
  the_block().warp_operation(mask, record, combine, site);
}
unsigned lanes_alive() { return the_block().lanes_alive(); }
int lane_of_thread() { return the_block().linear_index() % warpSize; }
unsigned char* dynamic_shared() { return the_block().work().shared; }

void fail(const std::string& message) {
  if (!the_block().in_thread()) throw std::runtime_error(message);
  the_block().fail(message);
}

}  // namespace dlv3p::emulator
