// Products of matrices, by what torch has for them (oneDNN, MKL), and views for them.
#pragma once

#include "../common/tensor.h"

namespace dlv3p {

// out = a * b; two dimensions each, of any strides that BLAS knows.
void multiply_matrices(const Tensor& a, const Tensor& b, const Tensor& out);

// A matrix that shares the memory of `t`, from element `offset` on.
Tensor matrix_view(const Tensor& t, int64_t offset, int64_t rows, int64_t columns,
                   int64_t row_stride, int64_t column_stride);

// Pixels of `channels` adjacent elements as a map of one column.
Tensor column_map(void* data, const Tensor& like, int64_t pixels, int64_t channels);

}  // namespace dlv3p
