// Separable convolution on CPU. The result of the depthwise half exists a piece at a time, in
// memory that the caches hold: the gather of gather.h writes it, with norm and activation, and a
// product of matrices reads it at once.
#include <algorithm>
#include <optional>
#include <tuple>

#include "../common/tensor.h"
#include "channel_affine.h"
#include "gather.h"
#include "gather_launch.h"
#include "gather_plan.h"
#include "gemm.h"
#include "huge_pages.h"
#include "separable_finish.h"

namespace dlv3p {
namespace {

// A piece stays in the caches that the cores share. Smaller ones would make the products of
// matrices, which rearrange the weights anew each time, slower than memory is.
constexpr int64_t kPieceBytes = 4 * 1024 * 1024;

// Some rows of one image, or some whole images.
struct Piece {
  int64_t image;
  int64_t images;
  int64_t row;
  int64_t rows;
};

// How the result is cut, in pieces of equal size. It depends on sizes alone.
class PieceList {
 public:
  PieceList(int64_t images, int64_t rows, int64_t row_bytes, bool across_images)
      : images_(images), rows_(rows) {
    const int64_t fitting = std::max<int64_t>(1, kPieceBytes / std::max<int64_t>(1, row_bytes));
    per_image_ = (rows + fitting - 1) / fitting;
    together_ = across_images ? std::clamp<int64_t>(fitting / rows, 1, images) : 1;
  }

  int64_t images_together() const { return together_; }
  int64_t most_rows() const {
    return per_image_ > 1 ? (rows_ + per_image_ - 1) / per_image_ : together_ * rows_;
  }

  // Calls run(piece), all pieces of the same rows in a row: prepare(piece) goes before them.
  template <class Prepare, class Run>
  void for_each(const Prepare& prepare, const Run& run) const {
    for (int64_t p = 0; p < per_image_; ++p) {
      const int64_t row = p * rows_ / per_image_;
      const int64_t end = (p + 1) * rows_ / per_image_;
      prepare(row, end - row);
      for (int64_t image = 0; image < images_; image += together_) {
        run(Piece{image, std::min(together_, images_ - image), row, end - row});
      }
    }
  }

 private:
  const int64_t images_;
  const int64_t rows_;
  int64_t per_image_;
  int64_t together_;
};

class Separable {
 public:
  Separable(const Tensor& input, const Tensor& dw_weight, const std::optional<Tensor>& dw_bias,
            const Axes& axes, const ChannelAffine& prologue, const ChannelAffine& middle,
            const Tensor& pw_weight)
      : axes_(axes),
        element_(element_of(input)),
        channels_(input.size(1)),
        out_channels_(pw_weight.size(0)),
        by_pixel_(format_of(input) == MemoryFormat::ChannelsLast),
        source_(walkable_form_of(input)),
        filters_(torch::stable::contiguous(dw_weight)),
        shifts_(dw_bias),
        mixing_(torch::stable::contiguous(pw_weight)),
        gather_(gather_of(source_, filters_, axes)),
        pieces_(input.size(0), axes.rows.out,
                axes.columns.out * channels_ * static_cast<int64_t>(input.element_size()),
                by_pixel_) {
    gather_.on_source = prologue.pointwise();
    gather_.on_result = middle.pointwise();
    gather_.bias = shifts_.data();
    gather_.batch = pieces_.images_together();
  }

  Tensor run(const Tensor& output, SeparableFinish& finish) {
    const int64_t most_pixels = pieces_.most_rows() * axes_.columns.out;
    hidden_ = torch::stable::empty({most_pixels * channels_}, output.scalar_type());
    if (by_pixel_) finish.start(output, most_pixels);
    std::optional<GatherPlanner> planner;
    std::optional<PackedWeight> packed;
    const auto prepare = [&](int64_t row, int64_t rows) {
      Axes part = axes_;
      part.rows.out = rows;
      part.rows.before = axes_.rows.before - row * axes_.rows.stride;
      planner.emplace(plan(gather_, element_, Direction::kForward, part));
      if (!packed) packed.emplace(gather_, element_);
    };
    pieces_.for_each(prepare, [&](const Piece& piece) {
      depthwise(piece);
      if (by_pixel_) {
        pointwise_by_pixel(piece, finish);
      } else {
        pointwise_by_plane(piece, output);
      }
    });
    return by_pixel_ ? output : finish.take_whole(output);
  }

 private:
  int64_t pixels_of(const Piece& piece) const {
    return piece.images * piece.rows * axes_.columns.out;
  }

