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
  ForwardEnd<T, V, kBehind> end(p.bias, p.behind, channel);
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
    copy_async_wait<0>();
    store_tile_moments(me.tile(g, at), shared, end.statistics, p.moment_parts, part_of(g, at));
  }
}

}  // namespace dlv3p
