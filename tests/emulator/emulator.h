// What csrc/cuda/platform.cuh includes in place of the CUDA headers: the CUDA C++ that kernels use,
// run on the CPU. See README.md in this folder.
#pragma once

// Standard headers first: the names below must not reach into them.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstddef>
#include <cstdint>

#include "atomics.h"
#include "block.h"
#include "collectives.h"
#include "cuda_math.h"
#include "cuda_types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// Blocks run one after another: one copy is enough.
#define __shared__ static
#define __constant__ static

#define DLV3P_DYNAMIC_SHARED(name) unsigned char* const name = dlv3p::emulator::dynamic_shared()

namespace dlv3p {

using Half = torch::headeronly::Half;
using BFloat16 = torch::headeronly::BFloat16;

// The copy takes effect in the wait that covers its group; until then the destination is poisoned.
inline void copy_async_16(void* shared, const void* global) {
  emulator::start_copy(shared, global);
}
inline void copy_async_commit() { emulator::commit_copies(); }
template <int kPending>
void copy_async_wait() {
  emulator::wait_for_copies(kPending);
}

}  // namespace dlv3p
