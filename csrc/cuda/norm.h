// What other launchers use of the batch norm.
#pragma once

#include <tuple>

#include "launch.h"

namespace dlv3p {

// Mean and biased variance of each channel.
std::tuple<Tensor, Tensor> batch_norm_stats(const Tensor& input);

}  // namespace dlv3p
