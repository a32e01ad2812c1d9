// Batch norm on CPU: from tensors to the blocks of norm.h, sums over the blocks, and registration.
#include "norm.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/activation_code.h"
#include "../common/tensor.h"
#include "capability.h"
#include "gather_launch.h"
#include "parallel.h"

namespace dlv3p {
namespace {

// Elements per task: a few microseconds of work, that a core's caches hold.
constexpr int64_t kTaskElements = 32 * 1024;
// Rows per block, between what makes the cost of merging small and what keeps rounding errors of
// the sums small, which grow with the root of the number of rows.
constexpr int64_t kLeastBlockRows = 128;
constexpr int64_t kMostBlockRows = 1024;
// Narrow rows are summed up several at a time.
constexpr int64_t kMostBlockElements = 16 * 1024;

// How a map is cut into blocks. It depends on the sizes alone, and therefore so do the results.
class Cut {
 public:
  explicit Cut(const Tensor& map)
      : element_(element_of(map)),
        channels_(map.size(1)),
        by_pixel_(format_of(map) == MemoryFormat::ChannelsLast || map.size(2) * map.size(3) == 1),
        planes_(by_pixel_ ? 1 : map.size(0) * channels_),
        rows_(map.size(2) * map.size(3) * (by_pixel_ ? map.size(0) : 1)),
        width_(by_pixel_ ? channels_ : 1) {
    const int64_t most =
        std::max(kMostBlockRows, kMostBlockElements / std::max<int64_t>(1, width_));
    block_rows_ =
        std::clamp(2 * kTaskElements / std::max<int64_t>(1, width_), kLeastBlockRows, most);
    blocks_ = (rows_ + block_rows_ - 1) / block_rows_;
  }

  Element element() const { return element_; }
  int64_t channels() const { return channels_; }
  int64_t values_per_channel() const {
    return by_pixel_ ? rows_ : planes_ / std::max<int64_t>(1, channels_) * rows_;
  }

  // Each channel is summed up in as many pieces.
  int64_t pieces() const {
    return by_pixel_ ? blocks_ : planes_ / std::max<int64_t>(1, channels_) * blocks_;
  }
  int64_t rows_of(int64_t piece) const {
    const int64_t first = piece % blocks_ * block_rows_;
    return std::min(block_rows_, rows_ - first);
  }

  // Calls run(block) for every block, `whole` being the map: its pointers are those of the first
  // element, channel and piece. Blocks have `most_channels` at most.
  template <class Run>
  void for_each_block(const NormBlock& whole, int64_t most_channels, const Run& run) const {
    const int64_t panels = (width_ + most_channels - 1) / most_channels;
    const int64_t count = planes_ * blocks_ * panels;
    const int64_t elements = std::max<int64_t>(1, std::min(block_rows_, rows_) * width_ / panels);
    const int64_t per_task = std::max<int64_t>(1, kTaskElements / elements);
    for_each_task((count + per_task - 1) / per_task, [&](int64_t task) {
      const int64_t end = std::min(count, (task + 1) * per_task);
      for (int64_t i = task * per_task; i < end; ++i) {
        run(block_at(whole, i / panels, i % panels, panels));
      }
    });
  }

 private:
  NormBlock block_at(const NormBlock& whole, int64_t index, int64_t panel, int64_t panels) const {
    const auto panel_begin = [&](int64_t p) {
      return p == panels ? width_ : p * width_ / panels / kNormLeastPanel * kNormLeastPanel;
    };
    const int64_t plane = index / blocks_;
    const int64_t first_row = index % blocks_ * block_rows_;
    const int64_t column = panel_begin(panel);
    const int64_t channel = by_pixel_ ? column : plane % channels_;
    const int64_t piece = by_pixel_ ? index : plane / channels_ * blocks_ + index % blocks_;
    const int64_t element = (plane * rows_ + first_row) * width_ + column;

    NormBlock block = whole;
    block.rows = std::min(block_rows_, rows_ - first_row);
    block.channels = panel_begin(panel + 1) - column;
    block.pitch = width_;
    const bool half = element_ == Element::kBFloat16 || element_ == Element::kFloat16;
    const int64_t value_bytes = sum_bytes(element_);
    for (auto* map : {&block.input, &block.grad_output, &block.residual}) {
      advance(*map, element * (half ? 2 : value_bytes));
    }
    for (auto* map : {&block.output, &block.grad_residual}) {
      advance(*map, element * (half ? 2 : value_bytes));
    }
    for (auto* vector :
         {&block.mean, &block.scale, &block.shift, &block.mean_grad, &block.mean_product}) {
      advance(*vector, channel * value_bytes);
    }
    for (auto* sums : {&block.pivots, &block.first_sums, &block.second_sums}) {
      if (*sums) *sums += piece * channels_ + channel;
    }
    return block;
  }

