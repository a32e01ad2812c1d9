// The class of every pixel of resized logits, from tensors to the tasks of upsample.h.
#include <cstdint>
#include <tuple>
#include <vector>

#include "../common/tensor.h"
#include "capability.h"
#include "huge_pages.h"
#include "upsample_launch.h"

namespace dlv3p {
namespace {

constexpr int64_t kRowsHeld = 2;
constexpr int64_t kLeastRows = 16;

Tensor new_plane(const Tensor& logits, int64_t height, int64_t width, ScalarType type) {
  Tensor t = torch::stable::empty({logits.size(0), height, width}, type);
  advise_huge_pages(t.mutable_data_ptr(), t.numel() * static_cast<int64_t>(t.element_size()));
  return t;
}

std::tuple<Tensor, Tensor> upsample_argmax_cpu(const Tensor& logits, std::vector<int64_t> size,
                                               bool align_corners, bool return_probability,
                                               bool as_uint8) {
  check_logits(logits, "upsample_argmax");
  STD_TORCH_CHECK(size.size() == 2 && size[0] > 0 && size[1] > 0,
                  "upsample_argmax: size must be two positive numbers");
  STD_TORCH_CHECK(!as_uint8 || logits.size(1) <= 256,
                  "upsample_argmax: uint8 holds 256 classes, logits has ", logits.size(1));
  const Tensor walkable = walkable_form_of(logits);
  const ScalarType type = sum_type(element_of(logits));
  Tensor index =
      new_plane(logits, size[0], size[1], as_uint8 ? ScalarType::Byte : ScalarType::Long);
  Tensor probability = return_probability ? new_plane(logits, size[0], size[1], type)
                                          : torch::stable::empty({0}, type);
  if (logits.size(0) == 0) return {index, probability};
  const UpsamplePlan plan(walkable, size[0], size[1], align_corners, kRowsHeld, kLeastRows, false);
  const UpsampleArgmax u{plan.map(), index.mutable_data_ptr(), as_uint8,
                         return_probability ? probability.mutable_data_ptr() : nullptr};
  const UpsampleArgmaxCode& code = upsample_argmax_code();
  const int kind = static_cast<int>(plan.element());
  for_each_band(u.map, code.scratch_bytes[kind](u),
                [&](int64_t task, void* scratch) { code.run[kind](u, task, scratch); });
  return {index, probability};
}

STABLE_TORCH_LIBRARY_IMPL(dlv3p, CPU, m) {
  m.impl("upsample_argmax", TORCH_BOX(&upsample_argmax_cpu));
}

}  // namespace
}  // namespace dlv3p
