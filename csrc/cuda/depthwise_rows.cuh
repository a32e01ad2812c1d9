// Walking a channels_last map by rows: what the fast forward and backward kernels share.
//
// With dilation d, rows r, r + d, r + 2d, ... read each other's input rows and no others: a phase.
// A block owns a slab of channels and a tile of columns and walks whole phases, so that every input
// row it needs comes in once and is used for all the output rows that see it. Rows come into a ring
// of shared memory by asynchronous copies, several ahead of the one at work. A thread owns one
// column and V channels; its unfinished output rows and its weights stay in registers.
#pragma once

#include "depthwise_tile.cuh"

namespace dlv3p {

// Groups of rows in shared memory. While one is at work the others are on their way: six rows of
// about 4 KiB for each of two or three blocks cover the latency of the memory.
constexpr int kRowGroups = 3;
// One asynchronous copy, and the unit in which slabs of channels are counted.
constexpr int kChunkBytes = 16;

// Rounded up from a tile of columns times a slab of channels, see rows_plan.
constexpr int kRowThreads = 256;
constexpr int kRowBlocks = 2;

// Strides in elements; channels are adjacent.
struct MapStrides {
  int64_t stride_n;
  int stride_w;
};

struct RowsGeometry {
  int height;  // of the source, whose rows come in
  int width;
  int out_height;  // of the map whose rows are made
  int out_width;
  int before_h;
  int before_w;
  int stride_h;
  int stride_w;
  int dilation_h;
  int dilation_w;
  // Rows in phase order: phase, phase + phases, ... of every phase in turn.
  int phases;
  int source_stride_h;  // in elements; a whole image stays below 2^31
  int out_stride_h;
  int slice_rows;  // rows of a slice, the part of that order that one block walks
  int slices;
  int tile;  // columns of a block
  int tiles;
  int slab;  // chunks of channels of a block
  int slabs;
  int channels;
  int table_bytes;     // of the steps, in front of the rows
  int source_columns;  // columns that a row in shared memory has room for
};

struct RowsPosition {
  int slab;
  int slice;
  int tile;
  int image;
};

// Slabs fastest: blocks that run together then read neighbouring memory.
__device__ inline RowsPosition rows_position(const RowsGeometry& g, unsigned block) {
  RowsPosition at;
  at.slab = static_cast<int>(block % g.slabs);
  block /= g.slabs;
  at.slice = static_cast<int>(block % g.slices);
  block /= g.slices;
  at.tile = static_cast<int>(block % g.tiles);
  at.image = static_cast<int>(block / g.tiles);
  return at;
}

// One step of a block's walk: source rows come in, one output row begins and one is complete.
// Offsets in the image, in elements; negative for none.
struct alignas(16) RowStep {
  int source[2];
  int begun;  // number of the output row, not its offset
  int output;
};

// The steps of a slice, run by run (a run is the part of one phase that lies in the slice). Step t
// of a run brings in source rows S * t ... S * t + S - 1 of it, S being the stride in units of the
// rows of a phase, and adds them to outputs t, t - 1, ..., t - kLast, the last of which is
// complete.
template <int K, int S>
struct RowSchedule {
  static_assert(S <= 2, "as many as RowStep has room for");
  static constexpr int kPending = (K + S - 1) / S;  // outputs that one step adds to
  static constexpr int kLast = kPending - 1;

  const RowsGeometry& g;
  int begin;  // of the slice, in phase order
  int count;

  __device__ RowSchedule(const RowsGeometry& geometry, int slice)
      : g(geometry), begin(slice * geometry.slice_rows) {
    count = g.out_height - begin < g.slice_rows ? g.out_height - begin : g.slice_rows;
  }

