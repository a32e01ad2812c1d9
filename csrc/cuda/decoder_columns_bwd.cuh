// Both gradients of the depthwise convolution of a resized map, by columns, in one pass over the
// gradient of the result.
//
// A thread makes the gradient by each pixel of its column, row after row, and adds it by the
// pixel's vertical shares to the two rows of cells it is mixed from, in registers. Where the walk
// leaves an interval of rows its upper row of cells is complete, and threads add up, through shared
// memory, the columns of the pixels that each cell reads. Nothing is added in memory: a cell is
// written once, and every run sums in the same order.
//
// The intervals above a band and in front of a tile belong to others as well and are made twice.
#pragma once

#include "decoder_columns.cuh"

namespace dlv3p {

struct ColumnsBackward {
  DepthwiseBackward convolution;
  Cells cells;
  ColumnGrid grid;
  float* parts;  // (blocks of a slab, taps, channels); null without a gradient by the weight
};

// The cells that a block makes along an axis, and the pixels that these come from.
struct BlockCells {
  int first_cell;
  int end_cell;
  int first_pixel;  // of the interval in front of the first cell's
  int own_pixel;    // of the first cell's
  int end_pixel;

  // By three threads from `thread` 0 on, who leave the pixels in `found`.
  __device__ BlockCells(const ResizeAxis<float>& axis, int first, int count, int thread,
                        int (&found)[3])
      : first_cell(first), end_cell(first + count) {
    if (end_cell > axis.in) end_cell = static_cast<int>(axis.in);
    if (thread >= 0 && thread < 3) {
      const int cell = thread == 2 ? end_cell : first_cell - 1 + thread;
      found[thread] = static_cast<int>(first_pixel_of(axis, cell));
    }
  }

  // Behind a barrier.
  __device__ void take(const int (&found)[3]) {
    first_pixel = found[0];
    own_pixel = found[1];
    end_pixel = found[2];
  }
};

// Values of the gradient that the taps of a thread's column meet in a row. Those outside the map
// count nothing, so they are not multiplied either; others are read in their place, as loads that
// depend on nothing can be under way while the row before is at work.
template <class T, int K, int V>
class GradientTaps {
 public:
  __device__ GradientTaps(const DepthwiseBackward& c, const T* image, int pixel, bool works)
      : image_(image), stride_h_(c.grad_map.stride_h), height_(static_cast<int>(c.rows.out)) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int64_t column = pixel + c.columns.before - k * c.columns.dilation;
      sees_[k] = works && column >= 0 && column < c.columns.out;
      offset_[k] = sees_[k] ? static_cast<int>(column * c.grad_map.stride_w) : 0;
      hold(offset_[k]);
    }
  }

  __device__ bool has(int row) const { return row >= 0 && row < height_; }
  __device__ bool sees(int k) const { return sees_[k]; }
  __device__ void load(int row, Pack<T, V> (&taps)[K]) const {
    const int there = row < 0 ? 0 : (row < height_ ? row : height_ - 1);
    const T* from = image_ + there * stride_h_;
    hold(from);
#pragma unroll
    for (int k = 0; k < K; ++k) taps[k] = load_pack<V>(from + offset_[k]);
  }

 private:
  const T* image_;
  int64_t stride_h_;
  int height_;
  int offset_[K];
  bool sees_[K];
};

// Adds up what the pixels of a row of the tile leave for its cells.
template <class T, int V>
class CellGatherer {
 public:
  // `columns` are the pixels of the tile, `exchange` has room for two rows of their values.
  __device__ CellGatherer(const ColumnsBackward& p, const ColumnPlace& place, const BlockTile& me,
                          const BlockCells& range, const CellPair* columns, float* exchange)
      : columns_(columns),
        room_(exchange),
        cell_(range.first_cell + me.column),
        lane_(me.lane * V),
        step_(me.lanes * V),
        size_(me.columns * step_),
        mine_(me.inside ? me.column * step_ + lane_ : -1) {
    const DepthwiseBackward& c = p.convolution;
    const DepthwiseMap& map = c.grad_input_map;
    const int channel = me.first_channel + lane_;
    works_ = c.grad_input && me.inside && channel < me.channels && cell_ < range.end_cell;
    if (!works_) return;
    const int pixels = range.end_pixel - range.first_pixel;
    const auto first_cell = [&](int64_t i) { return columns[i].first; };
    from_ = static_cast<int>(first_not_below(pixels, cell_ - 1, first_cell));
    to_ = static_cast<int>(first_not_below(pixels, cell_ + 1, first_cell));
    stride_h_ = map.stride_h;
    result_ = at<T>(c.grad_input,
                    place.image * map.stride_n + channel * map.stride_c + cell_ * map.stride_w);
  }

