// What is done to the product of the pointwise half of a separable convolution before it is a
// result: bias, scale and shift, activation, residual; and its statistics.
#pragma once

#include <cstdint>
#include <optional>

#include "../common/activation_code.h"
#include "../common/tensor.h"
#include "gather.h"
#include "gather_sums.h"
#include "norm_sums.h"

namespace dlv3p {

struct SeparableEnd {
  std::optional<Tensor> bias;
  std::optional<Tensor> scale;
  std::optional<Tensor> shift;
  Activation activation;
  std::optional<Tensor> residual;
  bool statistics;
};

class SeparableFinish {
 public:
  // `like` gives dtype and memory format. Pieces have `most_pixels` at most.
  SeparableFinish(const Tensor& like, int64_t channels, const SeparableEnd& end);

  // The result, (images, channels, height, width), piece by piece where channels are adjacent:
  // a product is written to target(...), then take(...) is called; pixels count through all images.
  void start(const Tensor& output, int64_t most_pixels);
  Tensor target(int64_t first_pixel, int64_t pixels) const;
  void take(int64_t first_pixel, int64_t pixels);

  // The same for the whole product, where columns are adjacent.
  Tensor take_whole(const Tensor& product);

  MeanAndVariance statistics() const;

 private:
  void apply(const Tensor& product, const void* residual, void* output) const;
  void apply_once(const Tensor& product, const void* residual, Activation activation,
                  const Tensor& scale, const Tensor& shift, void* output) const;
  void measure_map(const Tensor& map);
  Tensor vector(const std::optional<Tensor>& given, double value, const char* name) const;
  void add_bias(const Tensor& bias);

  const Element element_;
  const int64_t channels_;
  const Activation activation_;
  const bool measures_;
  std::optional<Tensor> residual_;
  const Tensor zeros_;
  const Tensor ones_;
  Tensor scale_;
  Tensor shift_;
  bool changes_;  // whether anything is done to products
  Tensor output_;
  std::optional<Tensor> product_;
  Pieces pieces_;
};

}  // namespace dlv3p
