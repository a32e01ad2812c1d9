// Launcher of both gradients of the 3x3 depthwise convolution with stride 2.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "depthwise_launch.h"
#include "depthwise_rows_plan.h"
#include "depthwise_stride2.cuh"
#include "reduce.h"

namespace dlv3p {
namespace {

// Registers hold the weights and their gradients, 18 of each.
constexpr int kLaneChannels = 4;
constexpr int64_t kMostLanes = 16;

// The first square that has a pixel of the axis, and the one behind the last.
int first_square(const ConvAxis& axis) { return static_cast<int>(axis.before / kSquare); }
int end_square(const ConvAxis& axis) {
  return static_cast<int>((axis.in - 1 + axis.before) / kSquare) + 1;
}

bool has_shape(const ConvAxis& axis) {
  return axis.kernel == 3 && axis.stride == kSquare && axis.dilation == 1;
}

template <class T>
void launch(const Stream& stream, const DepthwiseBackward& p, const Tensor& input) {
  Stride2Backward q{};
  q.p = p;
  q.first_row = first_square(p.rows);
  q.rows = end_square(p.rows) - q.first_row;
  q.first_column = first_square(p.columns);
  q.columns = end_square(p.columns) - q.first_column;
  const int64_t packs = p.channels / kLaneChannels;
  const int64_t slabs = ceil_div(packs, kMostLanes);
  q.lanes = static_cast<int>(ceil_div(packs, slabs));
  q.slabs = static_cast<int>(ceil_div(packs, q.lanes));
  q.tiles = static_cast<int>(ceil_div(q.columns, kStride2Threads / q.lanes));
  const int64_t blocks = p.batch * q.tiles * q.slabs;
  const int64_t wanted = ceil_div(kWantedBlocks * device_limits().multiprocessors, blocks);
  const int64_t slices = std::clamp<int64_t>(wanted, 1, ceil_div(q.rows, kLeastSlice));
  q.slice_rows = static_cast<int>(ceil_div(q.rows, slices));
  q.slices = static_cast<int>(ceil_div(q.rows, q.slice_rows));
  q.width = kStride2Taps + (p.grad_scale ? 2 : 0);
  const bool sums = p.grad_weight || p.grad_scale;
  const int64_t parts = p.batch * q.tiles * q.slices;
  const Tensor room = float_workspace(input, sums ? parts * q.width * p.channels : 0);
  q.parts = sums ? static_cast<float*>(room.mutable_data_ptr()) : nullptr;
  const auto kernel = p.before.is_identity() ? depthwise_stride2_bwd_kernel<T, kLaneChannels, false>
                                             : depthwise_stride2_bwd_kernel<T, kLaneChannels, true>;
  stream.launch(kernel, dim3(static_cast<unsigned>(parts * q.slabs)), dim3(kStride2Threads), 0, q);
  if (!sums) return;
  launch_reduce_sums(stream, input,
                     {q.parts,
                      parts,
                      p.channels,
                      q.width,
                      kStride2Taps,
                      true,
                      p.grad_weight,
                      {p.grad_scale, p.grad_shift}});
}

}  // namespace

bool stride2_take(const DepthwiseBackward& p, const Tensor& input) {
  const int64_t bytes = input.element_size();
  return has_shape(p.rows) && has_shape(p.columns) && p.channels * bytes % kChunkBytes == 0 &&
         p.batch * p.channels <= std::numeric_limits<int32_t>::max() &&
         rows_fit(p.grad_map, p.grad, p.rows.out, p.columns.out, bytes) &&
         rows_fit(p.input_map, p.input, p.rows.in, p.columns.in, bytes) &&
         (!p.grad_input ||
          rows_fit(p.grad_input_map, p.grad_input, p.rows.in, p.columns.in, bytes));
}

void launch_stride2(const Stream& stream, const DepthwiseBackward& p, const Tensor& input) {
  with_element_type(input, "depthwise_conv2d_backward", [&](auto* element) {
    launch<std::remove_pointer_t<decltype(element)>>(stream, p, input);
  });
}

}  // namespace dlv3p
