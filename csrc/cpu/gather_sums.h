// Sums over the groups of a gather, in the order of the groups, so that they do not depend on the
// number of threads.
#pragma once

#include <cstdint>

#include "../common/tensor.h"
#include "gather.h"

namespace dlv3p {

// What one group writes: (kinds, channels), in the accumulation type.
Tensor empty_sums(const Gather& g, Element element, int64_t kinds);

// A new tensor (channels, ...) of as many kinds, from first_kind on, as its shape has room for.
using Shape = torch::headeronly::IntHeaderOnlyArrayRef;
Tensor sum_groups(const Tensor& sums, int64_t first_kind, Shape shape);

struct MeanAndVariance {
  Tensor mean;
  Tensor variance;  // biased
};

// From Gather::moments and its plan.
MeanAndVariance merge_moments(const Gather& g, Element element);

}  // namespace dlv3p
