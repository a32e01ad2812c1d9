// What is still done to results of the gather before they are written: a pointwise epilogue,
// statistics, or the way back through a pointwise prologue. They pass through a line of at most
// kLinePixels results, one vector of channels deep, that has not left the first-level cache.
// Included by gather_kernel.cpp, once per instruction set.
#pragma once

#include <cstdint>

#include "gather_loops.h"
#include "gather_rows.h"
#include "vec.h"
#include "vec_math.h"

namespace dlv3p {
namespace {

// At most 6 KiB with the widest vectors; a multiple of all numbers of pixels computed together.
constexpr int64_t kLinePixels = 96;

// `count` results, and where they go.
template <class A, class D>
struct Line {
  const A* results;
  int64_t count;
  D* out;
  int64_t out_pitch;
  int64_t lanes;  // channels to write

  DLV3P_INLINE Vec<A> result(int64_t i) const { return load(results + i * kLanesOf<A>); }

  DLV3P_INLINE void write(int64_t i, Vec<A> v) const {
    if (lanes == kLanesOf<A>) {
      store(out + i * out_pitch, v);
    } else {
      store_partial<A>(out + i * out_pitch, v, lanes);
    }
  }
};

template <Activation k, class A, class D>
void apply_to_line(const Line<A, D>& line, const Affine<A>& affine) {
  const Vec<A> scale = load(affine.scale);
  const Vec<A> shift = load(affine.shift);
  for (int64_t i = 0; i < line.count; ++i) {
    line.write(i, activate<k>(line.result(i) * scale + shift));
  }
}

// --- back through a prologue ---------------------------------------------------------------------

// The results are gradients of z = activation(x * scale + shift): writes those of x, adds up those
// of scale and shift, and leaves z in the place of x.
template <Activation k, class A, class D>
void backpropagate_line(const Line<A, D>& line, A* x_to_z, int64_t pitch, const Affine<A>& affine,
                        A* scale_gradient, A* shift_gradient) {
  const Vec<A> scale = load(affine.scale);
  const Vec<A> shift = load(affine.shift);
  Vec<A> by_scale = {};
  Vec<A> by_shift = {};
  for (int64_t i = 0; i < line.count; ++i, x_to_z += pitch) {
    const Vec<A> x = load(x_to_z);
    const auto z = activate<k>(x * scale + shift, line.result(i));
    store(x_to_z, z.value);
    by_scale += z.gradient * x;
    by_shift += z.gradient;
    line.write(i, z.gradient * scale);
  }
  store(scale_gradient, load(scale_gradient) + by_scale);
  store(shift_gradient, load(shift_gradient) + by_shift);
}

// --- statistics ----------------------------------------------------------------------------------

// Mean and squared differences to it, of one vector of channels. Values count by their difference
// to a pivot near the mean, so nothing cancels where the mean is far larger than the deviation.
// Sums of some rows are formed in A and then merged into totals in double.
//
// Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983, formula 2.1.
template <class A>
struct Moments {
  static constexpr int64_t L = kLanesOf<A>;
  // As many values as one sum in float32 takes without a loss of note.
  static constexpr int64_t kEnough = 64;

  A pivot[L];
  A sum[L];
  A squares[L];
  A origin[L];
  double mean[L];  // minus the origin
  double deviations[L];
  int64_t fresh;  // values in sum and squares
  int64_t merged;

  void start() {
    for (int64_t i = 0; i < L; ++i) {
      sum[i] = squares[i] = 0;
      mean[i] = deviations[i] = 0;
    }
    fresh = merged = 0;
  }

  void merge_if_enough() {
    if (fresh >= kEnough) merge();
  }

  void merge() {
    if (!fresh) return;
    const double n = static_cast<double>(fresh);
    const double part = n / static_cast<double>(merged + fresh);
    const double between = part * static_cast<double>(merged);
    for (int64_t i = 0; i < L; ++i) {
      const double s = sum[i];
      const double step = (static_cast<double>(pivot[i]) - origin[i]) + s / n - mean[i];
      mean[i] += step * part;
      deviations[i] += (squares[i] - s * s / n) + step * step * between;
      pivot[i] = static_cast<A>(origin[i] + mean[i]);
      sum[i] = squares[i] = 0;
    }
    merged += fresh;
    fresh = 0;
  }

