// Loss and classes of resized logits in one pass over the logits.
//
// A block has some rows of cells, and a row of pixels across them; chunk by chunk of the classes it
// takes the cells around into shared memory. A thread has a column of the pixels of an interval,
// kUpsampleRows of them at a time: it mixes the cells along the columns once for all of these.
#pragma once

#include <cstdint>

#include "upsample_tile.cuh"

namespace dlv3p {

// Classes whose logits wait in registers, mixed along the columns. Each block costs a pixel one
// more exponential.
constexpr int kClassBlock = 8;
constexpr int kForwardLoads = 5;  // of a thread under way at once: the rows of cells of most blocks

// The sum of exp(z - maximum) over the logits of a pixel, relative to the maximum so far.
// Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, algorithm 3.
struct ExponentialSum {
  float maximum = -INFINITY;
  float total = 0.0f;

  __device__ float base() const { return maximum == -INFINITY ? 0.0f : maximum; }

  // NaN reaches the maximum only by chance, but always the sum.
  template <int N>
  __device__ void add(const float (&values)[N]) {
    const float before = maximum;
#pragma unroll
    for (int i = 0; i < N; ++i) maximum = fmaxf(maximum, values[i]);
    const float base = this->base();
    total *= exponential(before - base);
#pragma unroll
    for (int i = 0; i < N; ++i) total += exponential(values[i] - base);
  }
};

// A thread's pixels: `count` of them, one below the other.
struct PixelColumn {
  int image;
  int row;
  int count;
  int column;
  Shares across;
  float down[kUpsampleRows];  // shares of the lower cells
};

// Cross entropy of every pixel, 0 where ignored, and log-sum-exp.
template <bool kSmooth>
class LossWork {
 public:
  using Params = LossForward;
  static constexpr int kBlocks = kSmooth ? 5 : 6;  // per multiprocessor: 96 or 80 registers

  __device__ LossWork(const Params& p, const ResizedLogits& u)
      : p_(p), u_(u), weight_sum_(kSmooth ? sum_of_weights(p.weight, u.classes) : 0.0f) {}

  __device__ void start(const PixelColumn& pixels) {
#pragma unroll
    for (int t = 0; t < kUpsampleRows; ++t) {
      sums_[t] = {};
      distances_[t] = 0.0f;
    }
    for_each_label<kUpsampleRows>(p_.labels, pixels.image, pixels.row, pixels.column, pixels.count,
                                  u_.classes, [&](int t, int label) { own(t) = {label, 0.0f}; });
  }

  // Logits of the pixels' own classes, as far as they are among these.
  __device__ void look_up(const Corners& corners, const PixelColumn& pixels, int begin, int count) {
#pragma unroll
    for (int t = 0; t < kUpsampleRows; ++t) {
      if (t >= pixels.count) break;
      const int k = own(t).label - begin;
      if (k < 0 || k >= count) continue;
      own(t).logit = corners.mix_one(k, pixels.across, shares_from(pixels.down[t]));
    }
  }

  template <int N>
  __device__ void add(int t, const float (&values)[N], int begin) {
    const bool first = sums_[t].maximum == -INFINITY;
    sums_[t].add(values);
    if constexpr (kSmooth) {
      // Distances to a level, which is the first maximum: large logits then cancel nothing.
      if (first) levels_[t] = sums_[t].base();
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float weight = p_.weight ? p_.weight[begin + i] : 1.0f;
        distances_[t] = fmaf(weight, values[i] - levels_[t], distances_[t]);
      }
    }
  }

  __device__ void finish(int t, int64_t pixel) const {
    const float maximum = sums_[t].maximum, log_sum = logf(sums_[t].total);
    const auto [label, logit] = own(t);
    float loss = weight_of(p_.weight, label) * (log_sum + (maximum - logit));
    if constexpr (kSmooth) {
      const float spread = weight_sum_ * (log_sum + (maximum - levels_[t])) - distances_[t];
      const float smoothing = p_.label_smoothing;
      loss = loss * (1.0f - smoothing) + spread * (smoothing / static_cast<float>(u_.classes));
    }
    p_.loss[pixel] = label == kIgnored ? 0.0f : loss;
    p_.logsumexp[pixel] = sums_[t].total > 0.0f ? maximum + log_sum : nanf("");
  }

 private:
  struct OwnClass {
    int label;
    float logit;
  };

  // Waits in shared memory, as the sums take the registers.
  static __device__ OwnClass& own(int t) {
    __shared__ OwnClass all[kUpsampleRows][kUpsampleThreads];
    return all[t][threadIdx.x];
  }

  const Params& p_;
  const ResizedLogits& u_;
  const float weight_sum_;
  ExponentialSum sums_[kUpsampleRows];
  float levels_[kUpsampleRows];
  float distances_[kUpsampleRows];
};

// The class of the largest logit of every pixel, and its probability.
template <bool kProbability>
class ArgmaxWork {
 public:
  using Params = ArgmaxForward;
  static constexpr int kBlocks = kProbability ? 5 : 6;

  __device__ ArgmaxWork(const Params& p, const ResizedLogits&) : p_(p) {}

  __device__ void start(const PixelColumn&) {
#pragma unroll
    for (int t = 0; t < kUpsampleRows; ++t) {
      sums_[t] = {};
      largest_[t] = -INFINITY;
      classes_[t] = 0;
    }
  }

  __device__ void look_up(const Corners&, const PixelColumn&, int, int) {}

