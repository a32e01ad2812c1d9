// What the kernels on resized logits share: cells in shared memory, mixing, exponentials, labels.
#pragma once

#include <cstdint>

#include "reduce.cuh"
#include "upsample.h"

namespace dlv3p {

constexpr int kClassPack = 4;  // classes that come from shared memory at a time

// Weights of the two cells that a pixel reads.
struct Shares {
  float first;
  float second;
};

__device__ inline Shares shares_from(float second) { return {1.0f - second, second}; }

__device__ inline Shares shares_of(const PixelAxis& axis, int pixel, int cell) {
  return shares_from(axis.weight_second(pixel, cell));
}

// Shares of a gradient that two cells receive; all goes to the first where there is no second.
__device__ inline Shares received(const Shares& shares, bool has_second) {
  if (has_second) return shares;
  return {shares.first + shares.second, 0.0f};
}

// Fused explicitly: the backward must find the logits of the forward to the bit, as the
// exponentials of large ones are far apart. An infinity times a share of 0 is NaN, as in stock
// PyTorch.
__device__ inline float mixed(float first, float second, const Shares& shares) {
  return fmaf(second, shares.second, first * shares.first);
}

// exp(distance). Differences come first: large logits then neither overflow nor cancel.
__device__ inline float exponential(float distance) {
  constexpr float kLog2E = 1.4426950408889634f;
  return exp2_approximate(distance * kLog2E);
}

// Some classes of a rectangle of an image's cells.
struct CellRange {
  int row;
  int column;
  int columns;
  int first_class;
  int classes;
};

// How the threads of a block go through pairs: neighbouring threads have neighbouring `fast`.
struct PairOrder {
  int bits;

  // Not in the initialiser, which the compiler of the host reads as well.
  __device__ explicit PairOrder(int fast_count) {
    bits = fast_count >= kWarpLanes ? 5 : 32 - __clz(fast_count - 1);
  }

  __device__ int lanes() const { return 1 << bits; }
  __device__ int step() const { return kUpsampleThreads >> bits; }
  __device__ int fast() const { return static_cast<int>(threadIdx.x) & (lanes() - 1); }
  __device__ int slow() const { return static_cast<int>(threadIdx.x) >> bits; }
};

// Copies `count` elements as floats, with kLoads loads under way at once.
template <int kLoads, class T>
__device__ inline void stage_line(float* to, const T* from, int count, int to_step,
                                  int64_t from_step) {
  for (; count > 0; count -= kLoads) {
    T values[kLoads];
#pragma unroll
    for (int n = 0; n < kLoads; ++n, from += from_step) {
      if (n < count) values[n] = *from;
    }
#pragma unroll
    for (int n = 0; n < kLoads; ++n, to += to_step) {
      if (n < count) *to = to_float(values[n]);
    }
  }
}

// Copies `rows` rows of cells as floats, the classes of a cell side by side, `pitch` floats from a
// cell to the next. Neighbouring threads have neighbouring elements of memory; a thread goes along
// the rows, or through the only one.
template <class T, int kLoads>
__device__ inline void stage_cells(float* staged, const ResizedLogits& u, int image,
                                   const CellRange& range, int rows, int pitch) {
  const bool by_class = u.stride_c == 1;
  const int fast_count = by_class ? range.classes : range.columns;
  const int slow_count = by_class ? range.columns : range.classes;
  const int64_t from_fast = by_class ? 1 : u.stride_w,
                from_slow = by_class ? u.stride_w : u.stride_c;
  const int to_fast = by_class ? 1 : pitch, to_slow = by_class ? pitch : 1;
  const PairOrder order(fast_count);
  const int step = order.step();
  const T* from = static_cast<const T*>(u.data) + image * u.stride_n + range.row * u.stride_h +
                  range.column * u.stride_w + range.first_class * u.stride_c +
                  order.slow() * from_slow;
  staged += order.slow() * to_slow;
  for (int fast = order.fast(); fast < fast_count; fast += order.lanes()) {
    const T* element = from + fast * from_fast;
    float* to = staged + fast * to_fast;
    if (rows == 1) {
      const int count = (slow_count - order.slow() + step - 1) / step;
      stage_line<kLoads>(to, element, count, step * to_slow, step * from_slow);
      continue;
    }
    for (int slow = order.slow(); slow < slow_count; slow += step) {
      stage_line<kLoads>(to, element, rows, range.columns * pitch, u.stride_h);
      element += step * from_slow;
      to += step * to_slow;
    }
  }
}

// The four staged cells around a pixel.
struct Corners {
  const float* cell;
  int right;  // floats to the next cell of the row
  int below;  // and of the column

  // kClassPack classes from `k` on, mixed along the columns, of the upper or the lower two cells.
  __device__ void mix(int k, bool lower, const Shares& shares, float* to) const {
    const float* from = cell + k + (lower ? below : 0);
    const auto first = load_pack<kClassPack>(from);
    const auto second = load_pack<kClassPack>(from + right);
#pragma unroll
    for (int i = 0; i < kClassPack; ++i) to[i] = mixed(first.lane[i], second.lane[i], shares);
  }

  // One class, mixed along columns and rows.
  __device__ float mix_one(int k, const Shares& across, const Shares& down) const {
    const float* from = cell + k;
    const float above = mixed(from[0], from[right], across);
    return mixed(above, mixed(from[below], from[below + right], across), down);
  }
};

// --- labels
// ------------------------------------------------------------------------------------------

constexpr int kIgnored = -1;
constexpr int kNoClass = -2;  // a GPU raises no error: the pixel becomes NaN, so that it shows

__device__ inline int class_of(int64_t label, int64_t ignore_index, int classes) {
  if (label == ignore_index) return kIgnored;
  const bool fits = static_cast<uint64_t>(label) < static_cast<uint64_t>(classes);
  return fits ? static_cast<int>(label) : kNoClass;
}

// Classes of kCount pixels, one below the other; those behind the first `count`, of which there is
// at least one, repeat the last, so that all loads are under way at once. Calls use(t, class).
template <int kCount, class Use>
__device__ inline void for_each_label(const Labels& labels, int image, int row, int column,
                                      int count, int classes, Use&& use) {
  const int64_t at =
      int64_t{image} * labels.stride_n + row * labels.stride_h + column * labels.stride_w;
  const auto read = [&](const auto* from) {
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      use(t, class_of(*from, labels.ignore_index, classes));
      if (t + 1 < count) from += labels.stride_h;
    }
  };
  switch (labels.type) {
    case LabelType::kInt64:
      return read(static_cast<const int64_t*>(labels.data) + at);
    case LabelType::kInt32:
      return read(static_cast<const int32_t*>(labels.data) + at);
    default:
      return read(static_cast<const uint8_t*>(labels.data) + at);
  }
}

__device__ inline float weight_of(const float* weight, int label) {
  if (label == kIgnored) return 0.0f;
  if (label == kNoClass) return nanf("");
  return weight ? weight[label] : 1.0f;
}

// The weights of all classes, added up by every warp.
__device__ inline float sum_of_weights(const float* weight, int classes) {
  if (!weight) return static_cast<float>(classes);
  float sum = 0.0f;
  for (int k = static_cast<int>(threadIdx.x) % kWarpLanes; k < classes; k += kWarpLanes) {
    sum += weight[k];
  }
  return warp_sum(sum);
}

}  // namespace dlv3p
