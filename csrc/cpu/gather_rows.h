// Between rows of a tensor and rows of vectors: [vector of channels][column], widened to the
// accumulation type. Included by gather_kernel.cpp, once per instruction set.
#pragma once

#include <cstdint>

#include "vec.h"
#include "vec_math.h"

namespace dlv3p {
namespace {

constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// --- what becomes of a vector on its way into a row; `c` is its first channel
// ---------------------

// Tells afterwards whether all values that it was shown are finite.
template <class A>
struct FiniteCheck {
  Vec<A> zeros = {};

  DLV3P_INLINE void watch(Vec<A> v) { zeros += v * A{0}; }  // not a number where v is not finite
  bool finite() const { return all_zero(zeros); }
};

template <class A>
struct Keep {
  DLV3P_INLINE void operator()(A* to, Vec<A> v, int64_t) { store(to, v); }
};

template <class A>
struct KeepChecked : FiniteCheck<A> {
  DLV3P_INLINE void operator()(A* to, Vec<A> v, int64_t) {
    store(to, v);
    this->watch(v);
  }
};

// The channels of a task of a Pointwise (gather.h).
template <class A>
struct Affine {
  const A* scale;
  const A* shift;

  Affine at(int64_t c) const { return {scale + c, shift + c}; }
  DLV3P_INLINE Vec<A> operator()(Vec<A> v, int64_t c) const {
    return v * load(scale + c) + load(shift + c);
  }
};

template <Activation k, class A>
struct Apply {
  Affine<A> affine;

  DLV3P_INLINE void operator()(A* to, Vec<A> v, int64_t c) { store(to, activate<k>(affine(v, c))); }
};

template <Activation k, class A>
struct ApplyChecked : FiniteCheck<A> {
  Affine<A> affine;

  DLV3P_INLINE void operator()(A* to, Vec<A> v, int64_t c) {
    const Vec<A> z = activate<k>(affine(v, c));
    store(to, z);
    this->watch(z);
  }
};

// Keeps values that the affine map is applied to later, and checks its results already.
template <class A>
struct KeepAffineChecked : FiniteCheck<A> {
  Affine<A> affine;

  DLV3P_INLINE void operator()(A* to, Vec<A> v, int64_t c) {
    store(to, v);
    this->watch(affine(v, c));
  }
};

// The first channel of vector v. The last one overlaps the one before it instead of being partial.
template <class A>
int64_t channel_of(int64_t v, int64_t channels) {
  return channels < kLanesOf<A> ? 0 : min_of(v * kLanesOf<A>, channels - kLanesOf<A>);
}

// --- rows ----------------------------------------------------------------------------------------

// One row of some channels of a tensor.
template <class S, class A>
struct MapRow {
  static constexpr int64_t L = kLanesOf<A>;

  S* data;
  int64_t stride_c;
  int64_t stride_w;
  int64_t width;
  bool channels_adjacent;
  int64_t channels;

  int64_t vectors() const { return ceil_div(channels, L); }

  // To vectors[v * plane + column], through `sink`.
  template <class Sink>
  void pack(A* to, int64_t plane, Sink& sink) const {
    if (channels_adjacent) {
      pack_channels(to, plane, sink);
    } else {
      for (int64_t v = 0; v < vectors(); ++v) pack_columns(v, to + v * plane * L, sink);
    }
  }

  // From vectors[v * width + column]. Not inline: transposition needs all registers.
  __attribute__((noinline)) void unpack(const A* from) const {
    for (int64_t v = 0; v < vectors(); ++v, from += width * L) {
      if (channels_adjacent) {
        unpack_channels(v, from);
      } else {
        unpack_columns(v, from);
      }
    }
  }

