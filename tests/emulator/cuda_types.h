// CUDA's built-in vector types and dim3, with CUDA's sizes and alignments.
#pragma once

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct uint3 {
  unsigned x, y, z;
};

#define DLV3P_VECTOR_TYPES(element, name)                                       \
  struct alignas(2 * sizeof(element)) name##2 { element x, y; };                \
  struct alignas(4 * sizeof(element) > 16 ? 16 : 4 * sizeof(element)) name##4 { \
    element x, y, z, w;                                                         \
  };                                                                            \
  inline name##2 make_##name##2(element x, element y) { return {x, y}; }        \
  inline name##4 make_##name##4(element x, element y, element z, element w) { return {x, y, z, w}; }

DLV3P_VECTOR_TYPES(float, float)
DLV3P_VECTOR_TYPES(double, double)
DLV3P_VECTOR_TYPES(int, int)
DLV3P_VECTOR_TYPES(unsigned, uint)
DLV3P_VECTOR_TYPES(short, short)
DLV3P_VECTOR_TYPES(unsigned short, ushort)
DLV3P_VECTOR_TYPES(long long, longlong)

#undef DLV3P_VECTOR_TYPES
