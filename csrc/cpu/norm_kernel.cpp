// The passes of norm.h, compiled once per instruction set (CMakeLists.txt sets DLV3P_ISA and the
// compiler flags). Only what sits in the anonymous namespace may be instantiated here: a template
// of the standard library compiled with wider vectors could be picked by the linker for everybody.
#include "norm.h"
#include "vec.h"
#include "vec_math.h"

namespace dlv3p {
namespace {

constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows done together: vectors of the channels are loaded once for all of them, and their sums are
// formed by themselves, which keeps both the latencies and the rounding errors low.
constexpr int kRows = 8;

// Several rows are taken as one of up to this many lanes, so that it is made of whole vectors.
constexpr int64_t kMostLanes = 1024;
static_assert(kMostLanes >= kNormMostPanel);

// The first `n` lanes of `v`, zeros in the others.
template <class A>
DLV3P_INLINE Vec<A> first_lanes(Vec<A> v, int64_t n) {
  for (int64_t i = n; i < kLanesOf<A>; ++i) v[i] = 0;
  return v;
}

template <class S, class A, bool kPartial>
DLV3P_INLINE Vec<A> fetch(const void* map, int64_t i, int64_t count) {
  const S* from = static_cast<const S*>(map) + i;
  if constexpr (kPartial) {
    return load_partial<A>(from, count);
  } else {
    return load(from);
  }
}

template <class S, class A, bool kPartial>
DLV3P_INLINE void put(void* map, int64_t i, Vec<A> value, int64_t count) {
  S* to = static_cast<S*>(map) + i;
  if constexpr (kPartial) {
    store_partial<A>(to, value, count);
  } else {
    store(to, value);
  }
}

// A vector of lanes in some rows: where its elements start, how far the rows are apart, its first
// lane, where its sums stand, and how many of its elements there are.
struct Span {
  int64_t at;
  int64_t pitch;
  int64_t lane;
  int64_t slot;
  int64_t count;
};

// Prefetches from the next rows, in the order of memory, as much as row r of this span has. Short
// rows that are read side by side are more than the prefetchers of processors see through: without
// this, 256 channels of bfloat16 take five times as long from memory.
template <class S, class A, int R, bool kToWrite = false>
DLV3P_INLINE void prefetch(const void* map, const Span& span, int r) {
  constexpr int64_t kBytes = kLanesOf<A> * sizeof(S);
  constexpr int64_t kCacheLine = 64;
  if constexpr (R == kRows) {
    if (!map || r * kBytes % kCacheLine) return;
    const int64_t rows = span.at - span.lane + R * span.pitch;
    const S* next = static_cast<const S*>(map) + rows + R * span.lane + r * kLanesOf<A>;
    __builtin_prefetch(next, kToWrite);
  }
}

// Goes through a block, vector by vector. A is the type that is computed in.
template <class A>
class Walker {
  static constexpr int64_t L = kLanesOf<A>;

 public:
  explicit Walker(const NormBlock& block)
      : b_(block), fold_(fold_of(block)), lanes_(fold_ * block.channels) {}

  const NormBlock& block() const { return b_; }
  // So many rows are taken as one of so many lanes; lane i is channel i % channels.
  int64_t fold() const { return fold_; }
  int64_t lanes() const { return lanes_; }
  int64_t folded_rows() const { return b_.rows / fold_; }

  static int64_t fold_of(const NormBlock& block) {
    int64_t fold = 1;
    while (fold * block.channels % L) fold *= 2;
    return block.pitch == block.channels && fold * block.channels <= kMostLanes ? fold : 1;
  }

  // Calls body.template rows<R, kPartial>(span) for everything in the block.
  template <class Body>
  void walk(Body& body) const {
    const int64_t pitch = fold_ * b_.pitch;
    const int64_t vectors = ceil_div(lanes_, L);
    const int64_t rows = folded_rows();
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows) {
      for (int64_t v = 0; v < vectors; ++v) {
        body.template rows<kRows, false>(span_of(row * pitch, v, pitch));
      }
    }
    for (; row < rows; ++row) {
      for (int64_t v = 0; v < vectors; ++v) {
        body.template rows<1, false>(span_of(row * pitch, v, pitch));
      }
    }
    // Fewer rows than are taken as one.
    const int64_t rest = b_.rows % fold_ * b_.channels;
    for (int64_t lane = 0; lane < rest; lane += L) {
      const Span span{rows * pitch + lane, 0, lane, lane, min_of(L, rest - lane)};
      if (span.count == L) {
        body.template rows<1, false>(span);
      } else {
        body.template rows<1, true>(span);
      }
    }
  }

