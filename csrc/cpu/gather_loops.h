// The inner loops of the gather: sums over taps for each pixel of a run, and sums over the pixels
// of a run for each tap. Included by gather_kernel.cpp, once per instruction set.
#pragma once

#include <cstdint>
#include <type_traits>

#include "gather_rows.h"
#include "vec.h"

namespace dlv3p {
namespace {

// Where a tap reads for the first pixel of the current run, and which weight it is.
struct Tap {
  int64_t source;
  int64_t weight;
};

// Most destination pixels computed together: a weight is loaded once for all of them, and their
// sums are independent, which hides the latency of multiply-add. Half to three quarters of the
// registers.
#if defined(__AVX512F__)
constexpr int kPixels = 12;
#else
constexpr int kPixels = 8;
#endif

// Weight-gradient sums held in registers at once: the taps of a 3x3 kernel.
constexpr int kSums = 9;

// A run of destination pixels, one vector of channels deep.
template <class A, class D>
struct GatherRun {
  const A* source;
  int64_t pitch;  // elements between the source pixels of neighbours in the run
  const Tap* taps;
  int64_t tap_count;
  const A* weight;
  int64_t weight_pitch;  // elements between the weights of neighbouring taps
  const A* bias;
  D* out;
  int64_t out_pitch;
  int64_t lanes;  // channels to write, fewer than a vector in the last one

  // The next `chunks` times P pixels. Not inline: among other code its sums would lose registers.
  template <int P>
  __attribute__((noinline)) void gather_chunks(int64_t chunks) {
    // Neighbours nearly always lie next to each other, and then no address has to be computed.
    if (pitch == kLanesOf<A>) {
      gather_chunks<P>(chunks, std::integral_constant<int64_t, kLanesOf<A>>());
    } else {
      gather_chunks<P>(chunks, pitch);
    }
  }

  template <int P, class Pitch>
  DLV3P_INLINE void gather_chunks(int64_t chunks, Pitch pitch) {
    const Vec<A> start = load(bias);
    for (; chunks > 0; --chunks, source += P * pitch, out += P * out_pitch) {
      Vec<A> sum[P];
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) sum[p] = start;
      for (int64_t t = 0; t < tap_count; ++t) {
        const Vec<A> w = load(weight + taps[t].weight * weight_pitch);
        const A* from = source + taps[t].source;
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p, from += pitch) sum[p] += w * load(from);
      }
      D* to = out;
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p, to += out_pitch) {
        if (lanes == kLanesOf<A>) {
          store(to, sum[p]);
        } else {
          store_partial<A>(to, sum[p], lanes);
        }
      }
    }
  }

  template <int P = kPixels>
  DLV3P_INLINE void gather_chunks_of(int64_t pixels, int64_t chunks) {
    if constexpr (P > 0) {
      if (pixels == P) {
        gather_chunks<P>(chunks);
      } else {
        gather_chunks_of<P - 1>(pixels, chunks);
      }
    }
  }

  // In the fewest chunks, of sizes that differ by one at most: a short last one would be slow.
  void gather(int64_t count) {
    const int64_t chunks = ceil_div(count, kPixels);
    const int64_t size = ceil_div(count, chunks);
    const int64_t smaller = size * chunks - count;
    gather_chunks_of(size, chunks - smaller);
    if (smaller) gather_chunks_of(size - 1, smaller);
  }
};

// sums[taps[t].weight * sums_pitch] += sum over the run of other * source at tap t, for the T taps
// at `taps`.
template <int T, class A>
void correlate_taps(const A* source, int64_t pitch, const Tap* taps, const A* other,
                    int64_t other_pitch, int64_t count, A* sums, int64_t sums_pitch) {
  // With few taps several pixels at once keep enough independent sums in flight.
  constexpr int U = T <= 2 ? 4 : T <= 4 ? 2 : 1;
  Vec<A> sum[U][T] = {};
  const A* from[T];
  for (int t = 0; t < T; ++t) from[t] = source + taps[t].source;
  int64_t i = 0;
  for (; i + U <= count; i += U) {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      const Vec<A> o = load(other + (i + u) * other_pitch);
#pragma GCC unroll 9
      for (int t = 0; t < T; ++t) sum[u][t] += o * load(from[t] + (i + u) * pitch);
    }
  }
  for (; i < count; ++i) {
    const Vec<A> o = load(other + i * other_pitch);
    for (int t = 0; t < T; ++t) sum[0][t] += o * load(from[t] + i * pitch);
  }
  for (int t = 0; t < T; ++t) {
    for (int u = 1; u < U; ++u) sum[0][t] += sum[u][t];
    A* total = sums + taps[t].weight * sums_pitch;
    store(total, load(total) + sum[0][t]);
  }
}

template <int T, class A>
DLV3P_INLINE void correlate_up_to(int64_t tap_count, const A* source, int64_t pitch,
                                  const Tap* taps, const A* other, int64_t other_pitch,
                                  int64_t count, A* sums, int64_t sums_pitch) {
  if constexpr (T > 0) {
    if (tap_count == T) {
      correlate_taps<T>(source, pitch, taps, other, other_pitch, count, sums, sums_pitch);
    } else {
      correlate_up_to<T - 1>(tap_count, source, pitch, taps, other, other_pitch, count, sums,
                             sums_pitch);
    }
  }
}

}  // namespace
}  // namespace dlv3p
