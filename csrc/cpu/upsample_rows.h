// Rows of logits, resized along the columns of a tile and held while the resized rows between them
// are worked on. Included by sources that are compiled once per instruction set; see vec.h.
#pragma once

#include <cstdint>
#include <type_traits>

#include "upsample.h"
#include "vec.h"

namespace dlv3p {
namespace {

constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// Whole numbers as wide as A, and vectors of them.
template <class A>
using LaneInt = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
template <class A>
using IntVec = decltype(Vec<A>{} < Vec<A>{});

// 0, 1, 2, ...
template <class A>
DLV3P_INLINE IntVec<A> lane_numbers() {
  IntVec<A> numbers;
  for (int i = 0; i < kLanesOf<A>; ++i) numbers[i] = i;
  return numbers;
}

// Hands out pieces of a task's scratch memory, each beginning on a cache line.
class Arena {
 public:
  explicit Arena(void* memory) : next_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next_);
    next_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return piece;
  }

  // Of an arena that began at nullptr.
  int64_t bytes() const { return reinterpret_cast<int64_t>(next_); }

 private:
  char* next_;
};

// Resized columns [begin, end) and the columns of logits [source_begin, source_end) they read.
struct Tile {
  int64_t begin;
  int64_t end;
  int64_t source_begin;
  int64_t source_end;

  int64_t width() const { return end - begin; }
};

inline int64_t tiles_of(const Upsample& u) { return (u.columns.out + u.tile - 1) / u.tile; }

inline Tile tile_of(const Upsample& u, int64_t index) {
  const int64_t begin = index * u.tile;
  const int64_t end = min_of(u.columns.out, begin + u.tile);
  return {begin, end, u.columns.first[begin], u.columns.second[end - 1] + int64_t{1}};
}

// Two rows of logits at a time, each in a slot.
class Slots {
 public:
  // Makes rows `first` and `second` the ones that are held. Calls finish(slot, row) for those that
  // are held no longer, in the order of the rows, and then start(slot, row) for the new ones.
  template <class Start, class Finish>
  void hold(int64_t first, int64_t second, const Start& start, const Finish& finish) {
    const int lower = rows_[0] <= rows_[1] ? 0 : 1;
    for (const int slot : {lower, 1 - lower}) {
      if (rows_[slot] == kNone || rows_[slot] == first || rows_[slot] == second) continue;
      finish(slot, rows_[slot]);
      rows_[slot] = kNone;
    }
    for (const int64_t row : {first, second}) {
      if (row == kNone || row == rows_[0] || row == rows_[1]) continue;
      const int slot = rows_[0] == kNone ? 0 : 1;
      rows_[slot] = row;
      start(slot, row);
    }
  }

  template <class Finish>
  void release(const Finish& finish) {
    hold(kNone, kNone, [](int, int64_t) {}, finish);
  }

  int slot_of(int64_t row) const { return rows_[0] == row ? 0 : 1; }

 private:
  static constexpr int64_t kNone = -1;
  int64_t rows_[2] = {kNone, kNone};
};

// A resized row of a tile, between two rows of logits resized along the columns.
template <class A>
struct Between {
  const A* first;
  const A* second;
  Vec<A> weight_first;
  Vec<A> weight_second;

  DLV3P_INLINE Vec<A> at(int64_t i) const {
    return weight_first * load(first + i) + weight_second * load(second + i);
  }
};

// Logits, S in memory, A in the computation.
template <class S, class A>
class ResizedRows {
  static constexpr int64_t L = kLanesOf<A>;
  using V = Vec<A>;

 public:
  ResizedRows(const Upsample& u, Arena& arena)
      : u_(u),
        lanes_(round_up(u.classes, L)),
        source_(arena.take<A>(u.most_source * lanes_)),
        rows_{arena.take<A>(u.classes * u.tile), arena.take<A>(u.classes * u.tile)} {}

