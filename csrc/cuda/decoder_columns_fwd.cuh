// Forward depthwise convolution of a resized map, by columns.
#pragma once

#include "decoder_columns.cuh"

namespace dlv3p {

struct ColumnsForward {
  DepthwiseForward convolution;
  Cells cells;
  ColumnGrid grid;
  float* moment_parts;  // (blocks of a slab, 3, channels), for kStatistics
};

template <int K, Behind kBehind>
constexpr int kForwardThreads =
    K == 3 && kBehind != Behind::kStatistics ? kManyThreads : kFewThreads;

// Step t brings in row t of the pixels that the band sees and adds it to its K unfinished rows of
// the result; with row t the row t - (K - 1) of the result is complete.
template <class T, int K, int V, Behind kBehind>
__global__ void __launch_bounds__(kForwardThreads<K, kBehind>, kColumnBlocks)
    decoder_columns_fwd_kernel(ColumnsForward p) {
  DLV3P_DYNAMIC_SHARED(shared);
  const DepthwiseForward& c = p.convolution;
  const ColumnPlace place(p.grid, blockIdx.x);
  const BlockTile me = tile_of<V>(p.grid, place, static_cast<int>(c.channels));
  const int column = place.tile * p.grid.tile + me.column;
  const int own_channel = me.first_channel + me.lane * V;
  const bool works = me.inside && column < c.columns.out && own_channel < me.channels;
  const int channel = works ? own_channel : 0;

  const int begin = place.band * p.grid.band;
  const int left = static_cast<int>(c.rows.out) - begin;
  const int outputs = left < p.grid.band ? left : p.grid.band;
  auto* rows = reinterpret_cast<CellPair*>(shared);
  fill_table(rows, p.cells.rows, begin - c.rows.before, outputs + K - 1, p.grid.most_rows);
  __syncthreads();

  CellColumn columns[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int64_t pixel = works ? c.columns.source(column, k) : -1;
    columns[k] = CellColumn(CellPair::of(p.cells.columns, pixel), c.input_map.stride_w);
  }
  HeldCells<T, K, V> held(at_image<T>(c.input, c.input_map, place.image, channel),
                          c.input_map.stride_h);
  const RowWeights<T, K, V> weights(static_cast<const T*>(c.weight), channel);
  ForwardEnd<T, V, kBehind> end(c.bias, c.behind, channel);
  T* output =
      at<T>(c.output, place.image * c.output_map.stride_n + channel * c.output_map.stride_c +
                          begin * c.output_map.stride_h + column * c.output_map.stride_w);
  float sum[K][V];
#pragma unroll
  for (int j = 0; j < K; ++j) end.begin(sum[j]);

  for (int first = 0; first < outputs + K - 1; first += K) {
#pragma unroll
    for (int turn = 0; turn < K; ++turn) {
      const CellPair row = rows[first + turn];
      if (row.first >= 0) {
        held.enter(row, columns);
#pragma unroll
        for (int kw = 0; kw < K; ++kw) {
          if (!columns[kw].there) continue;
          float x[V];
          held.pixel(kw, row, x);
#pragma unroll
          for (int kh = 0; kh < K; ++kh) {
            multiply_add(sum[(turn - kh + K) % K], weights.tap[kh * K + kw], x);
          }
        }
      }
      // In front of the first result and behind the last, sums of rows that do not exist pass
      // through here; none counts.
      const int slot = (turn + 1) % K;
      const int result = first + turn - (K - 1);
      if (result >= 0 && result < outputs && works) {
        const auto pack = end.finish(sum[slot]);
        if constexpr (kBehind != Behind::kStatistics) {
          store_pack(output, pack);
          output += c.output_map.stride_h;
        }
      }
      end.begin(sum[slot]);
    }
  }
  if constexpr (kBehind == Behind::kStatistics) {
    store_tile_moments(me, shared, end.statistics, p.moment_parts, place.part);
  }
}

}  // namespace dlv3p
