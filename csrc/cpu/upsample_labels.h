// What the loss of a pixel takes from its label. Included by sources that are compiled once per
// instruction set; see vec.h.
#pragma once

#include <cstdint>

#include "upsample.h"
#include "upsample_rows.h"
#include "vec.h"

namespace dlv3p {
namespace {

constexpr int kIgnored = -1;

template <class T>
const T* line_of(const Plane& plane, int64_t image, int64_t row, int64_t column) {
  return static_cast<const T*>(plane.data) + image * plane.stride_n + row * plane.stride_h +
         column * plane.stride_w;
}

template <class T, class I>
bool read_labels(const T* from, int64_t stride, int64_t count, const UpsampleLoss& u, I* to) {
  bool all_fit = true;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t label = from[i * stride];
    const bool ignored = label == u.ignore_index;
    const bool fits = static_cast<uint64_t>(label) < static_cast<uint64_t>(u.map.classes);
    to[i] = fits && !ignored ? static_cast<I>(label) : I{kIgnored};
    all_fit &= fits || ignored;
  }
  return all_fit;
}

// The pixels of a row of a tile, in whole vectors: those behind the last column are ignored ones.
template <class A>
class Pixels {
  static constexpr int64_t L = kLanesOf<A>;

 public:
  Pixels(const UpsampleLoss& u, Arena& arena)
      : u_(u), labels_(arena.take<LaneInt<A>>(u.map.tile)), weights_(arena.take<A>(u.map.tile)) {}

  // Returns whether all labels are classes or ignored.
  bool read(int64_t image, int64_t row, const Tile& tile) {
    const bool all_fit = read_labels_of(image, row, tile);
    const int64_t padded = round_up(tile.width(), L);
    for (int64_t i = tile.width(); i < padded; ++i) labels_[i] = kIgnored;
    const A share = static_cast<A>(1 - u_.label_smoothing);
    const A* weight = static_cast<const A*>(u_.weight);
    if (weight) {
      for (int64_t i = 0; i < padded; ++i) {
        weights_[i] = labels_[i] < 0 ? A{0} : share * weight[labels_[i]];
      }
    } else {
      for (int64_t i = 0; i < padded; ++i) weights_[i] = labels_[i] < 0 ? A{0} : share;
    }
    return all_fit;
  }

  // kIgnored where ignored.
  const LaneInt<A>* labels() const { return labels_; }
  // (1 - label_smoothing) * weight[label], 0 where ignored.
  const A* weights() const { return weights_; }

 private:
  bool read_labels_of(int64_t image, int64_t row, const Tile& tile) {
    const auto read = [&](auto type) {
      using T = decltype(type);
      const T* from = line_of<T>(u_.target, image, row, tile.begin);
      // With a known stride compilers make vectors of it.
      if (u_.target.stride_w == 1) return read_labels(from, 1, tile.width(), u_, labels_);
      return read_labels(from, u_.target.stride_w, tile.width(), u_, labels_);
    };
    switch (u_.label) {
      case Label::kInt64:
        return read(int64_t());
      case Label::kInt32:
        return read(int32_t());
      default:
        return read(uint8_t());
    }
  }

  const UpsampleLoss& u_;
  LaneInt<A>* const labels_;
  A* const weights_;
};

}  // namespace
}  // namespace dlv3p