  void write(double* means, double* squared_differences, int64_t lanes) const {
    for (int64_t i = 0; i < lanes; ++i) {
      means[i] = origin[i] + mean[i];
      // Rounding may leave a little less than nothing of equal values.
      squared_differences[i] = deviations[i] < 0 ? 0 : deviations[i];
    }
  }
};

// As the value will be read back once it is stored as S.
template <class S, class A>
DLV3P_INLINE Vec<A> rounded(Vec<A> v) {
  S stored[kLanesOf<A>];
  store(stored, v);
  return load(stored);
}

template <class S, bool kWrite, class A, class D>
void measure_line(const Line<A, D>& line, Moments<A>& moments) {
  if (moments.fresh + moments.merged == 0) {
    Vec<A> sum = {};
    for (int64_t i = 0; i < line.count; ++i) sum += rounded<S, A>(line.result(i));
    store(moments.origin, sum / static_cast<A>(line.count));
    store(moments.pivot, load(moments.origin));
  }
  constexpr int kChains = 4;  // hide the latency of addition, and shorten the sums
  const Vec<A> pivot = load(moments.pivot);
  Vec<A> sum[kChains] = {};
  Vec<A> squares[kChains] = {};
  const auto take = [&](int64_t i, int chain) {
    const Vec<A> v = line.result(i);
    if constexpr (kWrite) line.write(i, v);
    const Vec<A> difference = rounded<S, A>(v) - pivot;
    sum[chain] += difference;
    squares[chain] += difference * difference;
  };
  int64_t i = 0;
  for (; i + kChains <= line.count; i += kChains) {
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; ++chain) take(i + chain, chain);
  }
  for (; i < line.count; ++i) take(i, 0);
  const auto total = [](const Vec<A>(&chains)[kChains]) {
    return (chains[0] + chains[1]) + (chains[2] + chains[3]);
  };
  store(moments.sum, load(moments.sum) + total(sum));
  store(moments.squares, load(moments.squares) + total(squares));
  moments.fresh += line.count;
}

// --- all of them ---------------------------------------------------------------------------------

// What to do to one vector of channels of a run: with moments those alone, with x_to_z the way back
// through a prologue, else an epilogue.
template <class A>
struct Finish {
  Moments<A>* moments;
  Activation activation;
  Affine<A> affine;
  A* x_to_z;
  int64_t x_pitch;
  A* scale_gradient;
  A* shift_gradient;
};

// The run by way of lines of equal length, whose memory is `run.out`. Not inline, so that the plain
// loop, which this stands in, stays small; by reference, as a copy of what has just been written
// field by field waits for it.
template <class S, class A, class D>
__attribute__((noinline)) void gather_lines(GatherRun<A, A>& run, int64_t pixels, D* out,
                                            int64_t out_pitch, int64_t lanes,
                                            const Finish<A>& finish) {
  A* const memory = run.out;
  A* x_to_z = finish.x_to_z;
  for (int64_t count; pixels > 0; pixels -= count) {
    count = pixels;
    if (pixels > kLinePixels) count = ceil_div(pixels, ceil_div(pixels, kLinePixels));
    run.out = memory;
    run.gather(count);
    const Line<A, D> line{memory, count, out, out_pitch, lanes};
    if (finish.moments && !out) {
      measure_line<S, false>(line, *finish.moments);
    } else if (finish.moments) {
      measure_line<S, true>(line, *finish.moments);
    } else if (x_to_z) {
      with_activation(finish.activation, [&](auto k) {
        backpropagate_line<k.value>(line, x_to_z, finish.x_pitch, finish.affine,
                                    finish.scale_gradient, finish.shift_gradient);
      });
      x_to_z += count * finish.x_pitch;
    } else {
      with_activation(finish.activation,
                      [&](auto k) { apply_to_line<k.value>(line, finish.affine); });
    }
    out += count * out_pitch;
  }
}

}  // namespace
}  // namespace dlv3p
