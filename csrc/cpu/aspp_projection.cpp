// The projection of a pyramid on CPU: a pointwise convolution of several maps, with norm and
// activation in front of it, that never lie side by side: a separable convolution with a depthwise
// half that changes nothing.
#include <optional>
#include <tuple>
#include <vector>

#include "../common/tensor.h"
#include "channel_affine.h"
#include "gather_launch.h"
#include "separable_backward.h"
#include "separable_forward.h"

namespace dlv3p {
namespace {

using Optional = std::optional<Tensor>;
using Maps = std::vector<Tensor>;

SeparableSource source_of_all(const Maps& maps) {
  STD_TORCH_CHECK(!maps.empty(), "aspp_projection: expected at least one map");
  SeparableSource source = source_of(maps.front(), {});
  source.maps.clear();
  source.channels = 0;
  for (const Tensor& map : maps) {
    bool fits = map.dim() == 4 && map.scalar_type() == maps.front().scalar_type();
    for (int64_t d : {0, 2, 3}) fits = fits && map.size(d) == maps.front().size(d);
    STD_TORCH_CHECK(fits && map.numel() > 0,
                    "aspp_projection: the maps are empty or differ in size or dtype");
    source.maps.push_back({walkable_form_of(map), source.channels, {}, nullptr});
    source.channels += map.size(1);
  }
  return source;
}

// The depthwise half that changes nothing.
struct Identity {
  Identity(const SeparableSource& source, const Tensor& like)
      : filters(torch::stable::full({source.channels, 1, 1, 1}, 1, like.scalar_type())),
        axes(axes_of(shape_of(source, like), filters, {1, 1}, {0, 0, 0, 0}, {1, 1})) {}

  static InputShape shape_of(const SeparableSource& source, const Tensor& like) {
    InputShape shape(like);
    shape.channels = source.channels;
    return shape;
  }

  const Tensor filters;
  const Axes axes;
};

Tensor aspp_projection_fused_cpu(const Maps& maps, const Optional& scale, const Optional& shift,
                                 int64_t activation, const Tensor& pw_weight,
                                 const Optional& pw_bias) {
  const SeparableSource source = source_of_all(maps);
  const Identity identity(source, maps.front());
  return std::get<0>(separable_forward(
      source, maps.front(), identity.axes,
      {identity.filters, std::nullopt, scale, shift, activation, pw_weight},
      {pw_bias, std::nullopt, std::nullopt, Activation::kIdentity, std::nullopt, false}));
}

// What both passes of the way back begin with.
struct Backward {
  Backward(const Tensor& grad, const Maps& maps, const SeparableMiddle& norm,
           const Tensor& pw_weight)
      : source(source_of_all(maps)),
        identity(source, maps.front()),
        passes(separable_backward_of(source, identity.axes, identity.filters, bias, norm, pw_weight,
                                     grad)) {}

  const SeparableSource source;
  const Identity identity;
  const Contiguous bias{std::nullopt};
  const SeparableBackward passes;
};

std::tuple<Tensor, Tensor, Tensor> aspp_projection_backward_reduce_cpu(
    const Tensor& grad, const Maps& maps, const Optional& mean, const Optional& invstd,
    const Optional& weight, const Optional& bias, int64_t activation, const Tensor& pw_weight,
    bool need_weight, bool need_norm) {
  const Backward b(grad, maps, {mean, invstd, weight, bias, activation}, pw_weight);
  const PointwiseGradients found =
      separable_backward_reduce(b.passes, need_weight, need_norm, false);
  return {found.weight, found.mid_bias, found.mid_weight};
}

Maps aspp_projection_backward_apply_cpu(const Tensor& grad, const Maps& maps, const Optional& mean,
                                        const Optional& invstd, const Optional& weight,
                                        const Optional& bias, int64_t activation,
                                        const Tensor& pw_weight, const Optional& mean_grad,
                                        const Optional& mean_product) {
  const Backward b(grad, maps, {mean, invstd, weight, bias, activation}, pw_weight);
  std::vector<MapGradient> wanted;
  for (const Tensor& map : maps) wanted.push_back(wanted_of(map, true, false));
  separable_backward_apply(b.passes, std::nullopt, mean_grad, mean_product, false, wanted);
  Maps found;
  for (const MapGradient& gradient : wanted) found.push_back(gradient.result());
  return found;
}

STABLE_TORCH_LIBRARY_IMPL(dlv3p, CPU, m) {
  m.impl("aspp_projection_fused", TORCH_BOX(&aspp_projection_fused_cpu));
  m.impl("aspp_projection_backward_reduce", TORCH_BOX(&aspp_projection_backward_reduce_cpu));
  m.impl("aspp_projection_backward_apply", TORCH_BOX(&aspp_projection_backward_apply_cpu));
}

}  // namespace
}  // namespace dlv3p
