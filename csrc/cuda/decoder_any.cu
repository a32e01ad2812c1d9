// Launchers of the kernels that take any convolution of a resized map.
#include <type_traits>

#include "decoder_any.cuh"
#include "decoder_launch.h"
#include "depthwise_any_launch.h"

namespace dlv3p {

void launch_any(const Stream& stream, const DepthwiseForward& p, const Cells& cells,
                const Tensor& like) {
  with_element_type(like, "decoder_depthwise", [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    launch_any_forward<T>(stream, p, CellSource{p.input, p.input_map, cells});
  });
}

void launch_any(const Stream& stream, const DepthwiseBackward& p, const Cells& cells,
                const Tensor& like) {
  with_element_type(like, "decoder_depthwise_backward", [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    const CellSource source{p.input, p.input_map, cells};
    launch_any_backward<T>(stream, p, source, like, [&](auto pack, const auto&, const auto&) {
      constexpr int V = decltype(pack)::value;
      const int64_t height = cells.rows.in, width = cells.columns.in;
      const AnyGrid grid(p.channels, p.batch * height * width, lanes_of(p.input_map), V);
      stream.launch(decoder_any_bwd_input_kernel<T, V>, grid.grid, dim3(kAnyThreads), 0, p, cells,
                    grid.over(height, width));
    });
  });
}

}  // namespace dlv3p
