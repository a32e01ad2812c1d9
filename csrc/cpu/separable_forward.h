// Forward of a separable convolution, whatever its input is made of.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>

#include "../common/tensor.h"
#include "gather_launch.h"
#include "separable_finish.h"
#include "separable_source.h"

namespace dlv3p {

struct SeparableHalves {
  Tensor dw_weight;
  std::optional<Tensor> dw_bias;
  std::optional<Tensor> mid_scale;
  std::optional<Tensor> mid_shift;
  int64_t mid_activation;
  Tensor pw_weight;
};

void check_pointwise_weight(const Tensor& pw_weight, int64_t channels, ScalarType type);

// Output, in dtype and memory format of `like`, and its mean and variance where `end` asks for
// them.
std::tuple<Tensor, Tensor, Tensor> separable_forward(const SeparableSource& source,
                                                     const Tensor& like, const Axes& axes,
                                                     const SeparableHalves& halves,
                                                     const SeparableEnd& end);

}  // namespace dlv3p
