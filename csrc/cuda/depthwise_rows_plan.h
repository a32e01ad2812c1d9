// How a walk by rows is cut into blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <numeric>

#include "depthwise_rows.cuh"
#include "launch.h"

namespace dlv3p {

// What a kernel asks of its plan.
struct RowsNeeds {
  int kernel;
  int pending;       // outputs that a step adds to
  int stride;        // source rows of a step
  int lane_bytes;    // of the channels of a thread
  int own_rows;      // rows of the tile itself that a step brings in beside the source rows
  int chunk_bytes;   // of weights, for each chunk of channels
  int column_bytes;  // of scratch memory at the end, for each column and chunk of channels
};

// Wider tiles would leave a block few channels, narrower ones read more columns twice.
constexpr int64_t kMostTile = 64;
constexpr int64_t kMostSlab = 16;
// Blocks for each multiprocessor: two at a time, in several turns, so that the last one matters
// little.
constexpr int64_t kWantedBlocks = 8;
// A slice brings in some rows that its neighbour brings in as well; the table of its steps must
// stay small.
constexpr int64_t kLeastSlice = 8;
constexpr int64_t kMostSlice = 512;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

class RowsPlan {
 public:
  RowsPlan(const ConvAxis& rows, const ConvAxis& columns, int64_t batch, int64_t channels,
           int64_t element_bytes, const RowsNeeds& needs)
      : needs_(needs) {
    const int64_t chunks = channels * element_bytes / kChunkBytes;
    const int64_t tiles = ceil_div(columns.out, kMostTile);
    const int64_t tile = ceil_div(columns.out, tiles);
    const int64_t lanes = kChunkBytes / needs.lane_bytes;
    const int64_t most = std::clamp<int64_t>(kRowThreads / (tile * lanes), 1, kMostSlab);
    const int64_t slabs = ceil_div(chunks, std::min(most, chunks));
    const int64_t span = (tile - 1) * columns.stride + (needs.kernel - 1) * columns.dilation + 1;
    const int64_t shared = std::gcd(rows.dilation, rows.stride);
    g_.height = static_cast<int>(rows.in);
    g_.width = static_cast<int>(columns.in);
    g_.out_height = static_cast<int>(rows.out);
    g_.out_width = static_cast<int>(columns.out);
    g_.before_h = static_cast<int>(rows.before);
    g_.before_w = static_cast<int>(columns.before);
    g_.stride_h = static_cast<int>(rows.stride);
    g_.stride_w = static_cast<int>(columns.stride);
    g_.dilation_h = static_cast<int>(rows.dilation);
    g_.dilation_w = static_cast<int>(columns.dilation);
    g_.phases = static_cast<int>(std::min(rows.dilation / shared, rows.out));
    g_.tile = static_cast<int>(tile);
    g_.tiles = static_cast<int>(tiles);
    g_.slab = static_cast<int>(ceil_div(chunks, slabs));
    g_.slabs = static_cast<int>(slabs);
    g_.channels = channels;
    g_.source_columns = static_cast<int>(std::min(columns.in, span));
    g_.source_stride_h = g_.out_stride_h = 0;
    batch_ = batch;
    cut(batch * tiles * slabs);
  }

  RowsGeometry geometry(const DepthwiseMap& source, const DepthwiseMap& output) const {
    RowsGeometry g = g_;
    g.source_stride_h = static_cast<int>(source.stride_h);
    g.out_stride_h = static_cast<int>(output.stride_h);
    return g;
  }

  // Blocks for each slab of channels: each leaves its part of a reduction.
  int64_t parts() const { return batch_ * g_.tiles * g_.slices; }
  dim3 grid() const { return dim3(static_cast<unsigned>(parts() * g_.slabs)); }
  dim3 block() const {
    constexpr int kWarp = 32;
    const int threads = g_.tile * g_.slab * (kChunkBytes / needs_.lane_bytes);
    return dim3(static_cast<unsigned>((threads + kWarp - 1) / kWarp * kWarp));
  }
  size_t shared_bytes() const {
    const int row = g_.source_columns * g_.slab * kChunkBytes;
    const int own = g_.tile * g_.slab * kChunkBytes;
    const int ring = kRowGroups * needs_.pending * (needs_.stride * row + needs_.own_rows * own);
    const int scratch = g_.tile * g_.slab * needs_.column_bytes;
    const int weights = g_.slab * needs_.chunk_bytes;
    return static_cast<size_t>(g_.table_bytes + weights + std::max(ring, scratch));
  }
  bool fits() const {
    return shared_bytes() <= static_cast<size_t>(device_limits().shared_bytes_per_block) &&
           parts() * g_.slabs <= std::numeric_limits<int32_t>::max();
  }

 private:
  // Slices of the rows: enough blocks for the device.
  void cut(int64_t blocks) {
    const int64_t wanted = ceil_div(kWantedBlocks * device_limits().multiprocessors, blocks);
    const int64_t most = std::max<int64_t>(1, g_.out_height / kLeastSlice);
    const int64_t slices = std::clamp<int64_t>(wanted, 1, most);
    const int64_t rows = std::min(ceil_div(g_.out_height, slices), kMostSlice);
    g_.slice_rows = static_cast<int>(rows);
    g_.slices = static_cast<int>(ceil_div(g_.out_height, rows));
    g_.table_bytes = most_row_steps(needs_.pending, g_.slice_rows, g_.phases) *
                     static_cast<int>(sizeof(RowStep));
  }

  RowsNeeds needs_;
  RowsGeometry g_{};
  int64_t batch_;
};

inline MapStrides strides_of(const DepthwiseMap& map) {
  return {map.stride_n, static_cast<int>(map.stride_w)};
}

// Whether a walk by rows can read or write the map: adjacent channels in aligned chunks, and an
// image whose offsets fit 32 bits.
inline bool rows_fit(const DepthwiseMap& map, const void* data, int64_t height, int64_t width,
                     int64_t element_bytes) {
  const int64_t pack = kChunkBytes / element_bytes;
  const int64_t reach = std::abs(map.stride_h) * height + std::abs(map.stride_w) * width;
  return map.stride_c == 1 && map.stride_n % pack == 0 && map.stride_h % pack == 0 &&
         map.stride_w % pack == 0 && reach <= std::numeric_limits<int32_t>::max() &&
         reinterpret_cast<std::uintptr_t>(data) % kChunkBytes == 0;
}

}  // namespace dlv3p
