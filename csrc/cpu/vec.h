// Vectors of one instruction set: loads and stores that convert, partial ones, transposition.
// Included by sources that are compiled once per instruction set; see gather_kernel.cpp.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define DLV3P_INLINE inline __attribute__((always_inline))

namespace dlv3p {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class A>
struct VecOf {
  static constexpr int kLanes = kVectorBytes / sizeof(A);
  typedef A Type __attribute__((vector_size(kVectorBytes)));
};
template <class A>
using Vec = typename VecOf<A>::Type;
template <class A>
constexpr int kLanesOf = VecOf<A>::kLanes;

constexpr int kFloatLanes = kLanesOf<float>;
typedef uint32_t UVec __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfVec __attribute__((vector_size(kVectorBytes / 2)));

template <class To, class From>
DLV3P_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <class V, class S>
DLV3P_INLINE V load_bits(const S* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

template <class A>
DLV3P_INLINE Vec<A> splat(A value) {
  return Vec<A>{} + value;
}

// --- whole vectors -------------------------------------------------------------------------------

DLV3P_INLINE Vec<float> load(const float* p) { return load_bits<Vec<float>>(p); }
DLV3P_INLINE Vec<double> load(const double* p) { return load_bits<Vec<double>>(p); }
DLV3P_INLINE void store(float* p, Vec<float> v) { std::memcpy(p, &v, sizeof(v)); }
DLV3P_INLINE void store(double* p, Vec<double> v) { std::memcpy(p, &v, sizeof(v)); }

// Compilers make several shuffles of the portable form where the instruction set has one.
DLV3P_INLINE UVec widen(HalfVec v) {
#if defined(__AVX512F__)
  return (UVec)_mm512_cvtepu16_epi32((__m256i)v);
#elif defined(__AVX2__)
  return (UVec)_mm256_cvtepu16_epi32((__m128i)v);
#else
  return __builtin_convertvector(v, UVec);
#endif
}

DLV3P_INLINE Vec<float> load(const BFloat16* p) {
  return bit_cast<Vec<float>>(widen(load_bits<HalfVec>(p)) << 16);
}

DLV3P_INLINE void store(BFloat16* p, Vec<float> v) {
#if defined(__AVX512BF16__)
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &rounded, sizeof(rounded));
#else
  const UVec bits = bit_cast<UVec>(v);
  const UVec to_nearest_even = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const UVec quiet_nan = (bits >> 16) | 0x40;
  const HalfVec rounded = __builtin_convertvector(v == v ? to_nearest_even : quiet_nan, HalfVec);
  std::memcpy(p, &rounded, sizeof(rounded));
#endif
}

#if defined(__AVX512F__)
DLV3P_INLINE Vec<float> load(const Float16* p) {
  return (Vec<float>)_mm512_cvtph_ps(load_bits<__m256i>(p));
}
DLV3P_INLINE void store(Float16* p, Vec<float> v) {
  const __m256i rounded = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &rounded, sizeof(rounded));
}
#elif defined(__F16C__)
DLV3P_INLINE Vec<float> load(const Float16* p) {
  return (Vec<float>)_mm256_cvtph_ps(load_bits<__m128i>(p));
}
DLV3P_INLINE void store(Float16* p, Vec<float> v) {
  const __m128i rounded = _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &rounded, sizeof(rounded));
}
#else
// Exponents differ by 127 - 15 = 112; scaling as floats makes subnormal halves right as well.
DLV3P_INLINE Vec<float> load(const Float16* p) {
  const UVec bits = widen(load_bits<HalfVec>(p));
  const UVec magnitude = (bits & 0x7fff) << 13;
  const UVec finite = bit_cast<UVec>(bit_cast<Vec<float>>(magnitude) * 0x1p112f);
  const UVec value = magnitude >= (0x7c00u << 13) ? (magnitude | 0x7f800000u) : finite;
  return bit_cast<Vec<float>>(value | ((bits & 0x8000) << 16));
}
DLV3P_INLINE void store(Float16* p, Vec<float> v) {
  const UVec bits = bit_cast<UVec>(v);
  const UVec magnitude = bits & 0x7fffffff;
  const UVec normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 0.5 leaves the units of the smallest half, 2^-24, in the last bits, rounded.
  const UVec subnormal =
      bit_cast<UVec>(bit_cast<Vec<float>>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
  UVec rounded = magnitude < (113u << 23) ? subnormal : normal;
  rounded = magnitude >= bit_cast<uint32_t>(65520.0f) ? UVec{} + 0x7c00 : rounded;
  rounded = magnitude > 0x7f800000u ? UVec{} + 0x7e00 : rounded;
  const HalfVec half = __builtin_convertvector(rounded | ((bits >> 16) & 0x8000), HalfVec);
  std::memcpy(p, &half, sizeof(half));
}
#endif

// from[index] of every lane.
template <class A, class I>
DLV3P_INLINE Vec<A> gather(const A* from, I index) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) return (Vec<A>)_mm512_i32gather_ps((__m512i)index, from, 4);
#elif defined(__AVX2__)
  if constexpr (sizeof(A) == 4) return (Vec<A>)_mm256_i32gather_ps(from, (__m256i)index, 4);
