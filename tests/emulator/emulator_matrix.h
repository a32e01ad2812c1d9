// The functions of csrc/cuda/matrix.cuh on the emulated GPU: one lane computes for the whole warp.
#pragma once

#include <cstdint>
#include <cstring>

#include "block.h"
#include "collectives.h"
#include "emulator.h"

namespace dlv3p {
namespace emulator {

struct Product {
  float* sum;
  const uint32_t* a;
  const uint32_t* b;
};

struct MatrixLoad {
  uint32_t* into;
  const void* row;
};

inline void require_whole_warp(void* const (&records)[warpSize], const char* call) {
  for (void* record : records) {
    if (!record) fail(std::string(call) + ": the warp is not complete");
  }
}

// Half 0 or 1 of a register as a number.
template <class T>
float element(uint32_t pair, int half) {
  T value;
  const auto bits = static_cast<uint16_t>(pair >> (16 * half));
  static_assert(sizeof value == sizeof bits, "elements of 16 bits");
  std::memcpy(&value, &bits, sizeof value);
  return static_cast<float>(value);
}

// Sums in the order of the columns; a GPU's order and rounding inside one instruction are its own.
template <class T>
void multiply_add(void* const (&records)[warpSize]) {
  require_whole_warp(records, "mma_m16n8k16");
  float a[16][16], b[16][8];
  for (int lane = 0; lane < warpSize; ++lane) {
    const auto& from = *static_cast<const Product*>(records[lane]);
    const int row = MatrixLane::row(lane), pair = MatrixLane::pair(lane);
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) {
        a[row + 8 * (i % 2)][pair + 8 * (i / 2) + half] = element<T>(from.a[i], half);
      }
      for (int i = 0; i < 2; ++i) b[pair + 8 * i + half][row] = element<T>(from.b[i], half);
    }
  }
  for (int lane = 0; lane < warpSize; ++lane) {
    float* sum = static_cast<const Product*>(records[lane])->sum;
    for (int i = 0; i < 4; ++i) {
      const int row = MatrixLane::row(lane) + 8 * (i / 2);
      const int column = MatrixLane::pair(lane) + i % 2;
      for (int k = 0; k < 16; ++k) sum[i] += a[row][k] * b[k][column];
    }
  }
}

template <bool kTransposed>
void load_matrices(void* const (&records)[warpSize]) {
  require_whole_warp(records, "ldmatrix_x4");
  for (int i = 0; i < 4; ++i) {
    uint16_t matrix[8][8];
    for (int r = 0; r < 8; ++r) {
      std::memcpy(matrix[r], static_cast<const MatrixLoad*>(records[8 * i + r])->row, 16);
    }
    for (int lane = 0; lane < warpSize; ++lane) {
      const int row = MatrixLane::row(lane), pair = MatrixLane::pair(lane);
      const uint32_t low = kTransposed ? matrix[pair][row] : matrix[row][pair];
      const uint32_t high = kTransposed ? matrix[pair + 1][row] : matrix[row][pair + 1];
      static_cast<const MatrixLoad*>(records[lane])->into[i] = low | high << 16;
    }
  }
}

}  // namespace emulator

template <class T>
void mma_m16n8k16(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::Product record{sum, a, b};
  emulator::warp_operation(emulator::kWholeWarp, &record, emulator::multiply_add<T>,
                           {"mma_m16n8k16", __FILE__, __LINE__});
}

inline void ldmatrix_x4(uint32_t (&into)[4], const void* shared_row) {
  emulator::check_shared_row(shared_row, 16, "ldmatrix_x4");
  emulator::MatrixLoad record{into, shared_row};
  emulator::warp_operation(emulator::kWholeWarp, &record, emulator::load_matrices<false>,
                           {"ldmatrix_x4", __FILE__, __LINE__});
}

inline void ldmatrix_x4_trans(uint32_t (&into)[4], const void* shared_row) {
  emulator::check_shared_row(shared_row, 16, "ldmatrix_x4_trans");
  emulator::MatrixLoad record{into, shared_row};
  emulator::warp_operation(emulator::kWholeWarp, &record, emulator::load_matrices<true>,
                           {"ldmatrix_x4_trans", __FILE__, __LINE__});
}

}  // namespace dlv3p
