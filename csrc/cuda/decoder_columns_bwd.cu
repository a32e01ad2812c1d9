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
constexpr int64_t kMostPixels = 512;  // rows of a band: its table must stay small
constexpr int64_t kLaneBytes = 32;    // few lanes make wide tiles, with few pixels made twice

// The most pixels that a block sees along an axis of which it makes `tile` cells: those of its own
// intervals and of the one in front.
int64_t most_pixels(const ResizeAxis<float>& axis, int64_t tile) {
  int64_t most = 0;
  for (int64_t cell = 0; cell < axis.in; cell += tile) {
    const int64_t end = first_pixel_of(axis, std::min(cell + tile, axis.in));
    most = std::max(most, end - first_pixel_of(axis, cell - 1));
  }
  return most;
}

// Cells of a block that sees at most so many pixels, shared out evenly; 0 where there are none.
int64_t even_tile(const ResizeAxis<float>& axis, int64_t pixels) {
  const auto even = [&](int64_t most) { return blocks_of(axis.in, blocks_of(axis.in, most)); };
  const auto guess = static_cast<int64_t>(static_cast<float>(pixels) * axis.scale);
  int64_t most = axis.out <= pixels ? axis.in : std::min(guess, axis.in);
  while (most > 0 && most_pixels(axis, even(most)) > pixels) --most;
  return most > 0 ? even(most) : 0;
}

template <class T, int K, int V>
struct Launcher {
  // Without columns where the pixels of an interval do not fit a block.
  static ColumnGrid grid(const DepthwiseBackward& p, const Cells& cells) {
    ColumnGrid g{};
    g.lanes = lanes_along(p.input_map, p.channels, V, kLaneBytes, sizeof(T));
    g.slabs = static_cast<int>(blocks_of(p.channels, g.lanes * V));
    const int64_t most = kFewThreads / g.lanes;
    const int64_t tile = std::min(even_tile(cells.columns, most), most);
    const int64_t most_band = even_tile(cells.rows, kMostPixels);
    if (tile < 1 || most_band < 1) return g;
    g.tile = static_cast<int>(tile);
    g.tiles = static_cast<int>(blocks_of(cells.columns.in, tile));
    g.columns = static_cast<int>(std::max(tile, most_pixels(cells.columns, tile)));
    cut_bands(g, cells.rows.in, p.batch, kLeastBand, most_band);
    g.most_rows = static_cast<int>(blocks_of(most_pixels(cells.rows, g.band) + K - 1, K) * K);
    return g;
  }

  static size_t shared_bytes(const ColumnGrid& g) {
    const size_t tables = (g.most_rows + g.columns) * sizeof(CellPair);
    const size_t places = g.columns * g.lanes * V;
    const size_t walk = tables + (2 * places + K * K * g.lanes * V) * sizeof(float);
    return std::max(walk, kTapsAtOnce<K, V> * places * sizeof(float));
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
    takes = g.columns > 0 && g.columns * g.lanes <= kFewThreads && launcher.shared_bytes(g) <= most;
  });
  return takes;
}

void launch_columns(const Stream& stream, const DepthwiseBackward& p, const Cells& cells,
                    const Tensor& like) {
  with_launcher(p, like, [&](auto launcher) { launcher.run(stream, p, cells, like); });
}

}  // namespace dlv3p
