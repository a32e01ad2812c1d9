// The depthwise half of the decoder's convolution on CUDA: the encoder output, resized while it is
// read, and the low-level map each make their channels of one result.
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "decoder_launch.h"
#include "depthwise_arguments.h"
#include "depthwise_launch.h"
#include "norm.h"

namespace dlv3p {
namespace {

// One of the two maps.
struct Part {
  Tensor map;
  int64_t first_channel;  // in the concatenation
  ChannelAffine before;
  std::optional<Cells> cells;  // where it is resized
};

class Source {
 public:
  Source(const Tensor& encoder, const Tensor& low_level, bool align_corners, bool encoder_first,
         const std::optional<Tensor>& low_scale, const std::optional<Tensor>& low_shift,
         int64_t low_activation)
      : prologue_(low_scale, low_shift, low_activation) {
    check(encoder, low_level);
    const int64_t height = low_level.size(2), width = low_level.size(3);
    std::optional<Cells> cells;
    if (encoder.size(2) != height || encoder.size(3) != width) {
      cells = Cells{resize_axis<float>(encoder.size(2), height, align_corners),
                    resize_axis<float>(encoder.size(3), width, align_corners)};
    }
    const ChannelAffine none{nullptr, nullptr, Activation::kIdentity};
    parts_.push_back(
        {in_format_of(encoder, low_level), encoder_first ? 0 : low_level.size(1), none, cells});
    parts_.push_back(
        {low_level, encoder_first ? encoder.size(1) : 0, prologue_.params(), std::nullopt});
  }

  const Part& encoder() const { return parts_[0]; }
  const Part& low_level() const { return parts_[1]; }
  const std::vector<Part>& parts() const { return parts_; }
  int64_t channels() const { return encoder().map.size(1) + low_level().map.size(1); }
  bool has_scale() const { return prologue_.has_scale(); }

 private:
  static void check(const Tensor& encoder, const Tensor& low_level) {
    STD_TORCH_CHECK(encoder.dim() == 4 && low_level.dim() == 4,
                    "decoder_depthwise: expected maps of 4 dimensions");
    STD_TORCH_CHECK(encoder.numel() > 0 && low_level.numel() > 0,
                    "decoder_depthwise: an input is empty");
    STD_TORCH_CHECK(
        encoder.size(0) == low_level.size(0) && encoder.scalar_type() == low_level.scalar_type(),
        "decoder_depthwise: the maps differ in batch or dtype");
  }

  Affine prologue_;
  std::vector<Part> parts_;
};

// Elements of the maps' type from `data` on; none of no data.
const void* advance(const Tensor& like, const void* data, int64_t elements) {
  const auto bytes = static_cast<int64_t>(like.element_size());
  return data ? static_cast<const char*>(data) + elements * bytes : nullptr;
}
void* advance(const Tensor& like, void* data, int64_t elements) {
  return const_cast<void*>(advance(like, const_cast<const void*>(data), elements));
}

float* advance(float* data, int64_t elements) { return data ? data + elements : nullptr; }

ChannelAffine advance(const ChannelAffine& affine, int64_t channels) {
  if (!affine.scale) return affine;
  return {affine.scale + channels, affine.shift + channels, affine.activation};
}

// The convolution over both maps.
class Convolution {
 public:
  Convolution(const Source& source, const Tensor& weight, const std::optional<Tensor>& bias,
              const Ints& padding, const Ints& dilation)
      : axes_(axes_of(source.low_level().map, weight, {1, 1}, padding, dilation)),
        filters_(weight),
        shifts_(bias) {
    STD_TORCH_CHECK(weight.size(0) == source.channels() && weight.size(1) == 1,
                    "decoder_depthwise: the kernel takes one filter per channel");
  }

  const Axes& axes() const { return axes_; }
  int64_t taps() const { return axes_.rows.kernel * axes_.columns.kernel; }
  const void* filters(const Part& part) const {
    return advance(part.map, filters_.data(), part.first_channel * taps());
  }

