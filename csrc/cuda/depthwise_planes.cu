// Launchers of the depthwise kernels for contiguous memory.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <type_traits>

#include "depthwise_planes.cuh"
#include "depthwise_planes.h"
#include "reduce.h"

namespace dlv3p {
namespace {

// Shared memory of a block. Small planes share a block up to the first, so that several blocks fit
// and hide each other's latency; larger ones are cut into bands of rows beyond the second.
constexpr int64_t kSharedFloats = 24 * 1024 / sizeof(float);
constexpr int64_t kMostSharedFloats = 48 * 1024 / sizeof(float);
constexpr int kMostPlanes = kPlanesThreads / kWarpLanes;  // a warp for each at least
constexpr int kMostApart = 2;                             // A of the kernels

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool is_stride(int64_t size, int64_t stride, int64_t expected) {
  return size == 1 || stride == expected;
}

bool dense_images(const DepthwiseMap& map, int64_t channels, int64_t height, int64_t width) {
  return is_stride(width, map.stride_w, 1) && is_stride(height, map.stride_h, width) &&
         is_stride(channels, map.stride_c, height * width);
}

bool dense(const DepthwiseMap& map, int64_t batch, int64_t channels, int64_t height,
           int64_t width) {
  return dense_images(map, channels, height, width) &&
         is_stride(batch, map.stride_n, channels * height * width);
}

int apart(const PlanesAxis& axis) { return axis.step / std::gcd(axis.step, axis.dilation); }

PlanesAxis forward_axis(const ConvAxis& axis) {
  const auto number = [](int64_t x) { return static_cast<int>(x); };
  return {number(axis.in),      1, number(axis.out), number(axis.stride), number(axis.before),
          number(axis.dilation)};
}

PlanesAxis backward_axis(const ConvAxis& axis) {
  const auto number = [](int64_t x) { return static_cast<int>(x); };
  return {number(axis.out),
          number(axis.stride),
          number(axis.in),
          1,
          number((axis.kernel - 1) * axis.dilation - axis.before),
          number(axis.dilation)};
}

// How the planes are cut into blocks; none where no cut fits into shared memory.
class PlanesPlan {
 public:
  PlanesPlan(const PlanesAxis& rows, const PlanesAxis& columns, int64_t batch, int64_t channels,
             int kernel, int64_t element_bytes) {
    g_.rows = rows;
    g_.columns = columns;
    g_.planes = batch * channels;
    g_.channels = channels;
    set_pitch(kernel);
    g_.phases = rows.dilation / std::gcd(rows.step, rows.dilation);
    g_.groups = static_cast<int>(ceil_div(ceil_div(rows.result, g_.phases), kStrip));
    fits_ = take_whole_planes() || take_bands(kernel);
    if (!fits_) return;
    const int64_t pack = 16 / element_bytes;
    g_.by_result_width = Divide::by(columns.result);
    g_.by_source_width = Divide::by(columns.source);
    g_.by_band_groups = Divide::by(g_.band_groups);
    g_.by_row_packs = Divide::by(ceil_div(columns.source - 1, pack) + 1);
    g_.by_row_spread = Divide::by(rows.spread);
    // Strips of a block are counted, and divided by the width of the result, in 32 bits.
    const int64_t strips = int64_t{g_.whole ? g_.phases : 1} * g_.band_groups * columns.result;
    fits_ = blocks() <= std::numeric_limits<int>::max() &&
            strips * columns.result <= std::numeric_limits<unsigned>::max();
  }

  bool fits() const { return fits_; }
  const PlanesGeometry& geometry() const { return g_; }
  int64_t bands() const { return g_.whole ? 1 : g_.phases * g_.bands_per_phase; }
  int64_t blocks() const { return ceil_div(g_.planes, g_.planes_per_block) * bands(); }
  int64_t floats() const {
    return g_.pad + int64_t{g_.planes_per_block} * g_.staged_rows * g_.pitch;
  }

 private:
  // Zeros enough for the taps of the first and last column of the result.
  void set_pitch(int kernel) {
    const PlanesAxis& c = g_.columns;
    const int width = (c.source - 1) * c.spread + 1;
    const int last = (c.result - 1) * c.step - c.offset + (kernel - 1) * c.dilation;
    g_.pad = std::max({0, c.offset, last - (width - 1)});
    g_.pitch = width + g_.pad;
  }

  bool take_whole_planes() {
    const int64_t plane = int64_t{g_.rows.source} * g_.pitch;
    if (g_.pad + plane > kMostSharedFloats) return false;
    g_.whole = true;
    g_.staged_step = 1;
    g_.staged_rows = g_.rows.source;
    g_.band_groups = g_.groups;
    g_.bands_per_phase = 1;
    g_.planes_per_block = 1;
    while (g_.planes_per_block < kMostPlanes &&
           g_.pad + 2 * g_.planes_per_block * plane <= kSharedFloats &&
           2 * g_.planes_per_block <= g_.planes) {
      g_.planes_per_block *= 2;
    }
    return true;
  }

  // Source rows that `groups` groups of a phase read.
  int64_t rows_of(int64_t groups, int kernel) const {
    const int64_t rows = (groups * kStrip - 1) * apart(g_.rows) + kernel;
    return g_.rows.spread == 1 ? rows : rows / g_.rows.spread + 1;
  }

  bool take_bands(int kernel) {
    if (g_.rows.spread > 1 && g_.rows.dilation > 1) return false;
    int64_t groups = g_.groups;
    while (groups > 0 && g_.pad + rows_of(groups, kernel) * g_.pitch > kMostSharedFloats) --groups;
    if (groups == 0) return false;
    g_.whole = false;
    g_.planes_per_block = 1;
    g_.staged_step = g_.rows.spread == 1 ? g_.rows.dilation : 1;
    g_.bands_per_phase = static_cast<int>(ceil_div(g_.groups, groups));
    g_.band_groups = static_cast<int>(ceil_div(g_.groups, g_.bands_per_phase));
    g_.staged_rows = static_cast<int>(rows_of(g_.band_groups, kernel));
    return true;
  }

