// What is fused into a depthwise kernel around the convolution, for V channels of one thread.
#pragma once

#include "depthwise.cuh"
#include "reduce.cuh"

namespace dlv3p {

// `source[channel + v]`, or `otherwise` where there is no vector.
template <int V>
__device__ inline void load_vector(const float* source, int64_t channel, float otherwise,
                                   float (&values)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) values[v] = source ? source[channel + v] : otherwise;
}

// A ChannelAffine in registers.
template <int V>
struct AffineStage {
  float scale[V];
  float shift[V];
  Activation activation;

  __device__ AffineStage(const ChannelAffine& affine, int64_t channel)
      : activation(affine.activation) {
    load_vector(affine.scale, channel, 1.0f, scale);
    load_vector(affine.shift, channel, 0.0f, shift);
  }

  __device__ float argument(float x, int v) const { return fmaf(x, scale[v], shift[v]); }

  __device__ void apply(float (&values)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = activate(activation, argument(values[v], v));
  }

  // From the gradient of apply(x) to that of x; adds V sums for the gradient of scale, then V for
  // that of shift.
  template <class T>
  __device__ void back(const Pack<T, V>& raw, float (&grad)[V], float (&sums)[2 * V]) const {
    float x[V];
    unpack(raw, x);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      grad[v] = activation_gradient(activation, argument(x[v], v), grad[v]);
      sums[v] = fmaf(grad[v], x[v], sums[v]);
      sums[V + v] += grad[v];
      grad[v] *= scale[v];
    }
  }
};

// Sums of V channels as differences to the first value seen, so that a mean far larger than the
// standard deviation costs no digits.
template <int V>
struct StatisticsStage {
  float pivot[V] = {};
  float sum[V] = {};
  float squares[V] = {};
  float count = 0.0f;

  __device__ void add(const float (&values)[V]) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (count == 0.0f) pivot[v] = values[v];
      const float difference = values[v] - pivot[v];
      sum[v] += difference;
      squares[v] = fmaf(difference, difference, squares[v]);
    }
    count += 1.0f;
  }

  __device__ Moments moments(int v) const {
    return moments_of(count, pivot[v], sum[v], squares[v]);
  }
};

}  // namespace dlv3p
