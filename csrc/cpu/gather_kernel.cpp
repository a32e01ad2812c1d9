// The gather of gather.h, compiled once per instruction set (CMakeLists.txt sets DLV3P_ISA and the
// compiler flags). Only what sits in the anonymous namespace may be instantiated here: a template
// of the standard library compiled with wider vectors could be picked by the linker for everybody.
#include <type_traits>

#include "gather.h"
#include "gather_loops.h"
#include "vec.h"

namespace dlv3p {
namespace {

// S is the element type in memory, A the one that sums are formed in.
template <class S, class A>
class Task {
  static constexpr int64_t L = kLanesOf<A>;

 public:
  static int64_t scratch_bytes(const Gather& g) {
    Task task(g);
    task.lay_out(nullptr);
    return task.used_;
  }

  static void run(const Gather& g, int64_t index, void* scratch) {
    Task task(g);
    task.first_channel_ = index / g.groups * g.block;
    task.channels_ = min_of(g.block, g.channels - task.first_channel_);
    task.vectors_ = ceil_div(task.channels_, L);
    task.lay_out(static_cast<char*>(scratch));
    task.run_group(index % g.groups);
  }

 private:
  explicit Task(const Gather& g)
      : g_(g),
        tap_count_(g.kernel_height * g.kernel_width),
        channels_(g.block),
        vectors_(ceil_div(g.block, L)) {}

  // Hands out the scratch memory; with nullptr only `used_` is of use.
  void lay_out(char* memory) {
    used_ = 0;
    const auto take = [&](auto*& pointer, int64_t count) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(memory + used_);
      used_ += ceil_div(count * sizeof(*pointer), 64) * 64;
    };
    take(sums_, g_.other.data ? tap_count_ * vectors_ * L : 0);
    take(source_, vectors_ * plane() * L);
    take(other_, g_.other.data ? vectors_ * g_.other.width * L : 0);
    take(destination_, by_columns(g_.destination) ? vectors_ * g_.destination.width * L : 0);
    take(slots_, g_.held_rows);
    take(taps_, tap_count_);
  }

  // The last vector of channels overlaps the one before it instead of being a partial one.
  int64_t channel_of(int64_t v) const { return channels_ < L ? 0 : min_of(v * L, channels_ - L); }

  template <class T>
  T* row_of(const Map& map, int64_t image, int64_t row) const {
    return static_cast<T*>(map.data) + image * map.stride_n + row * map.stride_h +
           first_channel_ * map.stride_c;
  }

  static bool by_columns(const Map& map) { return map.data && !map.channels_adjacent; }

  // Held pixels per vector of channels.
  int64_t plane() const { return g_.held_rows * g_.plan.held_width; }

  void run_group(int64_t group) {
    clear_zeros();
    if (g_.other.data) {
      for (int64_t i = 0; i < tap_count_ * vectors_ * L; ++i) sums_[i] = 0;
    }
    const int64_t pieces = g_.batch * g_.plan.bands;
    const int64_t end = (group + 1) * pieces / g_.groups;
    for (int64_t piece = group * pieces / g_.groups; piece < end; ++piece) {
      run_band(piece / g_.plan.bands, piece % g_.plan.bands);
    }
    if (g_.other.data) write_sums(group);
  }

  void run_band(int64_t image, int64_t band) {
    for (int64_t s = 0; s < g_.held_rows; ++s) slots_[s] = {-1, 0};
    const GatherPlan& plan = g_.plan;
    for (int64_t r = plan.band_begin[band]; r < plan.band_begin[band + 1]; ++r) {
      run_row(image, plan.rows[r]);
    }
  }

