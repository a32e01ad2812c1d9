// Blocks whose threads own a column and V channels each, and walk down: what they share and sum.
#pragma once

#include "depthwise_stages.cuh"

namespace dlv3p {

// How the threads of a block stand: `lanes` next to each other along the channels, in `columns`.
struct BlockTile {
  int lanes;
  int columns;
  int lane;
  int column;
  int first_channel;  // of the block
  int channels;       // of the map
  bool inside;        // the block may have more threads than places
};

template <int V>
__device__ inline void multiply_add(float (&sum)[V], const float (&a)[V], const float (&b)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] = fmaf(a[v], b[v], sum[v]);
}

// The weights of a thread's channels, (channels, K, K) in memory.
template <class T, int K, int V>
struct RowWeights {
  float tap[K * K][V];

  __device__ RowWeights(const T* weight, int64_t channel) {
    T flat[K * K * V];
#pragma unroll
    for (int i = 0; i < K * K; ++i) {
      const auto pack = load_pack<V>(weight + channel * K * K + i * V);
#pragma unroll
      for (int v = 0; v < V; ++v) flat[i * V + v] = pack.lane[v];
    }
#pragma unroll
    for (int k = 0; k < K * K; ++k) {
#pragma unroll
      for (int v = 0; v < V; ++v) tap[k][v] = to_float(flat[v * K * K + k]);
    }
  }
};

// The weights of a block's channels in shared memory, (lanes, taps, V): registers are needed for
// their gradients.
template <class T, int V>
__device__ inline void share_weights(const BlockTile& tile, const T* weight, int taps,
                                     float* shared) {
  const int threads = static_cast<int>(blockDim.x);
  for (int i = static_cast<int>(threadIdx.x); i < taps * tile.lanes * V; i += threads) {
    const int channel = i / taps;
    const int tap = i - channel * taps;
    const int lane = channel / V;
    if (tile.first_channel + channel >= tile.channels) continue;
    const int64_t from = static_cast<int64_t>(tile.first_channel) * taps + i;
    shared[(lane * taps + tap) * V + channel % V] = to_float(weight[from]);
  }
}

// What a thread does to a finished value, and what it gathers on the way.
template <class T, int V, Behind kBehind>
struct ForwardEnd {
  float bias[V];
  AffineStage<V> affine;
  StatisticsStage<V> statistics;

  __device__ ForwardEnd(const void* biases, const ChannelAffine& behind, int64_t channel)
      : affine(behind, channel) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      bias[v] = biases ? to_float(static_cast<const T*>(biases)[channel + v]) : 0.0f;
    }
  }

  // A sum before its first term.
  __device__ void begin(float (&sum)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] = bias[v];
  }

  __device__ Pack<T, V> finish(float (&values)[V]) {
    if constexpr (kBehind == Behind::kAffine) affine.apply(values);
    const auto pack = pack_of<T>(values);
    if constexpr (kBehind == Behind::kStatistics) {
      unpack(pack, values);  // the next layer sees the rounded ones
      statistics.add(values);
    }
    return pack;
  }
};

// Merges the moments of the columns of a tile in their order, and stores part number `part` of
// `parts`, (blocks of a slab, 3, channels).
template <int V>
__device__ inline void store_tile_moments(const BlockTile& tile, void* scratch,
                                          const StatisticsStage<V>& statistics, float* parts,
                                          int64_t part) {
  auto* moments = static_cast<Moments*>(scratch);
  const int channels = tile.lanes * V;
  __syncthreads();  // whatever `scratch` was
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (tile.inside) moments[tile.column * channels + tile.lane * V + v] = statistics.moments(v);
  }
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < channels; c += static_cast<int>(blockDim.x)) {
    const int channel = tile.first_channel + c;
    if (channel >= tile.channels) continue;
    Moments merged = moments[c];
    for (int column = 1; column < tile.columns; ++column) {
      merged = merge(merged, moments[column * channels + c]);
    }
    store_moments(parts, part, tile.channels, channel, merged);
  }
}

// Sums `values` over the columns of the tile, in their order: one sum for each of kCount rows of
// `to` (kCount, channels) and each channel of the block.
template <int V, int kCount>
__device__ inline void store_tile_sums(const BlockTile& tile, float* scratch,
                                       const float (&values)[kCount * V], float* to) {
  __syncthreads();  // whatever `scratch` was
  if (tile.inside) lay_down<kCount * V>(scratch, values, tile.lane, tile.column, tile.lanes);
  __syncthreads();
  const int columns = kCount * V * tile.lanes;
  for (int i = static_cast<int>(threadIdx.x); i < columns; i += static_cast<int>(blockDim.x)) {
    const int value = i / tile.lanes;
    const int lane = i - value * tile.lanes;
    const int channel = tile.first_channel + lane * V + value % V;
    if (channel < tile.channels) {
      to[static_cast<int64_t>(value / V) * tile.channels + channel] =
          column_sum(scratch, i, columns, tile.columns);
    }
  }
}

}  // namespace dlv3p
