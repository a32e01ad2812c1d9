// Cross entropy of resized logits, compiled once per instruction set (CMakeLists.txt sets DLV3P_ISA
// and the compiler flags); see norm_kernel.cpp for what must not be used here.
#include "upsample.h"
#include "upsample_gradient.h"
#include "upsample_labels.h"
#include "upsample_rows.h"
#include "vec.h"
#include "vec_math.h"

namespace dlv3p {
namespace {

template <class A>
A weight_of(const UpsampleLoss& u, int64_t k) {
  return u.weight ? static_cast<const A*>(u.weight)[k] : A{1};
}

// The share of each class in the loss, beside that of the label.
template <class A>
A share_of(const UpsampleLoss& u) {
  return static_cast<A>(u.label_smoothing / static_cast<double>(u.map.classes));
}

template <class S, class A>
class Forward {
  static constexpr int64_t L = kLanesOf<A>;
  using V = Vec<A>;

 public:
  Forward(const UpsampleLoss& u, Arena& arena)
      : u_(u), rows_(u.map, arena), pixels_(u, arena), logits_(arena.take<A>(u.map.classes * L)) {}

  bool run(int64_t task) {
    const Upsample& map = u_.map;
    const int64_t image = task / map.bands;
    const int64_t begin = task % map.bands * map.rows.out / map.bands;
    const int64_t end = (task % map.bands + 1) * map.rows.out / map.bands;
    bool all_fit = true;
    for (int64_t t = 0; t < tiles_of(map); ++t) {
      const Tile tile = tile_of(map, t);
      Slots slots;
      for (int64_t row = begin; row < end; ++row) {
        const auto line = rows_.line(slots, image, row, tile);
        all_fit &= pixels_.read(image, row, tile);
        const int64_t at = (image * map.rows.out + row) * map.columns.out + tile.begin;
        for (int64_t v = 0; v < tile.width(); v += L) {
          some_pixels(line, v, at + v, min_of(L, tile.width() - v));
        }
      }
    }
    return all_fit;
  }

 private:
  // A vector of pixels: first their largest logits, then the sums of exponentials below these.
  void some_pixels(const Between<A>& line, int64_t v, int64_t at, int64_t count) {
    const int64_t classes = u_.map.classes;
    V most = splat(static_cast<A>(-__builtin_inf()));
    for (int64_t k = 0; k < classes; ++k) {
      const V z = line.at(k * u_.map.tile + v);
      store(logits_ + k * L, z);
      most = larger(z, most);
    }
    const auto labels = load_bits<IntVec<A>>(pixels_.labels() + v);
    const auto of_a_class = labels < 0 ? IntVec<A>{} : labels;
    const V on_label = gather(logits_, of_a_class * LaneInt<A>{L} + lane_numbers<A>());
    V sum = {};
    V weighted = {};
    if (u_.label_smoothing == 0) {
      for (int64_t k = 0; k < classes; ++k) sum += exp(load(logits_ + k * L) - most);
    } else {
      for (int64_t k = 0; k < classes; ++k) {
        const V below = load(logits_ + k * L) - most;
        sum += exp(below);
        weighted += below * weight_of<A>(u_, k);
      }
    }
    const V log_sum = log(sum);
    V loss = load(pixels_.weights() + v) * ((most - on_label) + log_sum);
    if (u_.label_smoothing != 0) {
      loss += share_of<A>(u_) * (static_cast<A>(u_.weight_sum) * log_sum - weighted);
    }
    // Whatever the logits of an ignored pixel are.
    loss = labels < 0 ? V{} : loss;
    put(static_cast<A*>(u_.loss) + at, loss, count);
    put(static_cast<A*>(u_.logsumexp) + at, most + log_sum, count);
  }

  static void put(A* to, V value, int64_t count) {
    if (count == L) {
      store(to, value);
    } else {
      store_partial<A>(to, value, count);
    }
  }

  const UpsampleLoss& u_;
  ResizedRows<S, A> rows_;
  Pixels<A> pixels_;
  A* const logits_;
};

// A task has a band of the rows of logits, and all rows between them: those at its borders are
// worked on by two tasks, so that every sum is formed by one of them, in the order of the pixels.
template <class S, class A>
class Backward {
  static constexpr int64_t L = kLanesOf<A>;
  using V = Vec<A>;

 public:
  Backward(const UpsampleLoss& u, Arena& arena)
      : u_(u),
        rows_(u.map, arena),
        pixels_(u, arena),
        gradient_(u.map, u.gradient, rows_.lanes(), arena),
        resized_{arena.take<A>(u.map.classes * u.map.tile),
                 arena.take<A>(u.map.classes * u.map.tile)},
        logsumexp_(arena.take<A>(u.map.tile)),
        on_label_(arena.take<A>(u.map.tile)),
        on_each_(arena.take<A>(u.map.tile)) {}

  void run(int64_t task) {
    const Upsample& map = u_.map;
    const int64_t image = task / map.bands;
    const int64_t begin = task % map.bands * map.rows.in / map.bands;
    const int64_t end = (task % map.bands + 1) * map.rows.in / map.bands;
    int64_t row_begin = 0;
    while (row_begin < map.rows.out && map.rows.second[row_begin] < begin) ++row_begin;
    gradient_.start(image, begin, end);
    for (int64_t t = 0; t < tiles_of(map); ++t) {
      const Tile tile = tile_of(map, t);
      gradient_.start_tile(t);
      Slots slots;
      const auto finish = [&](int slot, int64_t row) { gradient_.take(resized_[slot], row); };
      for (int64_t row = row_begin; row < map.rows.out && map.rows.first[row] < end; ++row) {
        const auto line =
            rows_.line(slots, image, row, tile, [&](int slot) { clear(slot); }, finish);
        read(image, row, tile);
        some_pixels(line, slots.slot_of(map.rows.first[row]), slots.slot_of(map.rows.second[row]),
                    tile.width());
      }
      slots.release(finish);
      gradient_.finish_tile();
    }
  }

