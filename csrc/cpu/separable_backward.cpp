#include "separable_backward.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "capability.h"
#include "gather_sums.h"
#include "gemm.h"
#include "norm_pass.h"
#include "norm_sums.h"
#include "separable_forward.h"

namespace dlv3p {
namespace {

Tensor pixels_of(const SeparableSource& source, int64_t pixels, const Tensor& like) {
  return torch::stable::empty({pixels * source.channels}, like.scalar_type());
}

// Sums of small tensors, added up in their order.
class Total {
 public:
  explicit Total(ScalarType type) : type_(type) {}

  void add(const Tensor& part) {
    const Tensor wide = torch::stable::contiguous(torch::stable::to(part, type_));
    if (!sum_) {
      sum_ = torch::stable::clone(wide);
    } else if (type_ == ScalarType::Double) {
      add_values<double>(wide);
    } else {
      add_values<float>(wide);
    }
  }

  const Tensor& sum() const { return *sum_; }

 private:
  template <class A>
  void add_values(const Tensor& part) {
    A* to = static_cast<A*>(sum_->mutable_data_ptr());
    const A* from = static_cast<const A*>(part.const_data_ptr());
    for (int64_t i = 0; i < part.numel(); ++i) to[i] += from[i];
  }

  const ScalarType type_;
  std::optional<Tensor> sum_;
};

// The depthwise result of a piece, and what stands behind it, anew.
class Middle {
 public:
  Middle(const SeparableBackward& b, int64_t images_together, int64_t most_pixels)
      : b_(b),
        depthwise_(b.source, b.filters, b.dw_bias, b.axes, {}, images_together),
        raw_(pixels_of(b.source, most_pixels, b.grad)) {
    const ScalarType type = sum_type(b.source.element);
    mean_ = b.middle.mean ? *b.middle.mean : torch::stable::full({b.source.channels}, 0, type);
    invstd_ = b.middle.mean ? *b.middle.invstd : torch::stable::full({b.source.channels}, 1, type);
  }

  void prepare(int64_t row, int64_t rows) { depthwise_.prepare(row, rows); }

  NormPass compute(const Piece& piece) {
    const int64_t width = b_.axes.columns.out;
    depthwise_.write(
        piece, map_of_piece(raw_.mutable_data_ptr(), b_.source.channels, piece.rows, width, true));
    const int64_t pixels = piece.images * piece.rows * width;
    const Tensor map = column_map(raw_.mutable_data_ptr(), raw_, pixels, b_.source.channels);
    return NormPass(map, mean_, invstd_, b_.middle.weight, b_.middle.bias, std::nullopt,
                    b_.middle.activation);
  }

  const Tensor& raw() const { return raw_; }

 private:
  const SeparableBackward& b_;
  DepthwisePieces depthwise_;
  const Tensor raw_;
  Tensor mean_;
  Tensor invstd_;
};

// The rows of a piece of the gradient by the pointwise result, as a matrix.
Tensor grad_rows(const SeparableBackward& b, const Piece& piece, int64_t pixels, bool transposed) {
  const int64_t channels = b.mixing.size(0);
  const int64_t first = (piece.image * b.axes.rows.out + piece.row) * b.axes.columns.out;
  return transposed ? matrix_view(b.grad, first * channels, channels, pixels, 1, channels)
                    : matrix_view(b.grad, first * channels, pixels, channels, channels, 1);
}

// The gradient by what the pointwise half has read, of a piece, to row `first_row` of `to`.
void through_pointwise(const SeparableBackward& b, const Piece& piece, const Tensor& to,
                       int64_t first_row) {
  const int64_t width = b.axes.columns.out;
  const int64_t pixels = piece.images * piece.rows * width;
  const int64_t channels = b.source.channels;
  const Tensor weights = matrix_view(b.mixing, 0, b.mixing.size(0), channels, channels, 1);
  multiply_matrices(grad_rows(b, piece, pixels, false), weights,
                    matrix_view(to, first_row * width * channels, pixels, channels, channels, 1));
}

// A row of a map that lies pixel by pixel, counted through all images.
const void* row_of(const SeparableBackward& b, const Tensor& map, int64_t row) {
  const int64_t bytes = b.axes.columns.out * b.source.channels * b.source.element_size;
  return static_cast<const char*>(map.const_data_ptr()) + row * bytes;
}

PieceList pieces_of(const SeparableBackward& b, bool across_images) {
  const int64_t row_bytes = b.axes.columns.out * b.source.channels * b.source.element_size;
  return PieceList(b.source.images, b.axes.rows.out, row_bytes, across_images);
}

}  // namespace

SeparableBackward separable_backward_of(const SeparableSource& source, const Axes& axes,
                                        const Tensor& dw_weight, const Contiguous& dw_bias,
                                        const SeparableMiddle& middle, const Tensor& pw_weight,
                                        const Tensor& grad) {
  check_pointwise_weight(pw_weight, source.channels, grad.scalar_type());
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == source.images &&
                      grad.size(1) == pw_weight.size(0) && grad.size(2) == axes.rows.out &&
                      grad.size(3) == axes.columns.out,
                  "separable_conv2d: grad does not match the output");
  STD_TORCH_CHECK(axes.rows.stride == 1 && axes.columns.stride == 1,
                  "separable_conv2d: these gradients are those of stride 1");
  return {source,
          axes,
          torch::stable::contiguous(dw_weight),
          dw_bias.data(),
          middle,
          torch::stable::contiguous(pw_weight),
          torch::stable::contiguous(grad, MemoryFormat::ChannelsLast)};
}

