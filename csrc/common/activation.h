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

// The gradient at `z` from the one at its activation; at the corners of relu and relu6 and beyond
// them it is 0, as in stock PyTorch, whatever `grad` is.
DLV3P_HOST_DEVICE inline float activation_gradient(Activation activation, float z, float grad) {
  switch (activation) {
    case Activation::kRelu:
      return z <= 0.0f ? 0.0f : grad;
    case Activation::kRelu6:
      return z <= 0.0f || z >= 6.0f ? 0.0f : grad;
    case Activation::kSilu: {
      const float sigmoid = quotient(1.0f, 1.0f + expf(-z));
      return grad * (sigmoid * (1.0f + z * (1.0f - sigmoid)));
    }
    default:
      return grad;
  }
}

}  // namespace dlv3p