  // The first of equal logits; NaN is above everything.
  template <int N>
  __device__ void add(int t, const float (&values)[N], int begin) {
    if constexpr (kProbability) sums_[t].add(values);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (values[i] <= largest_[t] || largest_[t] != largest_[t]) continue;
      largest_[t] = values[i];
      classes_[t] = begin + i;
    }
  }

  __device__ void finish(int t, int64_t pixel) const {
    if (p_.as_uint8) {
      static_cast<uint8_t*>(p_.index)[pixel] = static_cast<uint8_t>(classes_[t]);
    } else {
      static_cast<int64_t*>(p_.index)[pixel] = classes_[t];
    }
    if constexpr (kProbability) {
      p_.probability[pixel] = sums_[t].total > 0.0f ? 1.0f / sums_[t].total : nanf("");
    }
  }

 private:
  const Params& p_;
  ExponentialSum sums_[kUpsampleRows];
  float largest_[kUpsampleRows];
  int classes_[kUpsampleRows];
};

// N classes of all pixels of a thread, from `at` on of those that are staged.
template <int N, class Work>
__device__ inline void add_block(Work& work, const Corners& corners, const PixelColumn& pixels,
                                 int at, int begin) {
  float above[kClassBlock], below[kClassBlock];
#pragma unroll
  for (int i = 0; i < N; i += kClassPack) {
    corners.mix(at + i, false, pixels.across, above + i);
    corners.mix(at + i, true, pixels.across, below + i);
  }
#pragma unroll
  for (int t = 0; t < kUpsampleRows; ++t) {
    if (t >= pixels.count) break;
    float values[N];
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = mixed(above[i], below[i], shares_from(pixels.down[t]));
    work.add(t, values, begin + at);
  }
}

// The same for `count` classes, known to the compiler after all.
template <int N, class Work>
__device__ inline void add_rest(Work& work, const Corners& corners, const PixelColumn& pixels,
                                int at, int begin, int count) {
  if (count == N) return add_block<N>(work, corners, pixels, at, begin);
  if constexpr (N > 1) add_rest<N - 1>(work, corners, pixels, at, begin, count);
}

template <class Work>
__device__ inline void add_classes(Work& work, const Corners& corners, const PixelColumn& pixels,
                                   int begin, int count) {
  int at = 0;
  for (; at + kClassBlock <= count; at += kClassBlock) {
    add_block<kClassBlock>(work, corners, pixels, at, begin);
  }
  add_rest<kClassBlock - 1>(work, corners, pixels, at, begin, count - at);
  work.look_up(corners, pixels, begin, count);
}

template <class T, class Work>
__global__ void __launch_bounds__(kUpsampleThreads, Work::kBlocks)
    upsample_forward_kernel(ResizedLogits u, ForwardTiling t, typename Work::Params p) {
  DLV3P_DYNAMIC_SHARED(dynamic);
  __shared__ int begins[kUpsampleThreads + 1];  // of the intervals of rows
  float* const staged = reinterpret_cast<float*>(dynamic);
  const int thread = static_cast<int>(threadIdx.x);
  const int image = static_cast<int>(blockIdx.y);
  const int top = static_cast<int>(blockIdx.x) / t.column_tiles * t.cells;
  for (int i = thread; i <= t.cells; i += kUpsampleThreads) begins[i] = u.rows.begin_of(top + i);
  __syncthreads();

  const int left = static_cast<int>(blockIdx.x) % t.column_tiles << t.column_bits;
  const int right = min(left + (1 << t.column_bits), u.columns.out) - 1;
  CellRange range{top, u.columns.first(left), 0, 0, 0};
  range.columns = u.columns.second(u.columns.first(right)) - range.column + 1;
  const int cell_rows = min(t.cells + 1, u.rows.in - top);

  // Columns beyond the last repeat it, and have no pixels.
  const int column = left + (thread & ((1 << t.column_bits) - 1));
  const int local = thread >> t.column_bits;
  PixelColumn pixels{image, begins[local], 0, min(column, right), {}, {}};
  const int end = column <= right ? begins[local + 1] : 0;
  const int cell_row = top + local, cell = u.columns.first(pixels.column);
  pixels.across = shares_of(u.columns, pixels.column, cell);
  const Corners corners{staged + (local * range.columns + cell - range.column) * t.pitch,
                        (u.columns.second(cell) - cell) * t.pitch,
                        (u.rows.second(cell_row) - cell_row) * range.columns * t.pitch};

  Work work(p, u);
  for (; __syncthreads_or(pixels.row < end); pixels.row += kUpsampleRows) {
    pixels.count = max(min(end - pixels.row, kUpsampleRows), 0);
#pragma unroll
    for (int i = 0; i < kUpsampleRows; ++i) {
      pixels.down[i] = u.rows.weight_second(pixels.row + i, cell_row);
    }
    if (pixels.count > 0) work.start(pixels);
    for (int begin = 0; begin < u.classes; begin += t.chunk) {
      if (begin > 0) __syncthreads();
      range.first_class = begin;
      range.classes = min(t.chunk, u.classes - begin);
      stage_cells<T, kForwardLoads>(staged, u, image, range, cell_rows, t.pitch);
      __syncthreads();
      if (pixels.count > 0) add_classes(work, corners, pixels, begin, range.classes);
    }
    int64_t pixel = (int64_t{image} * u.rows.out + pixels.row) * u.columns.out + pixels.column;
#pragma unroll
    for (int i = 0; i < kUpsampleRows; ++i, pixel += u.columns.out) {
      if (i < pixels.count) work.finish(i, pixel);
    }
  }
}

}  // namespace dlv3p