MapGradient wanted_of(const Tensor& map, bool needed, bool affine) {
  const auto nothing = [&] { return torch::stable::empty({0}, sum_type(element_of(map))); };
  MapGradient g{std::nullopt, affine, nothing(), nothing(), map.scalar_type()};
  if (needed) g.map = new_map(map, map.size(2), map.size(3));
  return g;
}

PointwiseGradients separable_backward_reduce(const SeparableBackward& b, bool need_weight,
                                             bool need_middle, bool keep) {
  const PieceList list = pieces_of(b, true);
  const int64_t most_pixels = list.most_rows() * b.axes.columns.out;
  const int64_t channels = b.source.channels;
  const ScalarType type = sum_type(b.source.element);
  Middle middle(b, list.images_together(), most_pixels);
  const bool activate = need_weight && !b.middle.is_identity();
  const Tensor activated = pixels_of(b.source, activate ? most_pixels : 0, b.grad);
  const int64_t all_pixels = b.source.images * b.axes.rows.out * b.axes.columns.out;
  const int64_t grad_pixels = keep ? all_pixels : most_pixels;
  const Tensor grads = pixels_of(b.source, need_middle ? grad_pixels : 0, b.grad);
  const Tensor product = torch::stable::empty({b.mixing.size(0) * channels}, b.grad.scalar_type());
  Total by_weight(type);
  Pieces sums(channels);
  std::optional<Tensor> invstd;
  const auto prepare = [&](int64_t row, int64_t rows) { middle.prepare(row, rows); };
  list.for_each(prepare, [&](const Piece& piece) {
    NormPass pass = middle.compute(piece);
    invstd = pass.invstd();
    const int64_t pixels = piece.images * piece.rows * b.axes.columns.out;
    if (activate) {
      pass.block.output = activated.mutable_data_ptr();
      pass.cut.for_each_block(pass.block, kAnyWidth, norm_code().apply[pass.kind()]);
    }
    if (need_weight) {
      const Tensor& read = activate ? activated : middle.raw();
      multiply_matrices(grad_rows(b, piece, pixels, true),
                        matrix_view(read, 0, pixels, channels, channels, 1),
                        matrix_view(product, 0, b.mixing.size(0), channels, channels, 1));
      by_weight.add(product);
    }
    if (need_middle) {
      const int64_t row = keep ? piece.image * b.axes.rows.out + piece.row : 0;
      through_pointwise(b, piece, grads, row);
      pass.block.grad_output = row_of(b, grads, row);
      sums.append(pass.cut);
      sums.take_sums(pass.block);
      pass.cut.for_each_block(pass.block, kNormMostPanel, norm_code().backward_reduce[pass.kind()]);
    }
  });
  const auto nothing = [](ScalarType t) { return torch::stable::empty({0}, t); };
  const ScalarType dtype = b.grad.scalar_type();
  return {need_weight ? torch::stable::reshape(torch::stable::to(by_weight.sum(), dtype),
                                               {b.mixing.size(0), channels, 1, 1})
                      : nothing(dtype),
          need_middle ? sums.total_first(type) : nothing(type),
          need_middle ? sums.total_second(*invstd) : nothing(type),
          need_middle && keep ? grads : nothing(dtype)};
}

