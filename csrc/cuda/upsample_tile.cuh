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

__device__ inline Shares shares_of(const PixelAxis& axis, int pixel, int cell) {
  const float second = axis.weight_second(pixel, cell);
  return {1.0f - second, second};
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

// Calls body(fast, slow) for all pairs, neighbouring threads with neighbouring `fast`.
template <class Body>
__device__ inline void for_each_pair(int fast_count, int slow_count, Body&& body) {
  const int bits = fast_count >= kWarpLanes ? 5 : 32 - __clz(fast_count - 1);
  const int thread = static_cast<int>(threadIdx.x);
  const int lanes = 1 << bits;
  for (int slow = thread >> bits; slow < slow_count; slow += kUpsampleThreads >> bits) {
    for (int fast = thread & (lanes - 1); fast < fast_count; fast += lanes) body(fast, slow);
  }
}

// Some classes of a rectangle of an image's cells.
struct CellRange {
  int row;
  int column;
  int columns;
  int first_class;
  int classes;
};

// Copies `rows` rows of cells as floats, the classes of a cell side by side, `pitch` floats from a
// cell to the next.
template <class T>
__device__ inline void stage_cells(float* staged, const ResizedLogits& u, int64_t image,
                                   const CellRange& range, int rows, int pitch) {
  const T* from = static_cast<const T*>(u.data) + image * u.stride_n + range.row * u.stride_h +
                  range.column * u.stride_w + range.first_class * u.stride_c;
  const bool by_class = u.stride_c == 1;
  for (int row = 0; row < rows; ++row, from += u.stride_h, staged += range.columns * pitch) {
    if (by_class) {
      for_each_pair(range.classes, range.columns, [&](int k, int column) {
        staged[column * pitch + k] = to_float(from[column * u.stride_w + k]);
      });
    } else {
      for_each_pair(range.columns, range.classes, [&](int column, int k) {
        staged[column * pitch + k] = to_float(from[column * u.stride_w + k * u.stride_c]);
      });
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

__device__ inline int label_of(const Labels& labels, int64_t image, int row, int column,
                               int classes) {
  const int64_t at = image * labels.stride_n + row * labels.stride_h + column * labels.stride_w;
  int64_t label;
  if (labels.type == LabelType::kInt64) {
    label = static_cast<const int64_t*>(labels.data)[at];
  } else if (labels.type == LabelType::kInt32) {
    label = static_cast<const int32_t*>(labels.data)[at];
  } else {
    label = static_cast<const uint8_t*>(labels.data)[at];
  }
  if (label == labels.ignore_index) return kIgnored;
  return label >= 0 && label < classes ? static_cast<int>(label) : kNoClass;
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