 private:
  void clear(int slot) {
    for (int64_t i = 0; i < u_.map.classes * u_.map.tile; i += L) store(resized_[slot] + i, V{});
  }

  // What the gradient of a pixel is made of: on_label of its label, on_each of every class.
  void read(int64_t image, int64_t row, const Tile& tile) {
    pixels_.read(image, row, tile);
    const int64_t at = (image * u_.map.rows.out + row) * u_.map.columns.out + tile.begin;
    const A* logsumexp = static_cast<const A*>(u_.logsumexp) + at;
    const A* grad = line_of<A>(u_.grad_loss, image, row, tile.begin);
    for (int64_t i = 0; i < tile.width(); ++i) logsumexp_[i] = logsumexp[i];
    for (int64_t i = 0; i < tile.width(); ++i) {
      const bool counts = pixels_.labels()[i] >= 0;
      const A g = grad[i * u_.grad_loss.stride_w];
      on_label_[i] = counts ? g * pixels_.weights()[i] : A{0};
      on_each_[i] = counts ? g * share_of<A>(u_) : A{0};
    }
    for (int64_t i = tile.width(); i < round_up(tile.width(), L); ++i) {
      logsumexp_[i] = on_label_[i] = on_each_[i] = A{0};
    }
  }

  void some_pixels(const Between<A>& line, int first, int second, int64_t width) {
    for (int64_t v = 0; v < width; v += L) {
      if (!contributes(v)) continue;
      if (u_.label_smoothing == 0) {
        add_gradient<false>(line, resized_[first] + v, resized_[second] + v, v);
      } else {
        add_gradient<true>(line, resized_[first] + v, resized_[second] + v, v);
      }
    }
  }

  // A logit that is no number reaches even the gradient of ignored pixels, as in stock PyTorch.
  bool contributes(int64_t v) const {
    bool any = false;
    for (int64_t i = v; i < v + L; ++i) {
      any |= on_label_[i] != 0 || on_each_[i] != 0 || !(logsumexp_[i] - logsumexp_[i] == 0);
    }
    return any;
  }

  template <bool kSmooth>
  void add_gradient(const Between<A>& line, A* first, A* second, int64_t v) const {
    const V logsumexp = load(logsumexp_ + v);
    const V on_label = load(on_label_ + v);
    const V on_each = load(on_each_ + v);
    const V on_all = on_label + on_each * static_cast<A>(u_.weight_sum);
    const auto labels = load_bits<IntVec<A>>(pixels_.labels() + v);
    for (int64_t k = 0, i = 0; k < u_.map.classes; ++k, i += u_.map.tile) {
      const V probability = exp(line.at(i + v) - logsumexp);
      const auto is_label = labels == static_cast<LaneInt<A>>(k);
      V g;
      if constexpr (kSmooth) {
        g = on_all * probability - on_each * weight_of<A>(u_, k);
        g -= is_label ? on_label : V{};
      } else {
        // Formed so that no digits are lost where the label is nearly certain.
        g = on_label * (is_label ? probability - 1 : probability);
      }
      store(first + i, load(first + i) + line.weight_first * g);
      store(second + i, load(second + i) + line.weight_second * g);  // may be the same
    }
  }

  const UpsampleLoss& u_;
  ResizedRows<S, A> rows_;
  Pixels<A> pixels_;
  GradientRows<S, A> gradient_;
  A* const resized_[2];
  A* const logsumexp_;
  A* const on_label_;
  A* const on_each_;
};

template <class S, class A>
int64_t scratch_bytes(const UpsampleLoss& u) {
  Arena arena(nullptr);
  const Backward<S, A> backward(u, arena);
  Arena other(nullptr);
  const Forward<S, A> forward(u, other);
  return max_of(arena.bytes(), other.bytes());
}

template <class S, class A>
bool forward(const UpsampleLoss& u, int64_t task, void* scratch) {
  Arena arena(scratch);
  return Forward<S, A>(u, arena).run(task);
}

template <class S, class A>
void backward(const UpsampleLoss& u, int64_t task, void* scratch) {
  Arena arena(scratch);
  Backward<S, A>(u, arena).run(task);
}

}  // namespace

#define DLV3P_JOIN_OF(a, b) a##b
#define DLV3P_JOIN(a, b) DLV3P_JOIN_OF(a, b)
#define DLV3P_BY_ELEMENT(f) \
  {f<float, float>, f<BFloat16, float>, f<Float16, float>, f<double, double>}

extern const UpsampleLossCode DLV3P_JOIN(upsample_loss_code_, DLV3P_ISA);
const UpsampleLossCode DLV3P_JOIN(upsample_loss_code_, DLV3P_ISA) = {
    DLV3P_BY_ELEMENT(scratch_bytes),
    DLV3P_BY_ELEMENT(forward),
    DLV3P_BY_ELEMENT(backward),
};

}  // namespace dlv3p
