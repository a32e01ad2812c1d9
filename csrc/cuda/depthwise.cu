// Depthwise convolution on CUDA: launcher and registration. Forward only; its gradients run stock.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "../common/tensor.h"
#include "depthwise.cuh"

namespace dlv3p {
namespace {

using Ints = std::vector<int64_t>;

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 20;  // the kernel strides over the rest
constexpr int kPackBytes = 16;            // the widest load of a thread

DepthwiseMap map_of(const Tensor& t) {
  return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

template <class T>
bool packs_fit(const Tensor& t) {
  constexpr int64_t kPack = kPackBytes / sizeof(T);
  const bool strides_fit =
      t.stride(0) % kPack == 0 && t.stride(2) % kPack == 0 && t.stride(3) % kPack == 0;
  return t.stride(1) == 1 && t.size(1) % kPack == 0 && strides_fit &&
         reinterpret_cast<std::uintptr_t>(t.const_data_ptr()) % kPackBytes == 0;
}

template <class T, int V>
void launch_depthwise_fwd(const DepthwiseParams& p, cudaStream_t stream) {
  const int64_t count = p.batch * (p.channels / V) * p.rows.out * p.columns.out;
  const int64_t blocks = std::min((count + kThreads - 1) / kThreads, kMostBlocks);
  depthwise_fwd_kernel<T, V><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(p);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class T>
void launch(const DepthwiseParams& p, const Tensor& input, const Tensor& output,
            cudaStream_t stream) {
  if (packs_fit<T>(input) && packs_fit<T>(output)) {
    launch_depthwise_fwd<T, kPackBytes / sizeof(T)>(p, stream);
  } else {
    launch_depthwise_fwd<T, 1>(p, stream);
  }
}

ConvAxis axis_of(const Tensor& input, const Tensor& weight, int64_t d, int64_t stride,
                 int64_t before, int64_t after, int64_t dilation) {
  const int64_t in = input.size(2 + d);
  const int64_t kernel = weight.size(2 + d);
  return {in,       conv_output_size(in, before, after, kernel, stride, dilation),
          kernel,   stride,
          dilation, before};
}

Tensor depthwise_conv2d_cuda(const Tensor& input, const Tensor& weight,
                             const std::optional<Tensor>& bias, const Ints& stride,
                             const Ints& padding, const Ints& dilation) {
  STD_TORCH_CHECK(weight.size(0) == input.size(1) && weight.size(1) == 1,
                  "depthwise_conv2d: the CUDA kernel takes one filter per channel");
  const ConvAxis rows = axis_of(input, weight, 0, stride[0], padding[2], padding[3], dilation[0]);
  const ConvAxis columns =
      axis_of(input, weight, 1, stride[1], padding[0], padding[1], dilation[1]);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Tensor output =
      empty_in_format_of(input, input.size(0), input.size(1), rows.out, columns.out);
  if (output.numel() == 0) return output;
  const Tensor filters = torch::stable::contiguous(weight);
  std::optional<Tensor> shifts;
  if (bias) shifts = torch::stable::contiguous(*bias);
  const DepthwiseParams p{input.const_data_ptr(),
                          filters.const_data_ptr(),
                          shifts ? shifts->const_data_ptr() : nullptr,
                          output.mutable_data_ptr(),
                          map_of(input),
                          map_of(output),
                          input.size(0),
                          input.size(1),
                          rows,
                          columns,
                          format_of(input) == MemoryFormat::ChannelsLast};
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(input.get_device_index(), &stream));
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (input.scalar_type()) {
    case ScalarType::Float:
      launch<float>(p, input, output, cuda_stream);
      break;
    case ScalarType::Half:
      launch<__half>(p, input, output, cuda_stream);
      break;
    case ScalarType::BFloat16:
      launch<__nv_bfloat16>(p, input, output, cuda_stream);
      break;
    default:
      STD_TORCH_CHECK(false, "depthwise_conv2d: no CUDA kernel for this dtype");
  }
  return output;
}

STABLE_TORCH_LIBRARY_IMPL(dlv3p, CUDA, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&depthwise_conv2d_cuda));
}

}  // namespace
}  // namespace dlv3p
