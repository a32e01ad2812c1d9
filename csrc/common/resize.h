// Where a bilinear resize reads along one axis; shared by host and device.
#pragma once

#include <cmath>
#include <cstdint>

#include "conv_geometry.h"

namespace dlv3p {

// Stock PyTorch's kernels are compiled with this contraction, and so have the same last bits.
DLV3P_HOST_DEVICE inline float fused_multiply_add(float a, float b, float c) {
  return fmaf(a, b, c);
}
DLV3P_HOST_DEVICE inline double fused_multiply_add(double a, double b, double c) {
  return fma(a, b, c);
}

// A resized element is weight_first * source[first] + weight_second * source[second].
template <class A>
struct ResizeSource {
  int64_t first;
  int64_t second;
  A weight_first;
  A weight_second;
};

// One axis of F.interpolate(mode="bilinear"); A is float, or double for double tensors.
template <class A>
struct ResizeAxis {
  int64_t in;
  int64_t out;
  bool align_corners;
  A scale;

  DLV3P_HOST_DEVICE ResizeSource<A> source(int64_t o) const {
    if (in == out) return {o, o, A{1}, A{0}};
    const A at = align_corners ? scale * static_cast<A>(o)
                               : fused_multiply_add(scale, static_cast<A>(o) + A{0.5}, A{-0.5});
    const A position = at < 0 ? A{0} : at;
    const int64_t below = static_cast<int64_t>(position);
    const int64_t first = below < in - 1 ? below : in - 1;
    const A fraction = position - static_cast<A>(first);
    const A weight = fraction < 0 ? A{0} : (fraction > 1 ? A{1} : fraction);
    return {first, first + (first < in - 1 ? 1 : 0), A{1} - weight, weight};
  }
};

template <class A>
DLV3P_HOST_DEVICE ResizeAxis<A> resize_axis(int64_t in, int64_t out, bool align_corners) {
  A scale = static_cast<A>(in) / static_cast<A>(out);
  if (align_corners) scale = out > 1 ? static_cast<A>(in - 1) / static_cast<A>(out - 1) : A{0};
  return {in, out, align_corners, scale};
}

}  // namespace dlv3p
