// Depthwise convolution forward: one thread makes V neighbouring channels of one output pixel.
#pragma once

#include <cstdint>

#include "../common/conv_geometry.h"
#include "platform.cuh"

namespace dlv3p {

struct DepthwiseMap {
  int64_t stride_n;
  int64_t stride_c;
  int64_t stride_h;
  int64_t stride_w;
};

struct DepthwiseParams {
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
  bool channels_fastest;  // neighbouring threads take neighbouring channels, else columns
};

// Takes `index` apart: the remainder by `size` comes back, the quotient stays.
__device__ inline int64_t take(int64_t& index, int64_t size) {
  const int64_t rest = index % size;
  index /= size;
  return rest;
}

template <class T, int V>
__global__ void depthwise_fwd_kernel(DepthwiseParams p) {
  const int64_t packs = p.channels / V;
  const int64_t count = p.batch * packs * p.rows.out * p.columns.out;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t taps = p.rows.kernel * p.columns.kernel;
  const T* weight = static_cast<const T*>(p.weight);
  const T* bias = static_cast<const T*>(p.bias);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    int64_t index = i;
    int64_t channel = p.channels_fastest ? take(index, packs) * V : 0;
    const int64_t column = take(index, p.columns.out);
    const int64_t row = take(index, p.rows.out);
    if (!p.channels_fastest) channel = take(index, packs) * V;
    const T* image = static_cast<const T*>(p.input) + index * p.input_map.stride_n +
                     channel * p.input_map.stride_c;
    float sum[V];
    for (int v = 0; v < V; ++v) sum[v] = bias ? to_float(bias[channel + v]) : 0.0f;
    for (int64_t kh = 0; kh < p.rows.kernel; ++kh) {
      const int64_t h = p.rows.source(row, kh);
      if (h < 0 || h >= p.rows.in) continue;
      for (int64_t kw = 0; kw < p.columns.kernel; ++kw) {
        const int64_t w = p.columns.source(column, kw);
        if (w < 0 || w >= p.columns.in) continue;
        const auto x = load_pack<V>(image + h * p.input_map.stride_h + w * p.input_map.stride_w);
        for (int v = 0; v < V; ++v) {
          const T factor = weight[(channel + v) * taps + kh * p.columns.kernel + kw];
          sum[v] += to_float(factor) * to_float(x.lane[v]);
        }
      }
    }
    Pack<T, V> y;
    for (int v = 0; v < V; ++v) y.lane[v] = from_float<T>(sum[v]);
    T* to = static_cast<T*>(p.output) + index * p.output_map.stride_n +
            channel * p.output_map.stride_c + row * p.output_map.stride_h +
            column * p.output_map.stride_w;
    store_pack(to, y);
  }
}

}  // namespace dlv3p
