// Loss and classes of logits that are resized to the size of an image, as the kernels take them.
//
// All pixels of a row that have the same first source cell form an interval, and so do those of a
// column. They read the same two cells, so that a thread can mix these once for several of them.
#pragma once

#include <cstdint>

#include "../common/resize.h"

namespace dlv3p {

// One axis: cells of logits, pixels of the image.
struct PixelAxis : ResizeAxis<float, int> {
  float pixels_per_cell;  // 0 where all pixels read the first cell

  // The first pixel of a cell's interval; the number of pixels behind the last cell. The inverse of
  // the rule may be off where it rounds; the rule itself then settles it.
  DLV3P_HOST_DEVICE int begin_of(int cell) const {
    if (cell <= 0) return 0;
    if (cell >= in) return out;
    const float guess = (static_cast<float>(cell) + shift) * pixels_per_cell - shift;
    int begin = guess < static_cast<float>(out) ? static_cast<int>(guess) : out;
    while (begin > 0 && first(begin - 1) >= cell) --begin;
    while (begin < out && first(begin) < cell) ++begin;
    return begin;
  }
};

inline PixelAxis pixel_axis(int cells, int pixels, bool align_corners) {
  const auto axis = resize_axis<float>(cells, pixels, align_corners);
  return {axis, axis.scale > 0 ? 1 / axis.scale : 0.0f};
}

// Strides in elements; any, also for logits.
struct ResizedLogits {
  const void* data;
  int64_t stride_n;
  int64_t stride_c;
  int64_t stride_h;
  int64_t stride_w;
  int classes;
  PixelAxis rows;
  PixelAxis columns;
};

enum class LabelType : int { kInt64, kInt32, kUInt8 };

// The class of every pixel.
struct Labels {
  const void* data;
  LabelType type;
  int64_t stride_n;
  int64_t stride_h;
  int64_t stride_w;
  int64_t ignore_index;
};

constexpr int kUpsampleThreads = 128;
constexpr int kUpsampleRows = 4;  // rows of pixels for which a thread mixes two cells once

// How the pixels are cut into blocks: a thread has one column of the intervals of a row of cells.
struct ForwardTiling {
  int column_bits;   // a block is 2^column_bits columns of pixels wide
  int cells;         // rows of cells of a block
  int column_tiles;  // blocks of a row of cells
  int cell_tiles;    // blocks of a column of pixels
  int chunk;         // classes staged at a time
  int pitch;         // floats from a staged cell to the next
};

// How the gradients are cut into blocks, each with the pixels that reach them.
struct BackwardTiling {
  int cells;       // columns of cells of a block
  int cell_tiles;  // blocks of a row
  int band;        // rows of cells of a block
  int bands;       // blocks of a column
  int columns;     // of pixels that reach a block's cells, at most
  int chunk;       // classes of a block
  int pitch;       // floats from a staged cell, or the sums of a column, to the next
};

struct LossForward {
  Labels labels;
  const float* weight;  // (classes), nullptr: 1
  float label_smoothing;
  float* loss;       // (N, H, W), contiguous
  float* logsumexp;  // the same
};

struct LossBackward {
  Labels labels;
  const float* weight;
  float label_smoothing;
  const float* logsumexp;
  const float* grad;
  int64_t grad_n;
  int64_t grad_h;
  int64_t grad_w;
  void* result;  // strides of a dense map in the format of the logits
  int64_t result_n;
  int64_t result_c;
  int64_t result_h;
  int64_t result_w;
};

struct ArgmaxForward {
  void* index;  // (N, H, W), contiguous; uint8 or int64
  bool as_uint8;
  float* probability;  // the same
};

}  // namespace dlv3p