  void run_row(int64_t image, const RowTaps& row) {
    for (int64_t t = row.tap_begin; t < row.tap_end; ++t) {
      hold(image, g_.plan.row_taps[t].index, row);
    }
    bool finite = g_.weight_is_finite;
    if (g_.other.data) {
      finite &= pack_row<true>(g_.other, image, row.row, other_, g_.other.width);
    }
    // Zeros beside the source are multiplied too; only with finite factors do they add nothing.
    const ColumnRuns& runs = finite ? g_.plan.merged : g_.plan.exact;
    for (int64_t r = 0; r < runs.count; ++r) {
      const ColumnRun& run = runs.runs[r];
      const int64_t count = list_taps(row, run);
      for (int64_t v = 0; v < vectors_; ++v) {
        if (g_.destination.data) gather(image, row.row, run, v, count);
        if (g_.other.data) correlate(run, v, count);
      }
    }
    if (by_columns(g_.destination)) unpack_row(image, row.row);
  }

  int64_t list_taps(const RowTaps& row, const ColumnRun& run) {
    int64_t count = 0;
    for (int64_t i = row.tap_begin; i < row.tap_end; ++i) {
      const AxisTap& down = g_.plan.row_taps[i];
      const int64_t held = slot_of(down.index) * g_.plan.held_width + g_.plan.held_left;
      for (int64_t j = run.tap_begin; j < run.tap_end; ++j) {
        const AxisTap& across = g_.plan.column_taps[j];
        taps_[count++] = {(held + across.index) * L, down.k * g_.kernel_width + across.k};
      }
    }
    return count;
  }

  void gather(int64_t image, int64_t row, const ColumnRun& run, int64_t v, int64_t tap_count) {
    const Map& map = g_.destination;
    const A* weight = static_cast<const A*>(g_.packed_weight) + first_channel_ + channel_of(v);
    const auto go = [&](auto* data, int64_t step, int64_t lanes) {
      GatherRun<A, std::remove_pointer_t<decltype(data)>>{source_ + v * plane() * L,
                                                          run.source_step * L,
                                                          taps_,
                                                          tap_count,
                                                          weight,
                                                          g_.padded_channels,
                                                          weight + tap_count_ * g_.padded_channels,
                                                          data + run.first * step,
                                                          run.step * step,
                                                          lanes}
          .gather(run.count);
    };
    if (map.channels_adjacent) {
      go(row_of<S>(map, image, row) + channel_of(v), map.stride_w, min_of(L, channels_));
    } else {
      go(destination_ + v * map.width * L, L, L);
    }
  }

  void correlate(const ColumnRun& run, int64_t v, int64_t tap_count) {
    const A* source = source_ + v * plane() * L;
    const A* other = other_ + (v * g_.other.width + run.first) * L;
    for (int64_t t = 0; t < tap_count; t += kSums) {
      correlate_up_to<kSums>(min_of(kSums, tap_count - t), source, run.source_step * L, taps_ + t,
                             other, run.step * L, run.count, sums_ + v * L, vectors_ * L);
    }
  }

  // --- source rows, held as vectors[v][slot][column] -------------------------------------------

  struct Slot {
    int64_t row;
    int64_t age;
  };

  int64_t slot_of(int64_t row) const {
    int64_t s = 0;
    while (s < g_.held_rows && slots_[s].row != row) ++s;
    return s;
  }

  // Makes sure the source row is held, giving up the oldest one that `needed_by` does not read.
  void hold(int64_t image, int64_t row, const RowTaps& needed_by) {
    if (slot_of(row) < g_.held_rows) return;
    int64_t oldest = -1;
    for (int64_t s = 0; s < g_.held_rows; ++s) {
      if (needed(slots_[s].row, needed_by)) continue;
      if (oldest < 0 || slots_[s].age < slots_[oldest].age) oldest = s;
    }
    slots_[oldest] = {row, ++clock_};
    pack_row<false>(g_.source, image, row, held_row(oldest), plane());
  }

  A* held_row(int64_t slot) {
    return source_ + (slot * g_.plan.held_width + g_.plan.held_left) * L;
  }

