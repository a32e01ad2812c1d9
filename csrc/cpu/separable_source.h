// The input of a separable convolution: one map, or two side by side of which one is resized. As
// the depthwise half is per channel, each map has a gather of its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/tensor.h"
#include "gather.h"
#include "gather_launch.h"
#include "gather_plan.h"
#include "upsample_tables.h"

namespace dlv3p {

// How a map is resized, along both axes.
class ResizeTables {
 public:
  ResizeTables(const Tensor& map, int64_t height, int64_t width, bool align_corners)
      : element_(element_of(map)),
        rows_(element_, map.size(2), height, align_corners),
        columns_(element_, map.size(3), width, align_corners) {}

  // Rows count from `first_row` on.
  Resize resize(int64_t first_row) const;

 private:
  const Element element_;
  const UpsampleTables rows_;
  const UpsampleTables columns_;
};

// Some channels of the input.
struct SourceMap {
  Tensor map;  // walkable
  int64_t first_channel;
  Pointwise prologue;          // of a map that is not resized
  const ResizeTables* resize;  // nullptr: the map has the input's size
};

struct SeparableSource {
  std::vector<SourceMap> maps;
  int64_t images;
  int64_t channels;
  Element element;
  int64_t element_size;
  bool by_pixel;  // results have adjacent channels
};

SeparableSource source_of(const Tensor& input, const Pointwise& prologue);

// The gather of one of them; `filters` and `bias` are those of all channels.
Gather gather_of_map(const SeparableSource& source, const SourceMap& map, const Tensor& filters,
                     const void* bias, const Axes& axes);

// Some rows of one image, or some whole images.
struct Piece {
  int64_t image;
  int64_t images;
  int64_t row;
  int64_t rows;
};

// How a map is cut, in pieces of equal size that caches hold. It depends on sizes alone.
class PieceList {
 public:
  PieceList(int64_t images, int64_t rows, int64_t row_bytes, bool across_images);

  int64_t images_together() const { return together_; }
  int64_t most_rows() const;

  // Calls run(piece), all pieces of the same rows in a row: prepare(piece) goes before them.
  template <class Prepare, class Run>
  void for_each(const Prepare& prepare, const Run& run) const {
    for (int64_t p = 0; p < per_image_; ++p) {
      const int64_t row = p * rows_ / per_image_;
      const int64_t end = (p + 1) * rows_ / per_image_;
      prepare(row, end - row);
      for (int64_t image = 0; image < images_; image += together_) {
        run(Piece{image, std::min(together_, images_ - image), row, end - row});
      }
    }
  }

  // The same image by image, the pieces of each in the order of their rows.
  template <class Run>
  void for_each_in_order(const Run& run) const {
    for (int64_t image = 0; image < images_; ++image) {
      for (int64_t p = 0; p < per_image_; ++p) {
        const int64_t row = p * rows_ / per_image_;
        run(Piece{image, 1, row, (p + 1) * rows_ / per_image_ - row});
      }
    }
  }

 private:
  const int64_t images_;
  const int64_t rows_;
  int64_t per_image_;
  int64_t together_;
};

// The depthwise half, piece by piece.
class DepthwisePieces {
 public:
  // `filters` contiguous; all arguments must outlive it.
  DepthwisePieces(const SeparableSource& source, const Tensor& filters, const void* bias,
                  const Axes& axes, const Pointwise& on_result, int64_t images_together);

  // Rows of the pieces that follow.
  void prepare(int64_t row, int64_t rows);

  // Writes all channels of a piece to `to`, whose strides are those of the piece.
  void write(const Piece& piece, const Map& to);

 private:
  const SeparableSource& source_;
  const Axes axes_;
  std::vector<Gather> gathers_;
  std::vector<GatherPlanner> planners_;
  std::vector<PackedWeight> packed_;
};

// A piece of `channels` adjacent to each other, or plane by plane.
Map map_of_piece(void* data, int64_t channels, int64_t rows, int64_t width, bool by_pixel);

}  // namespace dlv3p
