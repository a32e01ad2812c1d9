#include "norm_sums.h"

#include <algorithm>
#include <limits>

#include "capability.h"

namespace dlv3p {
namespace {

// Calls run(first channel, their number) for all channels, few at a time.
constexpr int64_t kChannelsAtOnce = 64;
template <class Run>
void for_channels(int64_t channels, const Run& run) {
  torch::stable::parallel_for(0, channels, 8 * kChannelsAtOnce, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kChannelsAtOnce) {
      run(first, std::min(kChannelsAtOnce, end - first));
    }
  });
}

// totals[c] = sum over the pieces of term(piece, c), c counting from `first` of the run.
template <class Term>
void sum_pieces(std::size_t pieces, int64_t count, double (&totals)[kChannelsAtOnce],
                const Term& term) {
  std::fill_n(totals, count, 0.0);
  for (std::size_t piece = 0; piece < pieces; ++piece) {
    for (int64_t c = 0; c < count; ++c) totals[c] += term(piece, c);
  }
}

}  // namespace

void Pieces::append(const Cut& cut) {
  last_ = static_cast<int64_t>(rows_.size());
  for (int64_t piece = 0; piece < cut.pieces(); ++piece) rows_.push_back(cut.rows_of(piece));
}

void Pieces::take_statistics(NormBlock& whole) {
  take_sums(whole);
  pivots_.resize(rows_.size() * channels_);
  whole.pivots = pivots_.data() + last_ * channels_;
}

void Pieces::take_sums(NormBlock& whole) {
  first_.resize(rows_.size() * channels_);
  second_.resize(rows_.size() * channels_);
  whole.first_sums = first_.data() + last_ * channels_;
  whole.second_sums = second_.data() + last_ * channels_;
}

// The variance of the whole is that inside the pieces and that between their means; Chan et al.,
// "Algorithms for computing the sample variance", 1983. All means are taken as differences to the
// pivot of the first piece, which rounding hardly touches where the mean itself is large.
template <class A>
void Pieces::merge(const MeanAndVariance& result) const {
  A* mean = static_cast<A*>(result.mean.mutable_data_ptr());
  A* var = static_cast<A*>(result.variance.mutable_data_ptr());
  if (rows_.empty()) {
    std::fill_n(mean, channels_, std::numeric_limits<A>::quiet_NaN());
    std::fill_n(var, channels_, std::numeric_limits<A>::quiet_NaN());
    return;
  }
  double values = 0;
  for (const int64_t rows : rows_) values += static_cast<double>(rows);
  for_channels(channels_, [&](int64_t first, int64_t count) {
    const auto at = [&](std::size_t piece, int64_t c) { return piece * channels_ + first + c; };
    const auto shift = [&](std::size_t piece, int64_t c) {
      return pivots_[at(piece, c)] - pivots_[at(0, c)] + first_[at(piece, c)];
    };
    double shifts[kChannelsAtOnce];
    sum_pieces(rows_.size(), count, shifts, [&](std::size_t piece, int64_t c) {
      return static_cast<double>(rows_[piece]) * shift(piece, c);
    });
    for (int64_t c = 0; c < count; ++c) shifts[c] /= values;
    double spreads[kChannelsAtOnce];
    sum_pieces(rows_.size(), count, spreads, [&](std::size_t piece, int64_t c) {
      const double difference = shift(piece, c) - shifts[c];
      return second_[at(piece, c)] + static_cast<double>(rows_[piece]) * difference * difference;
    });
    for (int64_t c = 0; c < count; ++c) {
      mean[first + c] = static_cast<A>(pivots_[at(0, c)] + shifts[c]);
      var[first + c] = static_cast<A>(spreads[c] / values);
    }
  });
}

MeanAndVariance Pieces::merged_statistics(Element element) const {
  const auto vector = [&] { return torch::stable::empty({channels_}, sum_type(element)); };
  const MeanAndVariance result{vector(), vector()};
  if (element == Element::kFloat64) {
    merge<double>(result);
  } else {
    merge<float>(result);
  }
  return result;
}

template <class A>
void Pieces::total(const std::vector<double>& sums, const A* factors, const Tensor& result) const {
  A* to = static_cast<A*>(result.mutable_data_ptr());
  for_channels(channels_, [&](int64_t first, int64_t count) {
    double totals[kChannelsAtOnce];
    sum_pieces(rows_.size(), count, totals,
               [&](std::size_t piece, int64_t c) { return sums[piece * channels_ + first + c]; });
    for (int64_t c = 0; c < count; ++c) {
      to[first + c] = static_cast<A>(factors ? totals[c] * factors[first + c] : totals[c]);
    }
  });
}

Tensor Pieces::total_first(ScalarType type) const {
  Tensor result = torch::stable::empty({channels_}, type);
  if (type == ScalarType::Double) {
    total<double>(first_, nullptr, result);
  } else {
    total<float>(first_, nullptr, result);
  }
  return result;
}

Tensor Pieces::total_second(const Tensor& factors) const {
  Tensor result = torch::stable::empty({channels_}, factors.scalar_type());
  if (factors.scalar_type() == ScalarType::Double) {
    total(second_, static_cast<const double*>(factors.const_data_ptr()), result);
  } else {
    total(second_, static_cast<const float*>(factors.const_data_ptr()), result);
  }
  return result;
}

void measure(const Tensor& map, const Cut& cut, Pieces& pieces) {
  NormBlock whole{};
  whole.input = map.const_data_ptr();
  pieces.append(cut);
  pieces.take_statistics(whole);
  cut.for_each_block(whole, kNormMostPanel, norm_code().stats[static_cast<int>(cut.element())]);
}

}  // namespace dlv3p
