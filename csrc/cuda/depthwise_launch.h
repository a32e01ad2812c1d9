// The ways to run a depthwise convolution, fastest first. `like` gives the element type.
#pragma once

#include "depthwise.cuh"
#include "launch.h"

namespace dlv3p {

// By the first of the ways below that takes it; whether with the statistics, if they were wanted.
bool launch_depthwise(const Stream& stream, const DepthwiseForward& p, const Tensor& like);
void launch_depthwise(const Stream& stream, const DepthwiseBackward& p, const Tensor& like);

// By rows: channels_last, 16-byte packs of channels, common square kernels.
bool rows_take(const DepthwiseForward& p, const Tensor& like);
void launch_rows(const Stream& stream, const DepthwiseForward& p, const Tensor& like);
bool rows_take(const DepthwiseBackward& p, const Tensor& like);
void launch_rows(const Stream& stream, const DepthwiseBackward& p, const Tensor& like);

// Gradients of 3x3 with stride 2, channels_last.
bool stride2_take(const DepthwiseBackward& p, const Tensor& like);
void launch_stride2(const Stream& stream, const DepthwiseBackward& p, const Tensor& like);

// Anything; without statistics.
void launch_any(const Stream& stream, const DepthwiseForward& p, const Tensor& like);
void launch_any(const Stream& stream, const DepthwiseBackward& p, const Tensor& like);

}  // namespace dlv3p
