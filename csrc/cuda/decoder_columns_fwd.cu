// Launcher of the forward depthwise convolution of a resized map, by columns.
#include <cstdint>
#include <type_traits>

#include "decoder_columns_fwd.cuh"
#include "decoder_columns_plan.h"
#include "decoder_launch.h"
#include "reduce.h"

namespace dlv3p {
namespace {

constexpr int64_t kLeastBand = 16;  // a band mixes some rows that its neighbour mixes as well
constexpr int64_t kMostBand = 512;  // the table of its rows must stay small
constexpr int64_t kLaneBytes = 64;

template <class T, int K, int V>
struct Launcher {
  static void run(const Stream& stream, const DepthwiseForward& p, const Cells& cells,
                  const Tensor& like) {
    if (p.mean) {
      measure(stream, p, cells, like);
    } else if (p.behind.is_identity()) {
      launch<Behind::kNothing>(stream, {p, cells, grid<Behind::kNothing>(p), nullptr});
    } else {
      launch<Behind::kAffine>(stream, {p, cells, grid<Behind::kAffine>(p), nullptr});
    }
  }

 private:
  static void measure(const Stream& stream, const DepthwiseForward& p, const Cells& cells,
                      const Tensor& like) {
    const ColumnGrid g = grid<Behind::kStatistics>(p);
    const int64_t parts = parts_of(g, p.batch);
    const Tensor room = float_workspace(like, parts * 3 * p.channels);
    auto* const moments = static_cast<float*>(room.mutable_data_ptr());
    launch<Behind::kStatistics>(stream, {p, cells, g, moments});
    launch_reduce_moments(stream, {moments, parts, p.channels, p.mean, p.var});
  }

  template <Behind kBehind>
  static ColumnGrid grid(const DepthwiseForward& p) {
    ColumnGrid g{};
    g.lanes = lanes_along(p.input_map, p.channels, V, kLaneBytes, sizeof(T));
    g.slabs = static_cast<int>(blocks_of(p.channels, g.lanes * V));
    g.tiles = static_cast<int>(blocks_of(p.columns.out, kForwardThreads<K, kBehind> / g.lanes));
    g.tile = g.columns = static_cast<int>(blocks_of(p.columns.out, g.tiles));
    cut_bands(g, p.rows.out, p.batch, kLeastBand, kMostBand);
    g.most_rows = static_cast<int>(blocks_of(g.band + K - 1, K) * K);
    return g;
  }

  template <Behind kBehind>
  static void launch(const Stream& stream, const ColumnsForward& q) {
    const ColumnGrid& g = q.grid;
    const size_t table = g.most_rows * sizeof(CellPair);
    const size_t moments =
        kBehind == Behind::kStatistics ? sizeof(Moments) * g.columns * g.lanes * V : 0;
    const int64_t blocks = parts_of(g, q.convolution.batch) * g.slabs;
    stream.launch(decoder_columns_fwd_kernel<T, K, V, kBehind>, dim3(static_cast<unsigned>(blocks)),
                  dim3(whole_warps(int64_t{g.columns} * g.lanes)), std::max(table, moments), q);
  }
};

// Calls `body` with the launcher of a call that is taken.
template <class T, int K, class Body>
void with_pack(const DepthwiseForward& p, Body&& body) {
  constexpr int V = column_lanes(K);
  const bool packs = p.channels % V == 0 && pack_fits(p.input_map, p.input, V, sizeof(T)) &&
                     (!p.output || pack_fits(p.output_map, p.output, V, sizeof(T))) &&
                     reinterpret_cast<std::uintptr_t>(p.weight) % (V * sizeof(T)) == 0;
  packs ? body(Launcher<T, K, V>()) : body(Launcher<T, K, 1>());
}

}  // namespace

bool columns_take(const DepthwiseForward& p, const Cells& cells) {
  return columns_fit(p.rows, p.columns, cells, p.input_map, cells.columns.in, p.channels);
}

void launch_columns(const Stream& stream, const DepthwiseForward& p, const Cells& cells,
                    const Tensor& like) {
  with_element_type(like, "decoder_depthwise", [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    const auto run = [&](auto launcher) { launcher.run(stream, p, cells, like); };
    p.rows.kernel == 3 ? with_pack<T, 3>(p, run) : with_pack<T, 5>(p, run);
  });
}

}  // namespace dlv3p
