// Both gradients of a 3x3 depthwise convolution with stride 2 and dilation 1, channels_last, in one
// pass.
//
// Input pixels fall into 2x2 squares: the square of output pixel (o, c) begins where tap (0, 0) of
// it reads, and sees the output's gradient at rows o and o - 1 and columns c and c - 1 alone, by
// nine pairs of a pixel and a tap in all. A thread owns a column of squares and V channels and
// walks down, keeping row o - 1 in registers.
#pragma once

#include "depthwise_stages.cuh"
#include "reduce.cuh"

namespace dlv3p {

struct Stride2Backward {
  DepthwiseBackward p;
  int first_row;  // of the squares, and their number
  int rows;
  int first_column;
  int columns;
  int slice_rows;  // rows of squares that one block walks
  int slices;
  int lanes;  // along the channels; a block has kStride2Threads / lanes columns
  int slabs;
  int tiles;
  int width;     // sums of a channel: nine taps, then those of scale and shift
  float* parts;  // (blocks of a slab, width, channels); null where no sum is wanted
};

constexpr int kStride2Threads = 256;
constexpr int kStride2Blocks = 2;
constexpr int kSquare = 2;
constexpr int kStride2Taps = 9;

// The gradient of one output row at columns c and c - 1.
template <class T, int V>
struct GradPair {
  float value[kSquare][V];
  bool exists[kSquare];

  __device__ void load(const T* grad, const DepthwiseBackward& p, int row, int column, bool works) {
#pragma unroll
    for (int i = 0; i < kSquare; ++i) {
      exists[i] =
          works && row >= 0 && row < p.rows.out && column - i >= 0 && column - i < p.columns.out;
      if (!exists[i]) continue;
      unpack(load_pack<V>(grad + row * p.grad_map.stride_h + (column - i) * p.grad_map.stride_w),
             value[i]);
    }
  }
};

template <class T, int V, bool kBefore>
__global__ void __launch_bounds__(kStride2Threads, kBefore ? 1 : kStride2Blocks)
    depthwise_stride2_bwd_kernel(Stride2Backward q) {
  __shared__ float scratch[kStride2Threads * V];
  const DepthwiseBackward& p = q.p;
  const int lane = static_cast<int>(threadIdx.x) % q.lanes;
  const int across = static_cast<int>(threadIdx.x) / q.lanes;
  unsigned block = blockIdx.x;
  const int slab = static_cast<int>(block % q.slabs);
  const int64_t part = block / q.slabs;
  block /= q.slabs;
  const int slice = static_cast<int>(block % q.slices);
  block /= q.slices;
  const int tile = static_cast<int>(block % q.tiles);
  const int64_t image = block / q.tiles;

  const int channel = (slab * q.lanes + lane) * V;
  const int square = tile * (kStride2Threads / q.lanes) + across;
  const bool works = channel < p.channels && square < q.columns;
  const int held = works ? channel : 0;
  const int column = q.first_column + square;
  const int left = kSquare * column - static_cast<int>(p.columns.before);
  const T* grad = static_cast<const T*>(p.grad) + image * p.grad_map.stride_n + held;
  const T* input = static_cast<const T*>(p.input) + image * p.input_map.stride_n + held;
  T* grad_input = static_cast<T*>(p.grad_input) + image * p.grad_input_map.stride_n + held;
  const AffineStage<V> before(p.before, held);
  float weight[kStride2Taps][V];
#pragma unroll
  for (int tap = 0; tap < kStride2Taps; ++tap) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      weight[tap][v] = to_float(static_cast<const T*>(p.weight)[(held + v) * kStride2Taps + tap]);
    }
  }

  float weight_sum[kStride2Taps][V] = {};
  float affine_sum[2 * V] = {};
  const int begin = q.first_row + slice * q.slice_rows;
  const int last = q.first_row + q.rows;
  const int end = begin + q.slice_rows < last ? begin + q.slice_rows : last;
  GradPair<T, V> rows[kSquare];  // of rows o and o - 1
  rows[0].load(grad, p, begin - 1, column, works);
  for (int o = begin; o < end; ++o) {
    rows[1] = rows[0];
    rows[0].load(grad, p, o, column, works);
#pragma unroll
    for (int u = 0; u < kSquare; ++u) {
      const int h = kSquare * o - static_cast<int>(p.rows.before) + u;
      if (h < 0 || h >= p.rows.in) continue;
#pragma unroll
      for (int w = 0; w < kSquare; ++w) {
        const int x_column = left + w;
        if (!works || x_column < 0 || x_column >= p.columns.in) continue;
        const auto raw =
            load_pack<V>(input + h * p.input_map.stride_h + x_column * p.input_map.stride_w);
        float z[V];
        unpack(raw, z);
        if constexpr (kBefore) before.apply(z);
        float sum[V] = {};
#pragma unroll
        for (int i = 0; i < kSquare; ++i) {
#pragma unroll
          for (int j = 0; j < kSquare; ++j) {
            const int kh = u + kSquare * i;
            const int kw = w + kSquare * j;
            if (kh > 2 || kw > 2 || !rows[i].exists[j]) continue;
#pragma unroll
            for (int v = 0; v < V; ++v) {
              sum[v] = fmaf(weight[kh * 3 + kw][v], rows[i].value[j][v], sum[v]);
              float& total = weight_sum[kh * 3 + kw][v];
              total = fmaf(z[v], rows[i].value[j][v], total);
            }
          }
        }
        if (!p.grad_input) continue;
        if constexpr (kBefore) before.back(raw, sum, affine_sum);
        store_pack(
            grad_input + h * p.grad_input_map.stride_h + x_column * p.grad_input_map.stride_w,
            pack_of<T>(sum));
      }
    }
  }

  if (!q.parts) return;
  float* to = q.parts + part * q.width * p.channels;
  const int channels = q.lanes * V;
  const auto store = [&](const float (&values)[V], int row) {
    __syncthreads();
    lay_down<V>(scratch, values, lane, across, q.lanes);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < channels; i += kStride2Threads) {
      const int64_t at = static_cast<int64_t>(slab) * channels + i % q.lanes * V + i / q.lanes;
      if (at >= p.channels) continue;
      to[row * p.channels + at] = column_sum(scratch, i, channels, kStride2Threads / q.lanes);
    }
  };
#pragma unroll
  for (int tap = 0; tap < kStride2Taps; ++tap) store(weight_sum[tap], tap);
  if (kBefore && q.width > kStride2Taps) {
    float halves[2][V];
#pragma unroll
    for (int i = 0; i < 2 * V; ++i) halves[i / V][i % V] = affine_sum[i];
    store(halves[0], kStride2Taps);
    store(halves[1], kStride2Taps + 1);
  }
}

}  // namespace dlv3p
