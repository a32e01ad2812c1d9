// CUDA's arithmetic intrinsics. The approximate ones are exact here: how far off a GPU's are, only
// a GPU tells.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>(static_cast<std::uint64_t>(x) * y >> 32);
}

namespace dlv3p::emulator {

template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit pattern keeps its size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace dlv3p::emulator

inline float __int_as_float(int x) { return dlv3p::emulator::same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return dlv3p::emulator::same_bits<float>(x); }
inline int __float_as_int(float x) { return dlv3p::emulator::same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return dlv3p::emulator::same_bits<unsigned>(x); }

// Loads and stores that differ from plain ones in caching only.
template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
template <class T>
void __stcs(T* to, T value) {
  *to = value;
}
template <class T>
void __stcg(T* to, T value) {
  *to = value;
}

#define DLV3P_MIN_MAX(type)                                 \
  inline type min(type a, type b) { return b < a ? b : a; } \
  inline type max(type a, type b) { return a < b ? b : a; }
DLV3P_MIN_MAX(int)
DLV3P_MIN_MAX(unsigned)
DLV3P_MIN_MAX(long)
DLV3P_MIN_MAX(unsigned long)
DLV3P_MIN_MAX(long long)
DLV3P_MIN_MAX(unsigned long long)
#undef DLV3P_MIN_MAX
// Of a NaN and a number the number, as on a GPU.
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
