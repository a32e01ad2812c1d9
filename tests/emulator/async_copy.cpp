// Asynchronous copies that come as late as they may.
#include <cstdint>
#include <cstring>

#include "block_state.h"
#include "symbols.h"

namespace dlv3p::emulator {
namespace {

constexpr std::size_t kCopyBytes = 16;

void land(Thread& thread, std::size_t copies) {
  for (std::size_t i = 0; i < copies; ++i) {
    std::memcpy(thread.copies[i].shared, thread.copies[i].global, kCopyBytes);
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + copies);
}

bool is_shared(const void* address, std::size_t bytes) {
  return is_static_shared(address, bytes) || the_block().is_dynamic_shared(address, bytes);
}

}  // namespace

void check_shared_row(const void* address, std::size_t bytes, const char* call) {
  if (reinterpret_cast<std::uintptr_t>(address) % 16 != 0) {
    fail(std::string(call) + ": the address in shared memory is not aligned to 16 bytes");
  }
  if (!is_shared(address, bytes)) {
    fail(std::string(call) + ": the address is not in the shared memory of the block");
  }
}

void check_global(const void* address, std::size_t bytes, const char* call) {
  if (is_shared(address, bytes)) fail(std::string(call) + ": the address is in shared memory");
}

void start_copy(void* shared, const void* global) {
  check_shared_row(shared, kCopyBytes, "copy_async_16");
  if (reinterpret_cast<std::uintptr_t>(global) % kCopyBytes != 0) {
    fail("copy_async_16: the address in global memory is not aligned to 16 bytes");
  }
  std::memset(shared, kPoisonByte, kCopyBytes);
  the_block().current().copies.push_back({shared, global});
}

void commit_copies() {
  Thread& thread = the_block().current();
  std::size_t earlier = 0;
  for (std::size_t copies : thread.copy_groups) earlier += copies;
  thread.copy_groups.push_back(thread.copies.size() - earlier);
}

void wait_for_copies(int most_pending) {
  Thread& thread = the_block().current();
  while (thread.copy_groups.size() > static_cast<std::size_t>(most_pending)) {
    land(thread, thread.copy_groups.front());
    thread.copy_groups.erase(thread.copy_groups.begin());
  }
}

}  // namespace dlv3p::emulator
