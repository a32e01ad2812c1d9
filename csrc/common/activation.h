// The activations that stand around a convolution, and their derivatives; shared by host and
// device.
#pragma once

#include <cmath>
#include <cstdint>

#include "activation_code.h"
#include "conv_geometry.h"

namespace dlv3p {

// On the GPU without the slow path of exact division; off by two units in the last place at most.
DLV3P_HOST_DEVICE inline float quotient(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fdividef(a, b);
#else
  return a / b;
#endif
}

// NaN passes through, as in stock PyTorch.
DLV3P_HOST_DEVICE inline float activate(Activation activation, float z) {
  switch (activation) {
    case Activation::kRelu:
      return z < 0.0f ? 0.0f : z;
    case Activation::kRelu6:
      return z < 0.0f ? 0.0f : (z > 6.0f ? 6.0f : z);
    case Activation::kSilu:
      return quotient(z, 1.0f + expf(-z));
    default:
      return z;
  }
}

// The derivative at `z`; at the corners of relu and relu6 it is 0, as in stock PyTorch.
DLV3P_HOST_DEVICE inline float activation_slope(Activation activation, float z) {
  switch (activation) {
    case Activation::kRelu:
      return z <= 0.0f ? 0.0f : 1.0f;
    case Activation::kRelu6:
      return z <= 0.0f || z >= 6.0f ? 0.0f : 1.0f;
    case Activation::kSilu: {
      const float sigmoid = quotient(1.0f, 1.0f + expf(-z));
      return sigmoid * (1.0f + z * (1.0f - sigmoid));
    }
    default:
      return 1.0f;
  }
}

}  // namespace dlv3p
