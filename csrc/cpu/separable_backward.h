// Gradients of a separable convolution of stride 1, whatever its input is made of. The depthwise
// result, what norm and activation make of it and the gradients by both exist a piece at a time.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "../common/tensor.h"
#include "gather_launch.h"
#include "separable_source.h"

namespace dlv3p {

// activation((x - mean) * invstd * weight + bias) between the halves; no mean: no norm.
struct SeparableMiddle {
  std::optional<Tensor> mean;
  std::optional<Tensor> invstd;
  std::optional<Tensor> weight;
  std::optional<Tensor> bias;
  int64_t activation;

  bool is_identity() const { return !mean && activation == 0; }
};

struct SeparableBackward {
  const SeparableSource& source;
  Axes axes;
  Tensor filters;  // contiguous
  const void* dw_bias;
  SeparableMiddle middle;
  Tensor mixing;  // contiguous
  Tensor grad;    // by the pointwise result, pixel by pixel
};

SeparableBackward separable_backward_of(const SeparableSource& source, const Axes& axes,
                                        const Tensor& dw_weight, const Contiguous& dw_bias,
                                        const SeparableMiddle& middle, const Tensor& pw_weight,
                                        const Tensor& grad);

struct PointwiseGradients {
  Tensor weight;  // empty where not needed, as the others
  Tensor mid_bias;
  Tensor mid_weight;
  Tensor activated;  // by what the pointwise half has read, pixel by pixel
};
// With `keep` the gradients behind the middle are a whole map, for the second pass: a map that
// exists for its time, against the same product of matrices once more.
PointwiseGradients separable_backward_reduce(const SeparableBackward& b, bool need_weight,
                                             bool need_middle, bool keep);

// What is wanted of one of the source's maps.
struct MapGradient {
  std::optional<Tensor> map;  // in dtype and memory format of its own, written
  bool affine;                // of a prologue
  Tensor scale;
  Tensor shift;

  // The map; empty where none is wanted, as scale and shift are.
  Tensor result() const { return map ? *map : torch::stable::empty({0}, like); }
  ScalarType like;
};
MapGradient wanted_of(const Tensor& map, bool needed, bool affine);
// Fills in `wanted`, one for each map, and returns the gradient by the depthwise weight, or an
// empty tensor. `activated` is what the first pass has kept. The means are those of the gradient
// behind the norm and of it times the normalised result; without them the norm's statistics are
// constants.
Tensor separable_backward_apply(const SeparableBackward& b, const std::optional<Tensor>& activated,
                                const std::optional<Tensor>& mean_grad,
                                const std::optional<Tensor>& mean_product, bool need_weight,
                                std::vector<MapGradient>& wanted);

}  // namespace dlv3p
