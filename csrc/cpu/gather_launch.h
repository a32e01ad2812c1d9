// From tensors to the gather of gather.h, for everything that is one.
//
//   Gather g = gather_of(source, weight, axes);   and the other maps and wishes
//   const GatherPlanner planner = plan(g, element, direction, axes);
//   run(g, element);
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "../common/conv_geometry.h"
#include "../common/tensor.h"
#include "gather.h"
#include "gather_plan.h"
#include "scratch.h"

namespace dlv3p {

using Ints = std::vector<int64_t>;

struct Axes {
  ConvAxis rows;
  ConvAxis columns;
};

// What a convolution reads.
struct InputShape {
  explicit InputShape(const Tensor& input);

  ScalarType type;
  int64_t channels;
  int64_t height;
  int64_t width;
};

// Checks the arguments of a convolution; `padding` is (left, right, top, bottom).
Axes axes_of(const InputShape& input, const Tensor& weight, const Ints& stride, const Ints& padding,
             const Ints& dilation);
void check_bias(const std::optional<Tensor>& bias, const InputShape& input);
inline Axes axes_of(const Tensor& input, const Tensor& weight, const Ints& stride,
                    const Ints& padding, const Ints& dilation) {
  return axes_of(InputShape(input), weight, stride, padding, dilation);
}
inline void check_bias(const std::optional<Tensor>& bias, const Tensor& input) {
  check_bias(bias, InputShape(input));
}
void check_grad_output(const Tensor& grad_output, const Tensor& input, const Axes& axes);

Element element_of(const Tensor& t);
inline int64_t sum_bytes(Element element) { return element == Element::kFloat64 ? 8 : 4; }
ScalarType sum_type(Element element);

// The tensor, or a copy if neither its channels nor its columns are adjacent in memory.
Tensor walkable_form_of(const Tensor& t);
Map map_of(const Tensor& t);
Tensor new_map(const Tensor& like, int64_t height, int64_t width);

// What an optional tensor holds, without gaps.
class Contiguous {
 public:
  explicit Contiguous(const std::optional<Tensor>& t) {
    if (t) held_ = torch::stable::contiguous(*t);
  }
  const void* data() const { return held_ ? held_->const_data_ptr() : nullptr; }

 private:
  std::optional<Tensor> held_;
};

// `source` walkable, `weight` contiguous; both must outlive the gather.
Gather gather_of(const Tensor& source, const Tensor& weight, const Axes& axes);

// Fills in how the work is divided, which the sizes of the sums per group depend on; g.plan points
// into the result.
GatherPlanner plan(Gather& g, Element element, Direction direction, const Axes& axes);

// The weights as the loop takes them; g.packed_weight points into the object, which a copy of the
// gather may share.
class PackedWeight {
 public:
  PackedWeight(Gather& g, Element element);

 private:
  Scratch memory_;
};

void run(Gather& g, Element element);
// Those of several maps, all tasks at once: waiting for the slowest thread costs time each time.
void run_packed(const std::vector<Gather>& gathers, Element element);

}  // namespace dlv3p
