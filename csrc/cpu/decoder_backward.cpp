// Gradients of the decoder's convolution on CPU: those by the encoder output are added up at its
// own resolution.
#include <optional>
#include <tuple>
#include <vector>

#include "../common/tensor.h"
#include "decoder_source.h"
#include "separable_backward.h"

namespace dlv3p {
namespace {

using Optional = std::optional<Tensor>;

std::tuple<Tensor, Tensor, Tensor> decoder_conv2d_backward_reduce_cpu(
    const Tensor& grad, const Tensor& input, const Tensor& low_level, bool align_corners,
    bool encoder_first, const Optional& low_scale, const Optional& low_shift,
    int64_t low_activation, const Tensor& dw_weight, const Optional& dw_bias, const Ints& padding,
    const Ints& dilation, const Optional& mid_mean, const Optional& mid_invstd,
    const Optional& mid_weight, const Optional& mid_bias, int64_t mid_activation,
    const Tensor& pw_weight, bool need_weight, bool need_middle) {
  const DecoderSource decoder(input, low_level, align_corners, encoder_first, low_scale, low_shift,
                              low_activation);
  const Contiguous bias(dw_bias);
  const SeparableBackward b = separable_backward_of(
      decoder.source(), decoder.axes(dw_weight, dw_bias, padding, dilation), dw_weight, bias,
      {mid_mean, mid_invstd, mid_weight, mid_bias, mid_activation}, pw_weight, grad);
  const PointwiseGradients found = separable_backward_reduce(b, need_weight, need_middle, false);
  return {found.weight, found.mid_bias, found.mid_weight};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> decoder_conv2d_backward_apply_cpu(
    const Tensor& grad, const Tensor& input, const Tensor& low_level, bool align_corners,
    bool encoder_first, const Optional& low_scale, const Optional& low_shift,
    int64_t low_activation, const Tensor& dw_weight, const Optional& dw_bias, const Ints& padding,
    const Ints& dilation, const Optional& mid_mean, const Optional& mid_invstd,
    const Optional& mid_weight, const Optional& mid_bias, int64_t mid_activation,
    const Tensor& pw_weight, const Optional& mean_grad, const Optional& mean_product,
    bool need_input, bool need_low_level, bool need_weight) {
  const DecoderSource decoder(input, low_level, align_corners, encoder_first, low_scale, low_shift,
                              low_activation);
  const Contiguous bias(dw_bias);
  const SeparableBackward b = separable_backward_of(
      decoder.source(), decoder.axes(dw_weight, dw_bias, padding, dilation), dw_weight, bias,
      {mid_mean, mid_invstd, mid_weight, mid_bias, mid_activation}, pw_weight, grad);
  std::vector<MapGradient> wanted;
  wanted.push_back(wanted_of(input, need_input, false));
  wanted.push_back(wanted_of(low_level, need_low_level, need_low_level && low_scale));
  const Tensor by_weight =
      separable_backward_apply(b, std::nullopt, mean_grad, mean_product, need_weight, wanted);
  return {wanted[0].result(), wanted[1].result(), by_weight, wanted[1].scale, wanted[1].shift};
}

STABLE_TORCH_LIBRARY_IMPL(dlv3p, CPU, m) {
  m.impl("decoder_conv2d_backward_reduce", TORCH_BOX(&decoder_conv2d_backward_reduce_cpu));
  m.impl("decoder_conv2d_backward_apply", TORCH_BOX(&decoder_conv2d_backward_apply_cpu));
}

}  // namespace
}  // namespace dlv3p
