#include "separable_finish.h"

#include "capability.h"
#include "gather_launch.h"
#include "gemm.h"
#include "norm.h"
#include "norm_cut.h"

namespace dlv3p {
namespace {

void* element_at(const Tensor& t, int64_t index) {
  return static_cast<char*>(t.mutable_data_ptr()) + index * static_cast<int64_t>(t.element_size());
}

template <class A>
void add_scaled(const Tensor& bias, const Tensor& scale, const Tensor& shift) {
  const A* add = static_cast<const A*>(bias.const_data_ptr());
  const A* by = static_cast<const A*>(scale.const_data_ptr());
  A* to = static_cast<A*>(shift.mutable_data_ptr());
  for (int64_t c = 0; c < shift.numel(); ++c) to[c] += add[c] * by[c];
}

}  // namespace

SeparableFinish::SeparableFinish(const Tensor& like, int64_t channels, const SeparableEnd& end)
    : element_(element_of(like)),
      channels_(channels),
      activation_(end.activation),
      measures_(end.statistics),
      zeros_(torch::stable::full({channels}, 0, sum_type(element_))),
      ones_(torch::stable::full({channels}, 1, sum_type(element_))),
      scale_(vector(end.scale, 1, "out_scale")),
      shift_(vector(end.shift, 0, "out_shift")),
      changes_(end.bias || end.scale || end.residual || activation_ != Activation::kIdentity),
      output_(like),
      pieces_(channels) {
  STD_TORCH_CHECK(
      !measures_ || !(end.scale || end.residual || activation_ != Activation::kIdentity),
      "separable_conv2d_fused: statistics are those of a result without epilogue");
  if (end.bias) {
    STD_TORCH_CHECK(end.bias->dim() == 1 && end.bias->size(0) == channels &&
                        end.bias->scalar_type() == like.scalar_type(),
                    "separable_conv2d_fused: pw_bias must be one element per output channel, of "
                    "input's dtype");
    add_bias(torch::stable::contiguous(torch::stable::to(*end.bias, sum_type(element_))));
  }
  if (end.residual) residual_ = torch::stable::contiguous(*end.residual, format_of(like));
}

Tensor SeparableFinish::vector(const std::optional<Tensor>& given, double value,
                               const char* name) const {
  if (!given) return torch::stable::full({channels_}, value, sum_type(element_));
  STD_TORCH_CHECK(given->dim() == 1 && given->size(0) == channels_ &&
                      given->scalar_type() == sum_type(element_),
                  "separable_conv2d_fused: ", name,
                  " must be one element per output channel, float32, or float64 for float64");
  return torch::stable::clone(torch::stable::contiguous(*given));
}

// (product + bias) * scale + shift.
void SeparableFinish::add_bias(const Tensor& bias) {
  if (element_ == Element::kFloat64) {
    add_scaled<double>(bias, scale_, shift_);
  } else {
    add_scaled<float>(bias, scale_, shift_);
  }
}

void SeparableFinish::start(const Tensor& output, int64_t most_pixels) {
  output_ = output;
  if (changes_) product_ = torch::stable::empty({most_pixels * channels_}, output.scalar_type());
}

Tensor SeparableFinish::target(int64_t first_pixel, int64_t pixels) const {
  return product_ ? matrix_view(*product_, 0, pixels, channels_, channels_, 1)
                  : matrix_view(output_, first_pixel * channels_, pixels, channels_, channels_, 1);
}

void SeparableFinish::take(int64_t first_pixel, int64_t pixels) {
  void* to = element_at(output_, first_pixel * channels_);
  if (product_) {
    const Tensor map = column_map(product_->mutable_data_ptr(), output_, pixels, channels_);
    apply(map, residual_ ? element_at(*residual_, first_pixel * channels_) : nullptr, to);
  }
  if (measures_) measure_map(column_map(to, output_, pixels, channels_));
}

Tensor SeparableFinish::take_whole(const Tensor& product) {
  Tensor output = product;
  if (changes_) {
    output = new_map(product, product.size(2), product.size(3));
    apply(product, residual_ ? residual_->const_data_ptr() : nullptr, output.mutable_data_ptr());
  }
  if (measures_) measure_map(output);
  return output;
}

void SeparableFinish::apply(const Tensor& product, const void* residual, void* output) const {
  if (!residual || activation_ == Activation::kIdentity) {
    apply_once(product, residual, activation_, scale_, shift_, output);
    return;
  }
  // The loop adds before it activates; here the sum comes last.
  const Tensor activated = new_map(product, product.size(2), product.size(3));
  apply_once(product, nullptr, activation_, scale_, shift_, activated.mutable_data_ptr());
  apply_once(activated, residual, Activation::kIdentity, ones_, zeros_, output);
}

void SeparableFinish::apply_once(const Tensor& product, const void* residual, Activation activation,
                                 const Tensor& scale, const Tensor& shift, void* output) const {
  NormBlock block{};
  block.input = product.const_data_ptr();
  block.residual = residual;
  block.output = output;
  block.mean = zeros_.const_data_ptr();
  block.scale = scale.const_data_ptr();
  block.shift = shift.const_data_ptr();
  block.activation = activation;
  Cut(product).for_each_block(block, kAnyWidth, norm_code().apply[static_cast<int>(element_)]);
}

void SeparableFinish::measure_map(const Tensor& map) {
  const Cut cut(map);
  measure(map, cut, pieces_);
}

MeanAndVariance SeparableFinish::statistics() const { return pieces_.merged_statistics(element_); }

}  // namespace dlv3p
