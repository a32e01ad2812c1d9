// Runs a kernel on the emulated GPU, and what tests ask of it afterwards. Implemented in grid.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda_types.h"

namespace dlv3p::emulator {

struct Launch {
  const void* kernel;
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes;
};

constexpr int kMultiprocessors = 4;
constexpr int kSharedBytesPerBlock = 227 * 1024;  // as on an H100

// Calls thread(arguments) as every thread of every block. Throws std::runtime_error.
void run_grid(const Launch& launch, void (*thread)(const void*), const void* arguments);

// The order of blocks and of threads follows from it; every launch begins anew from it.
void set_seed(std::uint64_t seed);

// Names of the kernels launched since the last reset, in order.
std::vector<std::string> launches();

// Forgets the launches and goes back to the first seed.
void reset();

}  // namespace dlv3p::emulator
