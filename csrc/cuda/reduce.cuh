// Sums and moments in a fixed order: of a block's threads, and then of the partial results that
// many blocks leave in a workspace. No atomics: the same input gives the same bits.
#pragma once

#include <cstdint>

#include "platform.cuh"

namespace dlv3p {

// Number, mean and sum of squared deviations from the mean of some values.
struct Moments {
  float count;
  float mean;
  float deviations;
};

// From the sums of x - pivot and of its square. With a pivot among the values nothing cancels where
// the mean is far larger than the standard deviation.
__device__ inline Moments moments_of(float count, float pivot, float sum, float squares) {
  if (count == 0.0f) return {0.0f, 0.0f, 0.0f};
  const float shift = sum / count;
  const float deviations = squares - shift * sum;
  return {count, pivot + shift, deviations < 0.0f ? 0.0f : deviations};  // lets NaN through
}

// Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983, formula 2.1.
__device__ inline Moments merge(const Moments& a, const Moments& b) {
  const float count = a.count + b.count;
  if (count == 0.0f) return a;
  const float share = b.count / count;
  const float gap = b.mean - a.mean;
  return {count, a.mean + gap * share, a.deviations + b.deviations + gap * gap * a.count * share};
}

// What some values add to the squared deviations of all, whose mean is `mean`.
__device__ inline float deviations_around(float mean, const Moments& part) {
  const float gap = part.mean - mean;
  return fmaf(part.count * gap, gap, part.deviations);
}

// Moments of K channels whose values come in groups. Merging groups keeps digits that sums of
// squares lose; where the mean is far larger than the standard deviation, give differences to one
// value of the channel.
template <int K>
struct GrowingMoments {
  float count = 0.0f;
  float mean[K] = {};
  float deviations[K] = {};

  // N values of each channel.
  template <int N>
  __device__ void add(const float (&values)[N][K]) {
    const float share = __fdividef(N, count + N);
    const float weight = count * share;
    count += N;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      float sum = 0.0f, squares = 0.0f;
#pragma unroll
      for (int n = 0; n < N; ++n) sum += values[n][k];
      const float center = sum * (1.0f / N);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float deviation = values[n][k] - center;
        squares = fmaf(deviation, deviation, squares);
      }
      const float gap = center - mean[k];
      mean[k] = fmaf(gap, share, mean[k]);
      deviations[k] += fmaf(gap * gap, weight, squares);
    }
  }
};

// --- sums over the threads of a block
// --------------------------------------------------------------

constexpr int kWarpLanes = 32;

// The sum over a warp; every lane gets it.
__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, lanes);
  }
  return value;
}

// A block whose threads stand in `rows` rows of `lanes`, each with V values: lays them down in
// `scratch`, V * lanes floats a row, so that column v * lanes + lane is value v of that lane.
// Between laying down and `column_sum` the block needs a barrier.
template <int V>
__device__ inline void lay_down(float* scratch, const float (&values)[V], int lane, int row,
                                int lanes) {
#pragma unroll
  for (int v = 0; v < V; ++v) scratch[(row * V + v) * lanes + lane] = values[v];
}

