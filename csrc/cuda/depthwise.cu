// Depthwise convolution on CUDA: from tensors to the kernel that fits, and registration.
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "depthwise.cuh"
#include "depthwise_launch.h"
#include "depthwise_planes.h"
#include "norm.h"

namespace dlv3p {
namespace {

using Ints = std::vector<int64_t>;

DepthwiseMap map_of(const Tensor& t) {
  return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

struct Axes {
  ConvAxis rows;
  ConvAxis columns;
};

Axes axes_of(const Tensor& input, const Tensor& weight, const Ints& stride, const Ints& padding,
             const Ints& dilation) {
  STD_TORCH_CHECK(weight.size(0) == input.size(1) && weight.size(1) == 1,
                  "depthwise_conv2d: the CUDA kernel takes one filter per channel");
  const auto axis = [&](int64_t d, int64_t before, int64_t after) {
    const int64_t in = input.size(2 + d);
    const int64_t kernel = weight.size(2 + d);
    const int64_t out = conv_output_size(in, before, after, kernel, stride[d], dilation[d]);
    return ConvAxis{in, out, kernel, stride[d], dilation[d], before};
  };
  return {axis(0, padding[2], padding[3]), axis(1, padding[0], padding[1])};
}

// A vector as kernels read it; kept alive while they are launched.
class Vector {
 public:
  explicit Vector(const std::optional<Tensor>& t) {
    if (t) dense_ = torch::stable::contiguous(*t);
  }
  const void* data() const { return dense_ ? dense_->const_data_ptr() : nullptr; }

 private:
  std::optional<Tensor> dense_;
};

// A ChannelAffine of tensors.
class Affine {
 public:
  Affine(const std::optional<Tensor>& scale, const std::optional<Tensor>& shift, int64_t activation)
      : scale_(scale), shift_(shift), activation_(static_cast<Activation>(activation)) {}

  ChannelAffine params() const {
    return {static_cast<const float*>(scale_.data()), static_cast<const float*>(shift_.data()),
            activation_};
  }
  bool has_scale() const { return scale_.data() != nullptr; }

 private:
  Vector scale_;
  Vector shift_;
  Activation activation_;
};

// Neighbours in memory are then neighbours in both.
Tensor in_format_of(const Tensor& t, const Tensor& like) {
  const MemoryFormat format = format_of(like);
  return format_of(t) == format ? t : torch::stable::contiguous(t, format);
}

Tensor float_vector(const Tensor& like, int64_t size) {
  return torch::stable::empty({size}, ScalarType::Float, std::nullopt, like.device(), std::nullopt,
                              std::nullopt);
}

float* floats(const Tensor& t) {
  return t.numel() > 0 ? static_cast<float*>(t.mutable_data_ptr()) : nullptr;
}

using Forward = std::tuple<Tensor, Tensor, Tensor>;

Forward forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                const Ints& stride, const Ints& padding, const Ints& dilation, const Affine& before,
                const Affine& behind, bool statistics) {
  const Axes axes = axes_of(input, weight, stride, padding, dilation);
  const Stream stream(input);
  const Tensor output =
      empty_in_format_of(input, input.size(0), input.size(1), axes.rows.out, axes.columns.out);
  if (output.numel() == 0 && statistics) {
    auto [mean, var] = batch_norm_stats(output);
    return {output, mean, var};
  }
  const int64_t vector = statistics ? input.size(1) : 0;
  const Tensor mean = float_vector(input, vector), var = float_vector(input, vector);
  if (output.numel() == 0) return {output, mean, var};
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
  if (rows_take(p, input)) {
    launch_rows(stream, p, input);
    return {output, mean, var};
  }
  if (planes_take(p, input)) {
    launch_planes(stream, p, input);
  } else {
    launch_any(stream, p, input);
  }
  if (!statistics) return {output, mean, var};
  auto [mean_after, var_after] = batch_norm_stats(output);
  return {output, mean_after, var_after};
}

using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Backward backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                  const Ints& stride, const Ints& padding, const Ints& dilation,
                  const Affine& before, bool need_input, bool need_weight) {
  const Axes axes = axes_of(input, weight, stride, padding, dilation);
  const Stream stream(input);
  const int64_t channels = input.size(1);
  const Tensor grad = in_format_of(grad_output, input);
  const Tensor grad_input =
      need_input ? empty_in_format_of(input, input.size(0), channels, input.size(2), input.size(3))
                 : torch::stable::empty({0}, input.scalar_type(), std::nullopt, input.device(),
                                        std::nullopt, std::nullopt);
  const Tensor grad_weight = torch::stable::empty(
      need_weight ? std::vector<int64_t>{channels, 1, weight.size(2), weight.size(3)}
                  : std::vector<int64_t>{0},
      input.scalar_type(), std::nullopt, input.device(), std::nullopt, std::nullopt);
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
  if (rows_take(p, input)) {
    launch_rows(stream, p, input);
  } else if (stride2_take(p, input)) {
    launch_stride2(stream, p, input);
  } else if (planes_take(p, input)) {
    launch_planes(stream, p, input);
  } else {
    launch_any(stream, p, input);
  }
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
