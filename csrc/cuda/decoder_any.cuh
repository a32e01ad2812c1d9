// The gradient by the cells of a resized map for any convolution: one thread makes V channels of a
// cell, from all the pixels that read it. What the faster kernel does not take comes here.
#pragma once

#include "decoder_cells.cuh"

namespace dlv3p {

// The gradient by one pixel of the resized map, for V channels.
template <class T, int V>
__device__ inline void pixel_gradient(const DepthwiseBackward& p, const T* grad, const T* weight,
                                      int64_t row, int64_t column, float (&sum)[V]) {
  const int64_t taps = p.rows.kernel * p.columns.kernel;
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] = 0.0f;
  for (int64_t kh = 0; kh < p.rows.kernel; ++kh) {
    const int64_t h = target(p.rows, row, kh);
    if (h < 0) continue;
    for (int64_t kw = 0; kw < p.columns.kernel; ++kw) {
      const int64_t w = target(p.columns, column, kw);
      if (w < 0) continue;
      float g[V];
      unpack(load_pack<V>(grad + h * p.grad_map.stride_h + w * p.grad_map.stride_w), g);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        sum[v] = fmaf(to_float(weight[v * taps + kh * p.columns.kernel + kw]), g[v], sum[v]);
      }
    }
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kAnyThreads, 2)
    decoder_any_bwd_input_kernel(DepthwiseBackward p, Cells cells, AnyBlock block) {
  const int lane = static_cast<int>(threadIdx.x) % block.lanes;
  const int64_t channel = (static_cast<int64_t>(blockIdx.x) * block.lanes + lane) * V;
  if (channel >= p.channels) return;
  const T* weight = at<T>(p.weight, channel * p.rows.kernel * p.columns.kernel);
  const int64_t height = cells.rows.in, width = cells.columns.in;
  for (PixelWalk walk(block, static_cast<int>(threadIdx.x) / block.lanes, p.batch * height * width,
                      height, width);
       walk.more(); walk.next()) {
    const Pixel& cell = walk.at();
    const T* grad = at<T>(p.grad, cell.image * p.grad_map.stride_n + channel * p.grad_map.stride_c);
    const int64_t last_row = first_pixel_of(cells.rows, cell.row + 1);
    const int64_t first_column = first_pixel_of(cells.columns, cell.column - 1);
    const int64_t last_column = first_pixel_of(cells.columns, cell.column + 1);
    float sum[V] = {};
    for (int64_t row = first_pixel_of(cells.rows, cell.row - 1); row < last_row; ++row) {
      float row_share, column_share;
      if (!share_of(cells.rows.source(row), cell.row, &row_share)) continue;
      for (int64_t column = first_column; column < last_column; ++column) {
        if (!share_of(cells.columns.source(column), cell.column, &column_share)) continue;
        float of_pixel[V];
        pixel_gradient<T, V>(p, grad, weight, row, column, of_pixel);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          sum[v] = fmaf(row_share * column_share, of_pixel[v], sum[v]);
        }
      }
    }
    store_pack(
        at<T>(p.grad_input, cell.offset(p.grad_input_map) + channel * p.grad_input_map.stride_c),
        pack_of<T>(sum));
  }
}

}  // namespace dlv3p