  // Resized row `row`, from the rows of logits in `slots`, to which others are brought if need be;
  // calls started(slot) for these, and finish as Slots does.
  template <class Started, class Finish>
  Between<A> line(Slots& slots, int64_t image, int64_t row, const Tile& tile,
                  const Started& started, const Finish& finish) {
    const int64_t first = u_.rows.first[row];
    const int64_t second = u_.rows.second[row];
    const auto start = [&](int slot, int64_t source) {
      fill(slot, image, source, tile);
      started(slot);
    };
    slots.hold(first, second, start, finish);
    return {rows_[slots.slot_of(first)], rows_[slots.slot_of(second)],
            splat(static_cast<const A*>(u_.rows.weight_first)[row]),
            splat(static_cast<const A*>(u_.rows.weight_second)[row])};
  }

  Between<A> line(Slots& slots, int64_t image, int64_t row, const Tile& tile) {
    return line(slots, image, row, tile, [](int) {}, [](int, int64_t) {});
  }

  // Classes rounded up to whole vectors.
  int64_t lanes() const { return lanes_; }

 private:
  // Resizes a row of logits along the columns of a tile, into a slot: (classes, u.tile).
  void fill(int slot, int64_t image, int64_t row, const Tile& tile) {
    const int64_t at = image * u_.logits.stride_n + row * u_.logits.stride_h;
    if (u_.logits.channels_adjacent) {
      read_pixels(at, tile);
    } else {
      read_planes(at, tile);
    }
    resize(rows_[slot], tile);
  }

  // Elements behind the wanted ones are read too, where there are any.
  V read(int64_t at, int64_t count) const {
    const S* from = static_cast<const S*>(u_.logits.data) + at;
    return count >= L || at + L <= u_.extent ? load(from) : load_partial<A>(from, count);
  }

  void read_pixels(int64_t at, const Tile& tile) {
    A* to = source_;
    for (int64_t x = tile.source_begin; x < tile.source_end; ++x, to += lanes_) {
      for (int64_t k = 0; k < u_.classes; k += L) {
        store(to + k, read(at + x * u_.logits.stride_w + k, u_.classes - k));
      }
    }
  }

  void read_planes(int64_t at, const Tile& tile) {
    for (int64_t x = tile.source_begin; x < tile.source_end; x += L) {
      const int64_t columns = min_of(L, tile.source_end - x);
      A* to = source_ + (x - tile.source_begin) * lanes_;
      for (int64_t k = 0; k < u_.classes; k += L) {
        V block[L] = {};
        for (int64_t i = 0; i < min_of(L, u_.classes - k); ++i) {
          block[i] = read(at + (k + i) * u_.logits.stride_c + x, columns);
        }
        transpose(block);
        for (int64_t j = 0; j < columns; ++j) store(to + j * lanes_ + k, block[j]);
      }
    }
  }

  void resize(A* to, const Tile& tile) const {
    const A* weight_first = static_cast<const A*>(u_.columns.weight_first) + tile.begin;
    const A* weight_second = static_cast<const A*>(u_.columns.weight_second) + tile.begin;
    const int32_t* first = u_.columns.first + tile.begin;
    const int32_t* second = u_.columns.second + tile.begin;
    for (int64_t v = 0; v < tile.width(); v += L) {
      for (int64_t k = 0; k < u_.classes; k += L) {
        const A* from = source_ + k - tile.source_begin * lanes_;
        V block[L];
#pragma GCC unroll 16
        for (int64_t j = 0; j < L; ++j) {
          // Lanes behind the last column repeat it.
          const int64_t c = min_of(v + j, tile.width() - 1);
          block[j] = weight_first[c] * load(from + first[c] * lanes_) +
                     weight_second[c] * load(from + second[c] * lanes_);
        }
        transpose(block);
        for (int64_t i = 0; i < min_of(L, u_.classes - k); ++i) {
          store(to + (k + i) * u_.tile + v, block[i]);
        }
      }
    }
  }

  const Upsample& u_;
  const int64_t lanes_;
  A* const source_;
  A* const rows_[2];
};

}  // namespace
}  // namespace dlv3p
