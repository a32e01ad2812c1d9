// How a convolution maps output indices to input indices along one axis; shared by host and device.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define DLV3P_HOST_DEVICE __host__ __device__
#else
#define DLV3P_HOST_DEVICE
#endif

namespace dlv3p {

// One spatial axis of a convolution. `before` is the zero padding in front of the first element.
struct ConvAxis {
  int64_t in;
  int64_t out;
  int64_t kernel;
  int64_t stride;
  int64_t dilation;
  int64_t before;

  // The input index that output `o` reads through kernel tap `k`; may lie outside [0, in).
  DLV3P_HOST_DEVICE constexpr int64_t source(int64_t o, int64_t k) const {
    return o * stride - before + k * dilation;
  }
};

DLV3P_HOST_DEVICE constexpr int64_t conv_output_size(int64_t in, int64_t before, int64_t after,
                                                     int64_t kernel, int64_t stride,
                                                     int64_t dilation) {
  return (in + before + after - dilation * (kernel - 1) - 1) / stride + 1;
}

}  // namespace dlv3p