// term(0) + ... + term(rows - 1) by four partial sums: shorter chains of additions are faster and
// round less.
template <class Term>
__device__ inline float sum_terms(int rows, Term&& term) {
  constexpr int kChains = 4;
  float sums[kChains] = {};
  int row = 0;
#pragma unroll 1  // the compiler would make four copies of it, for every sum
  for (; row + kChains <= rows; row += kChains) {
#pragma unroll
    for (int k = 0; k < kChains; ++k) sums[k] += term(row + k);
  }
#pragma unroll 1
  for (; row < rows; ++row) sums[0] += term(row);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

__device__ inline float column_sum(const float* scratch, int column, int columns, int rows) {
  return sum_terms(rows, [&](int row) { return scratch[row * columns + column]; });
}

// Sums V values over the kThreads threads of a block; afterwards `use(v, sum)` has run for each v,
// in one thread. `scratch` holds V * kThreads floats and is free again after the next barrier.
template <int kThreads, int V, class Use>
__device__ inline void block_sums(float* scratch, const float (&values)[V], Use&& use) {
  static_assert(kThreads % kWarpLanes == 0, "whole warps");
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpLanes;
#pragma unroll
  for (int v = 0; v < V; ++v) scratch[v * kThreads + thread] = values[v];
  __syncthreads();
  // A warp per value: a few loads and five shuffles, against five shuffles per warp and value.
  for (int v = thread / kWarpLanes; v < V; v += kThreads / kWarpLanes) {
    float sum = 0.0f;
#pragma unroll
    for (int at = 0; at < kThreads; at += kWarpLanes) sum += scratch[v * kThreads + at + lane];
    sum = warp_sum(sum);
    if (lane == 0) use(v, sum);
  }
}

// --- second stage: partial results of many blocks
// --------------------------------------------------

// Partial sums, one row of `channels` * `width` floats per block: `width` sums for each channel.
// The first `taps` of a channel go to `taps_out`, the next to `vectors[0]`, then `vectors[1]`;
// where an output is nullptr its sums are left out.
struct SumParts {
  const float* parts;
  int64_t count;
  int64_t channels;
  int width;
  int taps;
  bool channels_fastest;  // a row is (width, channels), else (channels, width)
  void* taps_out;         // (channels, taps)
  float* vectors[2];      // (channels)
};

// Partial moments, one row of (3, channels) floats per block: counts, means, squared deviations.
struct MomentParts {
  const float* parts;
  int64_t count;
  int64_t channels;
  float* mean;                    // (channels)
  float* var;                     // (channels), biased
  const float* pivots = nullptr;  // (channels), added to every mean
};

__device__ inline void store_moments(float* parts, int64_t part, int64_t channels, int64_t channel,
                                     const Moments& moments) {
  float* row = parts + part * 3 * channels + channel;
  row[0] = moments.count;
  row[channels] = moments.mean;
  row[2 * channels] = moments.deviations;
}

// Blocks of the second stage: a warp reads neighbouring columns, and enough warps share the rows
// that some hundreds of partial results take a few steps each.
constexpr int kReduceLanes = kWarpLanes;
constexpr int kReduceRows = 16;
constexpr int kReduceThreads = kReduceLanes * kReduceRows;
constexpr int kReduceUnroll = 4;  // loads in flight

template <class T>
__global__ void __launch_bounds__(kReduceThreads) reduce_sums_kernel(SumParts p) {
  __shared__ float scratch[kReduceThreads];
  const int lane = static_cast<int>(threadIdx.x) % kReduceLanes;
  const int row = static_cast<int>(threadIdx.x) / kReduceLanes;
  const int64_t columns = p.channels * p.width;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kReduceLanes + lane;
  float sum = 0.0f;
  if (column < columns) {
#pragma unroll kReduceUnroll
    for (int64_t part = row; part < p.count; part += kReduceRows) {
      sum += p.parts[part * columns + column];
    }
  }
  scratch[threadIdx.x] = sum;
  __syncthreads();
  if (row > 0 || column >= columns) return;
  sum = column_sum(scratch, lane, kReduceLanes, kReduceRows);
  const int64_t channel = p.channels_fastest ? column % p.channels : column / p.width;
  const int at = static_cast<int>(p.channels_fastest ? column / p.channels : column % p.width);
  if (at < p.taps) {
    if (p.taps_out) static_cast<T*>(p.taps_out)[channel * p.taps + at] = from_float<T>(sum);
  } else if (float* vector = at == p.taps ? p.vectors[0] : p.vectors[1]) {
    vector[channel] = sum;
  }
}

// The sum over the rows of threads of one column of lanes; all of them get it.
__device__ inline float reduce_rows(float* scratch, float value) {
  __syncthreads();  // the last sum has been read
  scratch[threadIdx.x] = value;
  __syncthreads();
  return column_sum(scratch, threadIdx.x % kReduceLanes, kReduceLanes, kReduceRows);
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads) reduce_moments_kernel(MomentParts p) {
  static_assert(kThreads == kReduceThreads, "rows of whole warps");
  __shared__ float scratch[kThreads];
  const int row = static_cast<int>(threadIdx.x) / kReduceLanes;
  const int64_t channel =
      static_cast<int64_t>(blockIdx.x) * kReduceLanes + threadIdx.x % kReduceLanes;
  const float* first = p.parts + channel;
  const int64_t rows = channel < p.channels ? p.count : 0;
  float count = 0.0f, sum = 0.0f, deviations = 0.0f;
  // Differences to the mean of one part, so that a large mean costs no digits.
  const float center = rows > 0 ? first[p.channels] : 0.0f;
#pragma unroll kReduceUnroll
  for (int64_t part = row; part < rows; part += kReduceRows) {
    const float* from = first + part * 3 * p.channels;
    count += from[0];
    sum = fmaf(from[0], from[p.channels] - center, sum);
  }
  count = reduce_rows(scratch, count);
  const float mean = center + reduce_rows(scratch, sum) / count;
#pragma unroll kReduceUnroll
  for (int64_t part = row; part < rows; part += kReduceRows) {
    const float* from = first + part * 3 * p.channels;
    deviations += deviations_around(mean, {from[0], from[p.channels], from[2 * p.channels]});
  }
  deviations = reduce_rows(scratch, deviations);
  if (row > 0 || channel >= p.channels) return;
  p.mean[channel] = p.pivots ? p.pivots[channel] + mean : mean;
  p.var[channel] = deviations / count;
}

}  // namespace dlv3p
