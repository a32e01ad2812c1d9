// What a thread of the emulated GPU asks of the block that it runs in. Implemented in block.cpp.
#pragma once

#include <cstddef>
#include <string>

#include "cuda_types.h"

// Of the thread that runs now.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace dlv3p::emulator {

// What is not written yet reads as NaN, or as -1.
constexpr int kPoisonByte = 0xff;

// Which call a thread waits in; all threads of a barrier must wait in the same.
struct Site {
  const char* call;
  const char* file;
  int line;
};

// Waits until every thread of the block is here; how many of them came with `predicate`.
int block_barrier(bool predicate, const Site& site);

// Computes what a warp operation gives to each lane: a record of arguments and result per lane,
// nullptr for lanes that take no part.
using Combine = void (*)(void* const (&records)[warpSize]);

// Waits until every lane of `mask` is here with the same `mask` and `combine`, which then runs
// once.
void warp_operation(unsigned mask, void* record, Combine combine, const Site& site);

// The lanes of this warp that have not returned.
unsigned lanes_alive();
int lane_of_thread();

unsigned char* dynamic_shared();

// Stops the kernel with an error that names it, the block and the thread.
[[noreturn]] void fail(const std::string& message);

// Fails unless [address, address + bytes) is shared memory of the block, aligned to 16 bytes.
void check_shared_row(const void* address, std::size_t bytes, const char* call);

// Fails where [address, address + bytes) is shared memory of the block.
void check_global(const void* address, std::size_t bytes, const char* call);

void start_copy(void* shared, const void* global);
void commit_copies();
void wait_for_copies(int most_pending);

}  // namespace dlv3p::emulator