  void clear_zeros() {
    const int64_t right = g_.plan.held_width - g_.plan.held_left - g_.source.width;
    for (int64_t row = 0; row < vectors_ * g_.held_rows; ++row) {
      A* held = source_ + row * g_.plan.held_width * L;
      for (int64_t i = 0; i < g_.plan.held_left * L; ++i) held[i] = 0;
      held += (g_.plan.held_width - right) * L;
      for (int64_t i = 0; i < right * L; ++i) held[i] = 0;
    }
  }

  bool needed(int64_t source_row, const RowTaps& row) const {
    for (int64_t t = row.tap_begin; t < row.tap_end; ++t) {
      if (g_.plan.row_taps[t].index == source_row) return true;
    }
    return false;
  }

  // Row `row` of the task's channels to vectors[v * plane + column]; with kCheck whether all of
  // them are finite.
  template <bool kCheck>
  bool pack_row(const Map& map, int64_t image, int64_t row, A* to, int64_t plane) {
    const S* from = row_of<S>(map, image, row);
    Vec<A> zeros = {};
    if (map.channels_adjacent) {
      pack_channels<kCheck>(from, map, to, plane, zeros);
    } else {
      for (int64_t v = 0; v < vectors_; ++v) {
        pack_columns<kCheck>(from + channel_of(v) * map.stride_c, map, min_of(L, channels_),
                             to + v * plane * L, zeros);
      }
    }
    return all_zero(zeros);
  }

  template <bool kCheck>
  DLV3P_INLINE static void put(A* to, Vec<A> v, Vec<A>& zeros) {
    store(to, v);
    if (kCheck) zeros += v * A{0};  // not a number where v is not finite
  }

  template <bool kCheck>
  void pack_channels(const S* from, const Map& map, A* to, int64_t plane, Vec<A>& zeros) {
    const int64_t last = channel_of(vectors_ - 1);
    for (int64_t x = 0; x < map.width; ++x, from += map.stride_w, to += L) {
      for (int64_t v = 0; v + 1 < vectors_; ++v) {
        put<kCheck>(to + v * plane * L, load(from + v * L), zeros);
      }
      A* end = to + (vectors_ - 1) * plane * L;
      if (channels_ >= L) {
        put<kCheck>(end, load(from + last), zeros);
      } else {
        put<kCheck>(end, load_partial<A>(from, channels_), zeros);
      }
    }
  }

  template <bool kCheck>
  void pack_columns(const S* from, const Map& map, int64_t channels, A* to, Vec<A>& zeros) {
    for (int64_t x = 0; x < map.width; x += L) {
      const int64_t at = block_start(x, map.width);
      const int64_t columns = min_of(L, map.width);
      Vec<A> block[L] = {};
      if (columns == L && channels == L) {
#pragma GCC unroll 16
        for (int64_t c = 0; c < L; ++c) block[c] = load(from + c * map.stride_c + at);
      } else {
        for (int64_t c = 0; c < channels; ++c) {
          block[c] = load_partial<A>(from + c * map.stride_c + at, columns);
        }
      }
      transpose(block);
#pragma GCC unroll 16
      for (int64_t i = 0; i < L; ++i) {
        if (i < columns) put<kCheck>(to + (at + i) * L, block[i], zeros);
      }
    }
  }

  // The last block of columns overlaps the one before it instead of being a partial one.
  static int64_t block_start(int64_t x, int64_t width) {
    return width < L ? 0 : min_of(x, width - L);
  }

  void unpack_row(int64_t image, int64_t row) {
    const Map& map = g_.destination;
    const int64_t channels = min_of(L, channels_);
    const int64_t columns = min_of(L, map.width);
    for (int64_t v = 0; v < vectors_; ++v) {
      S* to = row_of<S>(map, image, row) + channel_of(v) * map.stride_c;
      const A* from = destination_ + v * map.width * L;
      for (int64_t x = 0; x < map.width; x += L) {
        const int64_t at = block_start(x, map.width);
        Vec<A> block[L] = {};
#pragma GCC unroll 16
        for (int64_t i = 0; i < L; ++i) {
          if (i < columns) block[i] = load(from + (at + i) * L);
        }
        transpose(block);
#pragma GCC unroll 16
        for (int64_t c = 0; c < L; ++c) {
          S* pixels = to + c * map.stride_c + at;
          if (c >= channels) {
            break;
          } else if (columns == L) {
            store(pixels, block[c]);
          } else {
            store_partial<A>(pixels, block[c], columns);
          }
        }
      }
    }
  }