  void depthwise(const Piece& piece) {
    Gather g = gather_;
    g.batch = piece.images;
    g.groups = std::min(gather_.groups, piece.images * gather_.plan.bands);
    char* from = static_cast<char*>(g.source.data);
    g.source.data = from + piece.image * g.source.stride_n * source_.element_size();
    const int64_t width = axes_.columns.out;
    const int64_t plane = piece.rows * width;
    g.destination =
        by_pixel_ ? Map{nullptr, plane * channels_, 1, width * channels_, channels_, width, true}
                  : Map{nullptr, plane * channels_, plane, width, 1, width, false};
    g.destination.data = hidden_.mutable_data_ptr();
    run_packed(g, element_);
  }

  void pointwise_by_pixel(const Piece& piece, SeparableFinish& finish) {
    const int64_t pixels = pixels_of(piece);
    const int64_t first = (piece.image * axes_.rows.out + piece.row) * axes_.columns.out;
    const Tensor maps = matrix_view(hidden_, 0, pixels, channels_, channels_, 1);
    const Tensor weights = matrix_view(mixing_, 0, channels_, out_channels_, 1, channels_);
    multiply_matrices(maps, weights, finish.target(first, pixels));
    finish.take(first, pixels);
  }

  void pointwise_by_plane(const Piece& piece, const Tensor& output) {
    const int64_t pixels = pixels_of(piece);
    const int64_t plane = axes_.rows.out * axes_.columns.out;
    const int64_t first = piece.image * out_channels_ * plane + piece.row * axes_.columns.out;
    const Tensor maps = matrix_view(hidden_, 0, channels_, pixels, pixels, 1);
    const Tensor weights = matrix_view(mixing_, 0, out_channels_, channels_, channels_, 1);
    multiply_matrices(weights, maps, matrix_view(output, first, out_channels_, pixels, plane, 1));
  }

  const Axes axes_;
  const Element element_;
  const int64_t channels_;
  const int64_t out_channels_;
  const bool by_pixel_;  // channels are adjacent
  const Tensor source_;
  const Tensor filters_;
  const Contiguous shifts_;
  const Tensor mixing_;
  Gather gather_;
  const PieceList pieces_;
  Tensor hidden_;
};

std::tuple<Tensor, Tensor, Tensor> separable_conv2d_fused_cpu(
    const Tensor& input, const Tensor& dw_weight, const std::optional<Tensor>& dw_bias,
    const Ints& stride, const Ints& padding, const Ints& dilation,
    const std::optional<Tensor>& in_scale, const std::optional<Tensor>& in_shift,
    int64_t in_activation, const std::optional<Tensor>& mid_scale,
    const std::optional<Tensor>& mid_shift, int64_t mid_activation, const Tensor& pw_weight,
    const std::optional<Tensor>& pw_bias, const std::optional<Tensor>& out_scale,
    const std::optional<Tensor>& out_shift, int64_t out_activation,
    const std::optional<Tensor>& residual, bool statistics) {
  STD_TORCH_CHECK(input.numel() > 0, "separable_conv2d_fused: the input is empty");
  const Axes axes = axes_of(input, dw_weight, stride, padding, dilation);
  check_bias(dw_bias, input);
  STD_TORCH_CHECK(pw_weight.dim() == 4 && pw_weight.size(1) == input.size(1) &&
                      pw_weight.size(2) * pw_weight.size(3) == 1 &&
                      pw_weight.scalar_type() == input.scalar_type(),
                  "separable_conv2d_fused: pw_weight must be (C', C, 1, 1), of input's dtype");
  const Tensor output =
      empty_in_format_of(input, input.size(0), pw_weight.size(0), axes.rows.out, axes.columns.out);
  advise_huge_pages(output.mutable_data_ptr(),
                    output.numel() * static_cast<int64_t>(output.element_size()));
  if (residual) {
    bool fits = residual->dim() == 4 && residual->scalar_type() == output.scalar_type();
    for (int64_t d = 0; fits && d < 4; ++d) fits = residual->size(d) == output.size(d);
    STD_TORCH_CHECK(fits, "separable_conv2d_fused: residual must have output's shape and dtype");
  }
  const ChannelAffine prologue(in_scale, in_shift, in_activation, input);
  const ChannelAffine middle(mid_scale, mid_shift, mid_activation, input);
  SeparableFinish finish(
      output, pw_weight.size(0),
      {pw_bias, out_scale, out_shift, activation_of(out_activation), residual, statistics});
  Separable separable(input, dw_weight, dw_bias, axes, prologue, middle, pw_weight);
  const Tensor result = separable.run(output, finish);
  if (statistics) {
    const MeanAndVariance measured = finish.statistics();
    return {result, measured.mean, measured.variance};
  }
  const auto nothing = [&] { return torch::stable::empty({0}, sum_type(element_of(input))); };
  return {result, nothing(), nothing()};
}

STABLE_TORCH_LIBRARY_IMPL(dlv3p, CPU, m) {
  m.impl("separable_conv2d_fused", TORCH_BOX(&separable_conv2d_fused_cpu));
}

}  // namespace
}  // namespace dlv3p
