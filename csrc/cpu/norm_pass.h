// What the passes of a batch norm after the statistics share, from tensors to a block of norm.h.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "../common/tensor.h"
#include "channel_affine.h"
#include "gather_launch.h"
#include "norm.h"
#include "norm_cut.h"

namespace dlv3p {

// Calls f with a value of the type that vectors have beside maps of this element.
template <class F>
auto with_vector_type(Element element, const F& f) {
  return element == Element::kFloat64 ? f(double()) : f(float());
}

inline Tensor new_vector(const Tensor& map, int64_t size) {
  return torch::stable::empty({size}, sum_type(element_of(map)));
}

inline Tensor checked_vector(const Tensor& vector, const Tensor& map, const char* name) {
  STD_TORCH_CHECK(vector.dim() == 1 && vector.size(0) == map.size(1) &&
                      vector.scalar_type() == sum_type(element_of(map)),
                  "batch_norm: ", name,
                  " must be one value per channel, float32 (float64 for float64 maps)");
  return torch::stable::contiguous(vector);
}

// `map` in the memory format of `input`; the same tensor where it has it.
inline Tensor checked_map(const Tensor& map, const Tensor& input, const char* name) {
  bool fits = map.dim() == 4 && map.scalar_type() == input.scalar_type();
  for (int64_t d = 0; fits && d < 4; ++d) fits = map.size(d) == input.size(d);
  STD_TORCH_CHECK(fits, "batch_norm: ", name, " must have the shape and dtype of input");
  return torch::stable::contiguous(map, format_of(input));
}

inline Tensor checked_input(const Tensor& input) {
  STD_TORCH_CHECK(input.dim() == 4, "batch_norm: expected 4 dimensions");
  return checked_map(input, input, "input");
}

// What the passes after the statistics share. Holds the tensors that the block points into.
class NormPass {
 public:
  NormPass(const Tensor& map, const Tensor& mean, const Tensor& invstd,
           const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
           const std::optional<Tensor>& residual, int64_t activation)
      : input(checked_input(map)), cut(input) {
    block.activation = activation_of(activation);
    block.input = input.const_data_ptr();
    block.mean = hold(checked_vector(mean, input, "mean"));
    invstd_ = checked_vector(invstd, input, "invstd");
    block.scale = hold(scaled(invstd_, weight, input));
    block.shift = bias ? hold(checked_vector(*bias, input, "bias")) : hold(zeros());
    if (residual) block.residual = hold(checked_map(*residual, input, "residual"));
  }

  void take_grad_output(const Tensor& grad_output) {
    block.grad_output = hold(checked_map(grad_output, input, "grad_output"));
  }

  // Means of g and of g * (x - mean) / std^2, from their sums.
  void take_sums(const Tensor& sum_grad, const Tensor& sum_grad_normalised, int64_t count) {
    const Tensor grads = checked_vector(sum_grad, input, "sum_grad");
    const Tensor products = checked_vector(sum_grad_normalised, input, "sum_grad_normalised");
    with_vector_type(cut.element(), [&](auto value) {
      using A = decltype(value);
      const Tensor means = new_vector(input, 2 * cut.channels());
      A* to = static_cast<A*>(means.mutable_data_ptr());
      const auto divisor = static_cast<A>(count);
      for (int64_t c = 0; c < cut.channels(); ++c) {
        to[c] = values_of<A>(grads)[c] / divisor;
        to[cut.channels() + c] = values_of<A>(products)[c] * values_of<A>(invstd_)[c] / divisor;
      }
      block.mean_grad = hold(means);
      block.mean_product = to + cut.channels();
    });
  }

  template <class A>
  static const A* values_of(const Tensor& vector) {
    return static_cast<const A*>(vector.const_data_ptr());
  }
  const Tensor& invstd() const { return invstd_; }
  int kind() const { return static_cast<int>(cut.element()); }

  const Tensor input;
  const Cut cut;
  NormBlock block{};

 private:
  const void* hold(const Tensor& t) {
    held_.push_back(t);
    return t.const_data_ptr();
  }

  Tensor zeros() const { return torch::stable::new_zeros(invstd_, {cut.channels()}); }

  static Tensor scaled(const Tensor& invstd, const std::optional<Tensor>& weight,
                       const Tensor& input) {
    if (!weight) return invstd;
    const Tensor factors = checked_vector(*weight, input, "weight");
    const Tensor scale = new_vector(input, input.size(1));
    with_vector_type(element_of(input), [&](auto value) {
      using A = decltype(value);
      A* to = static_cast<A*>(scale.mutable_data_ptr());
      for (int64_t c = 0; c < input.size(1); ++c) {
        to[c] = values_of<A>(invstd)[c] * values_of<A>(factors)[c];
      }
    });
    return scale;
  }

  Tensor invstd_;
  std::vector<Tensor> held_;
};

}  // namespace dlv3p