  PlanesGeometry g_{};
  bool fits_ = false;
};

// Offsets within planes are counted in 32 bits.
bool axis_fits(const ConvAxis& axis) {
  constexpr int64_t kMost = 1 << 15;
  return std::max({axis.in, axis.out, axis.dilation, axis.stride, std::abs(axis.before)}) < kMost;
}

bool shape_fits(const ConvAxis& rows, const ConvAxis& columns) {
  const int64_t k = rows.kernel;
  return k == columns.kernel && (k == 3 || k == 5 || k == 7) && axis_fits(rows) &&
         axis_fits(columns);
}

int64_t element_bytes(const Tensor& t) { return t.scalar_type() == ScalarType::Float ? 4 : 2; }

PlanesPlan plan_of(const DepthwiseForward& p, const Tensor& input) {
  return PlanesPlan(forward_axis(p.rows), forward_axis(p.columns), p.batch, p.channels,
                    static_cast<int>(p.rows.kernel), element_bytes(input));
}

PlanesPlan plan_of(const DepthwiseBackward& p, const Tensor& input) {
  return PlanesPlan(backward_axis(p.rows), backward_axis(p.columns), p.batch, p.channels,
                    static_cast<int>(p.rows.kernel), element_bytes(input));
}

// Calls body(constant) with the kernel size known to the compiler.
template <class Body>
void with_kernel(int64_t kernel, Body&& body) {
  switch (kernel) {
    case 3:
      return body(std::integral_constant<int, 3>{});
    case 5:
      return body(std::integral_constant<int, 5>{});
    default:
      return body(std::integral_constant<int, 7>{});
  }
}

constexpr int64_t kSharedAlignment = 4;  // floats: zeros are stored by 16 bytes

size_t shared_bytes(int64_t floats) {
  return ceil_div(floats, kSharedAlignment) * kSharedAlignment * sizeof(float);
}

}  // namespace

bool planes_take(const DepthwiseForward& p, const Tensor& input) {
  return shape_fits(p.rows, p.columns) &&
         dense(p.input_map, p.batch, p.channels, p.rows.in, p.columns.in) &&
         dense_images(p.output_map, p.channels, p.rows.out, p.columns.out) &&
         apart(forward_axis(p.rows)) <= kMostApart && plan_of(p, input).fits();
}

bool planes_take(const DepthwiseBackward& p, const Tensor& input) {
  return shape_fits(p.rows, p.columns) &&
         dense(p.input_map, p.batch, p.channels, p.rows.in, p.columns.in) &&
         dense(p.grad_map, p.batch, p.channels, p.rows.out, p.columns.out) &&
         (!p.grad_input || dense(p.grad_input_map, p.batch, p.channels, p.rows.in, p.columns.in)) &&
         plan_of(p, input).fits();
}

void launch_planes(const Stream& stream, const DepthwiseForward& p, const Tensor& input) {
  const PlanesPlan plan = plan_of(p, input);
  const int64_t gap = p.output_map.stride_n - p.channels * p.rows.out * p.columns.out;
  const PlanesForward params{plan.geometry(), p.input,  p.weight, p.bias,
                             p.output,        p.before, p.behind, p.batch > 1 ? gap : 0};
  const dim3 grid(static_cast<unsigned>(plan.blocks()));
  const size_t shared = shared_bytes(plan.floats());
  with_element_type(input, "depthwise_conv2d", [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    with_kernel(p.rows.kernel, [&](auto kernel) {
      constexpr int K = decltype(kernel)::value;
      const auto run = apart(params.geometry.rows) == 1 ? depthwise_planes_fwd_kernel<T, K, 1>
                                                        : depthwise_planes_fwd_kernel<T, K, 2>;
      stream.launch(run, grid, dim3(kPlanesThreads), shared, params);
    });
  });
}

void launch_planes(const Stream& stream, const DepthwiseBackward& p, const Tensor& input) {
  const PlanesPlan plan = plan_of(p, input);
  const int taps = static_cast<int>(p.rows.kernel * p.columns.kernel);
  const int64_t rows = p.batch * plan.bands();
  std::optional<Tensor> room;
  if (p.grad_weight || p.grad_scale) {
    room = float_workspace(input, rows * p.channels * (taps + 2));
  }
  float* const parts = room ? static_cast<float*>(room->mutable_data_ptr()) : nullptr;
  const PlanesBackward params{plan.geometry(), p.grad, p.input, p.weight,
                              p.grad_input,    parts,  p.before};
  const dim3 grid(static_cast<unsigned>(plan.blocks()));
  // The sums of the threads, a row of taps at a time, take the place of the gradients.
  const int64_t scratch = p.rows.kernel * kPlanesThreads;
  const size_t shared = shared_bytes(std::max(plan.floats(), scratch));
  with_element_type(input, "depthwise_conv2d_backward", [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    with_kernel(p.rows.kernel, [&](auto kernel) {
      constexpr int K = decltype(kernel)::value;
      stream.launch(depthwise_planes_bwd_kernel<T, K>, grid, dim3(kPlanesThreads), shared, params);
    });
  });
  if (!parts) return;
  launch_reduce_sums(stream, input,
                     {parts,
                      rows,
                      p.channels,
                      taps + 2,
                      taps,
                      /*channels_fastest=*/false,
                      p.grad_weight,
                      {p.grad_scale, p.grad_shift}});
}

}  // namespace dlv3p
