// Gradient of the loss by the logits: every cell gathers from the pixels around it.
//
// A block owns some columns of cells and walks down a band of their rows, interval by interval. A
// thread has a column of pixels: it makes their exponentials once, and sums them up for the cells
// above and below by their shares. With what the interval above has left for it, the sum for the
// upper row of cells is complete; threads then own cells, and add up the columns by their shares.
// Nothing is added in global memory: a cell is written once, and every run sums in the same order.
//
// The interval above the band and the one in front of the first column belong to others and are
// made twice.
#pragma once

#include <cstdint>

#include "upsample_tile.cuh"

namespace dlv3p {

constexpr int kBackwardLoads = 3;  // of a thread under way at once: more would not fit registers
// Blocks on a multiprocessor: what 128 or 80 registers a thread leave room for.
constexpr int backward_blocks(bool smooth) { return smooth ? 4 : 6; }

// What some pixels, one below the other, multiply the terms of their classes by.
template <bool kSmooth>
struct PixelFactors {
  float down[kUpsampleRows];  // shares of the lower cells
  Shares up[kUpsampleRows];   // of the cells above and below, times `by_loss` where not smoothed
  float logsumexp[kUpsampleRows];
  int label[kUpsampleRows];
  float by_probability[kUpsampleRows];
  float by_one_hot[kUpsampleRows];
  float by_weight[kUpsampleRows];

  // Pixels behind the first `count`, of which there is at least one, repeat the last.
  __device__ void load(const LossBackward& p, const ResizedLogits& u, int image, int row,
                       int column, int count, int cell_row, float weight_sum) {
    for_each_label<kUpsampleRows>(p.labels, image, row, column, count, u.classes,
                                  [&](int t, int its) { label[t] = its; });
    const float* grad = p.grad + int64_t{image} * p.grad_n + row * p.grad_h + column * p.grad_w;
    const float* sum = p.logsumexp + (int64_t{image} * u.rows.out + row) * u.columns.out + column;
    float grads[kUpsampleRows];
#pragma unroll
    for (int t = 0; t < kUpsampleRows; ++t) {
      grads[t] = *grad;
      logsumexp[t] = *sum;
      if (t + 1 < count) {
        grad += p.grad_h;
        sum += u.columns.out;
      }
    }
    const bool has_second = u.rows.second(cell_row) > cell_row;
#pragma unroll
    for (int t = 0; t < kUpsampleRows; ++t) {
      down[t] = u.rows.weight_second(row + t, cell_row);
      up[t] = received(shares_from(down[t]), has_second);
      // An ignored pixel counts 0 times, whatever its gradient is.
      const float by_loss = label[t] == kIgnored ? 0.0f : grads[t];
      set_factors(t, by_loss, weight_of(p.weight, label[t]), p, u, weight_sum);
    }
  }

  __device__ void set_factors(int t, float by_loss, float own, const LossBackward& p,
                              const ResizedLogits& u, float weight_sum) {
    if constexpr (kSmooth) {
      own *= 1.0f - p.label_smoothing;
      const float spread = p.label_smoothing / static_cast<float>(u.classes);
      by_probability[t] = by_loss * (own + weight_sum * spread);
      by_one_hot[t] = by_loss * own;
      by_weight[t] = by_loss * spread;
    } else {
      up[t].first *= by_loss * own;
      up[t].second *= by_loss * own;
    }
  }

  // The gradient by a resized logit; where it is not smoothed, without its factor.
  __device__ float term(int t, float logit, int k, float weight) const {
    const float probability = exponential(logit - logsumexp[t]);
    if constexpr (kSmooth) {
      const float one_hot = label[t] == k ? by_one_hot[t] : 0.0f;
      return fmaf(probability, by_probability[t], -one_hot) - by_weight[t] * weight;
    } else {
      // Formed so that no digits are lost where the label is nearly certain.
      return label[t] == k ? probability - 1.0f : probability;
    }
  }
};

// The work of a block on one chunk of the classes.
template <class T, bool kSmooth>
class GradientBlock {
 public:
  __device__ GradientBlock(const ResizedLogits& u, const BackwardTiling& t, const LossBackward& p,
                           unsigned char* shared)
      : u_(u), t_(t), p_(p), weight_sum_(kSmooth ? sum_of_weights(p.weight, u.classes) : 0.0f) {
    const int tile = static_cast<int>(blockIdx.x) % t.cell_tiles;
    image_ = static_cast<int>(blockIdx.y);
    row_begin_ = static_cast<int>(blockIdx.x) / t.cell_tiles * t.band;
    row_end_ = min(row_begin_ + t.band, u.rows.in);
    cell_begin_ = tile * t.cells;
    cell_end_ = min(cell_begin_ + t.cells, u.columns.in);
    column_begin_ = u.columns.begin_of(cell_begin_ - 1);
    column_end_ = u.columns.begin_of(cell_end_);
    range_.column = max(cell_begin_ - 1, 0);
    range_.columns = min(cell_end_ + 1, u.columns.in) - range_.column;
    range_.first_class = static_cast<int>(blockIdx.z) * t.chunk;
    range_.classes = min(t.chunk, u.classes - range_.first_class);
    float* next = reinterpret_cast<float*>(shared);
    sums_ = take(next, t.columns * t.pitch);
    below_ = take(next, t.columns * t.pitch);
    staged_ = take(next, 2 * staged_floats());
    across_ = reinterpret_cast<Shares*>(take(next, 2 * t.columns));
    begins_ = reinterpret_cast<int*>(next);
  }

