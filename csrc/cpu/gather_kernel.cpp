// The gather of gather.h, compiled once per instruction set (CMakeLists.txt sets DLV3P_ISA and the
// compiler flags). Only what sits in the anonymous namespace may be instantiated here: a template
// of the standard library compiled with wider vectors could be picked by the linker for everybody.
#include "gather.h"
#include "vec.h"

namespace dlv3p {
namespace {

constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where a tap of the current run reads, from its first destination pixel, and its weight's place.
struct Tap {
  int64_t source;
  int64_t weight;
};

// Destination pixels computed together: each weight is loaded once for all of them, and their sums
// are independent, which hides the latency of multiply-add (4 cycles at 1 or 2 a cycle).
constexpr int kPixels = 8;

// Weight-gradient sums held in registers at once: the taps of a 3x3 kernel.
constexpr int kSums = 9;

template <class A, class D>
struct RunTarget {
  D* data;
  int64_t pitch;  // elements between pixels of the run
  int64_t lanes;  // channels to write, fewer than a vector in the last one
};

template <int P, class A, class D>
DLV3P_INLINE void gather_pixels(const A* source, int64_t pitch, const Tap* taps, int64_t tap_count,
                                const A* weight, Vec<A> bias, RunTarget<A, D> out) {
  Vec<A> sum[P];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) sum[p] = bias;
  for (int64_t t = 0; t < tap_count; ++t) {
    const Vec<A> w = load(weight + taps[t].weight);
    const A* from = source + taps[t].source;
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sum[p] += w * load(from + p * pitch);
  }
  if (out.lanes == kLanesOf<A>) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) store(out.data + p * out.pitch, sum[p]);
  } else {
    for (int p = 0; p < P; ++p) store_partial<A>(out.data + p * out.pitch, sum[p], out.lanes);
  }
}

template <class A, class D>
void gather_run(const A* source, int64_t pitch, const Tap* taps, int64_t tap_count, const A* weight,
                Vec<A> bias, RunTarget<A, D> out, int64_t count) {
  const auto advance = [&](int64_t pixels) {
    source += pixels * pitch;
    out.data += pixels * out.pitch;
    count -= pixels;
  };
  for (; count >= kPixels; advance(kPixels)) {
    gather_pixels<kPixels>(source, pitch, taps, tap_count, weight, bias, out);
  }
  if (count >= 4) {
    gather_pixels<4>(source, pitch, taps, tap_count, weight, bias, out);
    advance(4);
  }
  if (count >= 2) {
    gather_pixels<2>(source, pitch, taps, tap_count, weight, bias, out);
    advance(2);
  }
  if (count) gather_pixels<1>(source, pitch, taps, tap_count, weight, bias, out);
}

// sums[taps[t].weight] += sum over the run of other * source at tap t, for the T taps at `taps`.
template <int T, class A>
void correlate_taps(const A* source, int64_t pitch, const Tap* taps, const A* other,
                    int64_t other_pitch, int64_t count, A* sums) {
  // With few taps several pixels at once keep enough independent sums in flight.
  constexpr int U = T <= 2 ? 4 : T <= 4 ? 2 : 1;
  Vec<A> sum[U][T] = {};
  const A* from[T];
  for (int t = 0; t < T; ++t) from[t] = source + taps[t].source;
  int64_t i = 0;
  for (; i + U <= count; i += U) {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      const Vec<A> o = load(other + (i + u) * other_pitch);
#pragma GCC unroll 9
      for (int t = 0; t < T; ++t) sum[u][t] += o * load(from[t] + (i + u) * pitch);
    }
  }
  for (; i < count; ++i) {
    const Vec<A> o = load(other + i * other_pitch);
    for (int t = 0; t < T; ++t) sum[0][t] += o * load(from[t] + i * pitch);
  }
  for (int t = 0; t < T; ++t) {
    for (int u = 1; u < U; ++u) sum[0][t] += sum[u][t];
    A* total = sums + taps[t].weight;
    store(total, load(total) + sum[0][t]);
  }
}

