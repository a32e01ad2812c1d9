// Activations of whole vectors and their derivatives. Included by sources that are compiled once
// per instruction set; see vec.h.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../common/activation_code.h"
#include "vec.h"

namespace dlv3p {
namespace {

typedef int32_t IVec __attribute__((vector_size(kVectorBytes)));

// NaN stays.
DLV3P_INLINE Vec<float> clamp(Vec<float> x, float least, float most) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_max_ps(_mm512_set1_ps(least),
                                   _mm512_min_ps(_mm512_set1_ps(most), (__m512)x));
#else
  x = x > most ? splat(most) : x;
  return x < least ? splat(least) : x;
#endif
}

// y * 2^n for a whole number n in [-252, 254].
DLV3P_INLINE Vec<float> times_power_of_2(Vec<float> y, Vec<float> n) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
  // In two factors, as 2^n may lie outside of float32 where the product does not.
  const IVec exponent = __builtin_convertvector(n, IVec);
  const IVec half = exponent >> 1;
  const auto power_of_2 = [](IVec e) { return bit_cast<Vec<float>>((e + 127) << 23); };
  return y * power_of_2(half) * power_of_2(exponent - half);
#endif
}

// e^x to 1 unit in the last place; 0 and infinity where float32 ends, NaN stays.
//
// x = n ln 2 + r with |r| <= ln 2 / 2, e^x = 2^n e^r, and e^r = 1 + r + r^2 q(r) with the q of
// degree 4 that has the least largest relative error (3.1e-9, found by weighted least squares).
DLV3P_INLINE Vec<float> exp(Vec<float> x) {
  constexpr float kAllZero = -104.0f;
  constexpr float kAllInfinite = 89.0f;
  x = clamp(x, kAllZero, kAllInfinite);
  // Adding 1.5 * 2^23 leaves no bits for a fraction, and so rounds to a whole number.
  constexpr float kRound = 0x1.8p23f;
  constexpr float kLog2OfE = 0x1.715476p0f;
  const Vec<float> n = (x * kLog2OfE + kRound) - kRound;
  // ln 2 in two parts; products of the first with n are exact.
  constexpr float kLn2High = 0x1.63p-1f;
  constexpr float kLn2Low = -0x1.bd0106p-13f;
  const Vec<float> r = x - n * kLn2High - n * kLn2Low;
  Vec<float> q = r * 0.001381459878757596f + 0.008368716575205326f;
  q = q * r + 0.04166838899254799f;
  q = q * r + 0.1666652113199234f;
  q = q * r + 0.4999999403953552f;
  const Vec<float> y = q * (r * r) + r + 1.0f;
  return times_power_of_2(y, n);
}

// float64 serves to check gradients; its speed does not matter.
DLV3P_INLINE Vec<double> exp(Vec<double> x) {
  for (int i = 0; i < kLanesOf<double>; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

// The natural logarithm to 1 unit in the last place, of positive normal numbers; NaN stays.
//
// x = 2^e f with f in [sqrt(1/2), sqrt(2)), log x = e ln 2 + log f, and log(1 + r) = r - r^2 / 2 +
// r^3 q(r) with the q of degree 8 of S. Moshier's Cephes library (logf.c).
DLV3P_INLINE Vec<float> log(Vec<float> x) {
  const IVec bits = bit_cast<IVec>(x);
  const IVec sqrt_half = IVec{} + bit_cast<int32_t>(0x1.6a09e6p-1f);
  const IVec exponent = (bits - sqrt_half) >> 23;
  const Vec<float> e = __builtin_convertvector(exponent, Vec<float>);
  const Vec<float> r = bit_cast<Vec<float>>(bits - (exponent << 23)) - 1.0f;
  const Vec<float> square = r * r;
  Vec<float> q = r * 7.0376836292e-2f - 1.1514610310e-1f;
  q = q * r + 1.1676998740e-1f;
  q = q * r - 1.2420140846e-1f;
  q = q * r + 1.4249322787e-1f;
  q = q * r - 1.6668057665e-1f;
  q = q * r + 2.0000714765e-1f;
  q = q * r - 2.4999993993e-1f;
  q = q * r + 3.3333331174e-1f;
  // ln 2 in two parts, the larger last.
  Vec<float> y = q * r * square - e * 2.12194440e-4f;
  y = y - square * 0.5f + r;
  y = y + e * 0.693359375f;
  return x == x ? y : x;
}

DLV3P_INLINE Vec<double> log(Vec<double> x) {
  for (int i = 0; i < kLanesOf<double>; ++i) x[i] = __builtin_log(x[i]);
  return x;
}

// The larger one; the second where either is NaN.
DLV3P_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

DLV3P_INLINE Vec<double> larger(Vec<double> a, Vec<double> b) { return a > b ? a : b; }

// --- activations ---------------------------------------------------------------------------------

template <Activation k>
using ActivationOf = std::integral_constant<Activation, k>;

// Calls `f` with the activation as a type, so that loops are compiled for each of them.
template <class F>
DLV3P_INLINE auto with_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::kRelu:
      return f(ActivationOf<Activation::kRelu>());
    case Activation::kRelu6:
      return f(ActivationOf<Activation::kRelu6>());
    case Activation::kSilu:
      return f(ActivationOf<Activation::kSilu>());
    default:
      return f(ActivationOf<Activation::kIdentity>());
  }
}

// What an activation makes of `z`, and of the gradient `g` of its result.
template <class V>
struct Activated {
  V value;
  V gradient;
};

// Comparisons stand so that NaN passes through, as in stock PyTorch.
template <Activation k, class V>
DLV3P_INLINE V activate(V z) {
  if constexpr (k == Activation::kRelu) {
    return z < 0 ? V{} : z;
  } else if constexpr (k == Activation::kRelu6) {
    const V low = z < 0 ? V{} : z;
    return low > 6 ? V{} + 6 : low;
  } else if constexpr (k == Activation::kSilu) {
    return z / (1 + exp(-z));
  } else {
    return z;
  }
}

// The gradient at the corners of relu and relu6 is 0, and an infinite `g` outside them does not
// come through either.
template <Activation k, class V>
DLV3P_INLINE Activated<V> activate(V z, V g) {
  if constexpr (k == Activation::kRelu) {
    return {activate<k>(z), z <= 0 ? V{} : g};
  } else if constexpr (k == Activation::kRelu6) {
    const V positive = z <= 0 ? V{} : g;
    return {activate<k>(z), z >= 6 ? V{} : positive};
  } else if constexpr (k == Activation::kSilu) {
    const V sigmoid = 1 / (1 + exp(-z));
    const V value = z * sigmoid;
    return {value, g * (sigmoid * (1 + z - value))};
  } else {
    return {z, g};
  }
}

}  // namespace
}  // namespace dlv3p