  // Takes every pixel's value for this row of cells. All threads of a block; a barrier.
  __device__ void finish(int row, bool wanted, const float (&value)[V]) {
    float* values = room_ + turn_ * size_;
    if (mine_ >= 0) store_shared(values + mine_, pack_of<float>(value));
    __syncthreads();
    turn_ ^= 1;  // so that the next row need not wait until this one is read
    if (!wanted || !works_) return;
    float sum[V] = {};
    for (int i = from_; i < to_; ++i) {
      float share, x[V];
      if (!share_of(columns_[i], cell_, &share)) continue;
      unpack(load_pack<V>(values + i * step_ + lane_), x);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] = fmaf(share, x[v], sum[v]);
    }
    store_pack(result_ + row * stride_h_, pack_of<T>(sum));
  }

 private:
  const CellPair* columns_;
  float* room_;
  int cell_;
  int lane_;
  int step_;
  int size_;
  int mine_;
  int turn_ = 0;
  bool works_;
  int from_ = 0;
  int to_ = 0;
  int64_t stride_h_ = 0;
  T* result_ = nullptr;
};

// Sums for the two rows of cells that a row of pixels is mixed from.
template <int V>
struct CellRows {
  float upper[V] = {};
  float lower[V] = {};

  // A share of 0 is multiplied as any, but only where there is a second row: see share_of.
  __device__ void add(const CellPair& row, const float (&gradient)[V]) {
    const bool is_one = row.second == row.first;
    const float first = is_one ? row.weight_first + row.weight_second : row.weight_first;
#pragma unroll
    for (int v = 0; v < V; ++v) upper[v] = fmaf(first, gradient[v], upper[v]);
    if (is_one) return;
#pragma unroll
    for (int v = 0; v < V; ++v) lower[v] = fmaf(row.weight_second, gradient[v], lower[v]);
  }

  // One row on: the upper one is complete.
  __device__ void next() {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      upper[v] = lower[v];
      lower[v] = 0.0f;
    }
  }
};

// Taps whose sums lie in shared memory at a time: many floats, but where a thread has one channel.
template <int K, int V>
constexpr int kTapsAtOnce = V == 1 ? K * K : K;

