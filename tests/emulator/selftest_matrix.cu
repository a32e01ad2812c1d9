// Self-test of csrc/cuda/matrix.cuh: a plain matrix product, one warp for 16 x 16 of the result.
#include "launch.h"
#include "matrix.cuh"

namespace dlv3p {

constexpr int kTile = 16;  // rows and columns of the result, and the step along the sum

struct ProductParams {
  const void* a;  // (rows, depth)
  const void* b;  // (depth, columns), or (columns, depth) if b_transposed
  float* result;  // (rows, columns)
  int columns;
  int depth;
  bool b_transposed;
};

template <class T>
__device__ void load_tile(T (&tile)[kTile][kTile], const T* from, int stride) {
  for (int i = threadIdx.x; i < kTile * kTile; i += warpSize) {
    tile[i / kTile][i % kTile] = from[i / kTile * stride + i % kTile];
  }
}

template <class T>
__global__ void product_kernel(ProductParams p) {
  __shared__ __align__(16) T a_tile[kTile][kTile];
  __shared__ __align__(16) T b_tile[kTile][kTile];
  const int lane = threadIdx.x;
  const int row = blockIdx.y * kTile, column = blockIdx.x * kTile;
  const T* a = static_cast<const T*>(p.a);
  const T* b = static_cast<const T*>(p.b);
  float left[4] = {}, right[4] = {};
  for (int k = 0; k < p.depth; k += kTile) {
    load_tile(a_tile, a + row * p.depth + k, p.depth);
    if (p.b_transposed) {
      load_tile(b_tile, b + column * p.depth + k, p.depth);
    } else {
      load_tile(b_tile, b + k * p.columns + column, p.columns);
    }
    __syncwarp();
    uint32_t a_part[4], b_part[4];
    ldmatrix_x4(a_part, &a_tile[lane % 16][lane / 16 * 8]);
    if (p.b_transposed) {
      ldmatrix_x4(b_part, &b_tile[lane % 8 + lane / 16 * 8][lane / 8 % 2 * 8]);
    } else {
      ldmatrix_x4_trans(b_part, &b_tile[lane % 16][lane / 16 * 8]);
    }
    mma_m16n8k16<T>(left, a_part, {b_part[0], b_part[1]});
    mma_m16n8k16<T>(right, a_part, {b_part[2], b_part[3]});
    __syncwarp();
  }
  for (int i = 0; i < 4; ++i) {
    float* to = p.result + (row + MatrixLane::row(lane) + 8 * (i / 2)) * p.columns + column +
                MatrixLane::pair(lane) + i % 2;
    to[0] = left[i];
    to[8] = right[i];
  }
}

namespace {

Tensor product(const Tensor& a, const Tensor& b, bool b_transposed) {
  const int64_t rows = a.size(0), columns = b.size(b_transposed ? 0 : 1);
  const Tensor result =
      torch::stable::empty({rows, columns}, ScalarType::Float, std::nullopt, a.device());
  const ProductParams p{a.const_data_ptr(),
                        b.const_data_ptr(),
                        static_cast<float*>(result.mutable_data_ptr()),
                        static_cast<int>(columns),
                        static_cast<int>(a.size(1)),
                        b_transposed};
  const dim3 grid(static_cast<unsigned>(columns / kTile), static_cast<unsigned>(rows / kTile));
  auto* kernel =
      a.scalar_type() == ScalarType::Half ? product_kernel<Half> : product_kernel<BFloat16>;
  Stream(a).launch(kernel, grid, dim3(warpSize), 0, p);
  return result;
}

STABLE_TORCH_LIBRARY_FRAGMENT(dlv3p_selftest, m) {
  m.def("product(Tensor a, Tensor b, bool b_transposed) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(dlv3p_selftest, CPU, m) { m.impl("product", TORCH_BOX(&product)); }

}  // namespace
}  // namespace dlv3p
