#include "gemm.h"

#include <array>

namespace dlv3p {

void multiply_matrices(const Tensor& a, const Tensor& b, const Tensor& out) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);  // takes hold of the result, and drops it
}

Tensor matrix_view(const Tensor& t, int64_t offset, int64_t rows, int64_t columns,
                   int64_t row_stride, int64_t column_stride) {
  char* data = static_cast<char*>(t.mutable_data_ptr());
  const int64_t sizes[] = {rows, columns};
  const int64_t strides[] = {row_stride, column_stride};
  return torch::stable::from_blob(data + offset * static_cast<int64_t>(t.element_size()), sizes,
                                  strides, t.device(), t.scalar_type());
}

Tensor column_map(void* data, const Tensor& like, int64_t pixels, int64_t channels) {
  const int64_t sizes[] = {1, channels, pixels, 1};
  const int64_t strides[] = {pixels * channels, 1, channels, channels};
  return torch::stable::from_blob(data, sizes, strides, like.device(), like.scalar_type());
}

}  // namespace dlv3p
