// Batch norm in channels_last memory: rows of `channels` neighbouring elements, one per pixel.
#pragma once

#include <cstdint>

#include "norm_backward.cuh"
#include "norm_stats.cuh"

namespace dlv3p {

// A block is `rows` rows of `lanes` threads: a lane is a pack of channels, a row a pixel. grid.x
// goes over the tiles of `lanes` packs, grid.y over the chunks of pixels.
struct RowTiling {
  int64_t channels;
  int64_t pixels;
  int64_t chunk;
  int lanes;
  int rows;
};

// Where a thread works. Threads beyond lanes * rows, and lanes beyond the channels, do nothing.
template <int V>
struct RowPlace {
  int lane;
  int row;
  int64_t channel;
  int64_t begin;  // pixels of the block
  int64_t end;
  bool active;

  __device__ explicit RowPlace(const RowTiling& t)
      : lane(static_cast<int>(threadIdx.x) % t.lanes),
        row(static_cast<int>(threadIdx.x) / t.lanes),
        channel((static_cast<int64_t>(blockIdx.x) * t.lanes + lane) * V),
        begin(blockIdx.y * t.chunk),
        end(begin + t.chunk < t.pixels ? begin + t.chunk : t.pixels),
        active(row < t.rows && channel < t.channels && begin < end) {}

  template <class Work>
  __device__ void visit(Work& work, const RowTiling& t) const {
    visit_packs<V>(work, (begin + row) * t.channels + channel, end * t.channels,
                   t.rows * t.channels);
  }
};

constexpr int kNormRowThreads = 256;
constexpr int kNormRowBlocks = 4;  // per multiprocessor: 64 registers a thread

template <class Work>
__global__ void __launch_bounds__(kNormRowThreads, kNormRowBlocks)
    norm_rows_kernel(typename Work::Params p, RowTiling t) {
  const RowPlace<Work::kChannels> place(t);
  if (!place.active) return;
  Work work(p, place.channel);
  place.visit(work, t);
}

constexpr int kNormReduceThreads = 512;  // fewer partial results than two blocks of half the size
constexpr int kNormReduceBlocks = 2;

// Runs use(i, channel) for every channel of a block's tile; i is its column in laid-down values.
template <int V, class Use>
__device__ inline void for_each_channel(const RowTiling& t, Use&& use) {
  const int columns = V * t.lanes;
  for (int i = static_cast<int>(threadIdx.x); i < columns; i += kNormReduceThreads) {
    const int64_t pack = static_cast<int64_t>(blockIdx.x) * t.lanes + i % t.lanes;
    const int64_t channel = pack * V + i / t.lanes;
    if (channel < t.channels) use(i, channel);
  }
}

// Partial moments of the chunks, and the pivots.
template <class T, int V>
__global__ void __launch_bounds__(kNormReduceThreads, kNormReduceBlocks)
    norm_stats_rows_kernel(NormStats p, RowTiling t, float* parts) {
  __shared__ float scratch[2 * V * kNormReduceThreads];
  __shared__ float counts[kNormReduceThreads];  // of the rows
  const RowPlace<V> place(t);
  if (place.active) {
    StatsWork<T, V> work(p, place.channel);
    place.visit(work, t);
    float values[2 * V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      values[v] = work.moments.mean[v];
      values[V + v] = work.moments.deviations[v];
    }
    lay_down(scratch, values, place.lane, place.row, t.lanes);
    if (place.lane == 0) counts[place.row] = work.moments.count;
  }
  __syncthreads();
  const int columns = V * t.lanes;
  for_each_channel<V>(t, [&](int i, int64_t channel) {
    const auto of_row = [&](int row) { return scratch + 2 * row * columns + i; };
    const float count = column_sum(counts, 0, 1, t.rows);
    const float mean =
        sum_terms(t.rows, [&](int row) { return counts[row] * of_row(row)[0]; }) / count;
    const float deviations = sum_terms(t.rows, [&](int row) {
      return deviations_around(mean, {counts[row], of_row(row)[0], of_row(row)[columns]});
    });
    store_moments(parts, blockIdx.y, t.channels, channel, {count, mean, deviations});
    if (blockIdx.y == 0) {
      pivots_behind(parts, gridDim.y, t.channels)[channel] =
          to_float(static_cast<const T*>(p.input)[channel]);
    }
  });
}

// Partial sums of the chunks: (2, channels) a row.
template <class T, int V>
__global__ void __launch_bounds__(kNormReduceThreads, kNormReduceBlocks)
    norm_backward_rows_kernel(NormBackward p, RowTiling t, float* parts) {
  __shared__ float scratch[2 * V * kNormReduceThreads];
  const RowPlace<V> place(t);
  if (place.active) {
    BackwardReduceWork<T, V> work(p, place.channel);
    place.visit(work, t);
    lay_down(scratch, work.sums, place.lane, place.row, t.lanes);
  }
  __syncthreads();
  const int columns = V * t.lanes;
  for_each_channel<V>(t, [&](int i, int64_t channel) {
    float* row = parts + static_cast<int64_t>(blockIdx.y) * 2 * t.channels + channel;
    row[0] = column_sum(scratch, i, 2 * columns, t.rows);
    row[t.channels] =
        column_sum(scratch, columns + i, 2 * columns, t.rows) * p.vectors.invstd[channel];
  });
}

}  // namespace dlv3p
