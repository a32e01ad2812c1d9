#include "gather_launch.h"

#include <algorithm>

#include "../common/conv_geometry.h"
#include "capability.h"
#include "huge_pages.h"
#include "parallel.h"

namespace dlv3p {
namespace {

// Held source rows of a task should stay in the second-level cache (from 256 KiB per core).
constexpr int64_t kHeldRowsBytes = 192 * 1024;
// Wide blocks read long pieces of memory; wider than this gains nothing more.
constexpr int64_t kMostChannels = 512;
// Enough tasks to keep many cores busy and even out their speeds; more would repeat set-up work.
// Independent of the number of threads, so results are too.
constexpr int64_t kWantedTasks = 64;
// The same where tasks cannot have parts of a map.
constexpr int64_t kWantedBlocks = 16;
// Bands shorter than this would mostly load rows that the next band loads again.
constexpr int64_t kRowsPerBand = 8;

// Whether the gather can walk the tensor as it lies: channels or columns adjacent in memory.
bool walkable(const Tensor& t) {
  return t.stride(1) == 1 || t.stride(3) == 1 || t.size(1) == 1 || t.size(3) == 1;
}

bool any_by_columns(const Gather& g) {
  const auto by_columns = [](const Map& m) { return m.data && !m.channels_adjacent; };
  return by_columns(g.source) || by_columns(g.destination) || by_columns(g.other);
}

// Channels per task: as many as keep the held rows in cache, in equal blocks of whole vectors. One
// vector where columns are adjacent, since the channels lie apart anyway.
int64_t choose_block(const Gather& g, Element element) {
  const int64_t lanes = gather_code().vector_bytes / sum_bytes(element);
  if (any_by_columns(g)) return lanes;
  const int64_t row_bytes = std::max<int64_t>(1, g.source.width) * sum_bytes(element);
  const int64_t fits = kHeldRowsBytes / (g.kernel_height * row_bytes);
  const int64_t most = std::clamp(fits, 4 * lanes, kMostChannels);
  const int64_t blocks = (g.channels + most - 1) / most;
  const int64_t even = (g.channels + blocks - 1) / blocks;
  return (even + lanes - 1) / lanes * lanes;
}

// Where columns are adjacent a cache line holds parts of two rows. For short rows it is worth
// holding all of them, if they fit, to go through them in plain order and use both parts at once.
RowOrder choose_order(Gather& g, Element element, const ConvAxis& rows, int64_t source_height) {
  constexpr int64_t kTwoCacheLines = 128;
  const int64_t bytes =
      element == Element::kBFloat16 || element == Element::kFloat16 ? 2 : sum_bytes(element);
  const bool is_short = g.source.width * bytes < kTwoCacheLines;
  const bool fits = source_height * g.source.width * gather_code().vector_bytes <= kHeldRowsBytes;
  const bool plain = rows.dilation > 1 && any_by_columns(g) && is_short && fits;
  g.held_rows = plain ? std::max(source_height, g.kernel_height) : g.kernel_height;
  return plain ? RowOrder::kPlain : RowOrder::kShareSource;
}

// Splits the map so that there are about kWantedTasks tasks.
void choose_split(Gather& g, Element element, int64_t rows, int64_t& bands) {
  g.block = choose_block(g, element);
  if (g.other_resize.is_set()) {  // blocks alone divide the work, as each has cells of its own
    const int64_t lanes = gather_code().vector_bytes / sum_bytes(element);
    const int64_t narrow = (g.channels / kWantedBlocks + lanes - 1) / lanes * lanes;
    g.block = std::min(g.block, std::max(narrow, 2 * lanes));
    g.groups = bands = 1;
    return;
  }
  const int64_t blocks = (g.channels + g.block - 1) / g.block;
  const int64_t wanted = std::max<int64_t>(1, kWantedTasks / blocks);
  bands = std::clamp<int64_t>((wanted + g.batch - 1) / g.batch, 1,
                              std::max<int64_t>(1, rows / kRowsPerBand));
  g.groups = wanted;
}

}  // namespace

Element element_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Element::kFloat32;
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    case ScalarType::Half:
      return Element::kFloat16;
    case ScalarType::Double:
      return Element::kFloat64;
    default:
      STD_TORCH_CHECK(false, "depthwise_conv2d: no CPU kernel for this dtype");
  }
}

ScalarType sum_type(Element element) {
  return element == Element::kFloat64 ? ScalarType::Double : ScalarType::Float;
}

Tensor walkable_form_of(const Tensor& t) { return walkable(t) ? t : torch::stable::contiguous(t); }

Map map_of(const Tensor& t) {
  const bool columns_adjacent = t.stride(3) == 1 || t.size(3) == 1;
  const bool channels_adjacent =
      t.stride(1) == 1 ? t.size(1) > 1 || !columns_adjacent : !columns_adjacent;
  return {t.mutable_data_ptr(), t.stride(0), t.stride(1),      t.stride(2),
          t.stride(3),          t.size(3),   channels_adjacent};
}