  // The last vector overlaps the one before it instead of being a partial one.
  Span span_of(int64_t first, int64_t v, int64_t pitch) const {
    const int64_t lane = min_of(v * L, lanes_ - L);
    return {first + lane, pitch, lane, v * L, L};
  }

  const NormBlock& b_;
  const int64_t fold_;
  const int64_t lanes_;
};

// A vector of the channels, as often as rows are taken as one.
template <class A>
class Repeated {
 public:
  Repeated(const Walker<A>& walker, const void* vector) : lanes_(static_cast<const A*>(vector)) {
    if (walker.fold() == 1 || !vector) return;
    const int64_t channels = walker.block().channels;
    for (int64_t i = 0; i < walker.lanes(); i += channels) {
      for (int64_t c = 0; c < channels; ++c) copy_[i + c] = lanes_[c];
    }
    lanes_ = copy_;
  }
  Repeated(const Repeated&) = delete;

  DLV3P_INLINE Vec<A> at(int64_t lane) const { return load(lanes_ + lane); }

 private:
  const A* lanes_;
  A copy_[kMostLanes];
};

// Two sums per channel over the rows of a block.
template <class A>
class Sums {
  static constexpr int64_t L = kLanesOf<A>;

 public:
  explicit Sums(const Walker<A>& walker) : walker_(walker) {
    for (int64_t i = 0; i < walker.lanes(); i += L) {
      store(first_ + i, Vec<A>{});
      store(second_ + i, Vec<A>{});
    }
  }

  DLV3P_INLINE void add(const Span& span, Vec<A> first, Vec<A> second) {
    store(first_ + span.slot, load(first_ + span.slot) + first);
    store(second_ + span.slot, load(second_ + span.slot) + second);
  }

  // Calls write(channel, first sum, second sum).
  template <class F>
  void finish(const F& write) {
    fold(walker_, first_);
    fold(walker_, second_);
    const int64_t channels = walker_.block().channels;
    for (int64_t slot = 0; slot < channels; slot += L) {
      const int64_t lane = min_of(slot, walker_.lanes() - L);
      for (int64_t i = 0; i < min_of(L, channels - lane); ++i) {
        write(lane + i, first_[slot + i], second_[slot + i]);
      }
    }
  }

  // Adds lanes of the same channel to the first of them.
  static void fold(const Walker<A>& walker, A* lanes) {
    for (int64_t half = walker.lanes() / 2; half >= walker.block().channels; half /= 2) {
      for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
  }

 private:
  const Walker<A>& walker_;
  A first_[kMostLanes + L];
  A second_[kMostLanes + L];
};

// Sums of x - pivot and of its square, with a pivot per channel from the first rows. As these rows
// are part of the block, the pivot is at most sqrt(rows) standard deviations off its mean.
template <class S, class A>
class Stats {
  static constexpr int64_t L = kLanesOf<A>;

 public:
  static void run(const NormBlock& block) {
    const Walker<A> walker(block);
    Stats stats(walker);
    walker.walk(stats);
    const double rows = static_cast<double>(block.rows);
    stats.sums_.finish([&](int64_t c, A sum, A square) {
      const double shift = sum / rows;
      const double spread = square - shift * sum;
      block.pivots[c] = stats.pivot_[c];
      block.first_sums[c] = shift;
      block.second_sums[c] = spread < 0 ? 0 : spread;
    });
  }

  template <int R, bool kPartial>
  DLV3P_INLINE void rows(const Span& span) {
    const Vec<A> pivot = load(pivot_ + span.lane);
    Vec<A> sum = {};
    Vec<A> square = {};
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      prefetch<S, A, R>(input_, span, r);
      Vec<A> d = fetch<S, A, kPartial>(input_, span.at + r * span.pitch, span.count) - pivot;
      if constexpr (kPartial) d = first_lanes<A>(d, span.count);
      sum += d;
      square += d * d;
    }
    sums_.add(span, sum, square);
  }

