// The class of the largest resized logit, compiled once per instruction set (CMakeLists.txt sets
// DLV3P_ISA and the compiler flags); see norm_kernel.cpp for what must not be used here.
#include "upsample.h"
#include "upsample_labels.h"
#include "upsample_rows.h"
#include "vec.h"
#include "vec_math.h"

namespace dlv3p {
namespace {

template <class S, class A>
class Argmax {
  static constexpr int64_t L = kLanesOf<A>;
  using V = Vec<A>;
  using I = IntVec<A>;

 public:
  Argmax(const UpsampleArgmax& u, Arena& arena)
      : u_(u), rows_(u.map, arena), index_(arena.take<LaneInt<A>>(u.map.tile)) {}

  void run(int64_t task) {
    const Upsample& map = u_.map;
    const int64_t image = task / map.bands;
    const int64_t begin = task % map.bands * map.rows.out / map.bands;
    const int64_t end = (task % map.bands + 1) * map.rows.out / map.bands;
    for (int64_t t = 0; t < tiles_of(map); ++t) {
      const Tile tile = tile_of(map, t);
      Slots slots;
      for (int64_t row = begin; row < end; ++row) {
        const auto line = rows_.line(slots, image, row, tile);
        const int64_t at = (image * map.rows.out + row) * map.columns.out + tile.begin;
        for (int64_t v = 0; v < tile.width(); v += L) {
          const V most = some_pixels(line, v);
          if (u_.probability) put_probability(line, v, most, at + v, tile.width() - v);
        }
        if (u_.as_uint8) {
          write(static_cast<uint8_t*>(u_.index) + at, tile.width());
        } else {
          write(static_cast<int64_t*>(u_.index) + at, tile.width());
        }
      }
    }
  }

 private:
  // The first of equal logits, and NaN before everything else, as in stock PyTorch.
  V some_pixels(const Between<A>& line, int64_t v) {
    V most = line.at(v);
    I index = {};
    for (int64_t k = 1; k < u_.map.classes; ++k) {
      const V z = line.at(k * u_.map.tile + v);
      const I better = ~(z <= most) & (most == most);
      most = better ? z : most;
      index = better ? I{} + static_cast<LaneInt<A>>(k) : index;
    }
    std::memcpy(index_ + v, &index, sizeof(index));
    return most;
  }

  void put_probability(const Between<A>& line, int64_t v, V most, int64_t at, int64_t count) const {
    V sum = {};
    for (int64_t k = 0; k < u_.map.classes; ++k) sum += exp(line.at(k * u_.map.tile + v) - most);
    A* to = static_cast<A*>(u_.probability) + at;
    if (count >= L) {
      store(to, 1 / sum);
    } else {
      store_partial<A>(to, 1 / sum, count);
    }
  }

  template <class T>
  void write(T* to, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(index_[i]);
  }

  const UpsampleArgmax& u_;
  ResizedRows<S, A> rows_;
  LaneInt<A>* const index_;
};

template <class S, class A>
int64_t scratch_bytes(const UpsampleArgmax& u) {
  Arena arena(nullptr);
  const Argmax<S, A> argmax(u, arena);
  return arena.bytes();
}

template <class S, class A>
void run(const UpsampleArgmax& u, int64_t task, void* scratch) {
  Arena arena(scratch);
  Argmax<S, A>(u, arena).run(task);
}

}  // namespace

#define DLV3P_JOIN_OF(a, b) a##b
#define DLV3P_JOIN(a, b) DLV3P_JOIN_OF(a, b)
#define DLV3P_BY_ELEMENT(f) \
  {f<float, float>, f<BFloat16, float>, f<Float16, float>, f<double, double>}

extern const UpsampleArgmaxCode DLV3P_JOIN(upsample_argmax_code_, DLV3P_ISA);
const UpsampleArgmaxCode DLV3P_JOIN(upsample_argmax_code_, DLV3P_ISA) = {
    DLV3P_BY_ELEMENT(scratch_bytes),
    DLV3P_BY_ELEMENT(run),
};

}  // namespace dlv3p
