// The arguments of the depthwise operators as the kernels take them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "depthwise.cuh"
#include "launch.h"

namespace dlv3p {

using Ints = std::vector<int64_t>;

inline DepthwiseMap map_of(const Tensor& t) {
  return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

struct Axes {
  ConvAxis rows;
  ConvAxis columns;
};

// Of a convolution over maps of the height and width of `input`.
inline Axes axes_of(const Tensor& input, const Tensor& weight, const Ints& stride,
                    const Ints& padding, const Ints& dilation) {
  const auto axis = [&](int64_t d, int64_t before, int64_t after) {
    const int64_t in = input.size(2 + d);
    const int64_t kernel = weight.size(2 + d);
    const int64_t out = conv_output_size(in, before, after, kernel, stride[d], dilation[d]);
    return ConvAxis{in, out, kernel, stride[d], dilation[d], before};
  };
  return {axis(0, padding[2], padding[3]), axis(1, padding[0], padding[1])};
}

// A vector as kernels read it; kept alive while they are launched.
class Vector {
 public:
  explicit Vector(const std::optional<Tensor>& t) {
    if (t) dense_ = torch::stable::contiguous(*t);
  }
  const void* data() const { return dense_ ? dense_->const_data_ptr() : nullptr; }

 private:
  std::optional<Tensor> dense_;
};

// A ChannelAffine of tensors.
class Affine {
 public:
  Affine(const std::optional<Tensor>& scale, const std::optional<Tensor>& shift, int64_t activation)
      : scale_(scale), shift_(shift), activation_(static_cast<Activation>(activation)) {}

  ChannelAffine params() const {
    return {static_cast<const float*>(scale_.data()), static_cast<const float*>(shift_.data()),
            activation_};
  }
  bool has_scale() const { return scale_.data() != nullptr; }

 private:
  Vector scale_;
  Vector shift_;
  Activation activation_;
};

// Neighbours in memory are then neighbours in both.
inline Tensor in_format_of(const Tensor& t, const Tensor& like) {
  const MemoryFormat format = format_of(like);
  return format_of(t) == format ? t : torch::stable::contiguous(t, format);
}

inline Tensor empty_in_dtype_of(const Tensor& like, const std::vector<int64_t>& shape) {
  return torch::stable::empty(shape, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              std::nullopt);
}

inline Tensor float_vector(const Tensor& like, int64_t size) {
  return torch::stable::empty({size}, ScalarType::Float, std::nullopt, like.device(), std::nullopt,
                              std::nullopt);
}

inline float* floats(const Tensor& t) {
  return t.numel() > 0 ? static_cast<float*>(t.mutable_data_ptr()) : nullptr;
}

}  // namespace dlv3p
