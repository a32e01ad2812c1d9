// From tensors to the structures of upsample.h, for loss and classes.
#pragma once

#include <cstdint>
#include <optional>

#include "launch.h"
#include "upsample.h"

namespace dlv3p {

// Checks the logits, and what they are resized to.
ResizedLogits resized_logits(const Tensor& logits, int64_t height, int64_t width,
                             bool align_corners, const char* op);

Labels labels_of(const Tensor& target, int64_t ignore_index, const char* op);

// One float32 per class, kept alive with its pointer; nullptr where there are none.
class ClassWeights {
 public:
  ClassWeights(const std::optional<Tensor>& weight, int64_t classes, const char* op);
  operator const float*() const;

 private:
  std::optional<Tensor> held_;
};

// How the launchers share the work among blocks; `shared_bytes` of dynamic shared memory.
struct ForwardPlan {
  ForwardTiling tiling;
  dim3 grid;
  size_t shared_bytes;
};
ForwardPlan forward_plan(const ResizedLogits& u, int64_t images);

struct BackwardPlan {
  BackwardTiling tiling;
  dim3 grid;
  size_t shared_bytes;
};
BackwardPlan backward_plan(const ResizedLogits& u, int64_t images);

}  // namespace dlv3p
