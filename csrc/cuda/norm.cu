// Batch norm on CUDA: launchers and registration.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>

#include "../common/tensor.h"
#include "channel_vector.h"
#include "launch.h"
#include "norm.h"
#include "norm_planes.cuh"
#include "norm_rows.cuh"
#include "reduce.h"

namespace dlv3p {
namespace {

constexpr int kPackBytes = 16;  // the widest load of a thread
constexpr int64_t kMostGridY = 65535;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

unsigned grid_size(int64_t blocks) { return static_cast<unsigned>(blocks); }

// One sample per channel and pixel lies as (pixels, channels); a 1x1 map is that in any format.
bool is_rows(const Tensor& t) {
  return format_of(t) == MemoryFormat::ChannelsLast ||
         (t.size(2) * t.size(3) == 1 && t.stride(1) == 1);
}

// The tensors of a call, all brought to one dense layout that begins at 16 bytes; for all others a
// copy is made, which is rare.
class Layout {
 public:
  explicit Layout(const Tensor& input)
      : rows_(is_rows(input)),
        format_(rows_ ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous),
        shape_(input) {}

  Tensor dense(const Tensor& t, const char* op) const {
    STD_TORCH_CHECK(t.scalar_type() == shape_.scalar_type(), op, ": the dtypes differ");
    for (int64_t d = 0; d < 4; ++d) {
      STD_TORCH_CHECK(t.size(d) == shape_.size(d), op, ": the shapes differ");
    }
    const Tensor result = torch::stable::contiguous(t, format_);
    const bool aligned =
        reinterpret_cast<std::uintptr_t>(result.const_data_ptr()) % kPackBytes == 0;
    return aligned ? result : torch::stable::clone(result);
  }

  Tensor empty() const {
    return empty_in_format_of(shape_, shape_.size(0), channels(), shape_.size(2), shape_.size(3));
  }

  bool rows() const { return rows_; }
  int64_t batch() const { return shape_.size(0); }
  int64_t channels() const { return shape_.size(1); }
  int64_t plane() const { return shape_.size(2) * shape_.size(3); }
  int64_t pixels() const { return batch() * plane(); }