  // Fills the table and returns its length, a multiple of kPending. All threads of a block.
  __device__ int build(RowStep* steps) const {
    const Place first = place(begin);
    const int length = count + kLast * (place(begin + count - 1).phase - first.phase + 1);
    const int padded = (length + kPending - 1) / kPending * kPending;
    const int thread = static_cast<int>(threadIdx.x);
    const int threads = static_cast<int>(blockDim.x);
    for (int i = thread; i < count; i += threads) {
      const Place at = place(begin + i);
      const int run = at.phase - first.phase;
      const int start = run == 0 ? first.position : 0;
      const int index = at.position - start;
      const int left = count - (i - index);
      const int outputs = at.length - start < left ? at.length - start : left;
      const int output = at.phase + start * g.phases;
      RowStep* to = steps + i + kLast * run;
      *to = step(output, outputs, index);
      if (index < outputs - 1) continue;
      for (int t = 1; t <= kLast; ++t) to[t] = step(output, outputs, index + t);
    }
    for (int i = length + thread; i < padded; i += threads) steps[i] = {{-1, -1}, -1, -1};
    __syncthreads();
    return padded;
  }

 private:
  struct Place {
    int phase;
    int position;  // in the phase
    int length;    // of the phase
  };

  // Of row `index` in phase order; the first phases may have one row more than the others.
  __device__ Place place(int index) const {
    const int rows = g.out_height / g.phases;
    const int longer = g.out_height - rows * g.phases;
    const int in_longer = longer * (rows + 1);
    if (index < in_longer) return {index / (rows + 1), index % (rows + 1), rows + 1};
    index -= in_longer;
    return {longer + index / rows, index % rows, rows};
  }

  // Step `t` of the run of `outputs` rows that begins with row `output`.
  __device__ RowStep step(int output, int outputs, int t) const {
    RowStep made{{-1, -1}, -1, -1};
#pragma unroll
    for (int u = 0; u < S; ++u) {
      const int index = S * t + u;
      const int row = output * g.stride_h - g.before_h + index * g.dilation_h;
      const bool wanted = index <= S * (outputs - 1) + K - 1;
      if (wanted && row >= 0 && row < g.height) made.source[u] = row * g.source_stride_h;
    }
    if (t < outputs) made.begun = output + t * g.phases;
    if (t >= kLast) made.output = (output + (t - kLast) * g.phases) * g.out_stride_h;
    return made;
  }
};

// The longest table of steps that a slice can need.
constexpr int most_row_steps(int pending, int slice_rows, int phases) {
  const int runs = (slice_rows < phases ? slice_rows : phases) + 1;
  return slice_rows + (pending - 1) * runs + pending - 1;
}

// Columns [begin, end).
struct ColumnSpan {
  int begin;
  int end;
};

// The columns that a tile makes.
__device__ inline ColumnSpan own_columns(const RowsGeometry& g, int tile) {
  const int begin = tile * g.tile;
  return {begin, begin + g.tile < g.out_width ? begin + g.tile : g.out_width};
}

// The columns of the source that a tile sees.
__device__ inline ColumnSpan seen_columns(const RowsGeometry& g, int tile, int kernel) {
  const ColumnSpan own = own_columns(g, tile);
  const int from = own.begin * g.stride_w - g.before_w;
  const int to = (own.end - 1) * g.stride_w - g.before_w + (kernel - 1) * g.dilation_w + 1;
  return {from > 0 ? from : 0, to < g.width ? to : g.width};
}

// The number of a block among those of its slab.
__device__ inline int64_t part_of(const RowsGeometry& g, const RowsPosition& at) {
  return (static_cast<int64_t>(at.image) * g.tiles + at.tile) * g.slices + at.slice;
}

// Which column and which channels a thread makes. Lanes of a column are V channels each.
template <int V>
struct RowsThread {
  int lanes;  // of a column
  int lane;
  int column;  // in the tile
  int output_column;
  int channel;
  bool in_tile;
  bool works;  // has a column and channels of the map

