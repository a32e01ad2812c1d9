#include "decoder_source.h"

namespace dlv3p {
namespace {

const Tensor& checked(const Tensor& encoder, const Tensor& low_level) {
  STD_TORCH_CHECK(encoder.dim() == 4 && low_level.dim() == 4,
                  "decoder_conv2d: expected maps of 4 dimensions");
  STD_TORCH_CHECK(encoder.numel() > 0 && low_level.numel() > 0,
                  "decoder_conv2d: an input is empty");
  STD_TORCH_CHECK(
      encoder.size(0) == low_level.size(0) && encoder.scalar_type() == low_level.scalar_type(),
      "decoder_conv2d: the maps differ in batch or dtype");
  return low_level;
}

}  // namespace

DecoderSource::DecoderSource(const Tensor& encoder, const Tensor& low_level, bool align_corners,
                             bool encoder_first, const std::optional<Tensor>& low_scale,
                             const std::optional<Tensor>& low_shift, int64_t low_activation)
    : shape_(checked(encoder, low_level)),
      tables_(encoder, shape_.height, shape_.width, align_corners),
      prologue_(low_scale, low_shift, low_activation, low_level),
      source_(source_of(low_level, prologue_.pointwise())) {
  SourceMap& beside = source_.maps.front();
  beside.first_channel = encoder_first ? encoder.size(1) : 0;
  const int64_t first = encoder_first ? 0 : low_level.size(1);
  source_.maps.insert(source_.maps.begin(), {walkable_form_of(encoder), first, {}, &tables_});
  shape_.channels += encoder.size(1);
  source_.channels = shape_.channels;
}

}  // namespace dlv3p
