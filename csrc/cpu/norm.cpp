// Batch norm on CPU: from tensors to the blocks of norm.h, and registration.
#include "norm.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/tensor.h"
#include "capability.h"
#include "channel_affine.h"
#include "gather_launch.h"
#include "norm_cut.h"
#include "norm_pass.h"
#include "norm_sums.h"

namespace dlv3p {
namespace {

using Optional = std::optional<Tensor>;

std::tuple<Tensor, Tensor> batch_norm_stats_cpu(const Tensor& input) {
  const Tensor map = checked_input(input);
  const Cut cut(map);
  Pieces pieces(cut.channels());
  measure(map, cut, pieces);
  const MeanAndVariance merged = pieces.merged_statistics(cut.element());
  return {merged.mean, merged.variance};
}

template <class A>
Tensor updated(const Tensor& running, const Tensor& batch, double factor, double momentum) {
  const Tensor old = torch::stable::contiguous(running);
  Tensor result = torch::stable::empty({batch.size(0)}, batch.scalar_type());
  const A* from = static_cast<const A*>(batch.const_data_ptr());
  A* to = static_cast<A*>(result.mutable_data_ptr());
  for (int64_t c = 0; c < batch.size(0); ++c) {
    const double kept = (1 - momentum) * static_cast<const A*>(old.const_data_ptr())[c];
    to[c] = static_cast<A>(kept + momentum * (factor * from[c]));
  }
  return result;
}

template <class A>
Tensor inverse_deviation(const Tensor& var, double eps) {
  Tensor result = torch::stable::empty({var.size(0)}, var.scalar_type());
  const A* from = static_cast<const A*>(var.const_data_ptr());
  A* to = static_cast<A*>(result.mutable_data_ptr());
  for (int64_t c = 0; c < var.size(0); ++c) {
    to[c] = static_cast<A>(1 / std::sqrt(static_cast<double>(from[c]) + eps));
  }
  return result;
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_finalise_cpu(const Tensor& mean, const Tensor& var,
                                                           int64_t count,
                                                           const Optional& running_mean,
                                                           const Optional& running_var,
                                                           double momentum, double eps) {
  const ScalarType type = mean.scalar_type();
  const auto fits = [&](const Tensor& t) {
    return t.dim() == 1 && t.size(0) == mean.size(0) && t.scalar_type() == type;
  };
  STD_TORCH_CHECK((type == ScalarType::Float || type == ScalarType::Double) && fits(mean) &&
                      fits(var) && (!running_mean || fits(*running_mean)) &&
                      (!running_var || fits(*running_var)),
                  "batch_norm_finalise: vectors of one length, float32 or float64 throughout");
  const Tensor means = torch::stable::contiguous(mean);
  const Tensor vars = torch::stable::contiguous(var);
  const auto run = [&](auto value) -> std::tuple<Tensor, Tensor, Tensor> {
    using A = decltype(value);
    const Tensor invstd = inverse_deviation<A>(vars, eps);
    if (!running_mean || !running_var) {
      return {invstd, torch::stable::empty({0}, type), torch::stable::empty({0}, type)};
    }
    const double unbiased = static_cast<double>(count) / std::max<int64_t>(1, count - 1);
    return {invstd, updated<A>(*running_mean, means, 1, momentum),
            updated<A>(*running_var, vars, unbiased, momentum)};
  };
  return type == ScalarType::Double ? run(double()) : run(float());
}

Tensor batch_norm_apply_cpu(const Tensor& input, const Tensor& mean, const Tensor& invstd,
                            const Optional& weight, const Optional& bias, const Optional& residual,
                            int64_t activation) {
  NormPass pass(input, mean, invstd, weight, bias, residual, activation);
  Tensor output = new_map(pass.input, input.size(2), input.size(3));
  pass.block.output = output.mutable_data_ptr();
  pass.cut.for_each_block(pass.block, kAnyWidth, norm_code().apply[pass.kind()]);
  return output;
}

// The three above in a row: one call of an operator instead of four.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> batch_norm_act_cpu(
    const Tensor& input, const Optional& weight, const Optional& bias, const Optional& running_mean,
    const Optional& running_var, const Optional& residual, int64_t activation, double momentum,
    double eps) {
  const auto [mean, var] = batch_norm_stats_cpu(input);
  const int64_t count = input.size(0) * input.size(2) * input.size(3);
  const auto [invstd, new_mean, new_var] =
      batch_norm_finalise_cpu(mean, var, count, running_mean, running_var, momentum, eps);
  const Tensor output =
      batch_norm_apply_cpu(input, mean, invstd, weight, bias, residual, activation);
  return {output, mean, invstd, new_mean, new_var};
}

std::tuple<Tensor, Tensor> batch_norm_backward_reduce_cpu(
    const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& invstd,
    const Optional& weight, const Optional& bias, const Optional& residual, int64_t activation) {
  NormPass pass(input, mean, invstd, weight, bias, residual, activation);
  pass.take_grad_output(grad_output);
  Pieces pieces(pass.cut.channels());
  pieces.append(pass.cut);
  pieces.take_sums(pass.block);
  pass.cut.for_each_block(pass.block, kNormMostPanel, norm_code().backward_reduce[pass.kind()]);
  return {pieces.total_first(pass.invstd().scalar_type()), pieces.total_second(pass.invstd())};
}

std::tuple<Tensor, Tensor> batch_norm_backward_apply_cpu(
    const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& invstd,
    const Optional& weight, const Optional& bias, const Optional& residual, int64_t activation,
    const Optional& sum_grad, const Optional& sum_grad_normalised, int64_t count,
    bool need_residual) {
  NormPass pass(input, mean, invstd, weight, bias, residual, activation);
  pass.take_grad_output(grad_output);
  if (sum_grad && sum_grad_normalised) pass.take_sums(*sum_grad, *sum_grad_normalised, count);
  const auto new_gradient = [&] { return new_map(pass.input, input.size(2), input.size(3)); };
  Tensor grad_input = new_gradient();
  Tensor grad_residual =
      need_residual ? new_gradient() : torch::stable::empty({0}, input.scalar_type());
  pass.block.output = grad_input.mutable_data_ptr();
  if (need_residual) pass.block.grad_residual = grad_residual.mutable_data_ptr();
  pass.cut.for_each_block(pass.block, kAnyWidth, norm_code().backward_apply[pass.kind()]);
  return {grad_input, grad_residual};
}

STABLE_TORCH_LIBRARY_IMPL(dlv3p, CPU, m) {
  m.impl("batch_norm_act", TORCH_BOX(&batch_norm_act_cpu));
  m.impl("batch_norm_stats", TORCH_BOX(&batch_norm_stats_cpu));
  m.impl("batch_norm_finalise", TORCH_BOX(&batch_norm_finalise_cpu));
  m.impl("batch_norm_apply", TORCH_BOX(&batch_norm_apply_cpu));
  m.impl("batch_norm_backward_reduce", TORCH_BOX(&batch_norm_backward_reduce_cpu));
  m.impl("batch_norm_backward_apply", TORCH_BOX(&batch_norm_backward_apply_cpu));
}

}  // namespace
}  // namespace dlv3p
