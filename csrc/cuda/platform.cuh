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

namespace dlv3p {

#ifndef DLV3P_EMULATED
using Half = __half;
using BFloat16 = __nv_bfloat16;

// Names the dynamic shared memory of the block as bytes; once per kernel.
#define DLV3P_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

// Asynchronous copy of 16 bytes from global to shared memory; both addresses aligned to 16.
__device__ inline void copy_async_16(void* shared, const void* global) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}

// Closes a group of the copies this thread has started since the last group.
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `kPending` of this thread's latest groups are under way.
template <int kPending>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
#endif

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(Half x) { return static_cast<float>(x); }
__device__ inline float to_float(BFloat16 x) { return static_cast<float>(x); }

template <class T>
__device__ inline T from_float(float x) {
  return static_cast<T>(x);
}

// V elements that are loaded and stored as one.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T lane[V];
};

template <int V, class T>
__device__ inline Pack<T, V> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, V>*>(from);
}

template <int V, class T>
__device__ inline void store_pack(T* to, const Pack<T, V>& value) {
  *reinterpret_cast<Pack<T, V>*>(to) = value;
}

template <class T, int V>
__device__ inline void unpack(const Pack<T, V>& pack, float (&values)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) values[v] = to_float(pack.lane[v]);
}

template <class T, int V>
__device__ inline Pack<T, V> pack_of(const float (&values)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int v = 0; v < V; ++v) pack.lane[v] = from_float<T>(values[v]);
  return pack;
}

}  // namespace dlv3p
