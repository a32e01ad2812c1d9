#include "gather_sums.h"

#include <algorithm>
#include <vector>

#include "gather_launch.h"

namespace dlv3p {
namespace {

// Channels that one thread takes at a time, and that stay in registers or next to them.
constexpr int64_t kChannelsAtOnce = 64;

template <class F>
void for_chunks(int64_t begin, int64_t end, const F& f) {
  for (int64_t first = begin; first < end; first += kChannelsAtOnce) {
    f(first, std::min(kChannelsAtOnce, end - first));
  }
}

template <class A>
void sum_groups_of(const Tensor& sums, int64_t first_kind, const Tensor& result) {
  const int64_t groups = sums.size(0);
  const int64_t all_kinds = sums.size(1);
  const int64_t channels = sums.size(2);
  const int64_t kinds = result.numel() / channels;
  const A* from = static_cast<const A*>(sums.const_data_ptr()) + first_kind * channels;
  A* to = static_cast<A*>(result.mutable_data_ptr());
  torch::stable::parallel_for(0, channels, kChannelsAtOnce, [&](int64_t begin, int64_t end) {
    // Kind by kind, so that the memory gone through at a time is small.
    for (int64_t k = 0; k < kinds; ++k) {
      for_chunks(begin, end, [&](int64_t first, int64_t count) {
        A total[kChannelsAtOnce] = {};
        for (int64_t g = 0; g < groups; ++g) {
          const A* row = from + (g * all_kinds + k) * channels + first;
          for (int64_t c = 0; c < count; ++c) total[c] += row[c];
        }
        for (int64_t c = 0; c < count; ++c) to[(first + c) * kinds + k] = total[c];
      });
    }
  });
}

// Destination pixels that each group has seen.
std::vector<double> pixels_of_groups(const Gather& g) {
  std::vector<double> pixels(g.groups);
  const int64_t pieces = g.batch * g.plan.bands;
  for (int64_t group = 0; group < g.groups; ++group) {
    int64_t rows = 0;
    for (int64_t piece = group * pieces / g.groups; piece < (group + 1) * pieces / g.groups;
         ++piece) {
      const int64_t* band = g.plan.band_begin + piece % g.plan.bands;
      rows += band[1] - band[0];
    }
    pixels[group] = static_cast<double>(rows * g.destination.width);
  }
  return pixels;
}

// Means count by their difference to that of the first group, to lose nothing where it is large.
//
// Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983, formula 2.1.
template <class A>
void merge_moments_of(const Gather& g, const MeanAndVariance& result) {
  const std::vector<double> pixels = pixels_of_groups(g);
  A* means = static_cast<A*>(result.mean.mutable_data_ptr());
  A* variances = static_cast<A*>(result.variance.mutable_data_ptr());
  const auto merge = [&](int64_t first, int64_t count) {
    double mean[kChannelsAtOnce] = {};
    double deviations[kChannelsAtOnce] = {};
    const double* origin = g.moments + first;
    double merged = 0;
    for (int64_t group = 0; group < g.groups; ++group) {
      const double* group_mean = g.moments + group * 2 * g.channels + first;
      const double* group_deviations = group_mean + g.channels;
      const double part = pixels[group] / (merged + pixels[group]);
      for (int64_t c = 0; c < count; ++c) {
        const double step = group_mean[c] - origin[c] - mean[c];
        mean[c] += step * part;
        deviations[c] += group_deviations[c] + step * step * part * merged;
      }
      merged += pixels[group];
    }
    for (int64_t c = 0; c < count; ++c) {
      means[first + c] = static_cast<A>(origin[c] + mean[c]);
      variances[first + c] = static_cast<A>(deviations[c] / merged);
    }
  };
  torch::stable::parallel_for(0, g.channels, kChannelsAtOnce,
                              [&](int64_t begin, int64_t end) { for_chunks(begin, end, merge); });
}

}  // namespace

Tensor empty_sums(const Gather& g, Element element, int64_t kinds) {
  return torch::stable::empty({g.groups, kinds, g.channels}, sum_type(element));
}

Tensor sum_groups(const Tensor& sums, int64_t first_kind, Shape shape) {
  const Tensor result = torch::stable::empty(shape, sums.scalar_type());
  if (sums.scalar_type() == ScalarType::Double) {
    sum_groups_of<double>(sums, first_kind, result);
  } else {
    sum_groups_of<float>(sums, first_kind, result);
  }
  return result;
}

MeanAndVariance merge_moments(const Gather& g, Element element) {
  const auto vector = [&] { return torch::stable::empty({g.channels}, sum_type(element)); };
  const MeanAndVariance result{vector(), vector()};
  if (element == Element::kFloat64) {
    merge_moments_of<double>(g, result);
  } else {
    merge_moments_of<float>(g, result);
  }
  return result;
}

}  // namespace dlv3p