  static void advance(const void*& p, int64_t bytes) {
    if (p) p = static_cast<const char*>(p) + bytes;
  }
  static void advance(void*& p, int64_t bytes) {
    if (p) p = static_cast<char*>(p) + bytes;
  }

  const Element element_;
  const int64_t channels_;
  const bool by_pixel_;   // a row is a pixel; otherwise an element of a plane of one channel
  const int64_t planes_;  // the whole map is one where rows are pixels
  const int64_t rows_;    // per plane
  const int64_t width_;   // elements per row
  int64_t block_rows_;
  int64_t blocks_;  // per plane
};

constexpr int64_t kAnyWidth = std::numeric_limits<int64_t>::max() / 2;

// Sums of every piece and channel, as the kernels write them.
struct Pieces {
  explicit Pieces(const Cut& cut)
      : first(cut.pieces() * cut.channels()), second(cut.pieces() * cut.channels()) {}
  std::vector<double> first;
  std::vector<double> second;
  std::vector<double> pivots;  // of statistics only
};

// Calls run(first channel, their number) for all channels, few at a time.
constexpr int64_t kChannelsAtOnce = 64;
template <class Run>
void for_channels(const Cut& cut, const Run& run) {
  torch::stable::parallel_for(0, cut.channels(), 8 * kChannelsAtOnce,
                              [&](int64_t begin, int64_t end) {
                                for (int64_t first = begin; first < end; first += kChannelsAtOnce) {
                                  run(first, std::min(kChannelsAtOnce, end - first));
                                }
                              });
}

// totals[c] = sum over the pieces of term(piece, c), c counting from `first` of the run.
template <class Term>
void sum_pieces(const Cut& cut, int64_t count, double (&totals)[kChannelsAtOnce],
                const Term& term) {
  std::fill_n(totals, count, 0.0);
  for (int64_t piece = 0; piece < cut.pieces(); ++piece) {
    for (int64_t c = 0; c < count; ++c) totals[c] += term(piece, c);
  }
}

// The variance of the whole is that inside the pieces and that between their means; Chan et al.,
// "Algorithms for computing the sample variance", 1983. All means are taken as differences to the
// pivot of the first piece, which rounding hardly touches where the mean itself is large.
template <class A>
void merge_statistics(const Cut& cut, const Pieces& pieces, A* mean, A* var) {
  if (cut.pieces() == 0) {
    std::fill_n(mean, cut.channels(), std::numeric_limits<A>::quiet_NaN());
    std::fill_n(var, cut.channels(), std::numeric_limits<A>::quiet_NaN());
    return;
  }
  const auto values = static_cast<double>(cut.values_per_channel());
  for_channels(cut, [&](int64_t first, int64_t count) {
    const auto at = [&](int64_t piece, int64_t c) { return piece * cut.channels() + first + c; };
    const auto shift = [&](int64_t piece, int64_t c) {
      return pieces.pivots[at(piece, c)] - pieces.pivots[at(0, c)] + pieces.first[at(piece, c)];
    };
    double shifts[kChannelsAtOnce];
    sum_pieces(cut, count, shifts, [&](int64_t piece, int64_t c) {
      return static_cast<double>(cut.rows_of(piece)) * shift(piece, c);
    });
    for (int64_t c = 0; c < count; ++c) shifts[c] /= values;
    double spreads[kChannelsAtOnce];
    sum_pieces(cut, count, spreads, [&](int64_t piece, int64_t c) {
      const double difference = shift(piece, c) - shifts[c];
      return pieces.second[at(piece, c)] +
             static_cast<double>(cut.rows_of(piece)) * difference * difference;
    });
    for (int64_t c = 0; c < count; ++c) {
      mean[first + c] = static_cast<A>(pieces.pivots[at(0, c)] + shifts[c]);
      var[first + c] = static_cast<A>(spreads[c] / values);
    }
  });
}

// Calls f with a value of the type that vectors have beside maps of this element.
template <class F>
auto with_vector_type(Element element, const F& f) {
  return element == Element::kFloat64 ? f(double()) : f(float());
}

using Optional = std::optional<Tensor>;

Tensor new_vector(const Tensor& map, int64_t size) {
  return torch::stable::empty({size}, sum_type(element_of(map)));
}

Tensor checked_vector(const Tensor& vector, const Tensor& map, const char* name) {
  STD_TORCH_CHECK(vector.dim() == 1 && vector.size(0) == map.size(1) &&
                      vector.scalar_type() == sum_type(element_of(map)),
                  "batch_norm: ", name,
                  " must be one value per channel, float32 (float64 for float64 maps)");
  return torch::stable::contiguous(vector);
}

// `map` in the memory format of `input`; the same tensor where it has it.
Tensor checked_map(const Tensor& map, const Tensor& input, const char* name) {
  bool fits = map.dim() == 4 && map.scalar_type() == input.scalar_type();
  for (int64_t d = 0; fits && d < 4; ++d) fits = map.size(d) == input.size(d);
  STD_TORCH_CHECK(fits, "batch_norm: ", name, " must have the shape and dtype of input");
  return torch::stable::contiguous(map, format_of(input));
}

Tensor checked_input(const Tensor& input) {
  STD_TORCH_CHECK(input.dim() == 4, "batch_norm: expected 4 dimensions");
  return checked_map(input, input, "input");
}

Activation checked_activation(int64_t activation) {
  STD_TORCH_CHECK(activation >= 0 && activation <= static_cast<int64_t>(Activation::kSilu),
                  "batch_norm: unknown activation");
  return static_cast<Activation>(activation);
}

// What the passes after the statistics share. Holds the tensors that the block points into.
class Pass {
 public:
  Pass(const Tensor& map, const Tensor& mean, const Tensor& invstd, const Optional& weight,
       const Optional& bias, const Optional& residual, int64_t activation)
      : input(checked_input(map)), cut(input) {
    block.activation = checked_activation(activation);
    block.input = input.const_data_ptr();
    block.mean = hold(checked_vector(mean, input, "mean"));
    invstd_ = checked_vector(invstd, input, "invstd");
    block.scale = hold(scaled(invstd_, weight, input));
    block.shift = bias ? hold(checked_vector(*bias, input, "bias")) : hold(zeros());
    if (residual) block.residual = hold(checked_map(*residual, input, "residual"));
  }

