// Both gradients of a depthwise convolution with stride 1, by rows, in one pass.
//
// The input gradient is a convolution of the output's gradient with the kernel turned around. The
// weight gradient sums products of the same pairs of pixels: so a thread that owns an input pixel
// multiplies each value of the output's gradient that it reads by a weight and by the input.
#pragma once

#include "depthwise_rows.cuh"

namespace dlv3p {

struct RowsBackward {
  RowsGeometry g;  // from the output's gradient, the source, to the input's
  const void* grad;
  const void* input;
  const void* weight;  // (channels, K, K)
  void* grad_input;    // null where not wanted
  MapStrides grad_map;
  MapStrides input_map;
  MapStrides grad_input_map;
  int input_stride_h;
  ChannelAffine before;
  int width;     // sums of a channel: of the taps, then those of scale and shift
  float* parts;  // (blocks of a slab, width, channels); null where no sum is wanted
};

template <class T, int K, int V, bool kBefore>
__global__ void __launch_bounds__(kRowThreads, K == 3 && !kBefore ? kRowBlocks : 1)
    depthwise_rows_bwd_kernel(RowsBackward p) {
  using Schedule = RowSchedule<K, 1>;
  constexpr int kPending = Schedule::kPending;
  constexpr int kTaps = K * K;
  DLV3P_DYNAMIC_SHARED(shared);
  const RowsGeometry& g = p.g;
  const RowsPosition at = rows_position(g, blockIdx.x);
  const RowsThread<V> me(g, at, sizeof(T));
  const ColumnSpan span = seen_columns(g, at.tile, K);
  const ColumnSpan own = own_columns(g, at.tile);
  const T* grad = static_cast<const T*>(p.grad) + at.image * p.grad_map.stride_n;
  const T* input = static_cast<const T*>(p.input) + at.image * p.input_map.stride_n;
  const RowCopier<T> grad_copier(g, at, grad, p.grad_map, span);
  const RowCopier<T> input_copier(g, at, input, p.input_map, own);
  auto* table = reinterpret_cast<RowStep*>(shared);
  auto* weights = reinterpret_cast<float*>(shared + g.table_bytes);
  unsigned char* rows = shared + g.table_bytes + me.lanes * V * kTaps * sizeof(float);
  const SharedAddress ring = shared_address(rows);
  share_weights<T, V>(me.tile(g, at), static_cast<const T*>(p.weight), kTaps, weights);
  const int grad_bytes = g.source_columns * g.slab * kChunkBytes;
  const int row_bytes = grad_bytes + g.tile * g.slab * kChunkBytes;
  const int group_bytes = kPending * row_bytes;
  const int steps = Schedule(g, at.slice).build(table);

  const auto bring = [&](int first, SharedAddress group) {
#pragma unroll
    for (int i = 0; i < kPending && first < steps; ++i) {
      const RowStep step = table[first + i];
      const SharedAddress row = group + i * row_bytes;
      if (step.source[0] >= 0) grad_copier.copy(row, step.source[0]);
      if (step.begun >= 0) input_copier.copy(row + grad_bytes, step.begun * p.input_stride_h);
    }
    copy_async_commit();
  };
  for (int i = 0; i < kRowGroups - 1; ++i) bring(i * kPending, ring + i * group_bytes);

  const int channel = me.works ? me.channel : 0;
  const SharedAddress my_weights = shared_address(weights + me.lane * kTaps * V);
  const AffineStage<V> before(p.before, channel);
  const TapColumns<T, K, V> taps(g, me, span.begin);
  const int own_offset =
      grad_bytes + (me.column * g.slab * kChunkBytes) + me.lane * V * static_cast<int>(sizeof(T));
  T* grad_input = static_cast<T*>(p.grad_input) + at.image * p.grad_input_map.stride_n + channel +
                  static_cast<int64_t>(me.output_column) * p.grad_input_map.stride_w;

  // Of the input rows that are begun and not complete, by step % kPending.
  bool open[kPending] = {};
  Pack<T, V> raw[kPending];
  float z[kPending][V] = {};  // the convolution's input
  float sum[kPending][V] = {};
  float weight_sum[kTaps][V] = {};
  float affine_sum[2 * V] = {};

  int stage = 0;
  for (int first = 0; first < steps; first += kPending) {
    const SharedAddress group = ring + stage * group_bytes;
    copy_async_wait<kRowGroups - 2>();
    __syncthreads();
    const int free = stage == 0 ? kRowGroups - 1 : stage - 1;  // used last
    bring(first + (kRowGroups - 1) * kPending, ring + free * group_bytes);
#pragma unroll
    for (int turn = 0; turn < kPending; ++turn) {
      const RowStep step = table[first + turn];
      const SharedAddress row = group + turn * row_bytes;
      open[turn] = step.begun >= 0;
      if (open[turn] && me.works) {
        raw[turn] = load_shared<V, T>(row + own_offset);
        unpack(raw[turn], z[turn]);
        if constexpr (kBefore) before.apply(z[turn]);
      }
      if (step.source[0] >= 0) {
        float value[K][V];
#pragma unroll
        for (int kw = 0; kw < K; ++kw) {
          if (taps.sees(kw)) taps.read(row, kw, value[kw]);
        }
#pragma unroll
        for (int j = 0; j < kPending; ++j) {
          const int slot = (turn - j + kPending) % kPending;
          if (!open[slot]) continue;
#pragma unroll
          for (int kw = 0; kw < K; ++kw) {
            const int tap = kTaps - 1 - (j * K + kw);  // turned around
            float weight[V];
            unpack(load_shared<V, float>(my_weights + tap * V * sizeof(float)), weight);
            if (!taps.sees(kw)) continue;
            multiply_add(sum[slot], weight, value[kw]);
            multiply_add(weight_sum[tap], z[slot], value[kw]);
          }
        }
      }
      if (step.output < 0) continue;
      const int slot = (turn + 1) % kPending;
      if (me.works && p.grad_input) {
        if constexpr (kBefore) before.back(raw[slot], sum[slot], affine_sum);
        store_pack(grad_input + step.output, pack_of<T>(sum[slot]));
      }
      open[slot] = false;
#pragma unroll
      for (int v = 0; v < V; ++v) sum[slot][v] = 0.0f;
    }
    stage = stage == kRowGroups - 1 ? 0 : stage + 1;
  }

  if (!p.parts) return;
  copy_async_wait<0>();
  auto* scratch = reinterpret_cast<float*>(rows);
  float* to = p.parts + part_of(g, at) * p.width * g.channels;
#pragma unroll
  for (int kh = 0; kh < K; ++kh) {
    float values[K * V];
#pragma unroll
    for (int i = 0; i < K * V; ++i) values[i] = weight_sum[kh * K + i / V][i % V];
    store_tile_sums<V, K>(me.tile(g, at), scratch, values,
                          to + static_cast<int64_t>(kh * K) * g.channels);
  }
  if (kBefore && p.width > kTaps) {
    store_tile_sums<V, 2>(me.tile(g, at), scratch, affine_sum,
                          to + static_cast<int64_t>(kTaps) * g.channels);
  }
}

}  // namespace dlv3p
