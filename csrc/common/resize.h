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
template <class A, class I = int64_t>
struct ResizeSource {
  I first;
  I second;
  A weight_first;
  A weight_second;
};

// One axis of F.interpolate(mode="bilinear"); A is float, or double for double tensors, and I the
// type of its indices.
template <class A, class I = int64_t>
struct ResizeAxis {
  I in;
  I out;
  A shift;  // 0 with align_corners, where the multiply-add below is a product
  A scale;

  DLV3P_HOST_DEVICE ResizeSource<A, I> source(I o) const {
    const I first = this->first(o);
    const A weight = weight_second(o, first);
    return {first, second(first), A{1} - weight, weight};
  }

  // The source never falls from an element to the next.
  DLV3P_HOST_DEVICE I first(I o) const {
    if (in == out) return o;
    const I below = static_cast<I>(position(o));
    return below < in - 1 ? below : in - 1;
  }

  DLV3P_HOST_DEVICE I second(I first) const {
    return first + (in != out && first < in - 1 ? 1 : 0);
  }

  // Of an element with this first source.
  DLV3P_HOST_DEVICE A weight_second(I o, I first) const {
    if (in == out) return A{0};
    const A fraction = position(o) - static_cast<A>(first);
    return fraction < 0 ? A{0} : (fraction > 1 ? A{1} : fraction);
  }

 private:
  DLV3P_HOST_DEVICE A position(I o) const {
    const A at = fused_multiply_add(scale, static_cast<A>(o) + shift, -shift);
    return at < 0 ? A{0} : at;
  }
};

template <class A, class I = int64_t>
DLV3P_HOST_DEVICE ResizeAxis<A, I> resize_axis(I in, I out, bool align_corners) {
  A scale = static_cast<A>(in) / static_cast<A>(out);
  if (align_corners) scale = out > 1 ? static_cast<A>(in - 1) / static_cast<A>(out - 1) : A{0};
  return {in, out, align_corners ? A{0} : A{0.5}, scale};
}

}  // namespace dlv3p
