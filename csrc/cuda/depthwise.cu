// Depthwise convolution on CUDA: from tensors to the kernel that fits, and registration.
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "depthwise_arguments.h"
#include "depthwise_launch.h"
#include "depthwise_planes.h"
#include "norm.h"

namespace dlv3p {

bool launch_depthwise(const Stream& stream, const DepthwiseForward& p, const Tensor& like) {
  if (rows_take(p, like)) {
    launch_rows(stream, p, like);
    return true;
  }
  if (planes_take(p, like)) {
    launch_planes(stream, p, like);
  } else {
    launch_any(stream, p, like);
  }
  return false;
}

void launch_depthwise(const Stream& stream, const DepthwiseBackward& p, const Tensor& like) {
  if (rows_take(p, like)) {
    launch_rows(stream, p, like);
  } else if (stride2_take(p, like)) {
    launch_stride2(stream, p, like);
  } else if (planes_take(p, like)) {
    launch_planes(stream, p, like);
  } else {
    launch_any(stream, p, like);
  }
}

namespace {

void check_filters(const Tensor& input, const Tensor& weight) {
  STD_TORCH_CHECK(weight.size(0) == input.size(1) && weight.size(1) == 1,
                  "depthwise_conv2d: the CUDA kernel takes one filter per channel");
}

using Forward = std::tuple<Tensor, Tensor, Tensor>;

Forward forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                const Ints& stride, const Ints& padding, const Ints& dilation, const Affine& before,
                const Affine& behind, bool statistics) {
  check_filters(input, weight);
  const Axes axes = axes_of(input, weight, stride, padding, dilation);
  const Stream stream(input);
  const Tensor output =
      empty_in_format_of(input, input.size(0), input.size(1), axes.rows.out, axes.columns.out);
  const int64_t vector = statistics ? input.size(1) : 0;
  const Tensor mean = float_vector(input, vector), var = float_vector(input, vector);
  if (output.numel() == 0) {
    if (statistics) launch_batch_norm_stats(stream, output, floats(mean), floats(var));
    return {output, mean, var};
  }
  const Vector filters(weight), shifts(bias);
  DepthwiseForward p{input.const_data_ptr(),
                     filters.data(),
                     shifts.data(),
                     output.mutable_data_ptr(),
                     map_of(input),
                     map_of(output),
                     input.size(0),
                     input.size(1),
                     axes.rows,
                     axes.columns,
                     before.params(),
                     behind.params(),
                     floats(mean),
                     floats(var)};
  const bool measured = launch_depthwise(stream, p, input);
  if (statistics && !measured) {
    launch_batch_norm_stats(stream, output, floats(mean), floats(var));
  }
  return {output, mean, var};
}

using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Backward backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                  const Ints& stride, const Ints& padding, const Ints& dilation,
                  const Affine& before, bool need_input, bool need_weight) {
  check_filters(input, weight);
  const Axes axes = axes_of(input, weight, stride, padding, dilation);
  const Stream stream(input);
  const int64_t channels = input.size(1);
  const Tensor grad = in_format_of(grad_output, input);
  const Tensor grad_input =
      need_input ? empty_in_format_of(input, input.size(0), channels, input.size(2), input.size(3))
                 : empty_in_dtype_of(input, {0});
  const Tensor grad_weight = empty_in_dtype_of(
      input, need_weight ? Ints{channels, 1, weight.size(2), weight.size(3)} : Ints{0});
  const int64_t vector = need_input && before.has_scale() ? channels : 0;
  const Tensor grad_scale = float_vector(input, vector), grad_shift = float_vector(input, vector);
  if (input.numel() == 0 || grad.numel() == 0) {
    for (const Tensor& t : {grad_input, grad_weight, grad_scale, grad_shift}) {
      if (t.numel() > 0) torch::stable::zero_(const_cast<Tensor&>(t));
    }
    return {grad_input, grad_weight, grad_scale, grad_shift};
  }
  const Vector filters(weight);
  const DepthwiseBackward p{grad.const_data_ptr(),
                            input.const_data_ptr(),
                            filters.data(),
                            need_input ? grad_input.mutable_data_ptr() : nullptr,
                            need_weight ? grad_weight.mutable_data_ptr() : nullptr,
                            floats(grad_scale),
                            floats(grad_shift),
                            map_of(grad),
                            map_of(input),
                            need_input ? map_of(grad_input) : DepthwiseMap{},
                            input.size(0),
                            channels,
                            axes.rows,
                            axes.columns,
                            before.params()};
  launch_depthwise(stream, p, input);
  return {grad_input, grad_weight, grad_scale, grad_shift};
}

Tensor depthwise_conv2d_cuda(const Tensor& input, const Tensor& weight,
                             const std::optional<Tensor>& bias, const Ints& stride,
                             const Ints& padding, const Ints& dilation) {
  const Affine none(std::nullopt, std::nullopt, 0);
  return std::get<0>(forward(input, weight, bias, stride, padding, dilation, none, none, false));
}

Forward depthwise_conv2d_fused_cuda(const Tensor& input, const Tensor& weight,
                                    const std::optional<Tensor>& bias, const Ints& stride,
                                    const Ints& padding, const Ints& dilation,
                                    const std::optional<Tensor>& in_scale,
                                    const std::optional<Tensor>& in_shift, int64_t in_activation,
                                    const std::optional<Tensor>& out_scale,
                                    const std::optional<Tensor>& out_shift, int64_t out_activation,
                                    bool statistics) {
  const Affine before(in_scale, in_shift, in_activation);
  const Affine behind(out_scale, out_shift, out_activation);
  return forward(input, weight, bias, stride, padding, dilation, before, behind, statistics);
}

std::tuple<Tensor, Tensor> depthwise_conv2d_backward_cuda(const Tensor& grad_output,
                                                          const Tensor& input, const Tensor& weight,
                                                          const Ints& stride, const Ints& padding,
                                                          const Ints& dilation, bool need_input,
                                                          bool need_weight) {
  const Affine none(std::nullopt, std::nullopt, 0);
  auto [grad_input, grad_weight, grad_scale, grad_shift] = backward(
      grad_output, input, weight, stride, padding, dilation, none, need_input, need_weight);
  return {grad_input, grad_weight};
}

Backward depthwise_conv2d_fused_backward_cuda(const Tensor& grad_output, const Tensor& input,
                                              const Tensor& weight, const Ints& stride,
                                              const Ints& padding, const Ints& dilation,
                                              const std::optional<Tensor>& in_scale,
                                              const std::optional<Tensor>& in_shift,
                                              int64_t in_activation, bool need_input,
                                              bool need_weight) {
  const Affine before(in_scale, in_shift, in_activation);
  return backward(grad_output, input, weight, stride, padding, dilation, before, need_input,
                  need_weight);
}

DLV3P_CUDA_LIBRARY(m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&depthwise_conv2d_cuda));
  m.impl("depthwise_conv2d_backward", TORCH_BOX(&depthwise_conv2d_backward_cuda));
  m.impl("depthwise_conv2d_fused", TORCH_BOX(&depthwise_conv2d_fused_cuda));
  m.impl("depthwise_conv2d_fused_backward", TORCH_BOX(&depthwise_conv2d_fused_backward_cuda));
}

}  // namespace
}  // namespace dlv3p
