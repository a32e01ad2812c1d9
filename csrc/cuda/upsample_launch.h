// From tensors to the structures of upsample.h, for loss and classes.
#pragma once

#include <cstdint>

#include "channel_vector.h"
#include "launch.h"
#include "upsample.h"

namespace dlv3p {

// Checks the logits, and what they are resized to.
ResizedLogits resized_logits(const Tensor& logits, int64_t height, int64_t width,
                             bool align_corners, const char* op);

Labels labels_of(const Tensor& target, int64_t ignore_index, const char* op);

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