 private:
  bool rows_;
  MemoryFormat format_;
  Tensor shape_;
};

Tensor vector_like(const Tensor& input, int64_t size) {
  return torch::stable::empty({size}, ScalarType::Float, std::nullopt, input.device(), std::nullopt,
                              std::nullopt);
}

float* floats(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

// Lanes so that no tile of channels is much emptier than the others.
RowTiling row_tiling(const Layout& layout, int pack, int threads, int blocks, int flight) {
  const int64_t packs = layout.channels() / pack;
  const int64_t tiles = ceil_div(packs, kWarpLanes);
  const int lanes = static_cast<int>(ceil_div(packs, tiles));
  const int rows = threads / lanes;
  // One wave of blocks, and at least one full flight of loads for each.
  const int64_t chunks =
      std::clamp<int64_t>(int64_t{device_limits().multiprocessors} * blocks / tiles, 1, kMostGridY);
  const int64_t chunk = std::max<int64_t>(ceil_div(layout.pixels(), chunks), rows * flight);
  return {layout.channels(), layout.pixels(), chunk, lanes, rows};
}

dim3 row_grid(const RowTiling& t, int pack) {
  return dim3(grid_size(ceil_div(t.channels / pack, t.lanes)),
              grid_size(ceil_div(t.pixels, t.chunk)));
}

PlaneTiling plane_tiling(const Layout& layout, int pack) {
  const int64_t units = ceil_div(ceil_div(layout.plane(), pack), kUnitPacks);
  return {layout.batch(), layout.channels(), layout.plane(), grid_size(units)};
}

// Calls body(constant) with the number of channels of a thread in channels_last memory: a pack, or
// one where the channels are no whole packs.
template <class T, template <class, int> class Work, class Body>
void with_row_pack(const Layout& layout, Body&& body) {
  constexpr int kMost = Work<T, 1>::kMostChannels;
  constexpr int kPack = std::min<int>(kPackBytes / sizeof(T), kMost);
  if (layout.channels() % kPack == 0) {
    body(std::integral_constant<int, kPack>{});
  } else {
    body(std::integral_constant<int, 1>{});
  }
}

// Runs a work over every element. `Work` is the template of works, over element type and channels.
template <template <class, int> class Work, class Params>
void launch_map(const Tensor& input, const Layout& layout, const Params& params,
                const Stream& stream) {
  with_element_type(input, "batch_norm", [&](auto* element) {
    using T = std::remove_pointer_t<decltype(element)>;
    if (layout.rows()) {
      return with_row_pack<T, Work>(layout, [&](auto pack) {
        constexpr int V = pack.value;
        const RowTiling t =
            row_tiling(layout, V, kNormRowThreads, kNormRowBlocks, Work<T, V>::kFlight);
        stream.launch(norm_rows_kernel<Work<T, V>>, row_grid(t, V), dim3(kNormRowThreads), 0,
                      params, t);
      });
    }
    constexpr int V = kPackBytes / sizeof(T);
    const PlaneTiling t = plane_tiling(layout, V);
    const dim3 grid(grid_size(ceil_div(t.channels * t.units_per_plane, kPlaneWarps)),
                    grid_size(std::min(t.batch, kMostGridY)));
    stream.launch(norm_planes_kernel<Work<T, 1>, V>, grid, dim3(kPlaneThreads), 0, params, t);
  });
}

// Partial results of a first stage: `count` rows of `stored` vectors, and what lies behind them.
struct Parts {
  Tensor values;
  int64_t count;
};

Parts parts_for(const Layout& layout, const Tensor& like, const dim3& grid, int64_t stored) {
  return {float_workspace(like, (grid.y * stored + 1) * layout.channels()), grid.y};
}

dim3 reduce_planes_grid(const PlaneTiling& t) {
  constexpr int kBlocks = 16;  // per multiprocessor: two waves, so that none waits for a last one
  const int64_t wanted = ceil_div(int64_t{device_limits().multiprocessors} * kBlocks, t.channels);
  const int64_t most = ceil_div(t.batch * t.units_per_plane, kPlaneWarps);
  return dim3(grid_size(t.channels), grid_size(std::min({wanted, most, kMostGridY})));
}

template <class T>
Parts launch_stats(const Layout& layout, const Tensor& input, const Stream& stream) {
  constexpr int kStored = 3;
  const NormStats params{input.const_data_ptr()};
  std::optional<Parts> parts;
  if (layout.rows()) {
    with_row_pack<T, StatsWork>(layout, [&](auto pack) {
      constexpr int V = pack.value;
      const RowTiling t =
          row_tiling(layout, V, kNormReduceThreads, kNormReduceBlocks, StatsWork<T, V>::kFlight);
      parts = parts_for(layout, input, row_grid(t, V), kStored);
      stream.launch(norm_stats_rows_kernel<T, V>, row_grid(t, V), dim3(kNormReduceThreads), 0,
                    params, t, floats(parts->values));
    });
  } else {
    constexpr int V = kPackBytes / sizeof(T);
    const PlaneTiling t = plane_tiling(layout, V);
    parts = parts_for(layout, input, reduce_planes_grid(t), kStored);
    stream.launch(norm_stats_planes_kernel<T, V>, reduce_planes_grid(t), dim3(kPlaneThreads), 0,
                  params, t, floats(parts->values));
  }
  return *parts;
}

template <class T>
Parts launch_backward_reduce(const Layout& layout, const Tensor& input, const NormBackward& params,
                             const Stream& stream) {
  constexpr int kStored = 2;
  std::optional<Parts> parts;
  if (layout.rows()) {
    with_row_pack<T, BackwardReduceWork>(layout, [&](auto pack) {
      constexpr int V = pack.value;
      const RowTiling t = row_tiling(layout, V, kNormReduceThreads, kNormReduceBlocks,
                                     BackwardReduceWork<T, V>::kFlight);
      parts = parts_for(layout, input, row_grid(t, V), kStored);
      stream.launch(norm_backward_rows_kernel<T, V>, row_grid(t, V), dim3(kNormReduceThreads), 0,
                    params, t, floats(parts->values));
    });
  } else {
    constexpr int V = kPackBytes / sizeof(T);
    const PlaneTiling t = plane_tiling(layout, V);
    parts = parts_for(layout, input, reduce_planes_grid(t), kStored);
    stream.launch(norm_backward_planes_kernel<T, V>, reduce_planes_grid(t), dim3(kPlaneThreads), 0,
                  params, t, floats(parts->values));
  }
  return *parts;
}

}  // namespace

void launch_batch_norm_stats(const Stream& stream, const Tensor& input, float* mean, float* var) {
  const Layout layout(input);
  const int64_t channels = layout.channels();
  if (channels == 0) return;
  if (layout.pixels() == 0) {
    launch_reduce_moments(stream, {nullptr, 0, channels, mean, var});
    return;
  }
  const Tensor dense = layout.dense(input, "batch_norm_stats");
  with_element_type(dense, "batch_norm_stats", [&](auto* element) {
    const Parts parts =
        launch_stats<std::remove_pointer_t<decltype(element)>>(layout, dense, stream);
    float* const values = floats(parts.values);
    launch_reduce_moments(stream, {values, parts.count, channels, mean, var,
                                   pivots_behind(values, parts.count, channels)});
  });
}

namespace {

std::tuple<Tensor, Tensor> batch_norm_stats_cuda(const Tensor& input) {
  const Stream stream(input);
  const Tensor mean = vector_like(input, input.size(1)), var = vector_like(input, input.size(1));
  launch_batch_norm_stats(stream, input, floats(mean), floats(var));
  return {mean, var};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_finalise_cuda(
    const Tensor& mean, const Tensor& var, int64_t count, const std::optional<Tensor>& running_mean,
    const std::optional<Tensor>& running_var, double momentum, double eps) {
  constexpr const char* kOp = "batch_norm_finalise";
  constexpr int kThreads = 128;
  const Stream stream(mean);
  const int64_t channels = mean.numel();
  const bool running = running_mean && running_var;
  const ChannelVector means(mean, channels, kOp), vars(var, channels, kOp);
  const ChannelVector old_mean(running ? running_mean : std::nullopt, channels, kOp);
  const ChannelVector old_var(running ? running_var : std::nullopt, channels, kOp);
  const Tensor invstd = vector_like(mean, channels);
  const Tensor new_mean = vector_like(mean, running ? channels : 0);
  const Tensor new_var = vector_like(mean, running ? channels : 0);
  if (channels == 0) return {invstd, new_mean, new_var};
  const double unbias = static_cast<double>(count) / std::max<int64_t>(count - 1, 1);
  const NormFinalise params{
      means,           vars,     old_mean, old_var, floats(invstd), floats(new_mean),
      floats(new_var), channels, momentum, eps,     unbias};
  stream.launch(norm_finalise_kernel<kThreads>, dim3(grid_size(ceil_div(channels, kThreads))),
                dim3(kThreads), 0, params);
  return {invstd, new_mean, new_var};
}

// The arguments that three of the ops share, dense and alive while their pointers are used.
struct Arguments {
  Tensor input;
  std::optional<Tensor> residual;
  ChannelVector mean, invstd, weight, bias;

  Arguments(const Layout& layout, const char* op, const Tensor& input_, const Tensor& mean_,
            const Tensor& invstd_, const std::optional<Tensor>& weight_,
            const std::optional<Tensor>& bias_, const std::optional<Tensor>& residual_)
      : input(layout.dense(input_, op)),
        mean(mean_, layout.channels(), op),
        invstd(invstd_, layout.channels(), op),
        weight(weight_, layout.channels(), op),
        bias(bias_, layout.channels(), op) {
    if (residual_) residual = layout.dense(*residual_, op);
  }

  NormVectors vectors() const { return {mean, invstd, weight, bias}; }

  const void* residual_data() const { return residual ? residual->const_data_ptr() : nullptr; }

  NormBackward backward(const Tensor& grad, Activation activation) const {
    return {grad.const_data_ptr(), input.const_data_ptr(), residual_data(), vectors(), activation};
  }
};

Tensor batch_norm_apply_cuda(const Tensor& input, const Tensor& mean, const Tensor& invstd,
                             const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
                             const std::optional<Tensor>& residual, int64_t activation) {
  const Stream stream(input);
  const Layout layout(input);
  const Tensor output = layout.empty();
  if (output.numel() == 0) return output;
  const Arguments a(layout, "batch_norm_apply", input, mean, invstd, weight, bias, residual);
  const NormApply params{a.input.const_data_ptr(), a.residual_data(), output.mutable_data_ptr(),
                         a.vectors(), static_cast<Activation>(activation)};
  launch_map<ApplyWork>(input, layout, params, stream);
  return output;
}

// Without an activation the gradient does not depend on the residual: it is not read.
const std::optional<Tensor>& needed(const std::optional<Tensor>& residual, int64_t activation) {
  static const std::optional<Tensor> none;
  return static_cast<Activation>(activation) == Activation::kIdentity ? none : residual;
}

std::tuple<Tensor, Tensor> batch_norm_backward_reduce_cuda(const Tensor& grad, const Tensor& input,
                                                           const Tensor& mean, const Tensor& invstd,
                                                           const std::optional<Tensor>& weight,
                                                           const std::optional<Tensor>& bias,
                                                           const std::optional<Tensor>& residual,
                                                           int64_t activation) {
  constexpr const char* kOp = "batch_norm_backward_reduce";
  const Stream stream(input);
  const Layout layout(input);
  const int64_t channels = layout.channels();
  const Tensor sum = vector_like(input, channels), products = vector_like(input, channels);
  if (channels == 0) return {sum, products};
  SumParts parts{nullptr, 0, channels, 2, 0, true, nullptr, {floats(sum), floats(products)}};
  if (layout.pixels() == 0) {
    launch_reduce_sums(stream, input, parts);
    return {sum, products};
  }
  const Arguments a(layout, kOp, input, mean, invstd, weight, bias, needed(residual, activation));
  const Tensor dense_grad = layout.dense(grad, kOp);
  const NormBackward params = a.backward(dense_grad, static_cast<Activation>(activation));
  with_element_type(input, kOp, [&](auto* element) {
    const Parts first = launch_backward_reduce<std::remove_pointer_t<decltype(element)>>(
        layout, input, params, stream);
    parts.parts = floats(first.values);
    parts.count = first.count;
    launch_reduce_sums(stream, input, parts);
  });
  return {sum, products};
}

std::tuple<Tensor, Tensor> batch_norm_backward_apply_cuda(
    const Tensor& grad, const Tensor& input, const Tensor& mean, const Tensor& invstd,
    const std::optional<Tensor>& weight, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& residual, int64_t activation,
    const std::optional<Tensor>& sum_grad, const std::optional<Tensor>& sum_grad_normalised,
    int64_t count, bool need_residual) {
  constexpr const char* kOp = "batch_norm_backward_apply";
  const Stream stream(input);
  const Layout layout(input);
  const Tensor grad_input = layout.empty();
  const Tensor grad_residual =
      need_residual ? layout.empty()
                    : torch::stable::empty({0}, input.scalar_type(), std::nullopt, input.device(),
                                           std::nullopt, std::nullopt);
  if (grad_input.numel() == 0) return {grad_input, grad_residual};
  const bool through_statistics = sum_grad && sum_grad_normalised;
  const Arguments a(layout, kOp, input, mean, invstd, weight, bias, needed(residual, activation));
  const ChannelVector sum(through_statistics ? sum_grad : std::nullopt, layout.channels(), kOp);
  const ChannelVector products(through_statistics ? sum_grad_normalised : std::nullopt,
                               layout.channels(), kOp);
  const Tensor dense_grad = layout.dense(grad, kOp);
  const NormBackwardApply params{a.backward(dense_grad, static_cast<Activation>(activation)),
                                 sum,
                                 products,
                                 static_cast<float>(count),
                                 grad_input.mutable_data_ptr(),
                                 need_residual ? grad_residual.mutable_data_ptr() : nullptr};
  launch_map<BackwardApplyWork>(input, layout, params, stream);
  return {grad_input, grad_residual};
}

DLV3P_CUDA_LIBRARY(m) {
  m.impl("batch_norm_stats", TORCH_BOX(&batch_norm_stats_cuda));
  m.impl("batch_norm_finalise", TORCH_BOX(&batch_norm_finalise_cuda));
  m.impl("batch_norm_apply", TORCH_BOX(&batch_norm_apply_cuda));
  m.impl("batch_norm_backward_reduce", TORCH_BOX(&batch_norm_backward_reduce_cuda));
  m.impl("batch_norm_backward_apply", TORCH_BOX(&batch_norm_backward_apply_cuda));
}

}  // namespace
}  // namespace dlv3p