InputShape::InputShape(const Tensor& input) : type(input.scalar_type()) {
  STD_TORCH_CHECK(input.dim() == 4, "depthwise_conv2d: expected 4 dimensions");
  channels = input.size(1);
  height = input.size(2);
  width = input.size(3);
}

Axes axes_of(const InputShape& input, const Tensor& weight, const Ints& stride, const Ints& padding,
             const Ints& dilation) {
  STD_TORCH_CHECK(weight.dim() == 4, "depthwise_conv2d: expected 4 dimensions");
  STD_TORCH_CHECK(stride.size() == 2 && padding.size() == 4 && dilation.size() == 2,
                  "depthwise_conv2d: expected 2 strides, 4 paddings, 2 dilations");
  STD_TORCH_CHECK(weight.size(0) == input.channels && weight.size(1) == 1,
                  "depthwise_conv2d: the CPU kernel takes one filter per channel");
  STD_TORCH_CHECK(weight.scalar_type() == input.type,
                  "depthwise_conv2d: weight and input differ in dtype");
  STD_TORCH_CHECK(std::min({stride[0], stride[1], dilation[0], dilation[1]}) > 0,
                  "depthwise_conv2d: stride and dilation must be positive");
  const auto axis = [&](int64_t d, int64_t before, int64_t after) {
    const int64_t in = d == 0 ? input.height : input.width;
    const int64_t kernel = weight.size(2 + d);
    const int64_t out = conv_output_size(in, before, after, kernel, stride[d], dilation[d]);
    STD_TORCH_CHECK(out > 0, "depthwise_conv2d: the output would be empty");
    return ConvAxis{in, out, kernel, stride[d], dilation[d], before};
  };
  return {axis(0, padding[2], padding[3]), axis(1, padding[0], padding[1])};
}

void check_bias(const std::optional<Tensor>& bias, const InputShape& input) {
  STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == input.channels &&
                            bias->scalar_type() == input.type),
                  "depthwise_conv2d: bias must be one element per channel, of input's dtype");
}

void check_grad_output(const Tensor& grad_output, const Tensor& input, const Axes& axes) {
  STD_TORCH_CHECK(grad_output.dim() == 4 && grad_output.size(0) == input.size(0) &&
                      grad_output.size(1) == input.size(1) &&
                      grad_output.size(2) == axes.rows.out &&
                      grad_output.size(3) == axes.columns.out &&
                      grad_output.scalar_type() == input.scalar_type(),
                  "depthwise_conv2d_backward: grad_output does not match the output");
}

Tensor new_map(const Tensor& like, int64_t height, int64_t width) {
  Tensor t = empty_in_format_of(like, like.size(0), like.size(1), height, width);
  advise_huge_pages(t.mutable_data_ptr(), t.numel() * static_cast<int64_t>(t.element_size()));
  return t;
}

Gather gather_of(const Tensor& source, const Tensor& weight, const Axes& axes) {
  Gather g{};
  g.source = map_of(source);
  g.weight = weight.const_data_ptr();
  g.batch = source.size(0);
  g.channels = source.size(1);
  g.kernel_height = axes.rows.kernel;
  g.kernel_width = axes.columns.kernel;
  return g;
}

GatherPlanner plan(Gather& g, Element element, Direction direction, const Axes& axes) {
  const int64_t rows = direction == Direction::kForward ? axes.rows.out : axes.rows.in;
  int64_t bands = 1;
  choose_split(g, element, rows, bands);
  const RowOrder order = choose_order(
      g, element, axes.rows, direction == Direction::kForward ? axes.rows.in : axes.rows.out);
  GatherPlanner planner(direction, axes.rows, axes.columns, order, bands);
  g.plan = planner.plan();
  g.groups = std::min(g.groups, g.batch * g.plan.bands);
  const int64_t lanes = gather_code().vector_bytes / sum_bytes(element);
  g.padded_channels = (g.channels + lanes - 1) / lanes * lanes;
  return planner;
}

PackedWeight::PackedWeight(Gather& g, Element element) {
  const int64_t rows = g.kernel_height * g.kernel_width + 1;
  g.packed_weight = memory_.at_least(rows * g.padded_channels * sum_bytes(element));
  gather_code().pack_weight[static_cast<int>(element)](g);
}

void run(Gather& g, Element element) {
  const PackedWeight packed(g, element);
  run_packed({g}, element);
}

void run_packed(const std::vector<Gather>& gathers, Element element) {
  const GatherCode& code = gather_code();
  const int kind = static_cast<int>(element);
  std::vector<int64_t> ends;
  int64_t tasks = 0;
  int64_t scratch_bytes = 0;
  for (const Gather& g : gathers) {
    ends.push_back(tasks += (g.channels + g.block - 1) / g.block * g.groups);
    scratch_bytes = std::max(scratch_bytes, code.scratch_bytes[kind](g));
  }
  for_each_task(tasks, [&](int64_t task) {
    thread_local Scratch scratch;
    std::size_t i = 0;
    while (task >= ends[i]) ++i;
    const int64_t first = i == 0 ? 0 : ends[i - 1];
    code.run_task[kind](gathers[i], task - first, scratch.at_least(scratch_bytes));
  });
}

}  // namespace dlv3p
