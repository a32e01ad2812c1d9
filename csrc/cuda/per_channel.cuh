// What kernels do with the vectors of a channel, and with an activation that is known at run time.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../common/activation.h"
#include "platform.cuh"

namespace dlv3p {

// source[channel + v], or `otherwise` where there is no vector; by 16 bytes where they are aligned.
// `channel` is a multiple of V.
template <int V>
__device__ inline void load_channels(const float* source, int64_t channel, float otherwise,
                                     float (&values)[V]) {
  constexpr int kLanes = 4;
  if (!source) {
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = otherwise;
    return;
  }
  if constexpr (V % kLanes == 0) {
    if (reinterpret_cast<std::uintptr_t>(source) % (kLanes * sizeof(float)) == 0) {
#pragma unroll
      for (int v = 0; v < V; v += kLanes) {
        const auto pack = load_pack<kLanes>(source + channel + v);
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) values[v + lane] = pack.lane[lane];
      }
      return;
    }
  }
#pragma unroll
  for (int v = 0; v < V; ++v) values[v] = source[channel + v];
}

// Runs `body(constant)` with the activation as a compile-time constant, constant.value: one branch
// for all the values that the body treats.
template <class Body>
__device__ inline void with_activation(Activation activation, Body&& body) {
  switch (activation) {
    case Activation::kRelu:
      return body(std::integral_constant<Activation, Activation::kRelu>{});
    case Activation::kRelu6:
      return body(std::integral_constant<Activation, Activation::kRelu6>{});
    case Activation::kSilu:
      return body(std::integral_constant<Activation, Activation::kSilu>{});
    default:
      return body(std::integral_constant<Activation, Activation::kIdentity>{});
  }
}

}  // namespace dlv3p
