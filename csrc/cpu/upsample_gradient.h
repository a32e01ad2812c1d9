// From the gradient by resized rows to the gradient of the logits: the resizing along the columns,
// transposed. Included by sources that are compiled once per instruction set; see vec.h.
#pragma once

#include <cstdint>

#include "upsample_rows.h"
#include "vec.h"

namespace dlv3p {
namespace {

// Writes the rows [begin, end) of one image's gradient, tile by tile from left to right. Columns of
// logits that two tiles read are finished by the second of them.
template <class S, class A>
class GradientRows {
  static constexpr int64_t L = kLanesOf<A>;
  // A column lies between two columns of logits, and so do the first and last one of a tile.
  static constexpr int64_t kShared = 2;
  using V = Vec<A>;

 public:
  GradientRows(const Upsample& u, const Map& gradient, int64_t lanes, Arena& arena)
      : u_(u),
        gradient_(gradient),
        lanes_(lanes),
        most_rows_(u.rows.in / u.bands + 1),
        sums_(arena.take<A>((u.most_source + kShared) * lanes)),
        carried_(arena.take<A>(most_rows_ * kShared * lanes)) {}

  void start(int64_t image, int64_t begin, int64_t end) {
    image_ = image;
    begin_ = begin;
    end_ = end;
    clear(carried_, (end - begin) * kShared * lanes_);
  }

  void start_tile(int64_t index) {
    tile_ = tile_of(u_, index);
    const bool last = tile_.end == u_.columns.out;
    source_begin_ = index == 0 ? 0 : tile_.source_begin;
    source_end_ = last ? u_.columns.in : u_.columns.first[tile_.end];
    next_ = begin_;
  }

  // Takes the gradient (classes, u.tile) of a resized row; rows come in order, and some others.
  void take(const A* resized, int64_t row) {
    if (row < begin_ || row >= end_) return;
    finish_rows(row);
    clear(sums_, (source_end_ - source_begin_ + kShared) * lanes_);
    for (int64_t k = 0; k < u_.classes; k += L) sum_columns(resized, k);
    A* carried = carried_ + (row - begin_) * kShared * lanes_;
    for (int64_t i = 0; i < kShared * lanes_; i += L) {
      store(sums_ + i, load(sums_ + i) + load(carried + i));
    }
    const A* rest = sums_ + (source_end_ - source_begin_) * lanes_;
    for (int64_t i = 0; i < kShared * lanes_; i += L) store(carried + i, load(rest + i));
    write(row);
    next_ = row + 1;
  }

  // Zeros for the rows before `row` that no resized row reads.
  void finish_rows(int64_t row) {
    if (next_ == row) return;
    clear(sums_, (source_end_ - source_begin_) * lanes_);
    for (; next_ < row; ++next_) write(next_);
  }

  void finish_tile() { finish_rows(end_); }

 private:
  static void clear(A* from, int64_t count) {
    for (int64_t i = 0; i < count; i += L) store(from + i, V{});
  }

  A* sum_of(int64_t source) const { return sums_ + (source - source_begin_) * lanes_; }

  // A vector of classes, from column to column: two columns of logits are summed up at a time.
  void sum_columns(const A* resized, int64_t k) const {
    const UpsampleAxis& columns = u_.columns;
    const A* weight_first = static_cast<const A*>(columns.weight_first);
    const A* weight_second = static_cast<const A*>(columns.weight_second);
    const int64_t classes = min_of(L, u_.classes - k);
    int64_t current = tile_.source_begin;
    V sum = {};
    V next = {};
    for (int64_t v = 0; v < tile_.width(); v += L) {
      V block[L] = {};
      for (int64_t i = 0; i < classes; ++i) block[i] = load(resized + (k + i) * u_.tile + v);
      transpose(block);
#pragma GCC unroll 16
      for (int64_t j = 0; j < L; ++j) {
        if (v + j >= tile_.width()) break;
        const int64_t c = tile_.begin + v + j;
        const int64_t first = columns.first[c];
        if (first != current) {
          store(sum_of(current) + k, sum);
          if (first > current + 1) store(sum_of(current + 1) + k, next);
          sum = first > current + 1 ? V{} : next;
          next = V{};
          current = first;
        }
        sum += weight_first[c] * block[j];
        // At the end of the axis both are the last column.
        if (columns.second[c] == first) {
          sum += weight_second[c] * block[j];
        } else {
          next += weight_second[c] * block[j];
        }
      }
    }
    store(sum_of(current) + k, sum);
    if (tile_.source_end > current + 1) store(sum_of(current + 1) + k, next);
  }

  void write(int64_t row) const {
    const int64_t at = image_ * gradient_.stride_n + row * gradient_.stride_h;
    S* to = static_cast<S*>(gradient_.data) + at;
    if (gradient_.channels_adjacent) {
      write_pixels(to);
    } else {
      write_planes(to);
    }
  }

  // Elements behind the classes of a pixel are those of the next, which is written afterwards.
  void write_pixels(S* to) const {
    const int64_t row_end = source_end_ * gradient_.stride_w;
    for (int64_t x = source_begin_; x < source_end_; ++x) {
      for (int64_t k = 0; k < u_.classes; k += L) {
        const V value = load(sum_of(x) + k);
        const int64_t at = x * gradient_.stride_w + k;
        if (at + L <= row_end) {
          store(to + at, value);
        } else {
          store_partial<A>(to + at, value, min_of(L, u_.classes - k));
        }
      }
    }
  }

  void write_planes(S* to) const {
    for (int64_t x = source_begin_; x < source_end_; x += L) {
      const int64_t columns = min_of(L, source_end_ - x);
      for (int64_t k = 0; k < u_.classes; k += L) {
        V block[L] = {};
        for (int64_t j = 0; j < columns; ++j) block[j] = load(sum_of(x + j) + k);
        transpose(block);
        for (int64_t i = 0; i < min_of(L, u_.classes - k); ++i) {
          S* plane = to + (k + i) * gradient_.stride_c + x;
          if (columns == L) {
            store(plane, block[i]);
          } else {
            store_partial<A>(plane, block[i], columns);
          }
        }
      }
    }
  }

  const Upsample& u_;
  const Map& gradient_;
  const int64_t lanes_;
  const int64_t most_rows_;
  A* const sums_;
  A* const carried_;
  int64_t image_ = 0;
  int64_t begin_ = 0;
  int64_t end_ = 0;
  Tile tile_{};
  int64_t source_begin_ = 0;  // columns of the gradient that this tile writes
  int64_t source_end_ = 0;
  int64_t next_ = 0;  // first row that is not written
};

}  // namespace
}  // namespace dlv3p
