// The input of the decoder's convolution: the encoder output resized to the low-level map, and that
// map through its norm and activation, side by side.
#pragma once

#include <cstdint>
#include <optional>

#include "../common/tensor.h"
#include "channel_affine.h"
#include "separable_source.h"

namespace dlv3p {

class DecoderSource {
 public:
  DecoderSource(const Tensor& encoder, const Tensor& low_level, bool align_corners,
                bool encoder_first, const std::optional<Tensor>& low_scale,
                const std::optional<Tensor>& low_shift, int64_t low_activation);
  DecoderSource(const DecoderSource&) = delete;  // source() points into it
  DecoderSource& operator=(const DecoderSource&) = delete;

  // Its maps are the encoder output and the low-level map, in this order.
  const SeparableSource& source() const { return source_; }
  // The convolution of both side by side.
  Axes axes(const Tensor& dw_weight, const std::optional<Tensor>& dw_bias, const Ints& padding,
            const Ints& dilation) const {
    check_bias(dw_bias, shape_);
    return axes_of(shape_, dw_weight, {1, 1}, padding, dilation);
  }

 private:
  InputShape shape_;
  const ResizeTables tables_;
  const ChannelAffine prologue_;
  SeparableSource source_;
};

}  // namespace dlv3p