namespace {

// The way back through the depthwise half, for rows of one image in their order.
class DepthwiseBackward {
 public:
  DepthwiseBackward(const SeparableBackward& b, bool need_weight, std::vector<MapGradient>& wanted)
      : b_(b), need_weight_(need_weight) {
    const ScalarType type = sum_type(b.source.element);
    for (std::size_t i = 0; i < b.source.maps.size(); ++i) {
      Part part{b.source.maps[i], wanted[i],   {},         std::nullopt, std::nullopt, {}, {},
                Total(type),      Total(type), Total(type)};
      part.gather = gather_of_map(b.source, part.map, b.filters, nullptr, b.axes);
      part.gather.batch = 1;
      part.gather.on_source = {};
      part.gather.source_resize = {};
      parts_.push_back(std::move(part));
    }
  }

  // Input rows [begin, end) of an image from the gradients of the rows from `first` on, at `grads`.
  void run(int64_t image, int64_t begin, int64_t end, const Tensor& grads, int64_t first,
           int64_t rows) {
    Axes axes = b_.axes;
    axes.rows.in = end - begin;
    axes.rows.out = rows;
    axes.rows.before += begin - first;
    std::vector<GatherPlanner> planners;
    planners.reserve(parts_.size());
    std::vector<Gather> gathers;
    std::vector<Part*> running;
    for (Part& part : parts_) {
      if (!part.wanted.map && !need_weight_) continue;
      planners.push_back(prepare(part, image, begin, axes, grads));
      gathers.push_back(part.gather);
      running.push_back(&part);
    }
    run_packed(gathers, b_.source.element);
    for (Part* part : running) add_sums(*part);
  }

  Tensor finish() {
    const ScalarType dtype = b_.grad.scalar_type();
    Tensor weight = torch::stable::empty({0}, dtype);
    if (need_weight_) weight = torch::stable::empty(b_.filters.sizes(), dtype);
    for (Part& part : parts_) {
      if (need_weight_) {
        Tensor mine = weight;
        mine = torch::stable::narrow(mine, 0, part.map.first_channel, part.gather.channels);
        torch::stable::copy_(mine, part.by_weight.sum());
      }
      if (part.wanted.affine) {
        part.wanted.scale = part.by_scale.sum();
        part.wanted.shift = part.by_shift.sum();
      }
    }
    return weight;
  }

 private:
  struct Part {
    const SourceMap& map;
    MapGradient& wanted;
    Gather gather;
    std::optional<PackedWeight> packed;
    std::optional<Tensor> cells;
    Tensor weight_sums;
    Tensor affine_sums;
    Total by_weight;
    Total by_scale;
    Total by_shift;
  };

  GatherPlanner prepare(Part& part, int64_t image, int64_t begin, const Axes& axes,
                        const Tensor& grads) {
    const SourceMap& map = part.map;
    Gather& g = part.gather;
    g.source = map_of_piece(grads.mutable_data_ptr(), b_.source.channels, axes.rows.out,
                            axes.columns.out, true);
    advance(g.source, map.first_channel);
    g.other = {};
    if (need_weight_ || map.prologue.scale) g.other = rows_of(map.map, map, image, begin);
    g.on_other = map.prologue;
    if (part.wanted.map) g.destination = rows_of(*part.wanted.map, map, image, begin);
    if (map.resize) g.other_resize = map.resize->resize(begin);
    GatherPlanner planner = plan(g, b_.source.element, Direction::kInputGradient, axes);
    if (!part.packed) part.packed.emplace(g, b_.source.element);
    if (map.resize && part.wanted.map) {
      if (!part.cells) part.cells = new_cells(g);
      g.cells = part.cells->mutable_data_ptr();
      g.begins = begin == 0;
      g.ends = begin + axes.rows.in == b_.axes.rows.in;
    }
    const int64_t taps = axes.rows.kernel * axes.columns.kernel;
    part.weight_sums = empty_sums(g, b_.source.element, need_weight_ ? taps : 0);
    part.affine_sums = empty_sums(g, b_.source.element, part.wanted.affine ? 2 : 0);
    g.weight_gradients = need_weight_ ? part.weight_sums.mutable_data_ptr() : nullptr;
    g.affine_gradients = part.wanted.affine ? part.affine_sums.mutable_data_ptr() : nullptr;
    return planner;
  }

