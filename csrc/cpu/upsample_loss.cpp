// Cross entropy of resized logits, from tensors to the tasks of upsample.h.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/tensor.h"
#include "capability.h"
#include "huge_pages.h"
#include "upsample_launch.h"

namespace dlv3p {
namespace {

constexpr int64_t kForwardRowsHeld = 2;
constexpr int64_t kForwardLeastRows = 16;
// As many of the gradient as of the logits.
constexpr int64_t kBackwardRowsHeld = 4;
// Rows between two bands are worked on twice.
constexpr int64_t kBackwardLeastRows = 4;

using Optional = std::optional<Tensor>;

Label label_of(const Tensor& target) {
  switch (target.scalar_type()) {
    case ScalarType::Long:
      return Label::kInt64;
    case ScalarType::Int:
      return Label::kInt32;
    case ScalarType::Byte:
      return Label::kUInt8;
    default:
      STD_TORCH_CHECK(false, "upsample_cross_entropy: target must be int64, int32 or uint8");
  }
}

Plane plane_of(const Tensor& t) {
  return {t.const_data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

void check_plane(const Tensor& t, const Tensor& target, const char* name) {
  STD_TORCH_CHECK(t.dim() == 3 && t.size(0) == target.size(0) && t.size(1) == target.size(1) &&
                      t.size(2) == target.size(2),
                  "upsample_cross_entropy: ", name, " must have the shape of target");
}

// float32 or float64 as doubles.
std::vector<double> values_of(const Tensor& vector) {
  const Tensor held = torch::stable::contiguous(vector);
  const auto copy = [&](const auto* from) {
    return std::vector<double>(from, from + held.numel());
  };
  return held.scalar_type() == ScalarType::Double
             ? copy(static_cast<const double*>(held.const_data_ptr()))
             : copy(static_cast<const float*>(held.const_data_ptr()));
}

// The arguments that forward and backward share, checked. Holds what `loss` points into.
class Arguments {
 public:
  Arguments(const Tensor& logits, const Tensor& target, const Optional& weight,
            int64_t ignore_index, double label_smoothing, bool align_corners, int64_t rows_held,
            int64_t least_rows, bool by_source)
      : logits_(walkable_form_of(checked(logits, target))),
        plan_(logits_, target.size(1), target.size(2), align_corners, rows_held, least_rows,
              by_source) {
    loss.map = plan_.map();
    loss.target = plane_of(target);
    loss.label = label_of(target);
    loss.ignore_index = ignore_index;
    loss.label_smoothing = label_smoothing;
    loss.weight_sum = static_cast<double>(logits.size(1));
    if (weight) take_weight(*weight);
  }

  int kind() const { return static_cast<int>(plan_.element()); }
  ScalarType type() const { return sum_type(plan_.element()); }

  UpsampleLoss loss{};

 private:
  static const Tensor& checked(const Tensor& logits, const Tensor& target) {
    check_logits(logits, "upsample_cross_entropy");
    STD_TORCH_CHECK(target.dim() == 3 && target.size(0) == logits.size(0) && target.size(1) > 0 &&
                        target.size(2) > 0,
                    "upsample_cross_entropy: target must be (N, H, W) with the N of logits");
    return logits;
  }

  void take_weight(const Tensor& weight) {
    STD_TORCH_CHECK(
        weight.dim() == 1 && weight.size(0) == loss.map.classes && weight.scalar_type() == type(),
        "upsample_cross_entropy: weight must be one value per class, float32"
        " (float64 for float64 logits)");
    weight_ = torch::stable::contiguous(weight);
    loss.weight = weight_->const_data_ptr();
    const std::vector<double> values = values_of(*weight_);
    loss.weight_sum = std::accumulate(values.begin(), values.end(), 0.0);
  }

  const Tensor logits_;
  const UpsamplePlan plan_;
  Optional weight_;
};

std::tuple<Tensor, Tensor> upsample_cross_entropy_cpu(const Tensor& logits, const Tensor& target,
                                                      const Optional& weight, int64_t ignore_index,
                                                      double label_smoothing, bool align_corners) {
  Arguments arguments(logits, target, weight, ignore_index, label_smoothing, align_corners,
                      kForwardRowsHeld, kForwardLeastRows, false);
  const auto new_plane = [&] {
    Tensor t =
        torch::stable::empty({target.size(0), target.size(1), target.size(2)}, arguments.type());
    advise_huge_pages(t.mutable_data_ptr(), t.numel() * static_cast<int64_t>(t.element_size()));
    return t;
  };
  Tensor loss = new_plane();
  Tensor logsumexp = new_plane();
  UpsampleLoss& u = arguments.loss;
  u.loss = loss.mutable_data_ptr();
  u.logsumexp = logsumexp.mutable_data_ptr();
  const UpsampleLossCode& code = upsample_loss_code();
  const int kind = arguments.kind();
  std::atomic<bool> all_fit{true};
  for_each_band(u.map, code.scratch_bytes[kind](u), [&](int64_t task, void* scratch) {
    if (!code.forward[kind](u, task, scratch)) all_fit = false;
  });
  STD_TORCH_CHECK(all_fit.load(),
                  "upsample_cross_entropy: target holds a value that is neither a"
                  " class of logits nor ignore_index");
  return {loss, logsumexp};
}

Tensor upsample_cross_entropy_backward_cpu(const Tensor& grad_loss, const Tensor& logits,
                                           const Tensor& target, const Optional& weight,
                                           const Tensor& logsumexp, int64_t ignore_index,
                                           double label_smoothing, bool align_corners) {
  Arguments arguments(logits, target, weight, ignore_index, label_smoothing, align_corners,
                      kBackwardRowsHeld, kBackwardLeastRows, true);
  check_plane(grad_loss, target, "grad_loss");
  check_plane(logsumexp, target, "logsumexp");
  STD_TORCH_CHECK(
      grad_loss.scalar_type() == arguments.type() && logsumexp.scalar_type() == arguments.type(),
      "upsample_cross_entropy_backward: grad_loss and logsumexp must be float32"
      " (float64 for float64 logits)");
  const Tensor contiguous_logsumexp = torch::stable::contiguous(logsumexp);
  Tensor gradient = new_map(logits, logits.size(2), logits.size(3));
  UpsampleLoss& u = arguments.loss;
  u.logsumexp = contiguous_logsumexp.mutable_data_ptr();
  u.grad_loss = plane_of(grad_loss);
  u.gradient = map_of(gradient);
  const UpsampleLossCode& code = upsample_loss_code();
  const int kind = arguments.kind();
  for_each_band(u.map, code.scratch_bytes[kind](u),
                [&](int64_t task, void* scratch) { code.backward[kind](u, task, scratch); });
  return gradient;
}

// --- what a mean divides by ----------------------------------------------------------------------

// How many pixels of image rows [begin, end) there are of each class; of all together, where
// `counts` has one element. Rows of the whole batch are numbered through.
template <class T>
bool count_labels(const Plane& plane, int64_t height, int64_t width, int64_t begin, int64_t end,
                  int64_t ignore_index, std::vector<int64_t>& counts) {
  const auto classes = static_cast<int64_t>(counts.size());
  for (int64_t row = begin; row < end; ++row) {
    const T* from = static_cast<const T*>(plane.data) + row / height * plane.stride_n +
                    row % height * plane.stride_h;
    if (classes == 1) {
      int64_t counted = 0;
      for (int64_t x = 0; x < width; ++x) counted += from[x * plane.stride_w] != ignore_index;
      counts[0] += counted;
      continue;
    }
    for (int64_t x = 0; x < width; ++x) {
      const int64_t label = from[x * plane.stride_w];
      if (label == ignore_index) continue;
      if (label < 0 || label >= classes) return false;
      ++counts[label];
    }
  }
  return true;
}

// Whole numbers are added up by class, and only then weighted: no rounding depends on the threads.
Tensor class_weight_sum_cpu(const Tensor& target, const Optional& weight, int64_t ignore_index,
                            const Tensor& like) {
  const ScalarType type = sum_type(element_of(like));
  STD_TORCH_CHECK(target.dim() == 3, "class_weight_sum: target must be (N, H, W)");
  STD_TORCH_CHECK(!weight || (weight->dim() == 1 && weight->scalar_type() == type),
                  "class_weight_sum: weight must be a vector of float32 (float64 beside float64)");
  const int64_t classes = weight ? weight->size(0) : 1;
  const Label label = label_of(target);
  const Plane plane = plane_of(target);
  const int64_t rows = target.size(0) * target.size(1);
  const int64_t tasks = std::min<int64_t>(rows, torch::stable::get_num_threads());
  std::vector<std::vector<int64_t>> counts(tasks, std::vector<int64_t>(classes));
  std::atomic<bool> all_fit{true};
  for_each_task(tasks, [&](int64_t task) {
    const auto count = [&](auto kind) {
      return count_labels<decltype(kind)>(plane, target.size(1), target.size(2),
                                          task * rows / tasks, (task + 1) * rows / tasks,
                                          ignore_index, counts[task]);
    };
    const bool fits = label == Label::kInt64   ? count(int64_t())
                      : label == Label::kInt32 ? count(int32_t())
                                               : count(uint8_t());
    if (!fits) all_fit = false;
  });
  STD_TORCH_CHECK(all_fit.load(),
                  "class_weight_sum: target holds a value that is neither a class"
                  " nor ignore_index");
  const std::vector<double> factors = weight ? values_of(*weight) : std::vector<double>{1};
  double sum = 0;
  for (int64_t k = 0; k < classes; ++k) {
    int64_t pixels = 0;
    for (const auto& some : counts) pixels += some[k];
    sum += static_cast<double>(pixels) * factors[k];
  }
  return torch::stable::full({}, sum, type);
}

STABLE_TORCH_LIBRARY_IMPL(dlv3p, CPU, m) {
  m.impl("upsample_cross_entropy", TORCH_BOX(&upsample_cross_entropy_cpu));
  m.impl("upsample_cross_entropy_backward", TORCH_BOX(&upsample_cross_entropy_backward_cpu));
  m.impl("class_weight_sum", TORCH_BOX(&class_weight_sum_cpu));
}

}  // namespace
}  // namespace dlv3p