  __device__ void run() {
    const int first_interval = max(row_begin_ - 1, 0);
    prepare();
    stage(first_interval);
    int begin = u_.rows.begin_of(first_interval);
    for (int interval = first_interval; interval < row_end_; ++interval) {
      if (interval + 1 < u_.rows.in) stage(interval + 1);
      const int end = u_.rows.begin_of(interval + 1);
      __syncthreads();  // the cells are there, and the sums above are read
      const bool has_above = interval > first_interval && u_.rows.in != u_.rows.out;
      for (int x = column_begin_ + thread(); x < column_end_; x += kUpsampleThreads) {
        add_column(x, interval, begin, end, has_above);
      }
      __syncthreads();
      if (interval >= row_begin_) gather(interval);
      float* const above = below_;
      below_ = sums_;
      sums_ = above;
      begin = end;
    }
  }

 private:
  static __device__ int thread() { return static_cast<int>(threadIdx.x); }

  static __device__ float* take(float*& next, int count) {
    float* const taken = next;
    next += count;
    return taken;
  }

  // A row of cells; even and odd ones take turns.
  __device__ int staged_floats() const { return (t_.cells + 2) * t_.pitch; }
  __device__ float* staged(int row) const { return staged_ + row % 2 * staged_floats(); }

  // First columns of the intervals from cell_begin_ - 1 on, and what the cells of a column receive.
  __device__ void prepare() {
    for (int i = thread(); i <= cell_end_ - cell_begin_ + 1; i += kUpsampleThreads) {
      begins_[i] = u_.columns.begin_of(cell_begin_ - 1 + i);
    }
    for (int x = column_begin_ + thread(); x < column_end_; x += kUpsampleThreads) {
      const int cell = u_.columns.first(x);
      across_[x - column_begin_] =
          received(shares_of(u_.columns, x, cell), u_.columns.second(cell) > cell);
    }
  }

  __device__ void stage(int row) {
    range_.row = row;
    stage_cells<T, kBackwardLoads>(staged(row), u_, image_, range_, 1, t_.pitch);
  }

  // The pixels of a column between rows `begin` and `end`: adds to what the row of cells above
  // receives, where there is something already, and makes what the one below receives.
  __device__ void add_column(int x, int interval, int begin, int end, bool has_above) {
    const int cell = u_.columns.first(x);
    const int at = (cell - range_.column) * t_.pitch;
    const bool two_rows = u_.rows.second(interval) > interval;
    const Corners corners{staged(interval) + at, (u_.columns.second(cell) - cell) * t_.pitch,
                          two_rows ? static_cast<int>(staged(interval + 1) - staged(interval)) : 0};
    const Shares across = shares_of(u_.columns, x, cell);
    float* const sums = sums_ + (x - column_begin_) * t_.pitch;
    float* const below = below_ + (x - column_begin_) * t_.pitch;
    bool has_below = false;
    do {  // also an interval without pixels leaves sums
      const int count = min(end - begin, kUpsampleRows);
      PixelFactors<kSmooth> factors;
      if (count > 0) factors.load(p_, u_, image_, begin, x, count, interval, weight_sum_);
      for (int k = 0; k < range_.classes; k += kClassPack) {
        float upper[kClassPack] = {}, lower[kClassPack] = {};
        add_pixels(factors, corners, across, count, k, upper, lower);
        put(sums + k, upper, has_above);
        put(below + k, lower, has_below);
      }
      has_above = has_below = true;
      begin += kUpsampleRows;
    } while (begin < end);
  }

