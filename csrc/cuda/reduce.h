// Second stage of the reductions: partial results of many blocks in a workspace, merged in a fixed
// order by one small kernel.
#pragma once

#include <cstdint>

#include "launch.h"
#include "reduce.cuh"

namespace dlv3p {

// Room for partial results on the device of `like`.
Tensor float_workspace(const Tensor& like, int64_t elements);

// `taps_out` has the element type of `like`.
void launch_reduce_sums(const Stream& stream, const Tensor& like, const SumParts& parts);

void launch_reduce_moments(const Stream& stream, const MomentParts& parts);

}  // namespace dlv3p