 private:
  explicit Stats(const Walker<A>& walker) : input_(walker.block().input), sums_(walker) {
    if (walker.folded_rows() > 0) {
      average_first_rows(walker);
    } else {
      take_first_row(walker.block().channels);
    }
    const int64_t channels = walker.block().channels;
    for (int64_t c = 0; c < channels; ++c) {
      // Differences to an infinity would hide which one it was.
      const A pivot = pivot_[c] - pivot_[c] == 0 ? pivot_[c] : 0;
      for (int64_t i = c; i < walker.lanes(); i += channels) pivot_[i] = pivot;
    }
  }

  void average_first_rows(const Walker<A>& walker) {
    const int64_t rows = min_of(max_of(1, kRows / walker.fold()), walker.folded_rows());
    const int64_t pitch = walker.fold() * walker.block().pitch;
    for (int64_t slot = 0; slot < walker.lanes(); slot += L) {
      const Span span = walker.span_of(0, slot / L, pitch);
      Vec<A> sum = {};
      for (int64_t r = 0; r < rows; ++r) sum += fetch<S, A, false>(input_, span.at + r * pitch, L);
      store(pivot_ + span.lane, sum);
    }
    Sums<A>::fold(walker, pivot_);
    const A part = A{1} / static_cast<A>(rows * walker.fold());
    for (int64_t c = 0; c < walker.block().channels; ++c) pivot_[c] *= part;
  }

  void take_first_row(int64_t channels) {
    for (int64_t c = 0; c < channels; c += L) {
      store(pivot_ + c, fetch<S, A, true>(input_, c, min_of(L, channels - c)));
    }
  }

  const void* input_;
  Sums<A> sums_;
  A pivot_[kMostLanes + L];
};

// What is normalised, scaled and shifted, in some rows of a vector of lanes.
template <class S, class A>
class Affine {
  using V = Vec<A>;

 public:
  explicit Affine(const Walker<A>& walker)
      : input_(walker.block().input),
        grad_output_(walker.block().grad_output),
        residual_(walker.block().residual),
        mean_(walker, walker.block().mean),
        scale_(walker, walker.block().scale),
        shift_(walker, walker.block().shift) {}

  struct Lanes {
    V mean;
    V scale;
    V shift;
    const void* input;
    const void* grad_output;
    const void* residual;

    template <int R>
    DLV3P_INLINE void prefetch(const Span& span, int r) const {
      dlv3p::prefetch<S, A, R>(input, span, r);
      dlv3p::prefetch<S, A, R>(grad_output, span, r);
      dlv3p::prefetch<S, A, R>(residual, span, r);
    }

    // x - mean for element i and its neighbours.
    template <bool kPartial>
    DLV3P_INLINE V deviation(int64_t i, int64_t count) const {
      return fetch<S, A, kPartial>(input, i, count) - mean;
    }

    template <bool kPartial>
    DLV3P_INLINE V z(V deviation, int64_t i, int64_t count) const {
      const V z = deviation * scale + shift;
      return residual ? z + fetch<S, A, kPartial>(residual, i, count) : z;
    }

    // The gradient at z.
    template <Activation k, bool kPartial>
    DLV3P_INLINE V gradient(V deviation, int64_t i, int64_t count) const {
      const V grad = fetch<S, A, kPartial>(grad_output, i, count);
      if constexpr (k == Activation::kIdentity) {
        return grad;
      } else {
        return activate<k>(z<kPartial>(deviation, i, count), grad).gradient;
      }
    }
  };

  DLV3P_INLINE Lanes at(int64_t lane) const {
    return {mean_.at(lane), scale_.at(lane), shift_.at(lane), input_, grad_output_, residual_};
  }

 private:
  const void* input_;
  const void* grad_output_;
  const void* residual_;
  Repeated<A> mean_;
  Repeated<A> scale_;
  Repeated<A> shift_;
};

template <class S, class A, Activation k>
class Apply {
 public:
  explicit Apply(const Walker<A>& walker) : affine_(walker), output_(walker.block().output) {}

  template <int R, bool kPartial>
  DLV3P_INLINE void rows(const Span& span) {
    const auto lanes = affine_.at(span.lane);
    void* const output = output_;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int64_t i = span.at + r * span.pitch;
      lanes.template prefetch<R>(span, r);
      const Vec<A> d = lanes.template deviation<kPartial>(i, span.count);
      const Vec<A> z = lanes.template z<kPartial>(d, i, span.count);
      prefetch<S, A, R, true>(output, span, r);
      put<S, A, kPartial>(output, i, activate<k>(z), span.count);
    }
  }

 private:
  Affine<S, A> affine_;
  void* output_;
};

