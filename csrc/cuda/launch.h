// What launchers use of the CUDA runtime and of torch's streams, in one place; the emulator of the
// tests replaces this file's inside and runs the launchers as they are.
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../common/tensor.h"
#include "platform.cuh"

#ifdef DLV3P_EMULATED
#include "emulator_launch.h"
#else
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

// Kernels register where this opens a block: DLV3P_CUDA_LIBRARY(m) { m.impl(...); }
#define DLV3P_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(dlv3p, CUDA, m)

namespace dlv3p {

// The device of a tensor made current, with torch's stream on it.
class Stream {
 public:
  explicit Stream(const Tensor& on) : guard_(on.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <class... Params>
  void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
              const Params&... params) const {
    constexpr size_t kWithoutAsking = 48 * 1024;
    if (shared_bytes > kWithoutAsking) {
      STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(shared_bytes)));
    }
    kernel<<<grid, block, shared_bytes, stream_>>>(params...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

struct DeviceLimits {
  int multiprocessors;
  int shared_bytes_per_block;  // with opting in
};

// Of the current device.
inline DeviceLimits device_limits() {
  int device = 0;
  DeviceLimits limits{};
  STD_CUDA_CHECK(cudaGetDevice(&device));
  STD_CUDA_CHECK(
      cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device));
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&limits.shared_bytes_per_block,
                                        cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return limits;
}

}  // namespace dlv3p
#endif

namespace dlv3p {

// Calls `body` with a null pointer to the element type of `t`: body(static_cast<float*>(nullptr)).
template <class Body>
void with_element_type(const Tensor& t, const char* op, Body&& body) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return body(static_cast<float*>(nullptr));
    case ScalarType::Half:
      return body(static_cast<Half*>(nullptr));
    case ScalarType::BFloat16:
      return body(static_cast<BFloat16*>(nullptr));
    default:
      STD_TORCH_CHECK(false, op, ": no CUDA kernel for this dtype");
  }
}

}  // namespace dlv3p
