// What kernels use of the GPU, so that the same text also compiles for the emulator of the tests.
#pragma once

#ifdef DLV3P_EMULATED
#include "emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <cstdint>
#include <cstring>

namespace dlv3p {

#ifndef DLV3P_EMULATED
using Half = __half;
using BFloat16 = __nv_bfloat16;

// Names the dynamic shared memory of the block as bytes; once per kernel.
#define DLV3P_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

// A place in shared memory, in 32 bits: arithmetic on pointers to it would take 64.
using SharedAddress = uint32_t;

__device__ inline SharedAddress shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Asynchronous copy of 16 bytes from global to shared memory; both addresses aligned to 16.
__device__ inline void copy_async_16(SharedAddress shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}
__device__ inline void copy_async_16(void* shared, const void* global) {
  copy_async_16(shared_address(shared), global);
}

// Closes a group of the copies this thread has started since the last group.
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `kPending` of this thread's latest groups are under way.
template <int kPending>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
#endif

#ifdef DLV3P_EMULATED
using SharedAddress = unsigned char*;
inline SharedAddress shared_address(void* shared) { return static_cast<unsigned char*>(shared); }
#endif

// The value stays in its register, or the address of global memory in two: the compiler shall not
// work it out again at every use.
template <class Value>
__device__ inline void hold(Value& value) {
#ifndef DLV3P_EMULATED
  asm volatile("" : "+r"(value));
#endif
}
template <class T>
__device__ inline void hold(const T*& global) {
#ifndef DLV3P_EMULATED
  asm volatile("" : "+l"(global));
  __builtin_assume(__isGlobal(global));  // what that hides
#endif
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(Half x) { return static_cast<float>(x); }
__device__ inline float to_float(BFloat16 x) { return static_cast<float>(x); }

template <class T>
__device__ inline T from_float(float x) {
  return static_cast<T>(x);
}

// 2^x, off by two units in the last place at most; 0 where it would be denormal.
__device__ inline float exp2_approximate(float x) {
#ifdef DLV3P_EMULATED
  return exp2f(x);
#else
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#endif
}

// V elements that are loaded and stored as one.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T lane[V];
};

// What is moved as one for so many bytes.
template <int kBytes>
struct WordOf;
template <>
struct WordOf<2> {
  using type = uint16_t;
};
template <>
struct WordOf<4> {
  using type = uint32_t;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};

template <int V, class T>
__device__ inline Pack<T, V> load_pack(const T* from) {
  using Word = typename WordOf<sizeof(Pack<T, V>)>::type;
  const Word word = *reinterpret_cast<const Word*>(from);
  Pack<T, V> pack;
  memcpy(&pack, &word, sizeof(pack));
  return pack;
}

// One store to global memory, which the compiler does not split.
template <class Word>
__device__ inline void store_word(Word* to, const Word& word) {
#ifdef DLV3P_EMULATED
  emulator::check_global(to, sizeof(word), "store_pack");
#endif
  *to = word;
}
#ifndef DLV3P_EMULATED
__device__ inline void store_word(uint4* to, const uint4& word) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w)
               : "memory");
}
__device__ inline void store_word(uint2* to, const uint2& word) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(word.x),
               "r"(word.y)
               : "memory");
}
#endif

// To global memory.
template <int V, class T>
__device__ inline void store_pack(T* to, const Pack<T, V>& pack) {
  using Word = typename WordOf<sizeof(Pack<T, V>)>::type;
  Word word;
  memcpy(&word, &pack, sizeof(word));
  store_word(reinterpret_cast<Word*>(to), word);
}

template <int V, class T>
__device__ inline void store_shared(T* to, const Pack<T, V>& pack) {
  using Word = typename WordOf<sizeof(Pack<T, V>)>::type;
  Word word;
  memcpy(&word, &pack, sizeof(word));
  *reinterpret_cast<Word*>(to) = word;
}

// The pack at a place in shared memory.
template <int V, class T>
__device__ inline Pack<T, V> load_shared(SharedAddress from) {
#ifdef DLV3P_EMULATED
  return load_pack<V>(reinterpret_cast<const T*>(from));
#else
  constexpr int kWords = V * sizeof(T) / sizeof(uint32_t);
  uint32_t words[kWords == 0 ? 1 : kWords];
  if constexpr (kWords == 4) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(from));
  } else if constexpr (kWords == 2) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "r"(from));
  } else if constexpr (kWords == 1) {
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(words[0]) : "r"(from));
  } else {
    static_assert(V * sizeof(T) == 2, "a pack of 2, 4, 8 or 16 bytes");
    uint16_t half;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(half) : "r"(from));
    words[0] = half;
  }
  Pack<T, V> pack;
  memcpy(&pack, words, sizeof(pack));
  return pack;
#endif
}

template <class T, int V>
__device__ inline void unpack(const Pack<T, V>& pack, float (&values)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) values[v] = to_float(pack.lane[v]);
}

#ifndef DLV3P_EMULATED
// A bfloat16 is the upper half of a float: one instruction each, where the conversion takes two.
template <int V>
__device__ inline void unpack(const Pack<BFloat16, V>& pack, float (&values)[V]) {
  if constexpr (V % 2 == 0) {
    uint32_t words[V / 2];
    memcpy(words, &pack, sizeof(words));
#pragma unroll
    for (int i = 0; i < V / 2; ++i) {
      values[2 * i] = __uint_as_float(words[i] << 16);
      values[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = to_float(pack.lane[v]);
  }
}
#endif

template <class T, int V>
__device__ inline Pack<T, V> pack_of(const float (&values)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int v = 0; v < V; ++v) pack.lane[v] = from_float<T>(values[v]);
  return pack;
}

}  // namespace dlv3p