  void take_grad_output(const Tensor& grad_output) {
    block.grad_output = hold(checked_map(grad_output, input, "grad_output"));
  }

  // Means of g and of g * (x - mean) / std^2, from their sums.
  void take_sums(const Tensor& sum_grad, const Tensor& sum_grad_normalised, int64_t count) {
    const Tensor grads = checked_vector(sum_grad, input, "sum_grad");
    const Tensor products = checked_vector(sum_grad_normalised, input, "sum_grad_normalised");
    with_vector_type(cut.element(), [&](auto value) {
      using A = decltype(value);
      const Tensor means = new_vector(input, 2 * cut.channels());
      A* to = static_cast<A*>(means.mutable_data_ptr());
      const auto divisor = static_cast<A>(count);
      for (int64_t c = 0; c < cut.channels(); ++c) {
        to[c] = values_of<A>(grads)[c] / divisor;
        to[cut.channels() + c] = values_of<A>(products)[c] * values_of<A>(invstd_)[c] / divisor;
      }
      block.mean_grad = hold(means);
      block.mean_product = to + cut.channels();
    });
  }

  template <class A>
  static const A* values_of(const Tensor& vector) {
    return static_cast<const A*>(vector.const_data_ptr());
  }
  const Tensor& invstd() const { return invstd_; }
  int kind() const { return static_cast<int>(cut.element()); }

  const Tensor input;
  const Cut cut;
  NormBlock block{};

 private:
  const void* hold(const Tensor& t) {
    held_.push_back(t);
    return t.const_data_ptr();
  }

  Tensor zeros() const { return torch::stable::new_zeros(invstd_, {cut.channels()}); }

  static Tensor scaled(const Tensor& invstd, const Optional& weight, const Tensor& input) {
    if (!weight) return invstd;
    const Tensor factors = checked_vector(*weight, input, "weight");
    const Tensor scale = new_vector(input, input.size(1));
    with_vector_type(element_of(input), [&](auto value) {
      using A = decltype(value);
      A* to = static_cast<A*>(scale.mutable_data_ptr());
      for (int64_t c = 0; c < input.size(1); ++c) {
        to[c] = values_of<A>(invstd)[c] * values_of<A>(factors)[c];
      }
    });
    return scale;
  }

