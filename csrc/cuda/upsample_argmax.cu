// Classes of resized logits on CUDA: launcher and registration.
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <vector>

#include "upsample_forward.cuh"
#include "upsample_launch.h"

namespace dlv3p {
namespace {

std::tuple<Tensor, Tensor> upsample_argmax_cuda(const Tensor& logits, std::vector<int64_t> size,
                                                bool align_corners, bool return_probability,
                                                bool as_uint8) {
  constexpr const char* kOp = "upsample_argmax";
  const Stream stream(logits);
  STD_TORCH_CHECK(size.size() == 2, kOp, ": the size must be two positive numbers");
  const ResizedLogits u = resized_logits(logits, size[0], size[1], align_corners, kOp);
  STD_TORCH_CHECK(!as_uint8 || u.classes <= 256, kOp, ": uint8 holds 256 classes, logits has ",
                  u.classes);
  const auto empty = [&](std::vector<int64_t> shape, ScalarType type) {
    return torch::stable::empty(shape, type, std::nullopt, logits.device(), std::nullopt,
                                std::nullopt);
  };
  const std::vector<int64_t> plane{logits.size(0), size[0], size[1]};
  const Tensor index = empty(plane, as_uint8 ? ScalarType::Byte : ScalarType::Long);
  const Tensor probability =
      empty(return_probability ? plane : std::vector<int64_t>{0}, ScalarType::Float);
  if (logits.size(0) == 0) return {index, probability};
  const ForwardPlan plan = forward_plan(u, logits.size(0));
  const ArgmaxForward params{index.mutable_data_ptr(), as_uint8,
                             static_cast<float*>(probability.mutable_data_ptr())};
  with_element_type(logits, kOp, [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    const auto kernel = return_probability ? upsample_forward_kernel<T, ArgmaxWork<true>>
                                           : upsample_forward_kernel<T, ArgmaxWork<false>>;
    stream.launch(kernel, plan.grid, dim3(kUpsampleThreads), plan.shared_bytes, u, plan.tiling,
                  params);
  });
  return {index, probability};
}

}  // namespace

DLV3P_CUDA_LIBRARY(m) { m.impl("upsample_argmax", TORCH_BOX(&upsample_argmax_cuda)); }

}  // namespace dlv3p
