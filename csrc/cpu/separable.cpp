// Separable convolution on CPU: of one map, through a prologue.
#include <optional>
#include <tuple>

#include "../common/tensor.h"
#include "channel_affine.h"
#include "gather_launch.h"
#include "separable_forward.h"

namespace dlv3p {
namespace {

std::tuple<Tensor, Tensor, Tensor> separable_conv2d_fused_cpu(
    const Tensor& input, const Tensor& dw_weight, const std::optional<Tensor>& dw_bias,
    const Ints& stride, const Ints& padding, const Ints& dilation,
    const std::optional<Tensor>& in_scale, const std::optional<Tensor>& in_shift,
    int64_t in_activation, const std::optional<Tensor>& mid_scale,
    const std::optional<Tensor>& mid_shift, int64_t mid_activation, const Tensor& pw_weight,
    const std::optional<Tensor>& pw_bias, const std::optional<Tensor>& out_scale,
    const std::optional<Tensor>& out_shift, int64_t out_activation,
    const std::optional<Tensor>& residual, bool statistics) {
  STD_TORCH_CHECK(input.numel() > 0, "separable_conv2d_fused: the input is empty");
  const Axes axes = axes_of(input, dw_weight, stride, padding, dilation);
  check_bias(dw_bias, input);
  const ChannelAffine prologue(in_scale, in_shift, in_activation, input);
  return separable_forward(
      source_of(input, prologue.pointwise()), input, axes,
      {dw_weight, dw_bias, mid_scale, mid_shift, mid_activation, pw_weight},
      {pw_bias, out_scale, out_shift, activation_of(out_activation), residual, statistics});
}

STABLE_TORCH_LIBRARY_IMPL(dlv3p, CPU, m) {
  m.impl("separable_conv2d_fused", TORCH_BOX(&separable_conv2d_fused_cpu));
}

}  // namespace
}  // namespace dlv3p
