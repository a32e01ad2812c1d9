// What a mean over pixels divides by.
#pragma once

#include <cstdint>

#include "upsample_tile.cuh"

namespace dlv3p {

// Of each block, the sum of the weights of the classes of its rows; `rows` of all images, each of
// `height` rows.
__global__ void __launch_bounds__(kUpsampleThreads)
    class_weight_sum_kernel(Labels labels, int64_t rows, int height, int width, int classes,
                            const float* weight, float* parts) {
  __shared__ float scratch[kUpsampleThreads];
  float sums[1] = {};
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const auto image = static_cast<int>(row / height);
    const int y = static_cast<int>(row % height);
    for (int x = static_cast<int>(threadIdx.x); x < width; x += kUpsampleThreads) {
      for_each_label<1>(labels, image, y, x, 1, classes,
                        [&](int, int label) { sums[0] += weight_of(weight, label); });
    }
  }
  block_sums<kUpsampleThreads>(scratch, sums, [&](int, float sum) { parts[blockIdx.x] = sum; });
}

}  // namespace dlv3p