// Step t brings in row t of the gradient that the band sees, turned around: it adds to the gradient
// by K rows of pixels, the last of which begins here and the first of which is complete.
template <class T, int K, int V>
__global__ void __launch_bounds__(kFewThreads, kColumnBlocks)
    decoder_columns_bwd_kernel(ColumnsBackward p) {
  constexpr int kTaps = K * K;
  DLV3P_DYNAMIC_SHARED(shared);
  const DepthwiseBackward& c = p.convolution;
  const ColumnPlace place(p.grid, blockIdx.x);
  const BlockTile me = tile_of<V>(p.grid, place, static_cast<int>(c.channels));
  __shared__ int found[2][3];
  const int thread = static_cast<int>(threadIdx.x);
  BlockCells down(p.cells.rows, place.band * p.grid.band, p.grid.band, thread, found[0]);
  BlockCells across(p.cells.columns, place.tile * p.grid.tile, p.grid.tile, thread - 3, found[1]);
  __syncthreads();
  down.take(found[0]);
  across.take(found[1]);

  auto* rows = reinterpret_cast<CellPair*>(shared);
  CellPair* columns = rows + p.grid.most_rows;
  auto* exchange = reinterpret_cast<float*>(columns + p.grid.columns);
  float* weights = exchange + 2 * p.grid.columns * p.grid.lanes * V;
  const int pixels = down.end_pixel - down.first_pixel;
  fill_table(rows, p.cells.rows, down.first_pixel, pixels, p.grid.most_rows);
  fill_table(columns, p.cells.columns, across.first_pixel, across.end_pixel - across.first_pixel,
             p.grid.columns);
  share_weights<T, V>(me, static_cast<const T*>(c.weight), kTaps, weights);
  __syncthreads();

  const int pixel = across.first_pixel + me.column;
  const int own_channel = me.first_channel + me.lane * V;
  const bool works = me.inside && pixel < across.end_pixel && own_channel < me.channels;
  const int channel = works ? own_channel : 0;
  SharedAddress my_weights = shared_address(weights + me.lane * kTaps * V);
  hold(my_weights);
  CellColumn column[1];
  if (works) column[0] = CellColumn(columns[me.column], c.input_map.stride_w);
  HeldCells<T, 1, V> held(at_image<T>(c.input, c.input_map, place.image, channel),
                          c.input_map.stride_h);
  const GradientTaps<T, K, V> taps(c, at_image<T>(c.grad, c.grad_map, place.image, channel), pixel,
                                   works);
  CellGatherer<T, V> gatherer(p, place, me, across, columns, exchange);

  bool open[K] = {};  // rows of pixels that count for the weight, by step % K
  float z[K][V] = {};
  float sum[K][V] = {};
  float weight_sum[kTaps][V] = {};
  CellRows<V> cells;
  int cell = down.first_cell > 0 ? down.first_cell - 1 : 0;  // of the upper row
  const auto leave = [&] {
    gatherer.finish(cell, cell >= down.first_cell, cells.upper);
    cells.next();
    ++cell;
  };

  const int steps = pixels + K - 1;
  const int first_row = down.first_pixel + static_cast<int>(c.rows.before) - (K - 1);
  Pack<T, V> coming[K];
  taps.load(first_row, coming);
  for (int first = 0; first < steps; first += K) {
#pragma unroll
    for (int turn = 0; turn < K; ++turn) {
      const int step = first + turn;
      const bool sees_row = taps.has(first_row + step);
      float g[K][V];
#pragma unroll
      for (int k = 0; k < K; ++k) unpack(coming[k], g[k]);
      taps.load(first_row + step + 1, coming);

      const CellPair begun = rows[step];
      if (begun.first >= 0) {
        held.enter(begun, column);
        held.pixel(0, begun, z[turn]);
      }
      open[turn] = p.parts && begun.first >= 0 && down.first_pixel + step >= down.own_pixel;
#pragma unroll
      for (int v = 0; v < V; ++v) sum[turn][v] = 0.0f;

      // Before the first row of pixels and behind the last, sums of rows that do not exist pass
      // through here; none counts.
#pragma unroll
      for (int kw = 0; kw < K; ++kw) {
        if (!sees_row || !taps.sees(kw)) continue;
#pragma unroll
        for (int kh = 0; kh < K; ++kh) {
          const int slot = (turn + 1 + kh) % K;
          const int tap = kh * K + kw;
          float w[V];
          unpack(load_shared<V, float>(my_weights + tap * V * sizeof(float)), w);
          multiply_add(sum[slot], w, g[kw]);
          if (open[slot]) multiply_add(weight_sum[tap], z[slot], g[kw]);
        }
      }

      const int complete = step - (K - 1);
      if (complete < 0 || complete >= pixels) continue;
      const CellPair row = rows[complete];
      while (cell < row.first) leave();
      cells.add(row, sum[(turn + 1) % K]);
    }
  }
  while (cell < down.end_cell) leave();
  if (!p.parts) return;
  // What others make as well counts once.
  const bool owns = works && pixel >= across.own_pixel;
  constexpr int kAtOnce = kTapsAtOnce<K, V>;
  float* const to = p.parts + place.part * kTaps * c.channels;
#pragma unroll
  for (int first = 0; first < kTaps; first += kAtOnce) {
    float values[kAtOnce * V];
#pragma unroll
    for (int i = 0; i < kAtOnce * V; ++i) {
      values[i] = owns ? weight_sum[first + i / V][i % V] : 0.0f;
    }
    store_tile_sums<V, kAtOnce>(me, reinterpret_cast<float*>(shared), values,
                                to + first * c.channels);
  }
}

}  // namespace dlv3p
