// Launcher of both gradients of the depthwise convolution of a resized map, by columns.
#include <cstdint>
#include <type_traits>

#include "decoder_columns_bwd.cuh"
#include "decoder_columns_plan.h"
#include "decoder_launch.h"
#include "reduce.h"

namespace dlv3p {
namespace {

constexpr int64_t kLeastBand = 8;     // a band makes the interval above it as well
constexpr int64_t kMostPixels = 512;  // rows of a band, about: its table must stay small
constexpr int64_t kLaneBytes = 32;    // few lanes make wide tiles, with few pixels made twice

// At most so many pixels read `intervals` neighbouring cells first; one more half in front of the
// first cell, and one for each of three roundings.
int64_t most_pixels(const ResizeAxis<float>& axis, int64_t intervals) {
  if (axis.scale <= 0.0f) return axis.out;
  const double pixels = (static_cast<double>(intervals) + 0.5) / axis.scale + 3;
  return pixels < axis.out ? static_cast<int64_t>(pixels) : axis.out;
}

// The other way around: so many intervals have no more pixels.
int64_t most_intervals(const ResizeAxis<float>& axis, int64_t pixels) {
  if (axis.out <= pixels) return axis.in;
  const double intervals = (static_cast<double>(pixels) - 3) * axis.scale - 0.5;
  return intervals > 0 ? std::min(axis.in, static_cast<int64_t>(intervals)) : 0;
}

template <class T, int K, int V>
struct Launcher {
  // Without threads where no interval of columns fits a block.
  static ColumnGrid grid(const DepthwiseBackward& p, const Cells& cells) {
    ColumnGrid g{};
    g.lanes = lanes_along(p.input_map, p.channels, V, kLaneBytes, sizeof(T));
    g.slabs = static_cast<int>(blocks_of(p.channels, g.lanes * V));
    const int64_t most = kColumnThreads / g.lanes;
    const int64_t seen = most_intervals(cells.columns, most);
    const int64_t tile = std::min(seen == cells.columns.in ? seen : seen - 1, most);
    if (tile < 1) return g;
    g.tiles = static_cast<int>(blocks_of(cells.columns.in, tile));
    g.tile = static_cast<int>(blocks_of(cells.columns.in, g.tiles));
    g.columns = static_cast<int>(std::max<int64_t>(g.tile, most_pixels(cells.columns, g.tile + 1)));
    const int64_t most_band = std::max<int64_t>(1, most_intervals(cells.rows, kMostPixels) - 1);
    cut_bands(g, cells.rows.in, p.batch, kLeastBand, most_band);
    const int64_t rows = most_pixels(cells.rows, g.band + 1) + K - 1;
    g.most_rows = static_cast<int>(blocks_of(rows, K) * K);
    return g;
  }

  static size_t shared_bytes(const ColumnGrid& g) {
    const size_t tables = (g.most_rows + g.columns) * sizeof(CellPair);
    const size_t places = g.columns * g.lanes * V;
    const size_t walk = tables + (2 * places + K * K * g.lanes * V) * sizeof(float);
    return std::max(walk, K * places * sizeof(float));
  }

  static void run(const Stream& stream, const DepthwiseBackward& p, const Cells& cells,
                  const Tensor& like) {
    const ColumnGrid g = grid(p, cells);
    const int64_t parts = parts_of(g, p.batch);
    const Tensor room = float_workspace(like, p.grad_weight ? parts * K * K * p.channels : 0);
    const ColumnsBackward q{p, cells, g,
                            p.grad_weight ? static_cast<float*>(room.mutable_data_ptr()) : nullptr};
    stream.launch(decoder_columns_bwd_kernel<T, K, V>, dim3(static_cast<unsigned>(parts * g.slabs)),
                  dim3(whole_warps(int64_t{g.columns} * g.lanes)), shared_bytes(g), q);
    if (!p.grad_weight) return;
    launch_reduce_sums(stream, like,
                       {q.parts,
                        parts,
                        p.channels,
                        K * K,
                        K * K,
                        /*channels_fastest=*/true,
                        p.grad_weight,
                        {nullptr, nullptr}});
  }
};

// Calls `body` with the launcher of a call.
template <class Body>
void with_launcher(const DepthwiseBackward& p, const Tensor& like, Body&& body) {
  with_element_type(like, "decoder_depthwise_backward", [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    const auto with_pack = [&](auto kernel) {
      constexpr int K = decltype(kernel)::value;
      constexpr int V = column_lanes(K);
      const bool packs = p.channels % V == 0 && pack_fits(p.input_map, p.input, V, sizeof(T)) &&
                         pack_fits(p.grad_map, p.grad, V, sizeof(T)) &&
                         (!p.grad_input || pack_fits(p.grad_input_map, p.grad_input, V, sizeof(T)));
      packs ? body(Launcher<T, K, V>()) : body(Launcher<T, K, 1>());
    };
    p.rows.kernel == 3 ? with_pack(std::integral_constant<int, 3>())
                       : with_pack(std::integral_constant<int, 5>());
  });
}

}  // namespace

bool columns_take(const DepthwiseBackward& p, const Cells& cells, const Tensor& like) {
  const auto fits = [&](const DepthwiseMap& map, int64_t width) {
    return columns_fit(p.rows, p.columns, cells, map, width, p.channels);
  };
  if (!fits(p.input_map, cells.columns.in) || !fits(p.grad_map, p.columns.out)) return false;
  bool takes = false;
  with_launcher(p, like, [&](auto launcher) {
    const ColumnGrid g = launcher.grid(p, cells);
    const auto most = static_cast<size_t>(device_limits().shared_bytes_per_block);
    takes =
        g.columns > 0 && g.columns * g.lanes <= kColumnThreads && launcher.shared_bytes(g) <= most;
  });
  return takes;
}

void launch_columns(const Stream& stream, const DepthwiseBackward& p, const Cells& cells,
                    const Tensor& like) {
  with_launcher(p, like, [&](auto launcher) { launcher.run(stream, p, cells, like); });
}

}  // namespace dlv3p
