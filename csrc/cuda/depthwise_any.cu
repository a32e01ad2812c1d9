// Launchers of the depthwise kernels that take anything.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "depthwise_any.cuh"
#include "depthwise_launch.h"
#include "reduce.h"

namespace dlv3p {
namespace {

constexpr int kPackBytes = 16;
// Pixels that a row of threads takes one after the other, at least, before more blocks are made.
constexpr int64_t kPixelsPerThread = 16;
// Blocks over the pixels; each leaves a row of partial sums.
constexpr int64_t kMostSlices = 512;

bool fits(const DepthwiseMap& map, const void* data, int64_t pack, int64_t element_bytes) {
  return map.stride_c == 1 && map.stride_n % pack == 0 && map.stride_h % pack == 0 &&
         map.stride_w % pack == 0 &&
         reinterpret_cast<std::uintptr_t>(data) % (pack * element_bytes) == 0;
}

struct AnyGrid {
  AnyBlock block;
  dim3 grid;
  int64_t slices;

  AnyGrid(int64_t channels, int64_t pixels, int lanes, int pack) {
    const int rows = kAnyThreads / lanes;
    const int64_t wanted = (pixels + rows * kPixelsPerThread - 1) / (rows * kPixelsPerThread);
    const int64_t most = std::clamp<int64_t>(wanted, 1, kMostSlices);
    block = {lanes, rows, (pixels + most - 1) / most, {}};
    slices = (pixels + block.slice_pixels - 1) / block.slice_pixels;
    const int64_t tiles = (channels + lanes * pack - 1) / (lanes * pack);
    grid = dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(slices));
  }

  AnyBlock over(int64_t height, int64_t width) const {
    return {block.lanes, block.rows, block.slice_pixels, Pixel::of(block.rows, height, width)};
  }
};

int lanes_of(const DepthwiseMap& map) { return map.stride_c == 1 ? kAnyLanes : 1; }

// Calls `body` with the number of channels of a thread, known to the compiler.
template <class T, class Body>
void with_pack(bool packs_fit, Body&& body) {
  if (packs_fit) {
    body(std::integral_constant<int, kPackBytes / sizeof(T)>());
  } else {
    body(std::integral_constant<int, 1>());
  }
}

template <class T>
void launch(const Stream& stream, const DepthwiseForward& p) {
  constexpr int64_t kPack = kPackBytes / sizeof(T);
  const bool packs_fit = p.channels % kPack == 0 && fits(p.input_map, p.input, kPack, sizeof(T)) &&
                         fits(p.output_map, p.output, kPack, sizeof(T));
  with_pack<T>(packs_fit, [&](auto pack) {
    constexpr int V = decltype(pack)::value;
    const AnyGrid grid(p.channels, p.batch * p.rows.out * p.columns.out, lanes_of(p.input_map), V);
    stream.launch(depthwise_any_fwd_kernel<T, V>, grid.grid, dim3(kAnyThreads), 0, p,
                  grid.over(p.rows.out, p.columns.out));
  });
}

template <class T>
void launch(const Stream& stream, const DepthwiseBackward& p, const Tensor& input) {
  constexpr int64_t kPack = kPackBytes / sizeof(T);
  const bool packs_fit = p.channels % kPack == 0 && fits(p.input_map, p.input, kPack, sizeof(T)) &&
                         fits(p.grad_map, p.grad, kPack, sizeof(T)) &&
                         (!p.grad_input || fits(p.grad_input_map, p.grad_input, kPack, sizeof(T)));
  const int taps = static_cast<int>(p.rows.kernel * p.columns.kernel);
  const int width = taps + (p.grad_scale ? 2 : 0);
  with_pack<T>(packs_fit, [&](auto pack) {
    constexpr int V = decltype(pack)::value;
    const int lanes = lanes_of(p.input_map);
    // Both kernels cut their pixels into as many slices, since their sums share a row.
    const int64_t pixels = std::max(p.rows.in * p.columns.in, p.rows.out * p.columns.out);
    const AnyGrid grid(p.channels, p.batch * pixels, lanes, V);
    const Tensor room = float_workspace(input, grid.slices * width * p.channels);
    const AnyParts parts{static_cast<float*>(room.mutable_data_ptr()), width};
    if (p.grad_input) {
      stream.launch(depthwise_any_bwd_input_kernel<T, V>, grid.grid, dim3(kAnyThreads), 0, p,
                    grid.over(p.rows.in, p.columns.in), parts);
    }
    if (p.grad_weight) {
      stream.launch(depthwise_any_bwd_weight_kernel<T, V>, grid.grid, dim3(kAnyThreads), 0, p,
                    grid.over(p.rows.out, p.columns.out), parts);
    }
    if (p.grad_weight || p.grad_scale) {
      launch_reduce_sums(stream, input,
                         {parts.parts,
                          grid.slices,
                          p.channels,
                          width,
                          taps,
                          true,
                          p.grad_weight,
                          {p.grad_scale, p.grad_shift}});
    }
  });
}

}  // namespace

void launch_any(const Stream& stream, const DepthwiseForward& p, const Tensor& input) {
  with_element_type(input, "depthwise_conv2d", [&](auto* element) {
    launch<std::remove_pointer_t<decltype(element)>>(stream, p);
  });
}

void launch_any(const Stream& stream, const DepthwiseBackward& p, const Tensor& input) {
  with_element_type(input, "depthwise_conv2d_backward", [&](auto* element) {
    launch<std::remove_pointer_t<decltype(element)>>(stream, p, input);
  });
}

}  // namespace dlv3p
