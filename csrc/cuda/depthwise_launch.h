// The ways to run a depthwise convolution, fastest first; csrc/cuda/depthwise.cu takes the first
// one that can.
#pragma once

#include "depthwise.cuh"
#include "launch.h"

namespace dlv3p {

// By rows: channels_last, 16-byte packs of channels, common square kernels.
bool rows_take(const DepthwiseForward& p, const Tensor& input);
void launch_rows(const Stream& stream, const DepthwiseForward& p, const Tensor& input);
bool rows_take(const DepthwiseBackward& p, const Tensor& input);
void launch_rows(const Stream& stream, const DepthwiseBackward& p, const Tensor& input);

// Gradients of 3x3 with stride 2, channels_last.
bool stride2_take(const DepthwiseBackward& p, const Tensor& input);
void launch_stride2(const Stream& stream, const DepthwiseBackward& p, const Tensor& input);

// Anything; without statistics.
void launch_any(const Stream& stream, const DepthwiseForward& p, const Tensor& input);
void launch_any(const Stream& stream, const DepthwiseBackward& p, const Tensor& input);

}  // namespace dlv3p
