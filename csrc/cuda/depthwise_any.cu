// Launchers of the depthwise kernels that take anything.
#include <type_traits>

#include "depthwise_any_launch.h"
#include "depthwise_launch.h"

namespace dlv3p {

void launch_any(const Stream& stream, const DepthwiseForward& p, const Tensor& like) {
  with_element_type(like, "depthwise_conv2d", [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    launch_any_forward<T>(stream, p, MapSource{p.input, p.input_map, p.before});
  });
}

void launch_any(const Stream& stream, const DepthwiseBackward& p, const Tensor& like) {
  with_element_type(like, "depthwise_conv2d_backward", [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    const MapSource source{p.input, p.input_map, p.before};
    launch_any_backward<T>(stream, p, source, like, [&](auto pack, const auto& grid, auto parts) {
      stream.launch(depthwise_any_bwd_input_kernel<T, decltype(pack)::value>, grid.grid,
                    dim3(kAnyThreads), 0, p, grid.over(p.rows.in, p.columns.in), parts);
    });
  });
}

}  // namespace dlv3p
