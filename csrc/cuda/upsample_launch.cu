// Checks of the operators on resized logits, and how their work is cut into blocks.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "upsample_launch.h"

namespace dlv3p {
namespace {

constexpr int kWarp = 32;
// Shared memory of a block; more classes come in chunks.
constexpr int kForwardChunk = 32;
constexpr int kForwardBytes = 40 * 1024;
constexpr int kBackwardChunk = 24;
// Rows of cells of a block, if that leaves enough blocks: one interval more is made than rows are.
constexpr int kBands[] = {8, 4, 2, 1};
constexpr int kWantedBlocks = 4;  // per multiprocessor
constexpr int kPack = 4;

template <class I>
I ceil_div(I a, I b) {
  return (a + b - 1) / b;
}

// Classes as even chunks of whole packs, `most` at most.
int chunk_of(int classes, int most) {
  return std::min(ceil_div(ceil_div(classes, ceil_div(classes, most)), kPack) * kPack, most);
}

// An odd number of packs, `multiple` classes at a time: cells side by side share no banks.
int pitch_of(int classes, int multiple) {
  const int packs = ceil_div(classes, multiple) * multiple / kPack;
  return (packs | 1) * kPack;
}

dim3 grid_of(int tiles, int64_t images, int chunks, const char* op) {
  constexpr int64_t kMostImages = 65535;  // the grid's limit
  STD_TORCH_CHECK(images <= kMostImages, op, ": more than ", kMostImages, " images");
  return dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(images),
              static_cast<unsigned>(chunks));
}

// Cells that 2^bits columns of pixels read, at most.
int span_of(const PixelAxis& columns, int bits) {
  const float apart = static_cast<float>((1 << bits) - 1) * columns.scale;
  return static_cast<int>(std::min(apart + 3.0f, static_cast<float>(columns.in)));
}

// Columns of pixels that reach a block of `cells` columns of cells, at most.
int columns_of(const PixelAxis& columns, int cells) {
  int most = 0;
  for (int cell = 0; cell < columns.in; cell += cells) {
    most = std::max(most, columns.begin_of(cell + cells) - columns.begin_of(cell - 1));
  }
  return most;
}

// As many columns of cells as the threads of a block have pixels for, the blocks of a row even.
int cells_of(const PixelAxis& columns) {
  constexpr float kMost = kUpsampleThreads / 2;
  const float wanted = kUpsampleThreads / std::max(columns.pixels_per_cell, 1.0f) - 1;
  const int most = std::clamp(static_cast<int>(std::min(wanted, kMost)), 1, columns.in);
  int cells = ceil_div(columns.in, ceil_div(columns.in, most));
  while (cells > 1 && columns_of(columns, cells) > kUpsampleThreads) --cells;
  return cells;
}

}  // namespace

ResizedLogits resized_logits(const Tensor& logits, int64_t height, int64_t width,
                             bool align_corners, const char* op) {
  constexpr int64_t kMost = std::numeric_limits<int>::max();
  STD_TORCH_CHECK(logits.dim() == 4 && logits.size(1) > 0 && logits.size(2) > 0 &&
                      logits.size(3) > 0 && logits.size(1) <= kMost && logits.size(2) <= kMost &&
                      logits.size(3) <= kMost,
                  op, ": logits must have 4 dimensions, none of them empty but the first");
  STD_TORCH_CHECK(height > 0 && width > 0 && height <= kMost && width <= kMost, op,
                  ": the size must be two positive numbers");
  const auto axis = [&](int64_t cells, int64_t pixels) {
    return pixel_axis(static_cast<int>(cells), static_cast<int>(pixels), align_corners);
  };
  return {logits.const_data_ptr(),
          logits.stride(0),
          logits.stride(1),
          logits.stride(2),
          logits.stride(3),
          static_cast<int>(logits.size(1)),
          axis(logits.size(2), height),
          axis(logits.size(3), width)};
}

Labels labels_of(const Tensor& target, int64_t ignore_index, const char* op) {
  STD_TORCH_CHECK(target.dim() == 3, op, ": target must be (N, H, W)");
  const auto type = [&] {
    switch (target.scalar_type()) {
      case ScalarType::Long:
        return LabelType::kInt64;
      case ScalarType::Int:
        return LabelType::kInt32;
      case ScalarType::Byte:
        return LabelType::kUInt8;
      default:
        STD_TORCH_CHECK(false, op, ": target must be int64, int32 or uint8");
    }
  }();
  return {target.const_data_ptr(), type,        target.stride(0), target.stride(1),
          target.stride(2),        ignore_index};
}

ForwardPlan forward_plan(const ResizedLogits& u, int64_t images) {
  ForwardTiling t{};
  t.chunk = chunk_of(u.classes, kForwardChunk);
  t.pitch = pitch_of(t.chunk, 2 * kPack);
  // Where logits shrink, few columns of pixels read many cells: blocks become narrower and taller.
  size_t shared_bytes = 0;
  for (t.column_bits = 5; t.column_bits >= 0; --t.column_bits) {
    t.cells = kUpsampleThreads >> t.column_bits;
    const int64_t rows = std::min(t.cells + 1, u.rows.in);
    shared_bytes = rows * span_of(u.columns, t.column_bits) * t.pitch * sizeof(float);
    if (shared_bytes <= kForwardBytes || t.column_bits == 0) break;
  }
  t.column_tiles = ceil_div(u.columns.out, 1 << t.column_bits);
  t.cell_tiles = ceil_div(u.rows.in, t.cells);
  return {t, grid_of(t.cell_tiles * t.column_tiles, images, 1, "upsample"), shared_bytes};
}

BackwardPlan backward_plan(const ResizedLogits& u, int64_t images) {
  constexpr const char* kOp = "upsample_cross_entropy_backward";
  const DeviceLimits limits = device_limits();
  BackwardTiling t{};
  t.cells = cells_of(u.columns);
  t.cell_tiles = ceil_div(u.columns.in, t.cells);
  t.columns = columns_of(u.columns, t.cells);
  const auto shared_bytes = [&] {
    const int64_t floats = int64_t{t.pitch} * 2 * (t.columns + t.cells + 2) + 2 * t.columns;
    return static_cast<size_t>((floats + t.cells + 2) * sizeof(float));
  };
  // Where a cell has thousands of pixels in a row, fewer classes.
  const auto most_bytes = static_cast<size_t>(limits.shared_bytes_per_block);
  for (int most = kBackwardChunk; most > 0; most -= kPack) {
    t.chunk = chunk_of(u.classes, most);
    t.pitch = pitch_of(t.chunk, kPack);
    if (shared_bytes() <= most_bytes) break;
  }
  STD_TORCH_CHECK(shared_bytes() <= most_bytes, kOp, ": ", t.columns,
                  " pixels in a row between two cells are more than a block can hold");
  const int chunks = ceil_div(u.classes, t.chunk);
  for (const int band : kBands) {
    t.band = band;
    t.bands = ceil_div(u.rows.in, band);
    const int64_t blocks = images * t.bands * t.cell_tiles * chunks;
    if (blocks >= int64_t{kWantedBlocks} * limits.multiprocessors) break;
  }
  return {t, grid_of(t.bands * t.cell_tiles, images, chunks, kOp), shared_bytes()};
}

}  // namespace dlv3p