  // What a part's channels take; the output is still to be given.
  DepthwiseForward forward(const Part& part, const ChannelAffine& behind, const Tensor& mean,
                           const Tensor& var) const {
    const int64_t first = part.first_channel;
    return {part.map.const_data_ptr(),
            filters(part),
            advance(part.map, shifts_.data(), first),
            nullptr,
            map_of(part.map),
            {},
            part.map.size(0),
            part.map.size(1),
            axes_.rows,
            axes_.columns,
            part.before,
            advance(behind, first),
            advance(floats(mean), first),
            advance(floats(var), first)};
  }

 private:
  Axes axes_;
  Vector filters_;
  Vector shifts_;
};

Tensor output_of(const Convolution& convolution, const Tensor& like, int64_t channels) {
  const Axes& axes = convolution.axes();
  return empty_in_format_of(like, like.size(0), channels, axes.rows.out, axes.columns.out);
}

// Whether with the statistics, if they were wanted.
bool launch(const Stream& stream, const DepthwiseForward& p, const Part& part) {
  if (!part.cells) return launch_depthwise(stream, p, part.map);
  if (columns_take(p, *part.cells)) {
    launch_columns(stream, p, *part.cells, part.map);
    return true;
  }
  launch_any(stream, p, *part.cells, part.map);
  return false;
}

void launch(const Stream& stream, const DepthwiseBackward& p, const Part& part) {
  if (!part.cells) {
    launch_depthwise(stream, p, part.map);
  } else if (columns_take(p, *part.cells, part.map)) {
    launch_columns(stream, p, *part.cells, part.map);
  } else {
    launch_any(stream, p, *part.cells, part.map);
  }
}

// A map is made where no kernel gathers the statistics without one.
void measure(const Stream& stream, DepthwiseForward p, const Convolution& convolution,
             const Part& part) {
  if (part.cells && columns_take(p, *part.cells)) {
    launch_columns(stream, p, *part.cells, part.map);
    return;
  }
  const Tensor output = output_of(convolution, part.map, part.map.size(1));
  p.output = output.mutable_data_ptr();
  p.output_map = map_of(output);
  if (!launch(stream, p, part)) launch_batch_norm_stats(stream, output, p.mean, p.var);
}

std::tuple<Tensor, Tensor> decoder_conv2d_statistics_cuda(
    const Tensor& input, const Tensor& low_level, bool align_corners, bool encoder_first,
    const std::optional<Tensor>& low_scale, const std::optional<Tensor>& low_shift,
    int64_t low_activation, const Tensor& weight, const std::optional<Tensor>& bias,
    const Ints& padding, const Ints& dilation) {
  const Source source(input, low_level, align_corners, encoder_first, low_scale, low_shift,
                      low_activation);
  const Convolution convolution(source, weight, bias, padding, dilation);
  const Stream stream(low_level);
  const Tensor mean = float_vector(low_level, source.channels());
  const Tensor var = float_vector(low_level, source.channels());
  const ChannelAffine none{nullptr, nullptr, Activation::kIdentity};
  for (const Part& part : source.parts()) {
    measure(stream, convolution.forward(part, none, mean, var), convolution, part);
  }
  return {mean, var};
}

Tensor decoder_depthwise_cuda(const Tensor& input, const Tensor& low_level, bool align_corners,
                              bool encoder_first, const std::optional<Tensor>& low_scale,
                              const std::optional<Tensor>& low_shift, int64_t low_activation,
                              const Tensor& weight, const std::optional<Tensor>& bias,
                              const Ints& padding, const Ints& dilation,
                              const std::optional<Tensor>& out_scale,
                              const std::optional<Tensor>& out_shift, int64_t out_activation) {
  const Source source(input, low_level, align_corners, encoder_first, low_scale, low_shift,
                      low_activation);
  const Convolution convolution(source, weight, bias, padding, dilation);
  const Affine behind(out_scale, out_shift, out_activation);
  const Stream stream(low_level);
  const Tensor output = output_of(convolution, low_level, source.channels());
  const Tensor no_vector = float_vector(low_level, 0);
  for (const Part& part : source.parts()) {
    DepthwiseForward p = convolution.forward(part, behind.params(), no_vector, no_vector);
    p.output_map = map_of(output);
    p.output =
        advance(output, output.mutable_data_ptr(), part.first_channel * p.output_map.stride_c);
    launch(stream, p, part);
  }
  return output;
}

using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Tensor gradient_for(const Part& part, bool wanted) {
  const Tensor& map = part.map;
  return wanted ? empty_in_format_of(map, map.size(0), map.size(1), map.size(2), map.size(3))
                : empty_in_dtype_of(map, {0});
}

// A part's channels of the gradient. The kernels for planes walk over whole batches, so there they
// are copied; with those of the low-level map that is little.
Tensor gradient_of(const Part& part, const Tensor& grad) {
  Tensor slice = grad;
  slice = torch::stable::narrow(slice, 1, part.first_channel, part.map.size(1));
  const bool is_planes = format_of(grad) == MemoryFormat::Contiguous && grad.size(0) > 1;
  return is_planes && !part.cells ? torch::stable::contiguous(slice) : slice;
}

Backward decoder_depthwise_backward_cuda(const Tensor& grad_output, const Tensor& input,
                                         const Tensor& low_level, bool align_corners,
                                         bool encoder_first, const std::optional<Tensor>& low_scale,
                                         const std::optional<Tensor>& low_shift,
                                         int64_t low_activation, const Tensor& weight,
                                         const Ints& padding, const Ints& dilation, bool need_input,
                                         bool need_low_level, bool need_weight) {
  const Source source(input, low_level, align_corners, encoder_first, low_scale, low_shift,
                      low_activation);
  const Convolution convolution(source, weight, std::nullopt, padding, dilation);
  const Stream stream(low_level);
  const Tensor grad = in_format_of(grad_output, low_level);
  const Tensor grad_input = gradient_for(source.encoder(), need_input);
  const Tensor grad_low_level = gradient_for(source.low_level(), need_low_level);
  const Tensor grad_weight = empty_in_dtype_of(
      low_level,
      need_weight ? Ints{source.channels(), 1, weight.size(2), weight.size(3)} : Ints{0});
  const int64_t vector = need_low_level && source.has_scale() ? low_level.size(1) : 0;
  const Tensor grad_scale = float_vector(low_level, vector);
  const Tensor grad_shift = float_vector(low_level, vector);
  const auto launch_part = [&](const Part& part, const Tensor& result, bool wanted) {
    if (!wanted && !need_weight) return;
    const Tensor slice = gradient_of(part, grad);
    const bool has_scale = part.before.scale && vector > 0;
    void* const to_weight = need_weight ? grad_weight.mutable_data_ptr() : nullptr;
    const DepthwiseBackward p{slice.const_data_ptr(),
                              part.map.const_data_ptr(),
                              convolution.filters(part),
                              wanted ? result.mutable_data_ptr() : nullptr,
                              advance(grad, to_weight, part.first_channel * convolution.taps()),
                              has_scale ? floats(grad_scale) : nullptr,
                              has_scale ? floats(grad_shift) : nullptr,
                              map_of(slice),
                              map_of(part.map),
                              wanted ? map_of(result) : DepthwiseMap{},
                              part.map.size(0),
                              part.map.size(1),
                              convolution.axes().rows,
                              convolution.axes().columns,
                              part.before};
    launch(stream, p, part);
  };
  launch_part(source.encoder(), grad_input, need_input);
  launch_part(source.low_level(), grad_low_level, need_low_level);
  return {need_input ? in_format_of(grad_input, input) : grad_input, grad_low_level, grad_weight,
          grad_scale, grad_shift};
}

DLV3P_CUDA_LIBRARY(m) {
  m.impl("decoder_conv2d_statistics", TORCH_BOX(&decoder_conv2d_statistics_cuda));
  m.impl("decoder_depthwise", TORCH_BOX(&decoder_depthwise_cuda));
  m.impl("decoder_depthwise_backward", TORCH_BOX(&decoder_depthwise_backward_cuda));
}

}  // namespace
}  // namespace dlv3p
