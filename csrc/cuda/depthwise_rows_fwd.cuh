// Forward depthwise convolution of channels_last maps, by rows.
#pragma once

#include "depthwise_rows.cuh"

namespace dlv3p {

struct RowsForward {
  RowsGeometry g;
  const void* input;
  const void* weight;  // (channels, K, K)
  const void* bias;
  void* output;
  MapStrides input_map;
  MapStrides output_map;
  ChannelAffine before;
  ChannelAffine behind;
  float* moment_parts;  // (blocks per slab, 3, channels), for kStatistics
};

// What a thread does to a finished value, and what it gathers on the way.
template <class T, int V, Behind kBehind>
struct ForwardEnd {
  float bias[V];
  AffineStage<V> affine;
  StatisticsStage<V> statistics;

  __device__ ForwardEnd(const RowsForward& p, int64_t channel) : affine(p.behind, channel) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      bias[v] = p.bias ? to_float(static_cast<const T*>(p.bias)[channel + v]) : 0.0f;
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

// Merges the moments of the columns of a tile in their order, and stores one part per block.
template <int V>
__device__ inline void store_tile_moments(const RowsForward& p, const RowsPosition& at,
                                          const RowsThread<V>& me, void* scratch,
                                          const StatisticsStage<V>& statistics) {
  auto* moments = static_cast<Moments*>(scratch);
  const int channels = me.lanes * V;
  copy_async_wait<0>();
  __syncthreads();  // the ring is free
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (me.in_tile) moments[me.column * channels + me.lane * V + v] = statistics.moments(v);
  }
  __syncthreads();
  const int64_t part = part_of(p.g, at);
  for (int c = static_cast<int>(threadIdx.x); c < channels; c += static_cast<int>(blockDim.x)) {
    const int channel = at.slab * channels + c;
    if (channel >= p.g.channels) continue;
    Moments merged = moments[c];
    for (int column = 1; column < p.g.tile; ++column) {
      merged = merge(merged, moments[column * channels + c]);
    }
    store_moments(p.moment_parts, part, p.g.channels, channel, merged);
  }
}

template <class T, int K, int S, int V, bool kBefore, Behind kBehind>
__global__ void __launch_bounds__(kRowThreads, K < 7 ? kRowBlocks : 1)
    depthwise_rows_fwd_kernel(RowsForward p) {
  using Schedule = RowSchedule<K, S>;
  constexpr int kPending = Schedule::kPending;
  DLV3P_DYNAMIC_SHARED(shared);
  const RowsGeometry& g = p.g;
  const RowsPosition at = rows_position(g, blockIdx.x);
  const RowsThread<V> me(g, at, sizeof(T));
  const ColumnSpan span = seen_columns(g, at.tile, K);
  const T* image = static_cast<const T*>(p.input) + at.image * p.input_map.stride_n;
  const RowCopier<T> copier(g, at, image, p.input_map, span);
  auto* table = reinterpret_cast<RowStep*>(shared);
  const SharedAddress ring = shared_address(shared + g.table_bytes);
  const int row_bytes = g.source_columns * g.slab * kChunkBytes;
  const int group_bytes = kPending * S * row_bytes;
  const int steps = Schedule(g, at.slice).build(table);

  const auto bring = [&](int first, SharedAddress group) {
#pragma unroll
    for (int i = 0; i < kPending * S; ++i) {
      const int offset = first < steps ? table[first + i / S].source[i % S] : -1;
      if (offset >= 0) copier.copy(group + i * row_bytes, offset);
    }
    copy_async_commit();
  };
  for (int i = 0; i < kRowGroups - 1; ++i) bring(i * kPending, ring + i * group_bytes);

  const int channel = me.works ? me.channel : 0;
  const RowWeights<T, K, V> weights(static_cast<const T*>(p.weight), channel);
  ForwardEnd<T, V, kBehind> end(p, channel);
  const TapColumns<T, K, V> taps(g, me, span.begin);
  T* output = static_cast<T*>(p.output) + at.image * p.output_map.stride_n + channel +
              static_cast<int64_t>(me.output_column) * p.output_map.stride_w;
  float sum[kPending][V];
#pragma unroll
  for (int j = 0; j < kPending; ++j) end.begin(sum[j]);

  int stage = 0;
  for (int first = 0; first < steps; first += kPending) {
    const SharedAddress group = ring + stage * group_bytes;
    copy_async_wait<kRowGroups - 2>();
    if constexpr (kBefore) {
      for (int i = 0; i < kPending * S; ++i) {
        if (table[first + i / S].source[i % S] < 0) continue;
        copier.transform(shared + g.table_bytes + stage * group_bytes + i * row_bytes, p.before);
      }
    }
    __syncthreads();
    const int next = stage == 0 ? kRowGroups - 1 : stage - 1;  // used last, free now
    bring(first + (kRowGroups - 1) * kPending, ring + next * group_bytes);
#pragma unroll
    for (int turn = 0; turn < kPending; ++turn) {
      const RowStep step = table[first + turn];
#pragma unroll
      for (int u = 0; u < S; ++u) {
        if (step.source[u] < 0) continue;
        const SharedAddress row = group + (turn * S + u) * row_bytes;
#pragma unroll
        for (int kw = 0; kw < K; ++kw) {
          if (!taps.sees(kw)) continue;
          float x[V];
          taps.read(row, kw, x);
#pragma unroll
          for (int j = 0; j < kPending; ++j) {
            const int kh = u + S * j;
            const int slot = (turn - j + kPending) % kPending;
            if (kh < K) multiply_add(sum[slot], weights.tap[kh * K + kw], x);
          }
        }
      }
      // Before the first and after the last output of a run, sums of outputs that do not exist pass
      // through here; none is stored.
      const int slot = (turn + 1) % kPending;
      if (step.output >= 0 && me.works) {
        store_pack(output + step.output, end.finish(sum[slot]));
      }
      end.begin(sum[slot]);
    }
    stage = stage == kRowGroups - 1 ? 0 : stage + 1;
  }
  if constexpr (kBehind == Behind::kStatistics) {
    store_tile_moments(p, at, me, shared, end.statistics);
  }
}

}  // namespace dlv3p
