// Depthwise convolution on CPU with what stands before and behind it: the gather of gather.h reads
// through the prologue, and does the epilogue or gathers the statistics before results are written.
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/activation_code.h"
#include "../common/tensor.h"
#include "gather.h"
#include "gather_launch.h"
#include "gather_plan.h"
#include "gather_sums.h"

namespace dlv3p {
namespace {

// A Pointwise and the memory of its vectors.
class ChannelAffine {
 public:
  ChannelAffine(const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                int64_t activation, const Tensor& input)
      : element_(element_of(input)), channels_(input.size(1)) {
    STD_TORCH_CHECK(scale.has_value() == shift.has_value(),
                    "depthwise_conv2d_fused: both scale and shift, or neither");
    STD_TORCH_CHECK(0 <= activation && activation <= static_cast<int64_t>(Activation::kSilu),
                    "depthwise_conv2d_fused: unknown activation ", activation);
    pointwise_.activation = static_cast<Activation>(activation);
    if (!scale && pointwise_.activation == Activation::kIdentity) return;
    pointwise_.scale = padded(scale, 1, scale_);
    pointwise_.shift = padded(shift, 0, shift_);
  }
  ChannelAffine(const ChannelAffine&) = delete;  // pointwise() points into it
  ChannelAffine& operator=(const ChannelAffine&) = delete;

  const Pointwise& pointwise() const { return pointwise_; }
  bool is_identity() const { return !pointwise_.scale; }

 private:
  // Whole vectors are read, so there must be some memory behind the last channel.
  static constexpr int64_t kPadding = 64;

  const void* padded(const std::optional<Tensor>& vector, int value, std::vector<char>& memory) {
    memory.resize(channels_ * sum_bytes(element_) + kPadding);
    if (vector) {
      STD_TORCH_CHECK(vector->dim() == 1 && vector->size(0) == channels_ &&
                          vector->scalar_type() == sum_type(element_),
                      "depthwise_conv2d_fused: scale and shift must be one element per channel, "
                      "float32, or float64 for float64");
      std::memcpy(memory.data(), torch::stable::contiguous(*vector).const_data_ptr(),
                  channels_ * sum_bytes(element_));
    } else if (element_ == Element::kFloat64) {
      fill<double>(memory, value);
    } else {
      fill<float>(memory, value);
    }
    return memory.data();
  }

  template <class A>
  void fill(std::vector<char>& memory, A value) const {
    A* values = reinterpret_cast<A*>(memory.data());
    for (int64_t c = 0; c < channels_; ++c) values[c] = value;
  }

  const Element element_;
  const int64_t channels_;
  std::vector<char> scale_;
  std::vector<char> shift_;
  Pointwise pointwise_ = {};
};

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
  std::optional<Tensor> shifts;
  if (bias) {
    shifts = torch::stable::contiguous(*bias);
    g.bias = shifts->const_data_ptr();
  }
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
  m.impl("depthwise_conv2d_fused_backward", TORCH_BOX(&depthwise_conv2d_fused_backward_cpu));
}

}  // namespace
}  // namespace dlv3p