  void write_sums(int64_t group) {
    A* to =
        static_cast<A*>(g_.weight_gradients) + group * tap_count_ * g_.channels + first_channel_;
    for (int64_t t = 0; t < tap_count_; ++t) {
      for (int64_t v = 0; v < vectors_; ++v) {
        const A* sums = sums_ + (t * vectors_ + v) * L;
        const int64_t lanes = min_of(L, channels_);
        for (int64_t c = 0; c < lanes; ++c) to[t * g_.channels + channel_of(v) + c] = sums[c];
      }
    }
  }

  const Gather& g_;
  const int64_t tap_count_;
  int64_t first_channel_ = 0;
  int64_t channels_;
  int64_t vectors_;
  int64_t used_ = 0;
  int64_t clock_ = 0;
  A* sums_;
  A* source_;
  A* other_;
  A* destination_;
  Slot* slots_;
  Tap* taps_;
};

// (channels, taps) and the bias to (taps + 1, padded_channels), zeros in the padding.
template <class S, class A>
void pack_weight(Gather& g) {
  constexpr int64_t L = kLanesOf<A>;
  const int64_t taps = g.kernel_height * g.kernel_width;
  A* packed = static_cast<A*>(g.packed_weight);
  Vec<A> zeros = {};
  const auto convert = [&](const void* from, int64_t begin, int64_t count, A* to) {
    const S* p = static_cast<const S*>(from) + begin;
    const Vec<A> v = count == L ? load(p) : load_partial<A>(p, count);
    store(to, v);
    zeros += v * A{0};
  };
  const int64_t count = g.channels * taps;
  int64_t channel = 0;
  int64_t tap = 0;
  for (int64_t i = 0; i < count; i += L) {
    A converted[L];
    const int64_t part = min_of(L, count - i);
    convert(g.weight, i, part, converted);
    for (int64_t j = 0; j < part; ++j) {
      packed[tap * g.padded_channels + channel] = converted[j];
      if (++tap == taps) {
        tap = 0;
        ++channel;
      }
    }
  }
  for (int64_t t = 0; t < taps; ++t) {
    for (int64_t c = g.channels; c < g.padded_channels; ++c) packed[t * g.padded_channels + c] = 0;
  }
  g.weight_is_finite = all_zero(zeros);
  A* bias = packed + taps * g.padded_channels;
  for (int64_t c = 0; c < g.padded_channels; c += L) {
    store(bias + c, Vec<A>{});
    if (g.bias) convert(g.bias, c, min_of(L, g.channels - c), bias + c);
  }
}

}  // namespace

#define DLV3P_STRING_OF(x) #x
#define DLV3P_STRING(x) DLV3P_STRING_OF(x)
#define DLV3P_JOIN_OF(a, b) a##b
#define DLV3P_JOIN(a, b) DLV3P_JOIN_OF(a, b)

extern const GatherCode DLV3P_JOIN(gather_code_, DLV3P_ISA);
const GatherCode DLV3P_JOIN(gather_code_, DLV3P_ISA) = {
    DLV3P_STRING(DLV3P_ISA),
    kVectorBytes,
    {pack_weight<float, float>, pack_weight<BFloat16, float>, pack_weight<Float16, float>,
     pack_weight<double, double>},
    {Task<float, float>::scratch_bytes, Task<BFloat16, float>::scratch_bytes,
     Task<Float16, float>::scratch_bytes, Task<double, double>::scratch_bytes},
    {Task<float, float>::run, Task<BFloat16, float>::run, Task<Float16, float>::run,
     Task<double, double>::run},
};

}  // namespace dlv3p
