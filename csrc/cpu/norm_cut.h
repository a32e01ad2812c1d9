// How a batch norm cuts a map into blocks for its tasks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "../common/tensor.h"
#include "gather_launch.h"
#include "norm.h"
#include "parallel.h"

namespace dlv3p {

// Elements per task: a few microseconds of work, that a core's caches hold.
inline constexpr int64_t kTaskElements = 32 * 1024;
// Rows per block, between what makes the cost of merging small and what keeps rounding errors of
// the sums small, which grow with the root of the number of rows.
inline constexpr int64_t kLeastBlockRows = 128;
inline constexpr int64_t kMostBlockRows = 1024;
// Narrow rows are summed up several at a time.
inline constexpr int64_t kMostBlockElements = 16 * 1024;

// How a map is cut into blocks. It depends on the sizes alone, and therefore so do the results.
class Cut {
 public:
  explicit Cut(const Tensor& map)
      : element_(element_of(map)),
        channels_(map.size(1)),
        by_pixel_(format_of(map) == MemoryFormat::ChannelsLast || map.size(2) * map.size(3) == 1),
        planes_(by_pixel_ ? 1 : map.size(0) * channels_),
        rows_(map.size(2) * map.size(3) * (by_pixel_ ? map.size(0) : 1)),
        width_(by_pixel_ ? channels_ : 1) {
    const int64_t most =
        std::max(kMostBlockRows, kMostBlockElements / std::max<int64_t>(1, width_));
    block_rows_ =
        std::clamp(2 * kTaskElements / std::max<int64_t>(1, width_), kLeastBlockRows, most);
    blocks_ = (rows_ + block_rows_ - 1) / block_rows_;
  }

  Element element() const { return element_; }
  int64_t channels() const { return channels_; }
  int64_t values_per_channel() const {
    return by_pixel_ ? rows_ : planes_ / std::max<int64_t>(1, channels_) * rows_;
  }

  // Each channel is summed up in as many pieces.
  int64_t pieces() const {
    return by_pixel_ ? blocks_ : planes_ / std::max<int64_t>(1, channels_) * blocks_;
  }
  int64_t rows_of(int64_t piece) const {
    const int64_t first = piece % blocks_ * block_rows_;
    return std::min(block_rows_, rows_ - first);
  }

  // Calls run(block) for every block, `whole` being the map: its pointers are those of the first
  // element, channel and piece. Blocks have `most_channels` at most.
  template <class Run>
  void for_each_block(const NormBlock& whole, int64_t most_channels, const Run& run) const {
    const int64_t panels = (width_ + most_channels - 1) / most_channels;
    const int64_t count = planes_ * blocks_ * panels;
    const int64_t elements = std::max<int64_t>(1, std::min(block_rows_, rows_) * width_ / panels);
    const int64_t per_task = std::max<int64_t>(1, kTaskElements / elements);
    for_each_task((count + per_task - 1) / per_task, [&](int64_t task) {
      const int64_t end = std::min(count, (task + 1) * per_task);
      for (int64_t i = task * per_task; i < end; ++i) {
        run(block_at(whole, i / panels, i % panels, panels));
      }
    });
  }

 private:
  NormBlock block_at(const NormBlock& whole, int64_t index, int64_t panel, int64_t panels) const {
    const auto panel_begin = [&](int64_t p) {
      return p == panels ? width_ : p * width_ / panels / kNormLeastPanel * kNormLeastPanel;
    };
    const int64_t plane = index / blocks_;
    const int64_t first_row = index % blocks_ * block_rows_;
    const int64_t column = panel_begin(panel);
    const int64_t channel = by_pixel_ ? column : plane % channels_;
    const int64_t piece = by_pixel_ ? index : plane / channels_ * blocks_ + index % blocks_;
    const int64_t element = (plane * rows_ + first_row) * width_ + column;

    NormBlock block = whole;
    block.rows = std::min(block_rows_, rows_ - first_row);
    block.channels = panel_begin(panel + 1) - column;
    block.pitch = width_;
    const bool half = element_ == Element::kBFloat16 || element_ == Element::kFloat16;
    const int64_t value_bytes = sum_bytes(element_);
    for (auto* map : {&block.input, &block.grad_output, &block.residual}) {
      advance(*map, element * (half ? 2 : value_bytes));
    }
    for (auto* map : {&block.output, &block.grad_residual}) {
      advance(*map, element * (half ? 2 : value_bytes));
    }
    for (auto* vector :
         {&block.mean, &block.scale, &block.shift, &block.mean_grad, &block.mean_product}) {
      advance(*vector, channel * value_bytes);
    }
    for (auto* sums : {&block.pivots, &block.first_sums, &block.second_sums}) {
      if (*sums) *sums += piece * channels_ + channel;
    }
    return block;
  }

  static void advance(const void*& p, int64_t bytes) {
    if (p) p = static_cast<const char*>(p) + bytes;
  }
  static void advance(void*& p, int64_t bytes) {
    if (p) p = static_cast<char*>(p) + bytes;
  }

  const Element element_;
  const int64_t channels_;
  const bool by_pixel_;   // a row is a pixel; otherwise an element of a plane of one channel
  const int64_t planes_;  // the whole map is one where rows are pixels
  const int64_t rows_;    // per plane
  const int64_t width_;   // elements per row
  int64_t block_rows_;
  int64_t blocks_;  // per plane
};

inline constexpr int64_t kAnyWidth = std::numeric_limits<int64_t>::max() / 2;

}  // namespace dlv3p
