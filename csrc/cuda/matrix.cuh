// Matrix instructions of a warp: products of 16-bit elements, summed in float32, and the loads that
// go with them. All 32 lanes call together.
//
// Which lane holds what (PTX ISA, "Matrix fragments for mma.m16n8k16" and "ldmatrix"); a register
// of 32 bits holds two elements, the first in its low half:
//   a[i]    row MatrixLane::row(lane) + 8 * (i % 2), columns pair(lane) + 8 * (i / 2) and the next
//   b[i]    rows pair(lane) + 8 * i and the next, column row(lane)
//   sum[i]  row row(lane) + 8 * (i / 2), column pair(lane) + i % 2
#pragma once

#include <cstdint>
#include <type_traits>

#include "platform.cuh"

namespace dlv3p {

struct MatrixLane {
  __device__ static constexpr int row(int lane) { return lane / 4; }
  __device__ static constexpr int pair(int lane) { return lane % 4 * 2; }
};

}  // namespace dlv3p

#ifdef DLV3P_EMULATED
#include "emulator_matrix.h"
#else

namespace dlv3p {

// sum (16 x 8) += a (16 x 16) * b (16 x 8); T is Half or BFloat16.
template <class T>
__device__ inline void mma_m16n8k16(float (&sum)[4], const uint32_t (&a)[4],
                                    const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    static_assert(std::is_same_v<T, Half>, "elements of 16 bits");
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// Four 8 x 8 matrices of 16-bit elements from shared memory: lane 8 * i + r names row r of matrix
// i, 16 bytes on an address aligned to 16. Into[i] is of matrix i: row MatrixLane::row(lane),
// columns pair(lane) and the next.
__device__ inline void ldmatrix_x4(uint32_t (&into)[4], const void* shared_row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(into[0]), "=r"(into[1]), "=r"(into[2]), "=r"(into[3])
               : "r"(address)
               : "memory");
}

// The same, each matrix transposed: rows pair(lane) and the next, column row(lane).
__device__ inline void ldmatrix_x4_trans(uint32_t (&into)[4], const void* shared_row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(into[0]), "=r"(into[1]), "=r"(into[2]), "=r"(into[3])
               : "r"(address)
               : "memory");
}

}  // namespace dlv3p
#endif