  void add_sums(Part& part) const {
    const int64_t channels = part.gather.channels;
    if (need_weight_) {
      part.by_weight.add(sum_groups(part.weight_sums, 0,
                                    {channels, 1, b_.axes.rows.kernel, b_.axes.columns.kernel}));
    }
    if (part.wanted.affine) {
      part.by_scale.add(sum_groups(part.affine_sums, 0, {channels}));
      part.by_shift.add(sum_groups(part.affine_sums, 1, {channels}));
    }
  }

  // Of an image; a resized map is read and written as a whole.
  Map rows_of(const Tensor& t, const SourceMap& map, int64_t image, int64_t begin) const {
    Map rows = map_of(t);
    advance(rows, image * rows.stride_n + (map.resize ? 0 : begin * rows.stride_h));
    rows.width = b_.axes.columns.in;
    return rows;
  }

  void advance(Map& map, int64_t elements) const {
    map.data = static_cast<char*>(map.data) + elements * b_.source.element_size;
  }

  Tensor new_cells(const Gather& g) const {
    const int64_t blocks = (g.channels + g.block - 1) / g.block;
    const int64_t count = blocks * g.block * g.other_resize.rows.in * g.other_resize.columns.in;
    return torch::stable::empty({count}, sum_type(b_.source.element));
  }

  const SeparableBackward& b_;
  const bool need_weight_;
  std::vector<Part> parts_;
};

}  // namespace

// Pieces of an image follow each other; the rows of gradients that the next one reads again move to
// the front of the buffer.
Tensor separable_backward_apply(const SeparableBackward& b, const std::optional<Tensor>& activated,
                                const std::optional<Tensor>& mean_grad,
                                const std::optional<Tensor>& mean_product, bool need_weight,
                                std::vector<MapGradient>& wanted) {
  const PieceList list = pieces_of(b, false);
  const ConvAxis& rows = b.axes.rows;
  const int64_t width = b.axes.columns.out;
  const int64_t row_bytes = width * b.source.channels * b.source.element_size;
  const int64_t overlap = (rows.kernel - 1) * rows.dilation;
  const Tensor grads = pixels_of(b.source, (list.most_rows() + overlap) * width, b.grad);
  char* const data = static_cast<char*>(grads.mutable_data_ptr());
  const int64_t most_pixels = list.most_rows() * width;
  const bool anew = !activated && !b.middle.is_identity();
  const Tensor behind_middle = pixels_of(b.source, anew ? most_pixels : 0, b.grad);
  Middle middle(b, 1, most_pixels);
  DepthwiseBackward depthwise(b, need_weight, wanted);
  int64_t first = 0;  // the row that the buffer begins with
  int64_t done = 0;   // input rows
  list.for_each_in_order([&](const Piece& piece) {
    if (piece.row == 0) first = done = 0;
    if (done == rows.in) return;
    const int64_t end = piece.row + piece.rows;
    const int64_t place = piece.row - first;
    if (b.middle.is_identity()) {
      through_pointwise(b, piece, grads, place);
    } else {
      // Not in place: the last vector of channels overlaps the one before.
      if (anew) through_pointwise(b, piece, behind_middle, 0);
      middle.prepare(piece.row, piece.rows);
      NormPass pass = middle.compute(piece);
      if (mean_grad && mean_product) pass.take_sums(*mean_grad, *mean_product, 1);
      pass.block.grad_output = anew ? behind_middle.const_data_ptr()
                                    : row_of(b, *activated, piece.image * rows.out + piece.row);
      pass.block.output = data + place * row_bytes;
      pass.cut.for_each_block(pass.block, kAnyWidth, norm_code().backward_apply[pass.kind()]);
    }
    const int64_t ready =
        end == rows.out ? rows.in : std::clamp<int64_t>(end - rows.before, 0, rows.in);
    if (ready > done) depthwise.run(piece.image, done, ready, grads, first, end - first);
    done = ready;
    const int64_t next = std::clamp(done + rows.before - overlap, first, end);
    std::memmove(data, data + (next - first) * row_bytes, (end - next) * row_bytes);
    first = next;
  });
  return depthwise.finish();
}

}  // namespace dlv3p