 private:
  template <class Sink>
  void pack_channels(A* to, int64_t plane, Sink& sink_state) const {
    Sink sink = sink_state;  // in registers
    const int64_t whole = vectors() - 1;
    const int64_t last = channel_of<A>(whole, channels);
    const S* from = data;
    for (int64_t x = 0; x < width; ++x, from += stride_w, to += L) {
      for (int64_t v = 0; v < whole; ++v) sink(to + v * plane * L, load(from + v * L), v * L);
      A* end = to + whole * plane * L;
      if (channels >= L) {
        sink(end, load(from + last), last);
      } else {
        sink(end, load_partial<A>(from, channels), 0);
      }
    }
    sink_state = sink;
  }

  template <class Sink>
  void pack_columns(int64_t v, A* to, Sink& sink_state) const {
    Sink sink = sink_state;
    const int64_t first = channel_of<A>(v, channels);
    const int64_t rows = min_of(L, channels);
    const S* from = data + first * stride_c;
    for (int64_t x = 0; x < width; x += L) {
      const int64_t at = block_start(x);
      const int64_t columns = min_of(L, width);
      Vec<A> block[L] = {};
      if (columns == L && rows == L) {
#pragma GCC unroll 16
        for (int64_t c = 0; c < L; ++c) block[c] = load(from + c * stride_c + at);
      } else {
        for (int64_t c = 0; c < rows; ++c) {
          block[c] = load_partial<A>(from + c * stride_c + at, columns);
        }
      }
      transpose(block);
#pragma GCC unroll 16
      for (int64_t i = 0; i < L; ++i) {
        if (i < columns) sink(to + (at + i) * L, block[i], first);
      }
    }
    sink_state = sink;
  }

  void unpack_channels(int64_t v, const A* from) const {
    S* to = data + channel_of<A>(v, channels);
    for (int64_t x = 0; x < width; ++x, from += L, to += stride_w) {
      if (channels >= L) {
        store(to, load(from));
      } else {
        store_partial<A>(to, load(from), channels);
      }
    }
  }

  void unpack_columns(int64_t v, const A* from) const {
    const int64_t rows = min_of(L, channels);
    const int64_t columns = min_of(L, width);
    S* to = data + channel_of<A>(v, channels) * stride_c;
    for (int64_t x = 0; x < width; x += L) {
      const int64_t at = block_start(x);
      Vec<A> block[L] = {};
#pragma GCC unroll 16
      for (int64_t i = 0; i < L; ++i) {
        if (i < columns) block[i] = load(from + (at + i) * L);
      }
      transpose(block);
#pragma GCC unroll 16
      for (int64_t c = 0; c < L; ++c) {
        S* pixels = to + c * stride_c + at;
        if (c >= rows) {
          break;
        } else if (columns == L) {
          store(pixels, block[c]);
        } else {
          store_partial<A>(pixels, block[c], columns);
        }
      }
    }
  }

  // The last block of columns overlaps the one before it instead of being a partial one.
  int64_t block_start(int64_t x) const { return width < L ? 0 : min_of(x, width - L); }
};

// Through an affine map and an activation. These are not inline, so that the plain loop, which they
// stand in, stays small.
template <class S, class A>
__attribute__((noinline)) void pack_applied(MapRow<S, A> row, A* to, int64_t plane,
                                            Activation activation, Affine<A> affine) {
  with_activation(activation, [&](auto k) {
    Apply<k.value, A> sink{affine};
    row.pack(to, plane, sink);
  });
}

template <class S, class A>
__attribute__((noinline)) bool pack_applied_checked(MapRow<S, A> row, A* to, Activation activation,
                                                    Affine<A> affine) {
  return with_activation(activation, [&](auto k) {
    ApplyChecked<k.value, A> sink{{}, affine};
    row.pack(to, row.width, sink);
    return sink.finite();
  });
}

template <class S, class A>
__attribute__((noinline)) bool pack_checked(MapRow<S, A> row, A* to, Affine<A> affine) {
  KeepAffineChecked<A> sink{{}, affine};
  row.pack(to, row.width, sink);
  return sink.finite();
}

}  // namespace
}  // namespace dlv3p
