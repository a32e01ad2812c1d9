// What csrc/cuda/launch.h includes in place of the CUDA runtime: the same names for launchers, with
// the operators registered under a namespace of their own for CPU tensors.
#pragma once

#include "grid.h"

#define DLV3P_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(dlv3p_emulated, CPU, m)

namespace dlv3p {

class Stream {
 public:
  explicit Stream(const Tensor& on) {
    STD_TORCH_CHECK(on.is_cpu(), "the emulator takes tensors on the CPU");
  }

  template <class... Params>
  void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
              const Params&... params) const {
    const auto thread = [&] { kernel(params...); };
    using Thread = decltype(thread);
    emulator::run_grid(
        {reinterpret_cast<const void*>(kernel), grid, block, shared_bytes},
        [](const void* self) { (*static_cast<Thread*>(self))(); }, &thread);
  }
};

struct DeviceLimits {
  int multiprocessors;
  int shared_bytes_per_block;
};

inline DeviceLimits device_limits() {
  return {emulator::kMultiprocessors, emulator::kSharedBytesPerBlock};
}

}  // namespace dlv3p
