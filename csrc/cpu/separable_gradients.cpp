// Gradients of a separable convolution of stride 1 on CPU, piece by piece: of one map, through a
// prologue.
#include <optional>
#include <tuple>
#include <vector>

#include "../common/tensor.h"
#include "channel_affine.h"
#include "gather_launch.h"
#include "separable_backward.h"

namespace dlv3p {
namespace {

using Optional = std::optional<Tensor>;

std::tuple<Tensor, Tensor, Tensor, Tensor> separable_conv2d_backward_reduce_cpu(
    const Tensor& grad, const Tensor& input, const Tensor& dw_weight, const Optional& dw_bias,
    const Ints& stride, const Ints& padding, const Ints& dilation, const Optional& in_scale,
    const Optional& in_shift, int64_t in_activation, const Optional& mid_mean,
    const Optional& mid_invstd, const Optional& mid_weight, const Optional& mid_bias,
    int64_t mid_activation, const Tensor& pw_weight, bool need_weight, bool need_middle,
    bool keep) {
  const ChannelAffine prologue(in_scale, in_shift, in_activation, input);
  const SeparableSource source = source_of(input, prologue.pointwise());
  const Contiguous bias(dw_bias);
  const SeparableBackward b = separable_backward_of(
      source, axes_of(input, dw_weight, stride, padding, dilation), dw_weight, bias,
      {mid_mean, mid_invstd, mid_weight, mid_bias, mid_activation}, pw_weight, grad);
  const PointwiseGradients found = separable_backward_reduce(b, need_weight, need_middle, keep);
  return {found.weight, found.mid_bias, found.mid_weight, found.activated};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> separable_conv2d_backward_apply_cpu(
    const Tensor& grad, const Tensor& input, const Tensor& dw_weight, const Optional& dw_bias,
    const Ints& stride, const Ints& padding, const Ints& dilation, const Optional& in_scale,
    const Optional& in_shift, int64_t in_activation, const Optional& mid_mean,
    const Optional& mid_invstd, const Optional& mid_weight, const Optional& mid_bias,
    int64_t mid_activation, const Tensor& pw_weight, const Optional& activated,
    const Optional& mean_grad, const Optional& mean_product, bool need_input, bool need_weight) {
  const ChannelAffine prologue(in_scale, in_shift, in_activation, input);
  const SeparableSource source = source_of(input, prologue.pointwise());
  const Contiguous bias(dw_bias);
  const SeparableBackward b = separable_backward_of(
      source, axes_of(input, dw_weight, stride, padding, dilation), dw_weight, bias,
      {mid_mean, mid_invstd, mid_weight, mid_bias, mid_activation}, pw_weight, grad);
  std::vector<MapGradient> wanted{wanted_of(input, need_input, need_input && in_scale)};
  const Tensor by_weight =
      separable_backward_apply(b, activated, mean_grad, mean_product, need_weight, wanted);
  return {wanted[0].result(), by_weight, wanted[0].scale, wanted[0].shift};
}

STABLE_TORCH_LIBRARY_IMPL(dlv3p, CPU, m) {
  m.impl("separable_conv2d_backward_reduce", TORCH_BOX(&separable_conv2d_backward_reduce_cpu));
  m.impl("separable_conv2d_backward_apply", TORCH_BOX(&separable_conv2d_backward_apply_cpu));
}

}  // namespace
}  // namespace dlv3p