template <int T, class A>
DLV3P_INLINE void correlate_up_to(int64_t tap_count, const A* source, int64_t pitch,
                                  const Tap* taps, const A* other, int64_t other_pitch,
                                  int64_t count, A* sums) {
  if constexpr (T > 0) {
    if (tap_count == T) {
      correlate_taps<T>(source, pitch, taps, other, other_pitch, count, sums);
    } else {
      correlate_up_to<T - 1>(tap_count, source, pitch, taps, other, other_pitch, count, sums);
    }
  }
}

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
    const int64_t width = vectors_ * L;
    take(weight_, tap_count_ * width);
    take(bias_, width);
    take(converted_, g_.block * tap_count_ + L);
    take(sums_, tap_count_ * width);
    take(source_, g_.kernel_height * g_.source.width * width);
    take(other_, g_.other.data ? g_.other.width * width : 0);
    take(destination_, g_.destination.data ? g_.destination.width * width : 0);
    take(slots_, g_.kernel_height);
    take(taps_, tap_count_);
  }

  void run_group(int64_t group) {
    pack_weights();
    for (int64_t i = 0; i < tap_count_ * vectors_ * L; ++i) sums_[i] = 0;
    const int64_t pieces = g_.batch * g_.plan.bands;
    const int64_t end = (group + 1) * pieces / g_.groups;
    for (int64_t piece = group * pieces / g_.groups; piece < end; ++piece) {
      run_band(piece / g_.plan.bands, piece % g_.plan.bands);
    }
    if (g_.other.data) write_sums(group);
  }

  void run_band(int64_t image, int64_t band) {
    for (int64_t s = 0; s < g_.kernel_height; ++s) slots_[s] = {-1, 0};
    const GatherPlan& plan = g_.plan;
    for (int64_t r = plan.band_begin[band]; r < plan.band_begin[band + 1]; ++r) {
      run_row(image, plan.rows[r]);
    }
  }

  void run_row(int64_t image, const RowTaps& row) {
    for (int64_t t = row.tap_begin; t < row.tap_end; ++t) {
      hold(image, g_.plan.row_taps[t].index, row);
    }
    if (g_.other.data) pack_row(g_.other, image, row.row, other_, g_.other.width);
    for (int64_t r = 0; r < g_.plan.run_count; ++r) {
      const ColumnRun& run = g_.plan.runs[r];
      const int64_t count = list_taps(row, run);
      for (int64_t v = 0; v < vectors_; ++v) {
        if (g_.destination.data) gather(image, row.row, run, v, count);
        if (g_.other.data) correlate(run, v, count);
      }
    }
    if (g_.destination.data && !g_.destination.channels_adjacent) unpack_row(image, row.row);
  }

  int64_t list_taps(const RowTaps& row, const ColumnRun& run) {
    int64_t count = 0;
    for (int64_t i = row.tap_begin; i < row.tap_end; ++i) {
      const AxisTap& down = g_.plan.row_taps[i];
      const int64_t held = slot_of(down.index) * g_.source.width;
      for (int64_t j = run.tap_begin; j < run.tap_end; ++j) {
        const AxisTap& across = g_.plan.column_taps[j];
        taps_[count++] = {(held + across.index) * L,
                          (down.k * g_.kernel_width + across.k) * vectors_ * L};
      }
    }
    return count;
  }

  void gather(int64_t image, int64_t row, const ColumnRun& run, int64_t v, int64_t tap_count) {
    const A* source = source_ + v * g_.kernel_height * g_.source.width * L;
    const int64_t pitch = run.source_step * L;
    const Map& map = g_.destination;
    const auto go = [&](auto* data, int64_t step, int64_t lanes) {
      using D = std::remove_pointer_t<decltype(data)>;
      gather_run(source, pitch, taps_, tap_count, weight_ + v * L, load(bias_ + v * L),
                 RunTarget<A, D>{data + run.first * step, run.step * step, lanes}, run.count);
    };
    if (map.channels_adjacent) {
      go(static_cast<S*>(map.data) + image * map.stride_n + row * map.stride_h + first_channel_ +
             v * L,
         map.stride_w, min_of(L, channels_ - v * L));
    } else {
      go(destination_ + v * map.width * L, L, L);
    }
  }

  void correlate(const ColumnRun& run, int64_t v, int64_t tap_count) {
    const A* source = source_ + v * g_.kernel_height * g_.source.width * L;
    const A* other = other_ + (v * g_.other.width + run.first) * L;
    for (int64_t t = 0; t < tap_count; t += kSums) {
      correlate_up_to<kSums>(min_of(kSums, tap_count - t), source, run.source_step * L, taps_ + t,
                             other, run.step * L, run.count, sums_ + v * L);
    }
  }

  // --- source rows, held as vectors[v][slot][column] -------------------------------------------

  struct Slot {
    int64_t row;
    int64_t age;
  };

  int64_t slot_of(int64_t row) const {
    int64_t s = 0;
    while (s < g_.kernel_height && slots_[s].row != row) ++s;
    return s;
  }

  // Makes sure the source row is held, giving up the oldest one that `needed_by` does not read.
  void hold(int64_t image, int64_t row, const RowTaps& needed_by) {
    if (slot_of(row) < g_.kernel_height) return;
    int64_t oldest = -1;
    for (int64_t s = 0; s < g_.kernel_height; ++s) {
      if (needed(slots_[s].row, needed_by)) continue;
      if (oldest < 0 || slots_[s].age < slots_[oldest].age) oldest = s;
    }
    slots_[oldest] = {row, ++clock_};
    pack_row(g_.source, image, row, source_ + oldest * g_.source.width * L,
             g_.kernel_height * g_.source.width);
  }

  bool needed(int64_t source_row, const RowTaps& row) const {
    for (int64_t t = row.tap_begin; t < row.tap_end; ++t) {
      if (g_.plan.row_taps[t].index == source_row) return true;
    }
    return false;
  }

  // Row `row` of the task's channels to vectors[v * plane + column].
  void pack_row(const Map& map, int64_t image, int64_t row, A* to, int64_t plane) {
    const S* from = static_cast<const S*>(map.data) + image * map.stride_n + row * map.stride_h +
                    first_channel_ * map.stride_c;
    if (map.channels_adjacent) {
      pack_channels(from, map, to, plane);
    } else {
      for (int64_t v = 0; v < vectors_; ++v) {
        pack_columns(from + v * L * map.stride_c, map, min_of(L, channels_ - v * L),
                     to + v * plane * L);
      }
    }
  }

  void pack_channels(const S* from, const Map& map, A* to, int64_t plane) {
    const int64_t whole = channels_ / L;
    for (int64_t x = 0; x < map.width; ++x, from += map.stride_w, to += L) {
      for (int64_t v = 0; v < whole; ++v) store(to + v * plane * L, load(from + v * L));
      if (whole < vectors_) {
        store(to + whole * plane * L, load_partial<A>(from + whole * L, channels_ - whole * L));
      }
    }
  }

  void pack_columns(const S* from, const Map& map, int64_t channels, A* to) {
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
      transpose<A>(block);
      for (int64_t i = 0; i < columns; ++i) store(to + (at + i) * L, block[i]);
    }
  }

  // The last block of columns overlaps the one before it instead of being a partial one.
  static int64_t block_start(int64_t x, int64_t width) {
    return width < L ? 0 : min_of(x, width - L);
  }

  void unpack_row(int64_t image, int64_t row) {
    const Map& map = g_.destination;
    S* to = static_cast<S*>(map.data) + image * map.stride_n + row * map.stride_h +
            first_channel_ * map.stride_c;
    for (int64_t v = 0; v < vectors_; ++v, to += L * map.stride_c) {
      const int64_t channels = min_of(L, channels_ - v * L);
      const A* from = destination_ + v * map.width * L;
      for (int64_t x = 0; x < map.width; x += L) {
        const int64_t at = block_start(x, map.width);
        const int64_t columns = min_of(L, map.width);
        Vec<A> block[L] = {};
        for (int64_t i = 0; i < columns; ++i) block[i] = load(from + (at + i) * L);
        transpose<A>(block);
        for (int64_t c = 0; c < channels; ++c) {
          S* pixels = to + c * map.stride_c + at;
          if (columns == L) {
            store(pixels, block[c]);
          } else {
            store_partial<A>(pixels, block[c], columns);
          }
        }
      }
    }
  }

  // --- weights, held as [tap][channel] ----------------------------------------------------------

  void pack_weights() {
    const int64_t width = vectors_ * L;
    convert(static_cast<const S*>(g_.weight) + first_channel_ * tap_count_, channels_ * tap_count_);
    for (int64_t t = 0; t < tap_count_; ++t) {
      for (int64_t c = 0; c < channels_; ++c) weight_[t * width + c] = converted_[c * tap_count_ + t];
      for (int64_t c = channels_; c < width; ++c) weight_[t * width + c] = 0;
    }
    if (g_.bias) convert(static_cast<const S*>(g_.bias) + first_channel_, channels_);
    for (int64_t c = 0; c < width; ++c) {
      bias_[c] = g_.bias && c < channels_ ? converted_[c] : 0;
    }
  }

  void convert(const S* from, int64_t count) {
    int64_t i = 0;
    for (; i + L <= count; i += L) store(converted_ + i, load(from + i));
    if (i < count) store(converted_ + i, load_partial<A>(from + i, count - i));
  }

  void write_sums(int64_t group) {
    A* to = static_cast<A*>(g_.weight_gradients) + group * tap_count_ * g_.channels + first_channel_;
    for (int64_t t = 0; t < tap_count_; ++t) {
      for (int64_t c = 0; c < channels_; ++c) to[t * g_.channels + c] = sums_[t * vectors_ * L + c];
    }
  }

  const Gather& g_;
  const int64_t tap_count_;
  int64_t first_channel_ = 0;
  int64_t channels_;
  int64_t vectors_;
  int64_t used_ = 0;
  int64_t clock_ = 0;
  A* weight_;
  A* bias_;
  A* converted_;
  A* sums_;
  A* source_;
  A* other_;
  A* destination_;
  Slot* slots_;
  Tap* taps_;
};

}  // namespace

#define DLV3P_STRING_OF(x) #x
#define DLV3P_STRING(x) DLV3P_STRING_OF(x)
#define DLV3P_JOIN_OF(a, b) a##b
#define DLV3P_JOIN(a, b) DLV3P_JOIN_OF(a, b)

extern const GatherCode DLV3P_JOIN(gather_code_, DLV3P_ISA);
const GatherCode DLV3P_JOIN(gather_code_, DLV3P_ISA) = {
    DLV3P_STRING(DLV3P_ISA),
    kVectorBytes,
    {Task<float, float>::scratch_bytes, Task<BFloat16, float>::scratch_bytes,
     Task<Float16, float>::scratch_bytes, Task<double, double>::scratch_bytes},
    {Task<float, float>::run, Task<BFloat16, float>::run, Task<Float16, float>::run,
     Task<double, double>::run},
};

}  // namespace dlv3p
