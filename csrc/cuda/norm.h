// What other launchers use of the batch norm.
#pragma once

#include "launch.h"

namespace dlv3p {

// Mean and biased variance of each channel.
void launch_batch_norm_stats(const Stream& stream, const Tensor& input, float* mean, float* var);

}  // namespace dlv3p
