#include "separable_source.h"

#include <algorithm>

namespace dlv3p {
namespace {

// A piece stays in the caches that the cores share. Smaller ones would make the products of
// matrices, which rearrange the weights anew each time, slower than memory is.
constexpr int64_t kPieceBytes = 4 * 1024 * 1024;

const void* past(const void* data, int64_t bytes) {
  return data ? static_cast<const char*>(data) + bytes : nullptr;
}

}  // namespace

Resize ResizeTables::resize(int64_t first_row) const {
  UpsampleAxis rows = rows_.axis();
  const int64_t bytes = first_row * sum_bytes(element_);
  rows.out -= first_row;
  rows.first += first_row;
  rows.second += first_row;
  rows.weight_first = past(rows.weight_first, bytes);
  rows.weight_second = past(rows.weight_second, bytes);
  return {rows, columns_.axis()};
}

SeparableSource source_of(const Tensor& input, const Pointwise& prologue) {
  return {{{walkable_form_of(input), 0, prologue, nullptr}},
          input.size(0),
          input.size(1),
          element_of(input),
          static_cast<int64_t>(input.element_size()),
          format_of(input) == MemoryFormat::ChannelsLast};
}

PieceList::PieceList(int64_t images, int64_t rows, int64_t row_bytes, bool across_images)
    : images_(images), rows_(rows) {
  const int64_t fitting = std::max<int64_t>(1, kPieceBytes / std::max<int64_t>(1, row_bytes));
  per_image_ = (rows + fitting - 1) / fitting;
  together_ = across_images ? std::clamp<int64_t>(fitting / rows, 1, images) : 1;
}

int64_t PieceList::most_rows() const {
  return per_image_ > 1 ? (rows_ + per_image_ - 1) / per_image_ : together_ * rows_;
}

Map map_of_piece(void* data, int64_t channels, int64_t rows, int64_t width, bool by_pixel) {
  const int64_t plane = rows * width;
  if (by_pixel) return {data, plane * channels, 1, width * channels, channels, width, true};
  return {data, plane * channels, plane, width, 1, width, false};
}

Gather gather_of_map(const SeparableSource& source, const SourceMap& map, const Tensor& filters,
                     const void* bias, const Axes& axes) {
  Gather g = gather_of(map.map, filters, axes);
  const int64_t taps = g.kernel_height * g.kernel_width;
  g.weight = past(g.weight, map.first_channel * taps * source.element_size);
  g.bias = past(bias, map.first_channel * source.element_size);
  g.on_source = map.prologue;
  if (map.resize) g.source_resize = map.resize->resize(0);
  g.source.width = axes.columns.in;
  return g;
}

DepthwisePieces::DepthwisePieces(const SeparableSource& source, const Tensor& filters,
                                 const void* bias, const Axes& axes, const Pointwise& on_result,
                                 int64_t images_together)
    : source_(source), axes_(axes) {
  for (const SourceMap& map : source.maps) {
    Gather g = gather_of_map(source, map, filters, bias, axes);
    const int64_t vector_bytes = map.first_channel * sum_bytes(source.element);
    g.on_result = {past(on_result.scale, vector_bytes), past(on_result.shift, vector_bytes),
                   on_result.activation};
    g.batch = images_together;
    gathers_.push_back(g);
  }
}

void DepthwisePieces::prepare(int64_t row, int64_t rows) {
  Axes part = axes_;
  part.rows.out = rows;
  part.rows.before = axes_.rows.before - row * axes_.rows.stride;
  planners_.clear();
  planners_.reserve(gathers_.size());
  for (Gather& g : gathers_) {
    planners_.push_back(plan(g, source_.element, Direction::kForward, part));
  }
  if (!packed_.empty()) return;
  for (Gather& g : gathers_) packed_.emplace_back(g, source_.element);
}

void DepthwisePieces::write(const Piece& piece, const Map& to) {
  std::vector<Gather> gathers = gathers_;
  for (std::size_t i = 0; i < gathers.size(); ++i) {
    Gather& g = gathers[i];
    g.batch = piece.images;
    g.groups = std::min(g.groups, piece.images * g.plan.bands);
    const auto advance = [&](Map& map, int64_t elements) {
      map.data = static_cast<char*>(map.data) + elements * source_.element_size;
    };
    advance(g.source, piece.image * g.source.stride_n);
    g.destination = to;
    advance(g.destination, source_.maps[i].first_channel * to.stride_c);
  }
  run_packed(gathers, source_.element);
}

}  // namespace dlv3p
