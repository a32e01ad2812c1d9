// activation(x * scale + shift), from tensors to what the loops take.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "../common/activation_code.h"
#include "../common/tensor.h"
#include "gather.h"
#include "gather_launch.h"

namespace dlv3p {

inline Activation activation_of(int64_t code) {
  STD_TORCH_CHECK(0 <= code && code <= static_cast<int64_t>(Activation::kSilu),
                  "unknown activation ", code);
  return static_cast<Activation>(code);
}

// A Pointwise and the memory of its vectors.
class ChannelAffine {
 public:
  ChannelAffine(const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                int64_t activation, const Tensor& input)
      : ChannelAffine(scale, shift, activation, element_of(input), input.size(1)) {}
  ChannelAffine(const std::optional<Tensor>& scale, const std::optional<Tensor>& shift,
                int64_t activation, Element element, int64_t channels)
      : element_(element), channels_(channels) {
    STD_TORCH_CHECK(scale.has_value() == shift.has_value(),
                    "channel affine: both scale and shift, or neither");
    pointwise_.activation = activation_of(activation);
    if (!scale && pointwise_.activation == Activation::kIdentity) return;
    pointwise_.scale = padded(scale, 1, scale_);
    pointwise_.shift = padded(shift, 0, shift_);
  }
  ChannelAffine(const ChannelAffine&) = delete;  // pointwise() points into it
  ChannelAffine& operator=(const ChannelAffine&) = delete;

  const Pointwise& pointwise() const { return pointwise_; }
  bool is_identity() const { return !pointwise_.scale; }

 private:
  // Whole vectors are read, so there must be some memory behind the last channel.
  static constexpr int64_t kPadding = 64;

  const void* padded(const std::optional<Tensor>& vector, int value, std::vector<char>& memory) {
    memory.resize(channels_ * sum_bytes(element_) + kPadding);
    if (vector) {
      STD_TORCH_CHECK(vector->dim() == 1 && vector->size(0) == channels_ &&
                          vector->scalar_type() == sum_type(element_),
                      "channel affine: scale and shift must be one element per channel, "
                      "float32, or float64 for float64");
      std::memcpy(memory.data(), torch::stable::contiguous(*vector).const_data_ptr(),
                  channels_ * sum_bytes(element_));
    } else if (element_ == Element::kFloat64) {
      fill<double>(memory, value);
    } else {
      fill<float>(memory, value);
    }
    return memory.data();
  }

  template <class A>
  void fill(std::vector<char>& memory, A value) const {
    A* values = reinterpret_cast<A*>(memory.data());
    for (int64_t c = 0; c < channels_; ++c) values[c] = value;
  }

  const Element element_;
  const int64_t channels_;
  std::vector<char> scale_;
  std::vector<char> shift_;
  Pointwise pointwise_ = {};
};

}  // namespace dlv3p
