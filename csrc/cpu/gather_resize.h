// Rows of a map that is resized while it is read, and their adjoint: what becomes of the gradients
// of such rows. Included by gather_kernel.cpp, once per instruction set.
#pragma once

#include <cstdint>

#include "gather.h"
#include "gather_rows.h"
#include "vec.h"

namespace dlv3p {
namespace {

// to = first * a + second * b for `count` vectors.
template <class A>
void blend(const A* a, const A* b, A first, A second, int64_t count, A* to) {
  constexpr int64_t L = kLanesOf<A>;
  for (int64_t i = 0; i < count * L; i += L)
    store(to + i, load(a + i) * first + load(b + i) * second);
}

// The adjoint of that: a += first * from, b += second * from; a and b may be the same.
template <class A>
void spread(const A* from, A first, A second, int64_t count, A* a, A* b) {
  constexpr int64_t L = kLanesOf<A>;
  for (int64_t i = 0; i < count * L; i += L) {
    const Vec<A> v = load(from + i);
    store(a + i, load(a + i) + v * first);
    store(b + i, load(b + i) + v * second);
  }
}

// One vector of channels of a row, from its cells to its pixels.
template <class A, class Sink>
void stretch(const A* cells, const UpsampleAxis& axis, int64_t channel, A* pixels, Sink& sink) {
  constexpr int64_t L = kLanesOf<A>;
  const A* first = static_cast<const A*>(axis.weight_first);
  const A* second = static_cast<const A*>(axis.weight_second);
  for (int64_t x = 0; x < axis.out; ++x) {
    const Vec<A> a = load(cells + axis.first[x] * L);
    const Vec<A> b = load(cells + axis.second[x] * L);
    sink(pixels + x * L, a * first[x] + b * second[x], channel);
  }
}

// The adjoint of that. Pixels between the same two cells are added up in registers.
template <class A>
void gather_cells(const A* pixels, const UpsampleAxis& axis, A* cells) {
  constexpr int64_t L = kLanesOf<A>;
  const A* first = static_cast<const A*>(axis.weight_first);
  const A* second = static_cast<const A*>(axis.weight_second);
  for (int64_t i = 0; i < axis.in * L; i += L) store(cells + i, Vec<A>{});
  for (int64_t x = 0; x < axis.out;) {
    const int32_t cell = axis.first[x];
    A* a = cells + cell * L;
    A* b = cells + axis.second[x] * L;
    Vec<A> to_a = {};
    Vec<A> to_b = {};
    for (; x < axis.out && axis.first[x] == cell; ++x) {
      const Vec<A> v = load(pixels + x * L);
      to_a += v * first[x];
      to_b += v * second[x];
    }
    store(a, load(a) + to_a);
    store(b, load(b) + to_b);
  }
}

// The cells of a task: (rows, vectors, columns) of vectors.
template <class S, class A>
class ResizedRows {
  static constexpr int64_t L = kLanesOf<A>;

 public:
  ResizedRows(const Resize& resize, int64_t vectors) : resize_(resize), vectors_(vectors) {}

  // Elements of scratch memory.
  int64_t scratch() const { return 3 * row_cells(); }
  void use(A* memory) { memory_ = memory; }

  // Before rows of another image.
  void forget() { held_[0] = held_[1] = -1; }

  // The resized row to pixels[v * plane + x], through `sink`; `row_of(cell row)` gives a MapRow.
  template <class RowOf, class Sink>
  __attribute__((noinline)) void pack(const RowOf& row_of, int64_t row, A* pixels, int64_t plane,
                                      Sink& sink) {
    const UpsampleAxis& rows = resize_.rows;
    const A* first = hold(row_of, rows.first[row]);
    const A* second = hold(row_of, rows.second[row]);
    A* blended = memory_ + 2 * row_cells();
    blend(first, second, weight(rows.weight_first, row), weight(rows.weight_second, row),
          row_cells() / L, blended);
    const int64_t channels = row_of(0).channels;
    for (int64_t v = 0; v < vectors_; ++v) {
      stretch(blended + v * resize_.columns.in * L, resize_.columns, channel_of<A>(v, channels),
              pixels + v * plane * L, sink);
    }
  }

  // Adds the gradient of a resized row, pixels[v * columns + x], to that of the cells.
  __attribute__((noinline)) void accumulate(const A* pixels, int64_t row, A* cells) {
    const UpsampleAxis& rows = resize_.rows;
    const UpsampleAxis& columns = resize_.columns;
    A* of_row = memory_ + 2 * row_cells();
    for (int64_t v = 0; v < vectors_; ++v) {
      gather_cells(pixels + v * columns.out * L, columns, of_row + v * columns.in * L);
    }
    spread(of_row, weight(rows.weight_first, row), weight(rows.weight_second, row), row_cells() / L,
           cells + rows.first[row] * row_cells(), cells + rows.second[row] * row_cells());
  }

  void clear(A* cells) const {
    for (int64_t i = 0; i < resize_.rows.in * row_cells(); ++i) cells[i] = 0;
  }

  template <class RowOf>
  void write(const A* cells, const RowOf& row_of) const {
    for (int64_t row = 0; row < resize_.rows.in; ++row) {
      row_of(row).unpack(cells + row * row_cells());
    }
  }

 private:
  int64_t row_cells() const { return vectors_ * resize_.columns.in * L; }

  static A weight(const void* weights, int64_t i) { return static_cast<const A*>(weights)[i]; }

  // Rows that a resized one lies between differ in parity.
  template <class RowOf>
  const A* hold(const RowOf& row_of, int32_t row) {
    A* cells = memory_ + row % 2 * row_cells();
    if (held_[row % 2] != row) {
      Keep<A> sink;
      row_of(row).pack(cells, resize_.columns.in, sink);
      held_[row % 2] = row;
    }
    return cells;
  }

  const Resize resize_;
  const int64_t vectors_;
  A* memory_ = nullptr;
  int32_t held_[2] = {-1, -1};
};

}  // namespace
}  // namespace dlv3p
