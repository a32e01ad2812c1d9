// Depthwise convolution in contiguous memory: which calls the kernels of depthwise_planes.cuh take.
#pragma once

#include "depthwise.cuh"
#include "launch.h"

namespace dlv3p {

// Contiguous memory, the result's also as channels of a wider map; kernels of 3x3, 5x5 and 7x7;
// without statistics.
bool planes_take(const DepthwiseForward& p, const Tensor& input);
void launch_planes(const Stream& stream, const DepthwiseForward& p, const Tensor& input);
bool planes_take(const DepthwiseBackward& p, const Tensor& input);
void launch_planes(const Stream& stream, const DepthwiseBackward& p, const Tensor& input);

}  // namespace dlv3p
