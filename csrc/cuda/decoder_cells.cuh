// Reading a map that is resized meanwhile: its pixels are mixed of the cells of a smaller one.
#pragma once

#include "../common/resize.h"
#include "depthwise_any.cuh"

namespace dlv3p {

// From the cells of the encoder output to the pixels of the resized map, which exists nowhere.
struct Cells {
  ResizeAxis<float> rows;
  ResizeAxis<float> columns;
};

// The first of `count` places whose value, which never falls, is not below `least`; `count` for
// none.
template <class ValueOf>
__host__ __device__ inline int64_t first_not_below(int64_t count, int64_t least,
                                                   ValueOf&& value_of) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (value_of(middle) < least) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The first pixel whose first cell is `cell` or one behind it; as many as there are for none.
__host__ __device__ inline int64_t first_pixel_of(const ResizeAxis<float>& axis, int64_t cell) {
  return first_not_below(axis.out, cell, [&](int64_t pixel) { return axis.source(pixel).first; });
}

// The share of a pixel that goes to `cell`, from which it comes as well. False where it reads
// others: what is not finite must not get there by a share of 0.
template <class Source>
__device__ inline bool share_of(const Source& pixel, int64_t cell, float* share) {
  *share = (pixel.first == cell ? pixel.weight_first : 0.0f) +
           (pixel.second == cell ? pixel.weight_second : 0.0f);
  return pixel.first == cell || pixel.second == cell;
}

// to = first * a + second * b.
template <int V>
__device__ inline void blend(float first, const float (&a)[V], float second, const float (&b)[V],
                             float (&to)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) to[v] = fmaf(second, b[v], first * a[v]);
}

// The resized map as the convolution's input, for kernels that read it pixel by pixel.
struct CellSource {
  const void* data;
  DepthwiseMap map;
  Cells cells;

  template <class T, int V>
  class Reader {
   public:
    __device__ Reader(const CellSource& source, int64_t channel)
        : from_(at<T>(source.data, channel * source.map.stride_c)),
          map_(source.map),
          cells_(source.cells) {}

    __device__ void read(const Pixel& pixel, float (&x)[V]) const {
      const auto row = cells_.rows.source(pixel.row);
      const auto column = cells_.columns.source(pixel.column);
      float upper[V], lower[V];
      read_row({pixel.image, row.first, 0}, column, upper);
      read_row({pixel.image, row.second, 0}, column, lower);
      blend(row.weight_first, upper, row.weight_second, lower, x);
    }

   private:
    __device__ void read_row(const Pixel& row, const ResizeSource<float>& column,
                             float (&x)[V]) const {
      const T* from = from_ + row.offset(map_);
      float left[V], right[V];
      unpack(load_pack<V>(from + column.first * map_.stride_w), left);
      unpack(load_pack<V>(from + column.second * map_.stride_w), right);
      blend(column.weight_first, left, column.weight_second, right, x);
    }

    const T* from_;
    DepthwiseMap map_;
    Cells cells_;
  };
};

}  // namespace dlv3p
