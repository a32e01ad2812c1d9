// Launchers of the second stage of reductions.
#include <cstdint>
#include <optional>
#include <type_traits>

#include "reduce.h"

namespace dlv3p {
namespace {

dim3 blocks_for(int64_t columns) {
  return dim3(static_cast<unsigned>((columns + kReduceLanes - 1) / kReduceLanes));
}

}  // namespace

Tensor float_workspace(const Tensor& like, int64_t elements) {
  return torch::stable::empty({elements}, ScalarType::Float, std::nullopt, like.device(),
                              std::nullopt, std::nullopt);
}

void launch_reduce_sums(const Stream& stream, const Tensor& like, const SumParts& parts) {
  with_element_type(like, "reduce_sums", [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    stream.launch(reduce_sums_kernel<T>, blocks_for(parts.channels * parts.width),
                  dim3(kReduceThreads), 0, parts);
  });
}

void launch_reduce_moments(const Stream& stream, const MomentParts& parts) {
  stream.launch(reduce_moments_kernel<kReduceThreads>, blocks_for(parts.channels),
                dim3(kReduceThreads), 0, parts);
}

}  // namespace dlv3p
