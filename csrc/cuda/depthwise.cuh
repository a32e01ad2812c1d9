// What all depthwise kernels take: the tensors, the geometry, and what is fused in around it.
#pragma once

#include <cstdint>

#include "../common/activation.h"
#include "../common/conv_geometry.h"
#include "platform.cuh"

namespace dlv3p {

// Strides in elements.
struct DepthwiseMap {
  int64_t stride_n;
  int64_t stride_c;
  int64_t stride_h;
  int64_t stride_w;
};

// activation(x * scale + shift) per channel; a null scale leaves the activation alone.
struct ChannelAffine {
  const float* scale;
  const float* shift;
  Activation activation;

  __host__ __device__ bool is_identity() const {
    return scale == nullptr && activation == Activation::kIdentity;
  }
};

// What is done to a convolution's result before it is stored.
enum class Behind { kNothing, kAffine, kStatistics };

struct DepthwiseForward {
  const void* input;
  const void* weight;  // (channels, kernel height, kernel width), contiguous
  const void* bias;    // (channels) or nullptr
  void* output;
  DepthwiseMap input_map;
  DepthwiseMap output_map;
  int64_t batch;
  int64_t channels;
  ConvAxis rows;
  ConvAxis columns;
  ChannelAffine before;  // of the input, inside the map; the padding stays zero
  ChannelAffine behind;  // of the result
  float* mean;           // (channels), of the stored result; null where not wanted
  float* var;
};

// grad_input and grad_weight of the convolution of before(input); either may be null.
struct DepthwiseBackward {
  const void* grad;
  const void* input;
  const void* weight;
  void* grad_input;
  void* grad_weight;
  float* grad_scale;  // (channels), of `before`; null without a scale
  float* grad_shift;
  DepthwiseMap grad_map;
  DepthwiseMap input_map;
  DepthwiseMap grad_input_map;
  int64_t batch;
  int64_t channels;
  ConvAxis rows;
  ConvAxis columns;
  ChannelAffine before;
};

}  // namespace dlv3p
