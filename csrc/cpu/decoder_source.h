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
  // Of both side by side.
  const InputShape& shape() const { return shape_; }

 private:
  InputShape shape_;
  const ResizeTables tables_;
  const ChannelAffine prologue_;
  SeparableSource source_;
};

}  // namespace dlv3p
