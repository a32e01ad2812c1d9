// Walking down the columns of a map that is resized while it is read: what forward and backward
// share.
//
// Pixels that read the same two cells of an axis form an interval. A thread owns a column and V
// channels and walks down the rows. What a row reads is the same for the whole block, and stands in
// a table; what the column reads never changes. So a thread keeps its two rows of cells, mixed
// along the columns, until the walk enters another interval.
#pragma once

#include "decoder_cells.cuh"
#include "depthwise_tile.cuh"

namespace dlv3p {

// Threads of a block, of which two shall fit at a time. A quarter of a multiprocessor has registers
// for four warps of at most 128, or for three of at most 168.
constexpr int kManyThreads = 256;
constexpr int kFewThreads = 192;
constexpr int kColumnBlocks = 2;

// How blocks and their threads share the work.
struct ColumnGrid {
  int lanes;    // threads along the channels, V each
  int slabs;    // blocks along them
  int columns;  // threads along the columns: one pixel each
  int tile;     // columns of the result that a block makes: pixels forward, cells backward
  int tiles;
  int band;  // rows of the result that a block makes
  int bands;
  int most_rows;  // pixels that a block sees along a column: room in its table
};

// Where a block stands, and its part of the results. Slabs fastest: blocks that run together then
// read neighbouring memory.
struct ColumnPlace {
  int slab;
  int band;
  int tile;
  int image;
  int64_t part;  // number of the block among those of its slab

  __device__ ColumnPlace(const ColumnGrid& g, unsigned block) {
    slab = static_cast<int>(block % g.slabs);
    block /= g.slabs;
    part = block;
    band = static_cast<int>(block % g.bands);
    block /= g.bands;
    tile = static_cast<int>(block % g.tiles);
    image = static_cast<int>(block / g.tiles);
  }
};

template <int V>
__device__ inline BlockTile tile_of(const ColumnGrid& g, const ColumnPlace& place, int channels) {
  const int thread = static_cast<int>(threadIdx.x);
  const int column = thread / g.lanes;
  return {g.lanes,  g.columns,         thread - column * g.lanes, column, place.slab * g.lanes * V,
          channels, column < g.columns};
}

// A thread's channels of an image.
template <class T>
__device__ inline const T* at_image(const void* data, const DepthwiseMap& map, int image,
                                    int channel) {
  return at<T>(data, image * map.stride_n + channel * map.stride_c);
}

// What a pixel of one axis reads. `first` is negative where there is no pixel.
struct alignas(16) CellPair {
  int first;
  int second;
  float weight_first;
  float weight_second;

  __device__ static CellPair of(const ResizeAxis<float>& axis, int64_t pixel) {
    if (pixel < 0 || pixel >= axis.out) return {-1, -1, 0.0f, 0.0f};
    const auto source = axis.source(pixel);
    return {static_cast<int>(source.first), static_cast<int>(source.second), source.weight_first,
            source.weight_second};
  }
};

// `count` pixels from `begin` on, then places of none up to `room`. All threads of a block; a
// barrier is to follow.
__device__ inline void fill_table(CellPair* table, const ResizeAxis<float>& axis, int64_t begin,
                                  int count, int room) {
  const int threads = static_cast<int>(blockDim.x);
  for (int i = static_cast<int>(threadIdx.x); i < room; i += threads) {
    table[i] = CellPair::of(axis, i < count ? begin + i : -1);
  }
}

// A column of pixels: where its two cells lie in a row of them, in elements. Where there is no
// pixel the first cell stands for both: it is read, which saves branches, and not used.
struct CellColumn {
  bool there = false;
  int first = 0;
  int second = 0;
  float weight_first = 0.0f;
  float weight_second = 0.0f;

  CellColumn() = default;
  __device__ CellColumn(const CellPair& pair, int64_t stride) : there(pair.first >= 0) {
    if (!there) return;
    first = pair.first * static_cast<int>(stride);
    second = pair.second * static_cast<int>(stride);
    weight_first = pair.weight_first;
    weight_second = pair.weight_second;
  }
};

// The two rows of cells around a row of pixels, mixed along K columns.
template <class T, int K, int V>
class HeldCells {
 public:
  // `cells` are those of the thread's channels.
  __device__ HeldCells(const T* cells, int64_t stride) : cells_(cells), stride_(stride) {}

  __device__ void enter(const CellPair& row, const CellColumn (&columns)[K]) {
    if (row.first == first_) return;
    if (row.first == second_) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int v = 0; v < V; ++v) upper_[k][v] = lower_[k][v];
      }
    } else {
      mix(row.first, columns, upper_);
    }
    mix(row.second, columns, lower_);
    first_ = row.first;
    second_ = row.second;
  }

  // Of a row that has been entered.
  __device__ void pixel(int k, const CellPair& row, float (&x)[V]) const {
    blend(row.weight_first, upper_[k], row.weight_second, lower_[k], x);
  }

 private:
  __device__ void mix(int row, const CellColumn (&columns)[K], float (&to)[K][V]) const {
    const T* from = cells_ + row * stride_;
    hold(from);
    Pack<T, V> left[K], right[K];  // all on their way before the first is used
#pragma unroll
    for (int k = 0; k < K; ++k) {
      left[k] = load_pack<V>(from + columns[k].first);
      right[k] = load_pack<V>(from + columns[k].second);
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
      float a[V], b[V];
      unpack(left[k], a);
      unpack(right[k], b);
      blend(columns[k].weight_first, a, columns[k].weight_second, b, to[k]);
    }
  }

  const T* cells_;
  int64_t stride_;
  int first_ = -1;
  int second_ = -1;
  float upper_[K][V];
  float lower_[K][V];
};

}  // namespace dlv3p
