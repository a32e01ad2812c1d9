#include "grid.h"

#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>

#include "block_state.h"
#include "symbols.h"

namespace dlv3p::emulator {
namespace {

constexpr unsigned kMostBlocksYz = 65535;
constexpr unsigned kMostThreadsZ = 64;
constexpr std::size_t kSharedAlignment = 16;  // what DLV3P_DYNAMIC_SHARED promises

std::mutex one_kernel_at_a_time;
std::uint64_t seed = 0;
std::vector<std::string> launched;

// Dynamic shared memory of exactly the size asked for, so that AddressSanitizer sees its end;
// without it, a strip of known bytes behind the end shows writes there.
class SharedMemory {
 public:
  explicit SharedMemory(std::size_t bytes)
      : bytes_(bytes), memory_(new (kAlignment) unsigned char[bytes + kStrip]) {}

  void poison() { std::memset(memory_.get(), kPoisonByte, bytes_ + kStrip); }

  bool strip_is_whole() const {
    for (std::size_t i = bytes_; i < bytes_ + kStrip; ++i) {
      if (memory_[i] != kPoisonByte) return false;
    }
    return true;
  }
  unsigned char* get() const { return memory_.get(); }

 private:
#ifdef __SANITIZE_ADDRESS__
  static constexpr std::size_t kStrip = 0;
#else
  static constexpr std::size_t kStrip = 1024;
#endif
  static constexpr std::align_val_t kAlignment{kSharedAlignment};
  struct Free {
    void operator()(unsigned char* p) const { ::operator delete[](p, kAlignment); }
  };
  std::size_t bytes_;
  std::unique_ptr<unsigned char[], Free> memory_;
};

void require(bool fits, const std::string& what) {
  if (!fits) throw std::runtime_error("a GPU would refuse this launch: " + what);
}

void check(const Launch& launch) {
  const dim3 &grid = launch.grid, &block = launch.block;
  require(grid.x > 0 && grid.y > 0 && grid.z > 0, "no blocks");
  require(grid.x <= 0x7fffffffu && grid.y <= kMostBlocksYz && grid.z <= kMostBlocksYz,
          "too many blocks along an axis");
  require(block.x > 0 && block.y > 0 && block.z > 0, "no threads");
  require(block.z <= kMostThreadsZ, "too many threads along z");
  require(block.x <= kMostThreads && block.y <= kMostThreads &&
              block.x * block.y * block.z <= kMostThreads,
          "more than 1024 threads in a block");
  require(launch.shared_bytes <= kSharedBytesPerBlock, "too much shared memory");
}

void run_blocks(const Launch& launch, void (*thread)(const void*), const void* arguments) {
  check(launch);
  SharedMemory shared(launch.shared_bytes);
  Block& block = the_block();
  gridDim = launch.grid;
  block.set_work({launch.block, thread, arguments, shared.get(), launch.shared_bytes});
  Random random(seed);
  std::vector<std::uint64_t> order(std::uint64_t{gridDim.x} * gridDim.y * gridDim.z);
  std::iota(order.begin(), order.end(), std::uint64_t{0});
  random.shuffle(order);
  for (std::uint64_t index : order) {
    const std::uint64_t row = index / gridDim.x;
    shared.poison();
    poison_static_shared();
    block.run(dim3(index % gridDim.x, row % gridDim.y, row / gridDim.y), random);
    if (!shared.strip_is_whole()) throw std::runtime_error("wrote past its dynamic shared memory");
  }
}

}  // namespace

void run_grid(const Launch& launch, void (*thread)(const void*), const void* arguments) {
  const std::lock_guard<std::mutex> lock(one_kernel_at_a_time);
  const std::string name = kernel_name(launch.kernel);
  launched.push_back(name);
  try {
    run_blocks(launch, thread, arguments);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(name + ": " + error.what());
  }
}

void set_seed(std::uint64_t value) {
  const std::lock_guard<std::mutex> lock(one_kernel_at_a_time);
  seed = value;
}

std::vector<std::string> launches() {
  const std::lock_guard<std::mutex> lock(one_kernel_at_a_time);
  return launched;
}

void reset() {
  const std::lock_guard<std::mutex> lock(one_kernel_at_a_time);
  launched.clear();
  seed = 0;
}

}  // namespace dlv3p::emulator
