// The few things about tensors that the stable ABI leaves out.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace dlv3p {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Results take the memory format of the input: channels_last where its channels are adjacent.
// The fake kernels in Python follow the same rule.
inline MemoryFormat format_of(const Tensor& t) {
  return t.stride(1) == 1 && !t.is_contiguous() ? MemoryFormat::ChannelsLast
                                                : MemoryFormat::Contiguous;
}

inline Tensor empty_in_format_of(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w) {
  return torch::stable::empty({n, c, h, w}, like.scalar_type(), std::nullopt, like.device(),
                              std::nullopt, format_of(like));
}

}  // namespace dlv3p