  // Classes behind the last one of the chunk are made of what lies there, and never read.
  __device__ void add_pixels(const PixelFactors<kSmooth>& factors, const Corners& corners,
                             const Shares& across, int count, int k, float (&upper)[kClassPack],
                             float (&lower)[kClassPack]) const {
    float above[kClassPack], below[kClassPack], weights[kClassPack];
    corners.mix(k, false, across, above);
    corners.mix(k, true, across, below);
    const int first = range_.first_class + k;
#pragma unroll
    for (int i = 0; i < kClassPack; ++i) {
      const bool given = kSmooth && p_.weight && first + i < u_.classes;
      weights[i] = given ? p_.weight[first + i] : 1.0f;
    }
#pragma unroll
    for (int t = 0; t < kUpsampleRows; ++t) {
      if (t >= count) break;
#pragma unroll
      for (int i = 0; i < kClassPack; ++i) {
        const float logit = mixed(above[i], below[i], shares_from(factors.down[t]));
        const float term = factors.term(t, logit, first + i, weights[i]);
        upper[i] = fmaf(factors.up[t].first, term, upper[i]);
        lower[i] = fmaf(factors.up[t].second, term, lower[i]);
      }
    }
  }

  static __device__ void put(float* to, float (&values)[kClassPack], bool add) {
    if (add) {
      const auto before = load_pack<kClassPack>(to);
#pragma unroll
      for (int i = 0; i < kClassPack; ++i) values[i] += before.lane[i];
    }
    *reinterpret_cast<Pack<float, kClassPack>*>(to) = pack_of<float>(values);
  }

  // A row of cells, from the sums of the columns.
  __device__ void gather(int row) const {
    const int cells = cell_end_ - cell_begin_;
    const int packs = (range_.classes + kClassPack - 1) / kClassPack;
    const bool by_class = p_.result_c == 1;
    const int fast_count = by_class ? packs : cells, slow_count = by_class ? cells : packs;
    const PairOrder order(fast_count);
    for (int slow = order.slow(); slow < slow_count; slow += order.step()) {
      for (int fast = order.fast(); fast < fast_count; fast += order.lanes()) {
        gather_cell(row, by_class ? slow : fast, by_class ? fast : slow);
      }
    }
  }

  __device__ void gather_cell(int row, int cell, int pack) const {
    float totals[kClassPack] = {};
    const int k = pack * kClassPack;
    const auto add = [&](int begin, int end, auto share) {
#pragma unroll 4
      for (int x = begin - column_begin_; x < end - column_begin_; ++x) {
        const auto sums = load_pack<kClassPack>(sums_ + x * t_.pitch + k);
#pragma unroll
        for (int i = 0; i < kClassPack; ++i) {
          totals[i] = fmaf(share(across_[x]), sums.lane[i], totals[i]);
        }
      }
    };
    if (u_.columns.in != u_.columns.out) {
      add(begins_[cell], begins_[cell + 1], [](const Shares& s) { return s.second; });
    }
    add(begins_[cell + 1], begins_[cell + 2], [](const Shares& s) { return s.first; });
    T* to = static_cast<T*>(p_.result) + int64_t{image_} * p_.result_n + row * p_.result_h +
            (cell_begin_ + cell) * p_.result_w + (range_.first_class + k) * p_.result_c;
#pragma unroll
    for (int i = 0; i < kClassPack; ++i, to += p_.result_c) {
      if (k + i < range_.classes) *to = from_float<T>(totals[i]);
    }
  }

  const ResizedLogits& u_;
  const BackwardTiling& t_;
  const LossBackward& p_;
  const float weight_sum_;
  int image_;
  int row_begin_, row_end_;        // of cells
  int cell_begin_, cell_end_;      // columns of cells
  int column_begin_, column_end_;  // of pixels that reach them
  CellRange range_{};              // what is staged
  float* sums_;     // (columns, pitch): for the row of cells above the interval at work
  float* below_;    // the same for the row below it
  float* staged_;   // two rows of cells
  Shares* across_;  // (columns): received by the cells on both sides
  int* begins_;
};

template <class T, bool kSmooth>
__global__ void __launch_bounds__(kUpsampleThreads, backward_blocks(kSmooth))
    upsample_backward_kernel(ResizedLogits u, BackwardTiling t, LossBackward p) {
  DLV3P_DYNAMIC_SHARED(shared);
  GradientBlock<T, kSmooth>(u, t, p, shared).run();
}

}  // namespace dlv3p
