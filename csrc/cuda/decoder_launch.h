// The ways to run the depthwise convolution of a resized map, fastest first. In the parameters the
// input is the map of the cells, and so is its gradient; `rows.in` and `columns.in` count pixels of
// the resized map. `like` gives the element type.
#pragma once

#include "decoder_cells.cuh"
#include "launch.h"

namespace dlv3p {

// By columns: 3x3 and 5x5 of vertical rate 1. Without an output only the statistics are made.
bool columns_take(const DepthwiseForward& p, const Cells& cells);
void launch_columns(const Stream& stream, const DepthwiseForward& p, const Cells& cells,
                    const Tensor& like);
bool columns_take(const DepthwiseBackward& p, const Cells& cells, const Tensor& like);
void launch_columns(const Stream& stream, const DepthwiseBackward& p, const Cells& cells,
                    const Tensor& like);

// Anything; without statistics.
void launch_any(const Stream& stream, const DepthwiseForward& p, const Cells& cells,
                const Tensor& like);
void launch_any(const Stream& stream, const DepthwiseBackward& p, const Cells& cells,
                const Tensor& like);

}  // namespace dlv3p