  Tensor invstd_;
  std::vector<Tensor> held_;
};

std::tuple<Tensor, Tensor> batch_norm_stats_cpu(const Tensor& input) {
  const Tensor map = checked_input(input);
  const Cut cut(map);
  Pieces pieces(cut);
  pieces.pivots.resize(pieces.first.size());
  NormBlock whole{};
  whole.input = map.const_data_ptr();
  whole.pivots = pieces.pivots.data();
  whole.first_sums = pieces.first.data();
  whole.second_sums = pieces.second.data();
  const auto run = norm_code().stats[static_cast<int>(cut.element())];
  cut.for_each_block(whole, kNormMostPanel, run);
  Tensor mean = new_vector(input, cut.channels());
  Tensor var = new_vector(input, cut.channels());
  with_vector_type(cut.element(), [&](auto value) {
    using A = decltype(value);
    merge_statistics(cut, pieces, static_cast<A*>(mean.mutable_data_ptr()),
                     static_cast<A*>(var.mutable_data_ptr()));
  });
  return {mean, var};
}

template <class A>
Tensor updated(const Tensor& running, const Tensor& batch, double factor, double momentum) {
  const Tensor old = torch::stable::contiguous(running);
  Tensor result = torch::stable::empty({batch.size(0)}, batch.scalar_type());
  const A* from = static_cast<const A*>(batch.const_data_ptr());
  A* to = static_cast<A*>(result.mutable_data_ptr());
  for (int64_t c = 0; c < batch.size(0); ++c) {
    const double kept = (1 - momentum) * static_cast<const A*>(old.const_data_ptr())[c];
    to[c] = static_cast<A>(kept + momentum * (factor * from[c]));
  }
  return result;
}

template <class A>
Tensor inverse_deviation(const Tensor& var, double eps) {
  Tensor result = torch::stable::empty({var.size(0)}, var.scalar_type());
  const A* from = static_cast<const A*>(var.const_data_ptr());
  A* to = static_cast<A*>(result.mutable_data_ptr());
  for (int64_t c = 0; c < var.size(0); ++c) {
    to[c] = static_cast<A>(1 / std::sqrt(static_cast<double>(from[c]) + eps));
  }
  return result;
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_finalise_cpu(const Tensor& mean, const Tensor& var,
                                                           int64_t count,
                                                           const Optional& running_mean,
                                                           const Optional& running_var,
                                                           double momentum, double eps) {
  const ScalarType type = mean.scalar_type();
  const auto fits = [&](const Tensor& t) {
    return t.dim() == 1 && t.size(0) == mean.size(0) && t.scalar_type() == type;
  };
  STD_TORCH_CHECK((type == ScalarType::Float || type == ScalarType::Double) && fits(mean) &&
                      fits(var) && (!running_mean || fits(*running_mean)) &&
                      (!running_var || fits(*running_var)),
                  "batch_norm_finalise: vectors of one length, float32 or float64 throughout");
  const Tensor means = torch::stable::contiguous(mean);
  const Tensor vars = torch::stable::contiguous(var);
  const auto run = [&](auto value) -> std::tuple<Tensor, Tensor, Tensor> {
    using A = decltype(value);
    const Tensor invstd = inverse_deviation<A>(vars, eps);
    if (!running_mean || !running_var) {
      return {invstd, torch::stable::empty({0}, type), torch::stable::empty({0}, type)};
    }
    const double unbiased = static_cast<double>(count) / std::max<int64_t>(1, count - 1);
    return {invstd, updated<A>(*running_mean, means, 1, momentum),
            updated<A>(*running_var, vars, unbiased, momentum)};
  };
  return type == ScalarType::Double ? run(double()) : run(float());
}

Tensor batch_norm_apply_cpu(const Tensor& input, const Tensor& mean, const Tensor& invstd,
                            const Optional& weight, const Optional& bias, const Optional& residual,
                            int64_t activation) {
  Pass pass(input, mean, invstd, weight, bias, residual, activation);
  Tensor output = new_map(pass.input, input.size(2), input.size(3));
  pass.block.output = output.mutable_data_ptr();
  pass.cut.for_each_block(pass.block, kAnyWidth, norm_code().apply[pass.kind()]);
  return output;
}

// The three above in a row: one call of an operator instead of four.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> batch_norm_act_cpu(
    const Tensor& input, const Optional& weight, const Optional& bias, const Optional& running_mean,
    const Optional& running_var, const Optional& residual, int64_t activation, double momentum,
    double eps) {
  const auto [mean, var] = batch_norm_stats_cpu(input);
  const int64_t count = input.size(0) * input.size(2) * input.size(3);
  const auto [invstd, new_mean, new_var] =
      batch_norm_finalise_cpu(mean, var, count, running_mean, running_var, momentum, eps);
  const Tensor output =
      batch_norm_apply_cpu(input, mean, invstd, weight, bias, residual, activation);
  return {output, mean, invstd, new_mean, new_var};
}

std::tuple<Tensor, Tensor> batch_norm_backward_reduce_cpu(
    const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& invstd,
    const Optional& weight, const Optional& bias, const Optional& residual, int64_t activation) {
  Pass pass(input, mean, invstd, weight, bias, residual, activation);
  pass.take_grad_output(grad_output);
  const Cut& cut = pass.cut;
  Pieces pieces(cut);
  pass.block.first_sums = pieces.first.data();
  pass.block.second_sums = pieces.second.data();
  cut.for_each_block(pass.block, kNormMostPanel, norm_code().backward_reduce[pass.kind()]);
  Tensor sum_grad = new_vector(input, cut.channels());
  Tensor sum_grad_normalised = new_vector(input, cut.channels());
  with_vector_type(cut.element(), [&](auto value) {
    using A = decltype(value);
    A* grads = static_cast<A*>(sum_grad.mutable_data_ptr());
    A* products = static_cast<A*>(sum_grad_normalised.mutable_data_ptr());
    const A* factors = Pass::values_of<A>(pass.invstd());
    for_channels(cut, [&](int64_t first, int64_t count) {
      const auto at = [&](int64_t piece, int64_t c) { return piece * cut.channels() + first + c; };
      double totals[kChannelsAtOnce];
      sum_pieces(cut, count, totals, [&](int64_t p, int64_t c) { return pieces.first[at(p, c)]; });
      for (int64_t c = 0; c < count; ++c) grads[first + c] = static_cast<A>(totals[c]);
      sum_pieces(cut, count, totals, [&](int64_t p, int64_t c) { return pieces.second[at(p, c)]; });
      for (int64_t c = 0; c < count; ++c) {
        products[first + c] = static_cast<A>(totals[c] * factors[first + c]);
      }
    });
  });
  return {sum_grad, sum_grad_normalised};
}

std::tuple<Tensor, Tensor> batch_norm_backward_apply_cpu(
    const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& invstd,
    const Optional& weight, const Optional& bias, const Optional& residual, int64_t activation,
    const Optional& sum_grad, const Optional& sum_grad_normalised, int64_t count,
    bool need_residual) {
  Pass pass(input, mean, invstd, weight, bias, residual, activation);
  pass.take_grad_output(grad_output);
  if (sum_grad && sum_grad_normalised) pass.take_sums(*sum_grad, *sum_grad_normalised, count);
  const auto new_gradient = [&] { return new_map(pass.input, input.size(2), input.size(3)); };
  Tensor grad_input = new_gradient();
  Tensor grad_residual =
      need_residual ? new_gradient() : torch::stable::empty({0}, input.scalar_type());
  pass.block.output = grad_input.mutable_data_ptr();
  if (need_residual) pass.block.grad_residual = grad_residual.mutable_data_ptr();
  pass.cut.for_each_block(pass.block, kAnyWidth, norm_code().backward_apply[pass.kind()]);
  return {grad_input, grad_residual};
}

STABLE_TORCH_LIBRARY_IMPL(dlv3p, CPU, m) {
  m.impl("batch_norm_act", TORCH_BOX(&batch_norm_act_cpu));
  m.impl("batch_norm_stats", TORCH_BOX(&batch_norm_stats_cpu));
  m.impl("batch_norm_finalise", TORCH_BOX(&batch_norm_finalise_cpu));
  m.impl("batch_norm_apply", TORCH_BOX(&batch_norm_apply_cpu));
  m.impl("batch_norm_backward_reduce", TORCH_BOX(&batch_norm_backward_reduce_cpu));
  m.impl("batch_norm_backward_apply", TORCH_BOX(&batch_norm_backward_apply_cpu));
}

}  // namespace
}  // namespace dlv3p