#endif
  Vec<A> v;
  for (int i = 0; i < kLanesOf<A>; ++i) v[i] = from[index[i]];
  return v;
}

template <class V>
DLV3P_INLINE bool all_zero(const V& v) {
  bool zero = true;
  for (unsigned i = 0; i < sizeof(V) / sizeof(v[0]); ++i) zero &= v[i] == 0;
  return zero;
}

// --- the first n lanes ---------------------------------------------------------------------------

template <class A, class S>
__attribute__((noinline)) Vec<A> load_partial(const S* p, int64_t n) {
  S lanes[kLanesOf<A>] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
}

template <class A, class S>
__attribute__((noinline)) void store_partial(S* p, Vec<A> v, int64_t n) {
  S lanes[kLanesOf<A>];
  store(lanes, v);
  for (int64_t i = 0; i < n; ++i) p[i] = lanes[i];
}

// --- transposition -------------------------------------------------------------------------------

template <int L, class V, std::size_t... I>
DLV3P_INLINE void interleave(const V& a, const V& b, V& low, V& high, std::index_sequence<I...>) {
#if defined(__clang__)
  low = __builtin_shufflevector(a, b, (I % 2 ? L + I / 2 : I / 2)...);
  high = __builtin_shufflevector(a, b, (I % 2 ? L + L / 2 + I / 2 : L / 2 + I / 2)...);
#else
  using Index = decltype(a == b);
  low = __builtin_shuffle(a, b, Index{(I % 2 ? L + I / 2 : I / 2)...});
  high = __builtin_shuffle(a, b, Index{(I % 2 ? L + L / 2 + I / 2 : L / 2 + I / 2)...});
#endif
}

#if defined(__AVX512F__)
// Transposes 4x4 blocks inside the four 128-bit lanes, then the lanes: never more than four rows at
// once, where the general form below needs all 16 in two copies and spills.
DLV3P_INLINE void transpose(Vec<float> (&rows)[16]) {
  __m512 r[16];
#pragma GCC unroll 4
  for (int g = 0; g < 16; g += 4) {
    const __m512 ab_low = _mm512_unpacklo_ps((__m512)rows[g], (__m512)rows[g + 1]);
    const __m512 ab_high = _mm512_unpackhi_ps((__m512)rows[g], (__m512)rows[g + 1]);
    const __m512 cd_low = _mm512_unpacklo_ps((__m512)rows[g + 2], (__m512)rows[g + 3]);
    const __m512 cd_high = _mm512_unpackhi_ps((__m512)rows[g + 2], (__m512)rows[g + 3]);
    const auto pairs_low = [](__m512 a, __m512 b) {
      return (__m512)_mm512_unpacklo_pd((__m512d)a, (__m512d)b);
    };
    const auto pairs_high = [](__m512 a, __m512 b) {
      return (__m512)_mm512_unpackhi_pd((__m512d)a, (__m512d)b);
    };
    r[g] = pairs_low(ab_low, cd_low);
    r[g + 1] = pairs_high(ab_low, cd_low);
    r[g + 2] = pairs_low(ab_high, cd_high);
    r[g + 3] = pairs_high(ab_high, cd_high);
  }
  constexpr int kEvenLanes = 0x88;
  constexpr int kOddLanes = 0xdd;
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 even_ab = _mm512_shuffle_f32x4(r[c], r[4 + c], kEvenLanes);
    const __m512 odd_ab = _mm512_shuffle_f32x4(r[c], r[4 + c], kOddLanes);
    const __m512 even_cd = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], kEvenLanes);
    const __m512 odd_cd = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], kOddLanes);
    rows[c] = (Vec<float>)_mm512_shuffle_f32x4(even_ab, even_cd, kEvenLanes);
    rows[4 + c] = (Vec<float>)_mm512_shuffle_f32x4(odd_ab, odd_cd, kEvenLanes);
    rows[8 + c] = (Vec<float>)_mm512_shuffle_f32x4(even_ab, even_cd, kOddLanes);
    rows[12 + c] = (Vec<float>)_mm512_shuffle_f32x4(odd_ab, odd_cd, kOddLanes);
  }
}
#endif

// Square transposition: log2(L) rounds of interleaving row i with row i + L / 2.
template <class V, int L>
DLV3P_INLINE void transpose(V (&rows)[L]) {
#pragma GCC unroll 8
  for (int round = 1; round < L; round *= 2) {
    V next[L];
#pragma GCC unroll 16
    for (int i = 0; i < L / 2; ++i) {
      interleave<L>(rows[i], rows[i + L / 2], next[2 * i], next[2 * i + 1],
                    std::make_index_sequence<L>());
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) rows[i] = next[i];
  }
}

}  // namespace
}  // namespace dlv3p
