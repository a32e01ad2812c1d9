// One float32 for each channel, or class, as kernels read it.
#pragma once

#include <cstdint>
#include <optional>

#include "launch.h"

namespace dlv3p {

// Kept alive with its pointer, which is null where the vector is missing.
class ChannelVector {
 public:
  ChannelVector(const std::optional<Tensor>& vector, int64_t channels, const char* op) {
    if (!vector) return;
    STD_TORCH_CHECK(vector->scalar_type() == ScalarType::Float && vector->numel() == channels, op,
                    ": the vectors of the channels must be float32 of their number");
    held_ = torch::stable::contiguous(*vector);
  }

  operator const float*() const {
    return held_ ? static_cast<const float*>(held_->const_data_ptr()) : nullptr;
  }

 private:
  std::optional<Tensor> held_;
};

}  // namespace dlv3p
