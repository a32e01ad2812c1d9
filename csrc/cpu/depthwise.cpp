// Depthwise convolution on CPU: a gather, and so is its input gradient (gather.h).
#include <optional>
#include <string>
#include <tuple>

#include "../common/tensor.h"
#include "capability.h"
#include "gather.h"
#include "gather_launch.h"
#include "gather_plan.h"
#include "gather_sums.h"

namespace dlv3p {
namespace {

Tensor depthwise_conv2d_cpu(const Tensor& input, const Tensor& weight,
                            const std::optional<Tensor>& bias, const Ints& stride,
                            const Ints& padding, const Ints& dilation) {
  const Axes axes = axes_of(input, weight, stride, padding, dilation);
  const Tensor output = new_map(input, axes.rows.out, axes.columns.out);
  check_bias(bias, input);
  if (output.numel() == 0) return output;
  const Tensor source = walkable_form_of(input);
  const Tensor filters = torch::stable::contiguous(weight);
  Gather g = gather_of(source, filters, axes);
  g.destination = map_of(output);
  const Contiguous shifts(bias);
  g.bias = shifts.data();
  const Element element = element_of(input);
  const GatherPlanner planner = plan(g, element, Direction::kForward, axes);
  run(g, element);
  return output;
}

std::tuple<Tensor, Tensor> depthwise_conv2d_backward_cpu(const Tensor& grad_output,
                                                         const Tensor& input, const Tensor& weight,
                                                         const Ints& stride, const Ints& padding,
                                                         const Ints& dilation, bool need_input,
                                                         bool need_weight) {
  const Axes axes = axes_of(input, weight, stride, padding, dilation);
  check_grad_output(grad_output, input, axes);
  const Element element = element_of(input);
  const auto nothing = [&] { return torch::stable::empty({0}, input.scalar_type()); };
  Tensor grad_input = need_input ? new_map(input, input.size(2), input.size(3)) : nothing();
  if (!need_input && !need_weight) return {grad_input, nothing()};
  const Tensor source = walkable_form_of(grad_output);
  const Tensor other = walkable_form_of(input);
  const Tensor filters = torch::stable::contiguous(weight);
  if (input.numel() == 0) {
    return {grad_input,
            need_weight ? torch::stable::new_zeros(filters, filters.sizes()) : nothing()};
  }
  Gather g = gather_of(source, filters, axes);
  if (need_input) g.destination = map_of(grad_input);
  if (!need_weight) {
    const GatherPlanner planner = plan(g, element, Direction::kInputGradient, axes);
    run(g, element);
    return {grad_input, nothing()};
  }
  g.other = map_of(other);
  const GatherPlanner planner = plan(g, element, Direction::kInputGradient, axes);
  const Tensor sums = empty_sums(g, element, g.kernel_height * g.kernel_width);
  g.weight_gradients = sums.mutable_data_ptr();
  run(g, element);
  return {grad_input, torch::stable::to(sum_groups(sums, 0, filters.sizes()), input.scalar_type())};
}

std::string cpu_capability() { return gather_code().name; }

STABLE_TORCH_LIBRARY_IMPL(dlv3p, CPU, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&depthwise_conv2d_cpu));
  m.impl("depthwise_conv2d_backward", TORCH_BOX(&depthwise_conv2d_backward_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(dlv3p, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}

}  // namespace
}  // namespace dlv3p