  __device__ RowsThread(const RowsGeometry& g, const RowsPosition& at, int element_bytes) {
    lanes = g.slab * kChunkBytes / (V * element_bytes);
    column = static_cast<int>(threadIdx.x) / lanes;
    lane = static_cast<int>(threadIdx.x) - column * lanes;
    output_column = at.tile * g.tile + column;
    channel = (at.slab * lanes + lane) * V;
    in_tile = column < g.tile;
    works = in_tile && output_column < g.out_width && channel < g.channels;
  }

  __device__ BlockTile tile(const RowsGeometry& g, const RowsPosition& at) const {
    return {lanes, g.tile, lane, column, at.slab * lanes * V, g.channels, in_tile};
  }
};

// The taps of a thread's column in a row in shared memory. Those outside the map count nothing, so
// they are not multiplied either: a weight may be infinite.
template <class T, int K, int V>
class TapColumns {
 public:
  __device__ TapColumns(const RowsGeometry& g, const RowsThread<V>& me, int begin) {
    const int pixel = g.slab * kChunkBytes;
    const int source = me.output_column * g.stride_w - g.before_w;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int column = source + k * g.dilation_w;
      offset_[k] = (column - begin) * pixel + me.lane * V * static_cast<int>(sizeof(T));
      sees_[k] = me.works && column >= 0 && column < g.width;
    }
  }

  __device__ bool sees(int k) const { return sees_[k]; }
  __device__ void read(SharedAddress row, int k, float (&x)[V]) const {
    unpack(load_shared<V, T>(row + offset_[k]), x);
  }

 private:
  bool sees_[K];
  int offset_[K];
};

// Copies source rows into shared memory, each thread its chunk of some columns.
template <class T>
class RowCopier {
 public:
  __device__ RowCopier(const RowsGeometry& g, const RowsPosition& at, const T* image,
                       const MapStrides& map, ColumnSpan span)
      : image_(image) {
    constexpr int kPerChunk = kChunkBytes / sizeof(T);
    const int thread = static_cast<int>(threadIdx.x);
    const int column = thread / g.slab;
    const int chunk = thread - column * g.slab;
    const int step = static_cast<int>(blockDim.x) / g.slab;
    channel_ = (at.slab * g.slab + chunk) * kPerChunk;
    // Threads beyond a whole number of columns, or without channels, have nothing to copy.
    const bool copies = column < step && channel_ < g.channels;
    const int columns = span.end - span.begin - column;
    count_ = copies && columns > 0 ? (columns + step - 1) / step : 0;
    from_ = (span.begin + column) * map.stride_w + channel_;
    advance_ = step * map.stride_w;
    to_ = thread * kChunkBytes;
    to_advance_ = step * g.slab * kChunkBytes;
  }

  __device__ void copy(SharedAddress row, int offset) const {
    int from = from_ + offset;
    SharedAddress to = row + to_;
#pragma unroll 1  // mostly once or twice
    for (int i = 0; i < count_; ++i) {
      copy_async_16(to, image_ + from);
      from += advance_;
      to += to_advance_;
    }
  }

  // Applies `affine` to what this thread has copied and waited for, once per element.
  __device__ void transform(unsigned char* shared, const ChannelAffine& affine) const {
    constexpr int kAtOnce = 4;  // few registers
#pragma unroll 1
    for (int column = 0; column < count_; ++column) {
      T* chunk = reinterpret_cast<T*>(shared + to_ + column * to_advance_);
#pragma unroll
      for (int i = 0; i < kChunkBytes / static_cast<int>(sizeof(T)); i += kAtOnce) {
        const AffineStage<kAtOnce> stage(affine, channel_ + i);
        float x[kAtOnce];
        unpack(load_pack<kAtOnce>(chunk + i), x);
        stage.apply(x);
        store_shared(chunk + i, pack_of<T>(x));
      }
    }
  }

 private:
  const T* image_;
  int channel_;
  int count_;
  int from_;
  int advance_;
  int to_;
  int to_advance_;
};

}  // namespace dlv3p
