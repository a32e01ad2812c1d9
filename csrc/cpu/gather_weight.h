// Weights and bias of a gather, rearranged and widened. Included by gather_kernel.cpp, once per
// instruction set.
#pragma once

#include <cstdint>

#include "gather.h"
#include "gather_rows.h"
#include "vec.h"

namespace dlv3p {
namespace {

// (channels, taps) and the bias to (taps + 1, padded_channels), zeros in the padding.
template <class S, class A>
void pack_weight(Gather& g) {
  constexpr int64_t L = kLanesOf<A>;
  const int64_t taps = g.kernel_height * g.kernel_width;
  A* packed = static_cast<A*>(g.packed_weight);
  Vec<A> zeros = {};
  const auto convert = [&](const void* from, int64_t begin, int64_t count, A* to) {
    const S* p = static_cast<const S*>(from) + begin;
    const Vec<A> v = count == L ? load(p) : load_partial<A>(p, count);
    store(to, v);
    zeros += v * A{0};
  };
  const int64_t count = g.channels * taps;
  int64_t channel = 0;
  int64_t tap = 0;
  for (int64_t i = 0; i < count; i += L) {
    A converted[L];
    const int64_t part = min_of(L, count - i);
    convert(g.weight, i, part, converted);
    for (int64_t j = 0; j < part; ++j) {
      packed[tap * g.padded_channels + channel] = converted[j];
      if (++tap == taps) {
        tap = 0;
        ++channel;
      }
    }
  }
  for (int64_t t = 0; t < taps; ++t) {
    for (int64_t c = g.channels; c < g.padded_channels; ++c) packed[t * g.padded_channels + c] = 0;
  }
  g.weight_is_finite = all_zero(zeros);
  A* bias = packed + taps * g.padded_channels;
  for (int64_t c = 0; c < g.padded_channels; c += L) {
    store(bias + c, Vec<A>{});
    if (g.bias) convert(g.bias, c, min_of(L, g.channels - c), bias + c);
  }
}

}  // namespace
}  // namespace dlv3p
