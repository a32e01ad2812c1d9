// The one loop that serves forward, input gradient and weight gradient of a depthwise convolution.
//
// A depthwise convolution and its input gradient are both gathers: every destination pixel sums
// weight[tap] * source[pixel(tap)] over the taps that fall inside the source. Only the map from
// destination to source differs, and it is separable, so it is worked out once per axis (the plan).
// The weight gradient visits the same (destination, tap) pairs and sums other[destination] *
// source[pixel(tap)] per tap, so it rides along with the input gradient.
//
// Everything here is plain data: the loop is compiled once per instruction set (gather_kernel.cpp)
// and must not share inline functions or templates with code compiled for other ones.
#pragma once

#include <cstdint>

#include "../common/activation_code.h"
#include "upsample_axis.h"

namespace dlv3p {

enum class Element : int { kFloat32, kBFloat16, kFloat16, kFloat64 };
inline constexpr int kElementKinds = 4;

// destination += weight[k] * source[index] along one axis.
struct AxisTap {
  int64_t k;
  int64_t index;
};

// Destination columns first, first + step, ... (count of them) that see the same taps, each
// `source_step` columns further on; the taps of the first one are taps[tap_begin, tap_end).
struct ColumnRun {
  int64_t first;
  int64_t step;
  int64_t count;
  int64_t source_step;
  int64_t tap_begin;
  int64_t tap_end;
};

struct RowTaps {
  int64_t row;
  int64_t tap_begin;
  int64_t tap_end;
};

// Rows stand in an order in which neighbours share source rows: with dilation d that is
// 0, d, 2d, ..., 1, d + 1, ... (or in plain order, where all source rows are held anyway). A band
// is a piece of that order; bands are independent work.
struct ColumnRuns {
  const ColumnRun* runs;
  int64_t count;
};

struct GatherPlan {
  const RowTaps* rows;
  const AxisTap* row_taps;
  const int64_t* band_begin;  // bands + 1 positions in `rows`
  int64_t bands;
  // Exact runs name only taps inside the source. Merged ones are fewer and longer, because taps may
  // also read the zeros that held source rows have on both sides, where that is little more work.
  ColumnRuns exact;
  ColumnRuns merged;
  const AxisTap* column_taps;
  int64_t held_left;   // zeros in front of a held source row
  int64_t held_width;  // with the zeros on both sides
};

// A tensor (N, C, H, W) in memory, strides in elements. Channels or columns are adjacent.
struct Map {
  void* data;
  int64_t stride_n;
  int64_t stride_c;
  int64_t stride_h;
  int64_t stride_w;
  int64_t width;
  bool channels_adjacent;
};

// activation(x * scale + shift); scale and shift are (padded_channels) in the accumulation type.
struct Pointwise {
  const void* scale;  // nullptr: x as it is
  const void* shift;
  Activation activation;
};

// A map that is read as bilinear interpolation would make it of another one. It has the size that
// the plan knows; `Map` then says where the other one lies, but for the width.
struct Resize {
  UpsampleAxis rows;     // from the row that the plan calls 0
  UpsampleAxis columns;  // of nothing, where the map is there as it is
  bool is_set() const { return columns.out != 0; }
};

struct Gather {
  GatherPlan plan;
  Map source;
  Resize source_resize;
  Map destination;      // data == nullptr: not wanted
  Map other;            // data == nullptr: not needed
  Resize other_resize;  // of `other`, and backwards of the destination
  Pointwise on_source;  // source pixels are read through it; what lies beside them stays zero
  Pointwise on_other;   // the convolution read `other` through it, so gradients go back through it
  Pointwise on_result;  // applied to what the destination gets
  const void* weight;   // (channels, taps), taps = kernel_height * kernel_width
  const void* bias;     // (channels), nullptr: none
  void* packed_weight;  // (taps + 1, padded_channels) in the accumulation type, last row: bias
  bool weight_is_finite;
  // Sums of each group, in the accumulation type; nullptr: not wanted.
  void* weight_gradients;  // (groups, taps, channels)
  void* affine_gradients;  // (groups, 2, channels): those of the scale and the shift of on_other
  // Of a resized destination, which one task writes alone: its cells so far, in the accumulation
  // type, (blocks, rows, block, columns) with channels in vectors. Begun with zeros and, in the
  // end, written to the destination.
  void* cells;
  bool begins;
  bool ends;
  // (groups, 2, channels): mean of the destination, sum of squared differences to it; or nullptr.
  double* moments;
  int64_t batch;
  int64_t channels;
  int64_t padded_channels;  // channels rounded up to whole vectors
  int64_t kernel_height;
  int64_t kernel_width;
  // A task is one block of channels and one group of the batch * bands pieces of the map.
  int64_t block;  // channels per task, a multiple of the vector length
  int64_t groups;
  int64_t held_rows;  // source rows held at a time, kernel_height at least
};

struct GatherCode {
  const char* name;
  int vector_bytes;
  // By Element: fills packed_weight and weight_is_finite; bytes of scratch memory that a task
  // needs; the task itself.
  void (*pack_weight[kElementKinds])(Gather&);
  int64_t (*scratch_bytes[kElementKinds])(const Gather&);
  void (*run_task[kElementKinds])(const Gather&, int64_t task, void* scratch);
};

}  // namespace dlv3p