template <class S, class A, Activation k>
class BackwardReduce {
 public:
  explicit BackwardReduce(const Walker<A>& walker) : affine_(walker), sums(walker) {}

  template <int R, bool kPartial>
  DLV3P_INLINE void rows(const Span& span) {
    const auto lanes = affine_.at(span.lane);
    Vec<A> sum = {};
    Vec<A> product = {};
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int64_t i = span.at + r * span.pitch;
      lanes.template prefetch<R>(span, r);
      const Vec<A> d = lanes.template deviation<kPartial>(i, span.count);
      Vec<A> g = lanes.template gradient<k, kPartial>(d, i, span.count);
      Vec<A> gd = g * d;
      if constexpr (kPartial) {
        g = first_lanes<A>(g, span.count);
        gd = first_lanes<A>(gd, span.count);
      }
      sum += g;
      product += gd;
    }
    sums.add(span, sum, product);
  }

 private:
  Affine<S, A> affine_;

 public:
  Sums<A> sums;
};

template <class S, class A, Activation k>
class BackwardApply {
 public:
  explicit BackwardApply(const Walker<A>& walker)
      : affine_(walker),
        mean_grad_(walker, walker.block().mean_grad),
        mean_product_(walker, walker.block().mean_product),
        fixed_(!walker.block().mean_grad),
        output_(walker.block().output),
        grad_residual_(walker.block().grad_residual) {}

  template <int R, bool kPartial>
  DLV3P_INLINE void rows(const Span& span) {
    const auto lanes = affine_.at(span.lane);
    const bool fixed = fixed_;
    const Vec<A> mean_grad = fixed ? Vec<A>{} : mean_grad_.at(span.lane);
    const Vec<A> mean_product = fixed ? Vec<A>{} : mean_product_.at(span.lane);
    void* const output = output_;
    void* const grad_residual = grad_residual_;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int64_t i = span.at + r * span.pitch;
      lanes.template prefetch<R>(span, r);
      const Vec<A> d = lanes.template deviation<kPartial>(i, span.count);
      Vec<A> g = lanes.template gradient<k, kPartial>(d, i, span.count);
      if (grad_residual) put<S, A, kPartial>(grad_residual, i, g, span.count);
      // An infinite input has a gradient where the statistics are fixed.
      if (!fixed) g -= mean_grad + d * mean_product;
      prefetch<S, A, R, true>(output, span, r);
      put<S, A, kPartial>(output, i, g * lanes.scale, span.count);
    }
  }

 private:
  Affine<S, A> affine_;
  Repeated<A> mean_grad_;
  Repeated<A> mean_product_;
  const bool fixed_;
  void* output_;
  void* grad_residual_;
};

template <class S, class A>
void stats(const NormBlock& block) {
  Stats<S, A>::run(block);
}

template <class S, class A>
void apply(const NormBlock& block) {
  with_activation(block.activation, [&](auto k) {
    const Walker<A> walker(block);
    Apply<S, A, k.value> pass(walker);
    walker.walk(pass);
  });
}

template <class S, class A>
void backward_reduce(const NormBlock& block) {
  with_activation(block.activation, [&](auto k) {
    const Walker<A> walker(block);
    BackwardReduce<S, A, k.value> pass(walker);
    walker.walk(pass);
    pass.sums.finish([&](int64_t c, A first, A second) {
      block.first_sums[c] = first;
      block.second_sums[c] = second;
    });
  });
}

template <class S, class A>
void backward_apply(const NormBlock& block) {
  with_activation(block.activation, [&](auto k) {
    const Walker<A> walker(block);
    BackwardApply<S, A, k.value> pass(walker);
    walker.walk(pass);
  });
}

}  // namespace

#define DLV3P_JOIN_OF(a, b) a##b
#define DLV3P_JOIN(a, b) DLV3P_JOIN_OF(a, b)
#define DLV3P_BY_ELEMENT(f) \
  {f<float, float>, f<BFloat16, float>, f<Float16, float>, f<double, double>}

extern const NormCode DLV3P_JOIN(norm_code_, DLV3P_ISA);
const NormCode DLV3P_JOIN(norm_code_, DLV3P_ISA) = {
    DLV3P_BY_ELEMENT(stats),
    DLV3P_BY_ELEMENT(apply),
    DLV3P_BY_ELEMENT(backward_reduce),
    DLV3P_BY_ELEMENT(backward_apply),
};

}  // namespace dlv3p
