// Depthwise convolution on CUDA: launcher and registration. Forward only; its gradients run stock.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "../common/tensor.h"
#include "depthwise.cuh"
#include "launch.h"

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
void launch_depthwise_fwd(const DepthwiseParams& p, const Stream& stream) {
  const int64_t count = p.batch * (p.channels / V) * p.rows.out * p.columns.out;
  const int64_t blocks = std::min((count + kThreads - 1) / kThreads, kMostBlocks);
  stream.launch(depthwise_fwd_kernel<T, V>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
                p);
}

template <class T>
void launch(const DepthwiseParams& p, const Tensor& input, const Tensor& output,
            const Stream& stream) {
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
  const Stream stream(input);
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
  with_element_type(input, "depthwise_conv2d", [&](auto* element) {
    launch<std::remove_pointer_t<decltype(element)>>(p, input, output, stream);
  });
  return output;
}

DLV3P_CUDA_LIBRARY(m) { m.impl("depthwise_conv2d", TORCH_BOX(&depthwise_conv2d_cuda)); }

}  // namespace
}  // namespace dlv3p
