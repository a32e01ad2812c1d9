// Forward of the decoder's convolution on CPU: a separable convolution of two maps of which neither
// the resized one nor both side by side exist.
#include <optional>
#include <tuple>
#include <vector>

#include "../common/tensor.h"
#include "decoder_source.h"
#include "gather_launch.h"
#include "gather_sums.h"
#include "separable_forward.h"

namespace dlv3p {
namespace {

// Each map's channels are measured by themselves; the result is forgotten.
std::tuple<Tensor, Tensor> decoder_conv2d_statistics_cpu(
    const Tensor& input, const Tensor& low_level, bool align_corners, bool encoder_first,
    const std::optional<Tensor>& low_scale, const std::optional<Tensor>& low_shift,
    int64_t low_activation, const Tensor& dw_weight, const std::optional<Tensor>& dw_bias,
    const Ints& padding, const Ints& dilation) {
  const DecoderSource decoder(input, low_level, align_corners, encoder_first, low_scale, low_shift,
                              low_activation);
  const SeparableSource& source = decoder.source();
  const Axes axes = decoder.axes(dw_weight, dw_bias, padding, dilation);
  const Tensor filters = torch::stable::contiguous(dw_weight);
  const Contiguous bias(dw_bias);
  const auto vector = [&] {
    return torch::stable::empty({source.channels}, sum_type(source.element));
  };
  const MeanAndVariance all{vector(), vector()};
  for (const SourceMap& map : source.maps) {
    Gather g = gather_of_map(source, map, filters, bias.data(), axes);
    g.destination.width = axes.columns.out;
    const GatherPlanner planner = plan(g, source.element, Direction::kForward, axes);
    std::vector<double> moments(g.groups * 2 * g.channels);
    g.moments = moments.data();
    run(g, source.element);
    const MeanAndVariance part = merge_moments(g, source.element);
    const auto put = [&](const Tensor& from, const Tensor& to) {
      Tensor channels = to;
      channels = torch::stable::narrow(channels, 0, map.first_channel, g.channels);
      torch::stable::copy_(channels, from);
    };
    put(part.mean, all.mean);
    put(part.variance, all.variance);
  }
  return {all.mean, all.variance};
}

std::tuple<Tensor, Tensor, Tensor> decoder_conv2d_fused_cpu(
    const Tensor& input, const Tensor& low_level, bool align_corners, bool encoder_first,
    const std::optional<Tensor>& low_scale, const std::optional<Tensor>& low_shift,
    int64_t low_activation, const Tensor& dw_weight, const std::optional<Tensor>& dw_bias,
    const Ints& padding, const Ints& dilation, const std::optional<Tensor>& mid_scale,
    const std::optional<Tensor>& mid_shift, int64_t mid_activation, const Tensor& pw_weight,
    const std::optional<Tensor>& pw_bias, const std::optional<Tensor>& out_scale,
    const std::optional<Tensor>& out_shift, int64_t out_activation, bool statistics) {
  const DecoderSource decoder(input, low_level, align_corners, encoder_first, low_scale, low_shift,
                              low_activation);
  return separable_forward(
      decoder.source(), low_level, decoder.axes(dw_weight, dw_bias, padding, dilation),
      {dw_weight, dw_bias, mid_scale, mid_shift, mid_activation, pw_weight},
      {pw_bias, out_scale, out_shift, activation_of(out_activation), std::nullopt, statistics});
}

STABLE_TORCH_LIBRARY_IMPL(dlv3p, CPU, m) {
  m.impl("decoder_conv2d_statistics", TORCH_BOX(&decoder_conv2d_statistics_cpu));
  m.impl("decoder_conv2d_fused", TORCH_BOX(&decoder_conv2d_fused_cpu));
}

}  // namespace
}  // namespace dlv3p
