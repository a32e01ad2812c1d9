// The result of the depthwise half exists a piece at a time, in memory that the caches hold: the
// gather of gather.h writes it, with norm and activation, and a product of matrices reads it at
// once.
#include "separable_forward.h"

#include "channel_affine.h"
#include "gemm.h"
#include "huge_pages.h"

namespace dlv3p {
namespace {

class Forward {
 public:
  Forward(const SeparableSource& source, const Axes& axes, const Tensor& filters, const void* bias,
          const Pointwise& middle, const Tensor& mixing)
      : source_(source),
        axes_(axes),
        out_channels_(mixing.size(0)),
        mixing_(mixing),
        pieces_(source.images, axes.rows.out,
                axes.columns.out * source.channels * source.element_size, source.by_pixel),
        depthwise_(source, filters, bias, axes, middle, pieces_.images_together()) {}

  Tensor run(const Tensor& output, SeparableFinish& finish) {
    const int64_t most_pixels = pieces_.most_rows() * axes_.columns.out;
    hidden_ = torch::stable::empty({most_pixels * source_.channels}, output.scalar_type());
    if (source_.by_pixel) finish.start(output, most_pixels);
    const auto prepare = [&](int64_t row, int64_t rows) { depthwise_.prepare(row, rows); };
    pieces_.for_each(prepare, [&](const Piece& piece) {
      depthwise_.write(piece, map_of_piece(hidden_.mutable_data_ptr(), source_.channels, piece.rows,
                                           axes_.columns.out, source_.by_pixel));
      if (source_.by_pixel) {
        pointwise_by_pixel(piece, finish);
      } else {
        pointwise_by_plane(piece, output);
      }
    });
    return source_.by_pixel ? output : finish.take_whole(output);
  }

 private:
  int64_t pixels_of(const Piece& piece) const {
    return piece.images * piece.rows * axes_.columns.out;
  }

  void pointwise_by_pixel(const Piece& piece, SeparableFinish& finish) {
    const int64_t pixels = pixels_of(piece);
    const int64_t channels = source_.channels;
    const int64_t first = (piece.image * axes_.rows.out + piece.row) * axes_.columns.out;
    const Tensor maps = matrix_view(hidden_, 0, pixels, channels, channels, 1);
    const Tensor weights = matrix_view(mixing_, 0, channels, out_channels_, 1, channels);
    multiply_matrices(maps, weights, finish.target(first, pixels));
    finish.take(first, pixels);
  }

  void pointwise_by_plane(const Piece& piece, const Tensor& output) {
    const int64_t pixels = pixels_of(piece);
    const int64_t channels = source_.channels;
    const int64_t plane = axes_.rows.out * axes_.columns.out;
    const int64_t first = piece.image * out_channels_ * plane + piece.row * axes_.columns.out;
    const Tensor maps = matrix_view(hidden_, 0, channels, pixels, pixels, 1);
    const Tensor weights = matrix_view(mixing_, 0, out_channels_, channels, channels, 1);
    multiply_matrices(weights, maps, matrix_view(output, first, out_channels_, pixels, plane, 1));
  }

  const SeparableSource& source_;
  const Axes axes_;
  const int64_t out_channels_;
  const Tensor mixing_;
  const PieceList pieces_;
  DepthwisePieces depthwise_;
  Tensor hidden_;
};

}  // namespace

void check_pointwise_weight(const Tensor& pw_weight, int64_t channels, ScalarType type) {
  STD_TORCH_CHECK(pw_weight.dim() == 4 && pw_weight.size(1) == channels &&
                      pw_weight.size(2) * pw_weight.size(3) == 1 && pw_weight.scalar_type() == type,
                  "separable_conv2d_fused: pw_weight must be (C', C, 1, 1), of input's dtype");
}

std::tuple<Tensor, Tensor, Tensor> separable_forward(const SeparableSource& source,
                                                     const Tensor& like, const Axes& axes,
                                                     const SeparableHalves& halves,
                                                     const SeparableEnd& end) {
  check_pointwise_weight(halves.pw_weight, source.channels, like.scalar_type());
  const int64_t out_channels = halves.pw_weight.size(0);
  const Tensor output =
      empty_in_format_of(like, source.images, out_channels, axes.rows.out, axes.columns.out);
  advise_huge_pages(output.mutable_data_ptr(),
                    output.numel() * static_cast<int64_t>(output.element_size()));
  if (end.residual) {
    bool fits = end.residual->dim() == 4 && end.residual->scalar_type() == output.scalar_type();
    for (int64_t d = 0; fits && d < 4; ++d) fits = end.residual->size(d) == output.size(d);
    STD_TORCH_CHECK(fits, "separable_conv2d_fused: residual must have output's shape and dtype");
  }
  const ChannelAffine middle(halves.mid_scale, halves.mid_shift, halves.mid_activation,
                             source.element, source.channels);
  const Tensor filters = torch::stable::contiguous(halves.dw_weight);
  const Contiguous bias(halves.dw_bias);
  SeparableFinish finish(output, out_channels, end);
  Forward forward(source, axes, filters, bias.data(), middle.pointwise(),
                  torch::stable::contiguous(halves.pw_weight));
  const Tensor result = forward.run(output, finish);
  if (end.statistics) {
    const MeanAndVariance measured = finish.statistics();
    return {result, measured.mean, measured.variance};
  }
  const auto nothing = [&] { return torch::stable::empty({0}, sum_type(source.element)); };
  return {result, nothing(), nothing()};
}

}  // namespace dlv3p
