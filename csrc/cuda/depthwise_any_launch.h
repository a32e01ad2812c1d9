// How the depthwise kernels that take anything are launched, over whatever source they read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "depthwise_any.cuh"
#include "reduce.h"

namespace dlv3p {

constexpr int kAnyPackBytes = 16;
// Pixels that a row of threads takes one after the other, at least, before more blocks are made.
constexpr int64_t kAnyPixelsPerThread = 16;
// Blocks over the pixels; each leaves a row of partial sums.
constexpr int64_t kMostAnySlices = 512;

inline bool packs_fit(const DepthwiseMap& map, const void* data, int64_t pack,
                      int64_t element_bytes) {
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
    const int64_t wanted = (pixels + rows * kAnyPixelsPerThread - 1) / (rows * kAnyPixelsPerThread);
    const int64_t most = std::clamp<int64_t>(wanted, 1, kMostAnySlices);
    block = {lanes, rows, (pixels + most - 1) / most, {}};
    slices = (pixels + block.slice_pixels - 1) / block.slice_pixels;
    const int64_t tiles = (channels + lanes * pack - 1) / (lanes * pack);
    grid = dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(slices));
  }

  AnyBlock over(int64_t height, int64_t width) const {
    return {block.lanes, block.rows, block.slice_pixels, Pixel::of(block.rows, height, width)};
  }
};

inline int lanes_of(const DepthwiseMap& map) { return map.stride_c == 1 ? kAnyLanes : 1; }

// Calls `body` with the number of channels of a thread, known to the compiler.
template <class T, class Body>
void with_pack(bool fit, Body&& body) {
  if (fit) {
    body(std::integral_constant<int, kAnyPackBytes / sizeof(T)>());
  } else {
    body(std::integral_constant<int, 1>());
  }
}

template <class T, class Source>
void launch_any_forward(const Stream& stream, const DepthwiseForward& p, const Source& source) {
  constexpr int64_t kPack = kAnyPackBytes / sizeof(T);
  const bool fit = p.channels % kPack == 0 && packs_fit(p.input_map, p.input, kPack, sizeof(T)) &&
                   packs_fit(p.output_map, p.output, kPack, sizeof(T));
  with_pack<T>(fit, [&](auto pack) {
    constexpr int V = decltype(pack)::value;
    const AnyGrid grid(p.channels, p.batch * p.rows.out * p.columns.out, lanes_of(p.input_map), V);
    stream.launch(depthwise_any_fwd_kernel<T, V, Source>, grid.grid, dim3(kAnyThreads), 0, p,
                  source, grid.over(p.rows.out, p.columns.out));
  });
}

// `by_input(pack, grid, parts)` launches what makes the gradient by the input.
template <class T, class Source, class ByInput>
void launch_any_backward(const Stream& stream, const DepthwiseBackward& p, const Source& source,
                         const Tensor& like, ByInput&& by_input) {
  constexpr int64_t kPack = kAnyPackBytes / sizeof(T);
  const bool fit = p.channels % kPack == 0 && packs_fit(p.input_map, p.input, kPack, sizeof(T)) &&
                   packs_fit(p.grad_map, p.grad, kPack, sizeof(T)) &&
                   (!p.grad_input || packs_fit(p.grad_input_map, p.grad_input, kPack, sizeof(T)));
  const int taps = static_cast<int>(p.rows.kernel * p.columns.kernel);
  const int width = taps + (p.grad_scale ? 2 : 0);
  with_pack<T>(fit, [&](auto pack) {
    constexpr int V = decltype(pack)::value;
    // Both kernels cut their pixels into as many slices, since their sums share a row.
    const int64_t pixels = std::max(p.rows.in * p.columns.in, p.rows.out * p.columns.out);
    const AnyGrid grid(p.channels, p.batch * pixels, lanes_of(p.input_map), V);
    const Tensor room = float_workspace(like, grid.slices * width * p.channels);
    const AnyParts parts{static_cast<float*>(room.mutable_data_ptr()), width};
    if (p.grad_input) by_input(pack, grid, parts);
    if (p.grad_weight) {
      stream.launch(depthwise_any_bwd_weight_kernel<T, V, Source>, grid.grid, dim3(kAnyThreads), 0,
                    p, source, grid.over(p.rows.out, p.columns.out), parts);
    }
    if (p.grad_weight || p.grad_scale) {
      launch_reduce_sums(stream, like,
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

}  // namespace dlv3p
