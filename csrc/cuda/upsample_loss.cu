// Cross entropy of resized logits on CUDA: launchers and registration.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>

#include "reduce.h"
#include "upsample_backward.cuh"
#include "upsample_classes.cuh"
#include "upsample_forward.cuh"
#include "upsample_launch.h"

namespace dlv3p {
namespace {

constexpr const char* kOp = "upsample_cross_entropy";
using Optional = std::optional<Tensor>;

float* floats(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

ResizedLogits resized_to(const Tensor& logits, const Tensor& target, bool align_corners) {
  STD_TORCH_CHECK(target.dim() == 3 && target.size(0) == logits.size(0), kOp,
                  ": target must be (N, H, W) with the N of logits");
  return resized_logits(logits, target.size(1), target.size(2), align_corners, kOp);
}

void check_plane(const Tensor& t, const Tensor& target, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.dim() == 3 &&
                      t.size(0) == target.size(0) && t.size(1) == target.size(1) &&
                      t.size(2) == target.size(2),
                  kOp, ": ", name, " must be float32 in the shape of target");
}

// Calls body(element, smooth): a null pointer to the element type, and a constant.
template <class Body>
void with_kernel(const Tensor& logits, double label_smoothing, Body&& body) {
  with_element_type(logits, kOp, [&](auto* element) {
    if (label_smoothing > 0) {
      body(element, std::true_type());
    } else {
      body(element, std::false_type());
    }
  });
}

std::tuple<Tensor, Tensor> upsample_cross_entropy_cuda(const Tensor& logits, const Tensor& target,
                                                       const Optional& weight, int64_t ignore_index,
                                                       double label_smoothing, bool align_corners) {
  const Stream stream(logits);
  const ResizedLogits u = resized_to(logits, target, align_corners);
  const auto new_plane = [&] {
    return torch::stable::empty({target.size(0), target.size(1), target.size(2)}, ScalarType::Float,
                                std::nullopt, logits.device(), std::nullopt, std::nullopt);
  };
  const Tensor loss = new_plane(), logsumexp = new_plane();
  if (target.size(0) == 0) return {loss, logsumexp};
  const ChannelVector weights(weight, u.classes, kOp);
  const LossForward params{labels_of(target, ignore_index, kOp), weights,
                           static_cast<float>(label_smoothing), floats(loss), floats(logsumexp)};
  const ForwardPlan plan = forward_plan(u, target.size(0));
  with_kernel(logits, label_smoothing, [&](auto* element, auto smooth) {
    using T = std::remove_pointer_t<decltype(element)>;
    stream.launch(upsample_forward_kernel<T, LossWork<smooth.value>>, plan.grid,
                  dim3(kUpsampleThreads), plan.shared_bytes, u, plan.tiling, params);
  });
  return {loss, logsumexp};
}

Tensor upsample_cross_entropy_backward_cuda(const Tensor& grad_loss, const Tensor& logits,
                                            const Tensor& target, const Optional& weight,
                                            const Tensor& logsumexp, int64_t ignore_index,
                                            double label_smoothing, bool align_corners) {
  const Stream stream(logits);
  const ResizedLogits u = resized_to(logits, target, align_corners);
  check_plane(grad_loss, target, "grad_loss");
  check_plane(logsumexp, target, "logsumexp");
  const Tensor result =
      empty_in_format_of(logits, logits.size(0), logits.size(1), logits.size(2), logits.size(3));
  if (logits.size(0) == 0) return result;
  const ChannelVector weights(weight, u.classes, kOp);
  const Tensor dense_logsumexp = torch::stable::contiguous(logsumexp);
  const LossBackward params{labels_of(target, ignore_index, kOp),
                            weights,
                            static_cast<float>(label_smoothing),
                            floats(dense_logsumexp),
                            static_cast<const float*>(grad_loss.const_data_ptr()),
                            grad_loss.stride(0),
                            grad_loss.stride(1),
                            grad_loss.stride(2),
                            result.mutable_data_ptr(),
                            result.stride(0),
                            result.stride(1),
                            result.stride(2),
                            result.stride(3)};
  const BackwardPlan plan = backward_plan(u, logits.size(0));
  with_kernel(logits, label_smoothing, [&](auto* element, auto smooth) {
    using T = std::remove_pointer_t<decltype(element)>;
    stream.launch(upsample_backward_kernel<T, smooth.value>, plan.grid, dim3(kUpsampleThreads),
                  plan.shared_bytes, u, plan.tiling, params);
  });
  return result;
}

Tensor class_weight_sum_cuda(const Tensor& target, const Optional& weight, int64_t ignore_index,
                             const Tensor& like) {
  constexpr const char* kSum = "class_weight_sum";
  constexpr int64_t kMostBlocks = 512;
  const Stream stream(target);
  const Tensor result = torch::stable::empty({}, ScalarType::Float, std::nullopt, target.device(),
                                             std::nullopt, std::nullopt);
  const Labels labels = labels_of(target, ignore_index, kSum);
  const ChannelVector weights(weight, like.size(1), kSum);
  const int64_t rows = target.size(0) * target.size(1);
  const int64_t blocks = std::min(rows, kMostBlocks);
  const Tensor parts = float_workspace(target, blocks);
  if (blocks > 0) {
    stream.launch(class_weight_sum_kernel, dim3(static_cast<unsigned>(blocks)),
                  dim3(kUpsampleThreads), 0, labels, rows, static_cast<int>(target.size(1)),
                  static_cast<int>(target.size(2)), static_cast<int>(like.size(1)),
                  static_cast<const float*>(weights), floats(parts));
  }
  launch_reduce_sums(stream, like,
                     {floats(parts), blocks, 1, 1, 0, true, nullptr, {floats(result), nullptr}});
  return result;
}

}  // namespace

DLV3P_CUDA_LIBRARY(m) {
  m.impl("upsample_cross_entropy", TORCH_BOX(&upsample_cross_entropy_cuda));
  m.impl("upsample_cross_entropy_backward", TORCH_BOX(&upsample_cross_entropy_backward_cuda));
  m.impl("class_weight_sum", TORCH_BOX(&class_weight_sum_cuda));
}

}  // namespace dlv3p
