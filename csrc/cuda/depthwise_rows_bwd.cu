// Launcher of both gradients of the depthwise convolution by rows.
#include <cstdint>
#include <type_traits>

#include "depthwise_launch.h"
#include "depthwise_rows_bwd.cuh"
#include "depthwise_rows_plan.h"
#include "reduce.h"

namespace dlv3p {
namespace {

// Channels of a thread: as many as registers allow for the weight gradient, K * K of each.
constexpr int lanes(int kernel) { return kernel == 3 ? 4 : kernel == 5 ? 2 : 1; }

// From the output's gradient to the input's: the convolution with the kernel turned around.
ConvAxis turned(const ConvAxis& axis) {
  return {axis.out, axis.in,       axis.kernel,
          1,        axis.dilation, axis.dilation * (axis.kernel - 1) - axis.before};
}

template <class T, int K, bool kBefore>
struct Launcher {
  static constexpr int V = lanes(K);
  static constexpr int kPerChunk = kChunkBytes / static_cast<int>(sizeof(T));
  static constexpr int kFloats = kPerChunk * static_cast<int>(sizeof(float));
  static constexpr RowsNeeds kNeeds{
      K, K, 1, V * static_cast<int>(sizeof(T)), 1, K * K * kFloats, K * kFloats};

  static RowsPlan plan(const DepthwiseBackward& p) {
    return RowsPlan(turned(p.rows), turned(p.columns), p.batch, p.channels, sizeof(T), kNeeds);
  }

  static void run(const Stream& stream, const DepthwiseBackward& p, const Tensor& input) {
    const RowsPlan plan = Launcher::plan(p);
    const int width = K * K + (p.grad_scale ? 2 : 0);
    const bool sums = p.grad_weight || p.grad_scale;
    const Tensor room = float_workspace(input, sums ? plan.parts() * width * p.channels : 0);
    float* parts = sums ? static_cast<float*>(room.mutable_data_ptr()) : nullptr;
    const RowsBackward q{plan.geometry(p.grad_map, p.grad_input_map),
                         p.grad,
                         p.input,
                         p.weight,
                         p.grad_input,
                         strides_of(p.grad_map),
                         strides_of(p.input_map),
                         strides_of(p.grad_input_map),
                         static_cast<int>(p.input_map.stride_h),
                         p.before,
                         width,
                         parts};
    stream.launch(depthwise_rows_bwd_kernel<T, K, V, kBefore>, plan.grid(), plan.block(),
                  plan.shared_bytes(), q);
    if (!sums) return;
    launch_reduce_sums(stream, input,
                       {parts,
                        plan.parts(),
                        p.channels,
                        width,
                        K * K,
                        true,
                        p.grad_weight,
                        {p.grad_scale, p.grad_shift}});
  }
};

// Calls `body` with the launcher of a call; returns false where there is none.
template <class T, class Body>
bool with_launcher(const DepthwiseBackward& p, Body&& body) {
  const bool is_square = p.rows.kernel == p.columns.kernel;
  if (!is_square || p.rows.stride != 1 || p.columns.stride != 1) return false;
  const bool is_plain = p.before.is_identity();
  switch (p.rows.kernel) {
    case 3:
      return is_plain ? body(Launcher<T, 3, false>()) : body(Launcher<T, 3, true>());
    case 5:
      return is_plain && body(Launcher<T, 5, false>());
    case 7:
      return is_plain && body(Launcher<T, 7, false>());
    default:
      return false;
  }
}

template <class T>
bool take(const DepthwiseBackward& p) {
  const auto fits = [](const DepthwiseMap& map, const void* data, const ConvAxis& rows,
                       const ConvAxis& columns) {
    return rows_fit(map, data, rows.out, columns.out, sizeof(T));
  };
  const ConvAxis rows = turned(p.rows), columns = turned(p.columns);
  const bool maps_fit = p.channels * sizeof(T) % kChunkBytes == 0 &&
                        fits(p.grad_map, p.grad, p.rows, p.columns) &&
                        fits(p.input_map, p.input, rows, columns) &&
                        (!p.grad_input || fits(p.grad_input_map, p.grad_input, rows, columns));
  return maps_fit && with_launcher<T>(p, [&](auto launcher) { return launcher.plan(p).fits(); });
}

}  // namespace

bool rows_take(const DepthwiseBackward& p, const Tensor& input) {
  bool takes = false;
  with_element_type(input, "depthwise_conv2d_backward", [&](auto* element) {
    takes = take<std::remove_pointer_t<decltype(element)>>(p);
  });
  return takes;
}

void launch_rows(const Stream& stream, const DepthwiseBackward& p, const Tensor& input) {
  with_element_type(input, "depthwise_conv2d_backward", [&](auto* element) {
    with_launcher<std::remove_pointer_t<decltype(element)>>(p, [&](auto launcher) {
      launcher.run(stream, p, input);
      return true;
    });
  });
}

}  // namespace dlv3p
