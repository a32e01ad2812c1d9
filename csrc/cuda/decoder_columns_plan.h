// How a walk down the columns of a resized map is cut into blocks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "decoder_columns.cuh"
#include "launch.h"

namespace dlv3p {

// Blocks for each multiprocessor, in several turns.
constexpr int64_t kWantedColumnBlocks = 4 * kColumnBlocks;

inline int64_t blocks_of(int64_t size, int64_t block) { return (size + block - 1) / block; }

// Channels of a thread: as many as registers allow for K * K weights, or sums for their gradients.
constexpr int column_lanes(int kernel) { return kernel == 3 ? 4 : 2; }

// Whether a walk can be over this convolution, with all numbers but those of elements in 32 bits.
inline bool columns_fit(const ConvAxis& rows, const ConvAxis& columns, const Cells& cells,
                        const DepthwiseMap& map, int64_t width, int64_t channels) {
  constexpr int64_t kMost = 1 << 24;
  const int64_t k = rows.kernel;
  const auto small = [](const ConvAxis& axis, const ResizeAxis<float>& cells_of) {
    return std::max({axis.in, axis.out, axis.dilation, std::abs(axis.before), cells_of.in}) < kMost;
  };
  return k == columns.kernel && (k == 3 || k == 5) && rows.stride == 1 && columns.stride == 1 &&
         rows.dilation == 1 && small(rows, cells.rows) && small(columns, cells.columns) &&
         channels < kMost && std::abs(map.stride_w) * width <= std::numeric_limits<int32_t>::max();
}

// Whether V channels of the map are read and written as one.
inline bool pack_fits(const DepthwiseMap& map, const void* data, int64_t pack,
                      int64_t element_bytes) {
  return map.stride_c == 1 && map.stride_n % pack == 0 && map.stride_h % pack == 0 &&
         map.stride_w % pack == 0 &&
         reinterpret_cast<std::uintptr_t>(data) % (pack * element_bytes) == 0;
}

// Threads next to each other along the channels: some sectors of memory.
inline int lanes_along(const DepthwiseMap& map, int64_t channels, int pack, int64_t bytes,
                       int64_t element_bytes) {
  if (map.stride_c != 1) return 1;
  return static_cast<int>(
      std::min(blocks_of(channels, pack), std::max<int64_t>(1, bytes / (pack * element_bytes))));
}

inline unsigned whole_warps(int64_t threads) {
  return static_cast<unsigned>(blocks_of(threads, kWarpLanes) * kWarpLanes);
}

// Rows of a band: enough blocks for the device, of `least` rows and at most `most`.
inline void cut_bands(ColumnGrid& g, int64_t rows, int64_t images, int64_t least, int64_t most) {
  const int64_t wanted =
      blocks_of(kWantedColumnBlocks * device_limits().multiprocessors, images * g.tiles * g.slabs);
  const int64_t bands = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, rows / least));
  g.band = static_cast<int>(std::min(blocks_of(rows, bands), most));
  g.bands = static_cast<int>(blocks_of(rows, g.band));
}

inline int64_t parts_of(const ColumnGrid& g, int64_t images) { return images * g.tiles * g.bands; }

}  // namespace dlv3p
