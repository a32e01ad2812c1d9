// Depthwise convolution on CPU with what stands before and behind it: the gather of gather.h reads
// through the prologue, and does the epilogue or gathers the statistics before results are written.
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/tensor.h"
#include "channel_affine.h"
#include "gather.h"
#include "gather_launch.h"
#include "gather_plan.h"
#include "gather_sums.h"

namespace dlv3p {
namespace {

std::tuple<Tensor, Tensor, Tensor> depthwise_conv2d_fused_cpu(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    const Ints& stride, const Ints& padding, const Ints& dilation,
    const std::optional<Tensor>& in_scale, const std::optional<Tensor>& in_shift,
    int64_t in_activation, const std::optional<Tensor>& out_scale,
    const std::optional<Tensor>& out_shift, int64_t out_activation, bool statistics) {
  const Axes axes = axes_of(input, weight, stride, padding, dilation);
  check_bias(bias, input);
  const ChannelAffine prologue(in_scale, in_shift, in_activation, input);
  const ChannelAffine epilogue(out_scale, out_shift, out_activation, input);
  STD_TORCH_CHECK(!statistics || epilogue.is_identity(),
                  "depthwise_conv2d_fused: statistics are those of a result without epilogue");
  const Element element = element_of(input);
  const Tensor output = new_map(input, axes.rows.out, axes.columns.out);
  const auto vector = [&] {
    return torch::stable::empty({statistics ? input.size(1) : 0}, sum_type(element));
  };
  if (output.numel() == 0) {
    Tensor mean = vector();
    Tensor variance = vector();
    torch::stable::fill_(mean, std::numeric_limits<double>::quiet_NaN());
    torch::stable::fill_(variance, std::numeric_limits<double>::quiet_NaN());
    return {output, mean, variance};
  }
  const Tensor source = walkable_form_of(input);
  const Tensor filters = torch::stable::contiguous(weight);
  Gather g = gather_of(source, filters, axes);
  g.destination = map_of(output);
  g.on_source = prologue.pointwise();
  g.on_result = epilogue.pointwise();
  const Contiguous shifts(bias);
  g.bias = shifts.data();
  const GatherPlanner planner = plan(g, element, Direction::kForward, axes);
  std::vector<double> moments;
  if (statistics) {
    moments.resize(g.groups * 2 * g.channels);
    g.moments = moments.data();
  }
  run(g, element);
  if (!statistics) return {output, vector(), vector()};
  const MeanAndVariance merged = merge_moments(g, element);
  return {output, merged.mean, merged.variance};
}

// The same without a destination: the result is measured and forgotten.
std::tuple<Tensor, Tensor> depthwise_conv2d_statistics_cpu(
    const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
    const Ints& stride, const Ints& padding, const Ints& dilation,
    const std::optional<Tensor>& in_scale, const std::optional<Tensor>& in_shift,
    int64_t in_activation) {
  STD_TORCH_CHECK(input.numel() > 0, "depthwise_conv2d_statistics: the input is empty");
  const Axes axes = axes_of(input, weight, stride, padding, dilation);
  check_bias(bias, input);
  const ChannelAffine prologue(in_scale, in_shift, in_activation, input);
  const Element element = element_of(input);
  const Tensor source = walkable_form_of(input);
  const Tensor filters = torch::stable::contiguous(weight);
  Gather g = gather_of(source, filters, axes);
  g.destination.width = axes.columns.out;
  g.on_source = prologue.pointwise();
  const Contiguous shifts(bias);
  g.bias = shifts.data();
  const GatherPlanner planner = plan(g, element, Direction::kForward, axes);
  std::vector<double> moments(g.groups * 2 * g.channels);
  g.moments = moments.data();
  run(g, element);
  const MeanAndVariance merged = merge_moments(g, element);
  return {merged.mean, merged.variance};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> depthwise_conv2d_fused_backward_cpu(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Ints& stride,
    const Ints& padding, const Ints& dilation, const std::optional<Tensor>& in_scale,
    const std::optional<Tensor>& in_shift, int64_t in_activation, bool need_input,
    bool need_weight) {
  const Axes axes = axes_of(input, weight, stride, padding, dilation);
  check_grad_output(grad_output, input, axes);
  const ChannelAffine prologue(in_scale, in_shift, in_activation, input);
  const Element element = element_of(input);
  const bool need_affine = need_input && in_scale;
  const auto nothing = [](ScalarType type) { return torch::stable::empty({0}, type); };
  Tensor grad_input =
      need_input ? new_map(input, input.size(2), input.size(3)) : nothing(input.scalar_type());
  Tensor grad_weight = nothing(input.scalar_type());
  Tensor grad_scale = nothing(sum_type(element));
  Tensor grad_shift = nothing(sum_type(element));
  const Tensor filters = torch::stable::contiguous(weight);
  if (input.numel() == 0) {
    if (need_weight) grad_weight = torch::stable::new_zeros(filters, filters.sizes());
    if (need_affine) {
      grad_scale = torch::stable::new_zeros(*in_scale, in_scale->sizes());
      grad_shift = torch::stable::new_zeros(*in_shift, in_shift->sizes());
    }
  } else if (need_input || need_weight) {
    const Tensor source = walkable_form_of(grad_output);
    const Tensor other = walkable_form_of(input);
    Gather g = gather_of(source, filters, axes);
    if (need_input) g.destination = map_of(grad_input);
    if (need_weight || !prologue.is_identity()) g.other = map_of(other);
    g.on_other = prologue.pointwise();
    const GatherPlanner planner = plan(g, element, Direction::kInputGradient, axes);
    const int64_t taps = g.kernel_height * g.kernel_width;
    const Tensor weight_sums = empty_sums(g, element, need_weight ? taps : 0);
    const Tensor affine_sums = empty_sums(g, element, need_affine ? 2 : 0);
    if (need_weight) g.weight_gradients = weight_sums.mutable_data_ptr();
    if (need_affine) g.affine_gradients = affine_sums.mutable_data_ptr();
    run(g, element);
    if (need_weight) {
      grad_weight =
          torch::stable::to(sum_groups(weight_sums, 0, filters.sizes()), input.scalar_type());
    }
    if (need_affine) {
      grad_scale = sum_groups(affine_sums, 0, {g.channels});
      grad_shift = sum_groups(affine_sums, 1, {g.channels});
    }
  }
  return {grad_input, grad_weight, grad_scale, grad_shift};
}

STABLE_TORCH_LIBRARY_IMPL(dlv3p, CPU, m) {
  m.impl("depthwise_conv2d_fused", TORCH_BOX(&depthwise_conv2d_fused_cpu));
  m.impl("depthwise_conv2d_statistics", TORCH_BOX(&depthwise_conv2d_statistics_cpu));
  m.impl("depthwise_conv2d_fused_backward", TORCH_BOX(&depthwise_conv2d_fused_backward_cpu));
}

}  // namespace
}  // namespace dlv3p
