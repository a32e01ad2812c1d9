// The gather of gather.h, compiled once per instruction set (CMakeLists.txt sets DLV3P_ISA and the
// compiler flags). Only what sits in the anonymous namespace may be instantiated here: a template
// of the standard library compiled with wider vectors could be picked by the linker for everybody.
#include <type_traits>

#include "gather.h"
#include "gather_finish.h"
#include "gather_loops.h"
#include "gather_resize.h"
#include "gather_rows.h"
#include "gather_weight.h"
#include "vec.h"
#include "vec_math.h"

namespace dlv3p {
namespace {

// S is the element type in memory, A the one that sums are formed in.
template <class S, class A>
class Task {
  static constexpr int64_t L = kLanesOf<A>;

 public:
  static int64_t scratch_bytes(const Gather& g) {
    Task task(g, 0);  // the first one is as large as any
    task.lay_out(nullptr);
    return task.used_;
  }

  static void run(const Gather& g, int64_t index, void* scratch) {
    Task task(g, index);
    task.lay_out(static_cast<char*>(scratch));
    task.run_group(index % g.groups);
  }

 private:
  Task(const Gather& g, int64_t index)
      : g_(g),
        tap_count_(g.kernel_height * g.kernel_width),
        by_row_(g.destination.data && (!g.destination.channels_adjacent || g.cells)),
        in_lines_(g.moments || g.on_result.scale || (g.on_other.scale && g.destination.data)),
        block_(index / g.groups),
        first_channel_(block_ * g.block),
        channels_(min_of(g.block, g.channels - first_channel_)),
        vectors_(ceil_div(channels_, L)),
        resized_(g.source_resize.is_set() ? g.source_resize : g.other_resize, vectors_) {}

  // Hands out the scratch memory; with nullptr only `used_` is of use.
  void lay_out(char* memory) {
    used_ = 0;
    const auto take = [&](auto*& pointer, int64_t count) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(memory + used_);
      used_ += ceil_div(count * sizeof(*pointer), 64) * 64;
    };
    take(sums_, g_.weight_gradients ? tap_count_ * vectors_ * L : 0);
    take(source_, vectors_ * plane() * L);
    take(other_, g_.other.data ? vectors_ * g_.other.width * L : 0);
    take(destination_, by_row_ ? vectors_ * g_.destination.width * L : 0);
    take(line_, in_lines_ ? kLinePixels * L : 0);
    take(affine_sums_, g_.on_other.scale ? 2 * vectors_ * L : 0);
    take(moments_, g_.moments ? vectors_ : 0);
    take(slots_, g_.held_rows);
    take(taps_, tap_count_);
    A* cells;
    take(cells, resized_.scratch());
    resized_.use(cells);
  }

  MapRow<S, A> row_of(const Map& map, int64_t image, int64_t row) const {
    S* data = static_cast<S*>(map.data) + image * map.stride_n + row * map.stride_h +
              first_channel_ * map.stride_c;
    return {data, map.stride_c, map.stride_w, map.width, map.channels_adjacent, channels_};
  }

  int64_t channel_of(int64_t v) const { return dlv3p::channel_of<A>(v, channels_); }

  Affine<A> affine_of(const Pointwise& p) const {
    return {static_cast<const A*>(p.scale) + first_channel_,
            static_cast<const A*>(p.shift) + first_channel_};
  }

  // Rows of the map that a resized one is made of.
  auto cells_of(const Map& map, const Resize& resize, int64_t image) const {
    return [=, &map](int64_t row) {
      MapRow<S, A> cells = row_of(map, image, row);
      cells.width = resize.columns.in;
      return cells;
    };
  }

  // Held pixels per vector of channels.
  int64_t plane() const { return g_.held_rows * g_.plan.held_width; }

  void run_group(int64_t group) {
    clear_zeros();
    if (g_.weight_gradients) clear(sums_, tap_count_ * vectors_ * L);
    if (g_.on_other.scale) clear(affine_sums_, 2 * vectors_ * L);
    if (g_.moments) {
      for (int64_t v = 0; v < vectors_; ++v) moments_[v].start();
    }
    A* const cells = cells_of_block();
    if (cells && g_.begins) resized_.clear(cells);
    const int64_t pieces = g_.batch * g_.plan.bands;
    const int64_t end = (group + 1) * pieces / g_.groups;
    for (int64_t piece = group * pieces / g_.groups; piece < end; ++piece) {
      run_band(piece / g_.plan.bands, piece % g_.plan.bands);
    }
    if (g_.weight_gradients) write_sums(sums_, tap_count_, g_.weight_gradients, group);
    if (g_.affine_gradients) write_sums(affine_sums_, 2, g_.affine_gradients, group);
    if (g_.moments) write_moments(group);
    if (cells && g_.ends) resized_.write(cells, cells_of(g_.destination, g_.other_resize, 0));
  }

  A* cells_of_block() const {
    if (!g_.cells) return nullptr;
    const UpsampleAxis &rows = g_.other_resize.rows, &columns = g_.other_resize.columns;
    return static_cast<A*>(g_.cells) + block_ * rows.in * g_.block * columns.in;
  }

  void run_band(int64_t image, int64_t band) {
    resized_.forget();
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
    if (g_.other.data) finite &= pack_other(image, row.row);
    // Zeros beside the source are multiplied too; only with finite factors do they add nothing.
    const ColumnRuns& runs = finite ? g_.plan.merged : g_.plan.exact;
    const MapRow<S, A> destination = row_of(g_.destination, image, row.row);
    for (int64_t r = 0; r < runs.count; ++r) {
      const ColumnRun& run = runs.runs[r];
      const int64_t count = list_taps(row, run);
      for (int64_t v = 0; v < vectors_; ++v) {
        if (g_.destination.data || g_.moments) gather(destination, run, v, count);
        if (g_.weight_gradients) correlate(run, v, count);
      }
    }
    if (g_.cells) {
      resized_.accumulate(destination_, row.row, cells_of_block());
    } else if (by_row_) {
      destination.unpack(destination_);
    }
    if (g_.moments) {
      for (int64_t v = 0; v < vectors_; ++v) moments_[v].merge_if_enough();
    }
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

  // Vector `v` of the pixels of a run to the destination, or to its row where columns are adjacent.
  void gather(const MapRow<S, A>& row, const ColumnRun& run, int64_t v, int64_t tap_count) {
    const A* weight = static_cast<const A*>(g_.packed_weight) + first_channel_ + channel_of(v);
    const auto run_to = [&](auto* out, int64_t pitch, int64_t lanes) {
      return GatherRun<A, std::remove_pointer_t<decltype(out)>>{
          source_ + v * plane() * L,
          run.source_step * L,
          taps_,
          tap_count,
          weight,
          g_.padded_channels,
          weight + tap_count_ * g_.padded_channels,
          out,
          pitch,
          lanes};
    };
    const auto go = [&](auto* out, int64_t pitch, int64_t lanes) {
      out += run.first * pitch;
      pitch *= run.step;
      if (in_lines_) {
        GatherRun<A, A> to_line = run_to(line_, L, L);
        gather_lines<S>(to_line, run.count, out, pitch, lanes, finish_of(run, v));
      } else {
        run_to(out, pitch, lanes).gather(run.count);
      }
    };
    if (!g_.destination.data) {
      GatherRun<A, A> to_line = run_to(line_, L, L);
      gather_lines<S>(to_line, run.count, static_cast<S*>(nullptr), 0, 0, finish_of(run, v));
    } else if (!by_row_) {
      go(row.data + channel_of(v), row.stride_w, min_of(L, channels_));
    } else {
      go(destination_ + v * row.width * L, L, L);
    }
  }

  Finish<A> finish_of(const ColumnRun& run, int64_t v) const {
    Finish<A> finish = {};
    if (g_.moments) {
      finish.moments = moments_ + v;
      return finish;
    }
    const Pointwise& pointwise = g_.other.data ? g_.on_other : g_.on_result;
    finish.activation = pointwise.activation;
    finish.affine = affine_of(pointwise).at(channel_of(v));
    if (g_.other.data) {
      finish.x_to_z = other_ + (v * g_.other.width + run.first) * L;
      finish.x_pitch = run.step * L;
      finish.scale_gradient = affine_sums_ + v * L;
      finish.shift_gradient = affine_sums_ + (vectors_ + v) * L;
    }
    return finish;
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
    A* held = source_ + (oldest * g_.plan.held_width + g_.plan.held_left) * L;
    pack_source(image, row, held);
  }

  void pack_source(int64_t image, int64_t row, A* held) {
    Keep<A> sink;
    if (g_.source_resize.is_set()) {
      resized_.pack(cells_of(g_.source, g_.source_resize, image), row, held, plane(), sink);
    } else if (g_.on_source.scale) {
      const Affine<A> affine = affine_of(g_.on_source);
      pack_applied(row_of(g_.source, image, row), held, plane(), g_.on_source.activation, affine);
    } else {
      row_of(g_.source, image, row).pack(held, plane(), sink);
    }
  }

  // To vectors[v][column]; whether all that the weight gradient multiplies is finite.
  bool pack_other(int64_t image, int64_t index) {
    KeepChecked<A> sink;
    if (g_.other_resize.is_set()) {
      const auto cells = cells_of(g_.other, g_.other_resize, image);
      resized_.pack(cells, index, other_, g_.other.width, sink);
      return sink.finite();
    }
    const MapRow<S, A> row = row_of(g_.other, image, index);
    if (!g_.on_other.scale) {
      row.pack(other_, row.width, sink);
      return sink.finite();
    }
    const Affine<A> affine = affine_of(g_.on_other);
    // On the way back through it the activation is applied, and needs what it is applied to.
    if (g_.destination.data) return pack_checked(row, other_, affine);
    return pack_applied_checked(row, other_, g_.on_other.activation, affine);
  }

  static void clear(A* values, int64_t count) {
    for (int64_t i = 0; i < count; ++i) values[i] = 0;
  }

  void clear_zeros() {
    const int64_t right = g_.plan.held_width - g_.plan.held_left - g_.source.width;
    for (int64_t row = 0; row < vectors_ * g_.held_rows; ++row) {
      A* held = source_ + row * g_.plan.held_width * L;
      clear(held, g_.plan.held_left * L);
      clear(held + (g_.plan.held_width - right) * L, right * L);
    }
  }

  bool needed(int64_t source_row, const RowTaps& row) const {
    for (int64_t t = row.tap_begin; t < row.tap_end; ++t) {
      if (g_.plan.row_taps[t].index == source_row) return true;
    }
    return false;
  }

  // --- results of the group --------------------------------------------------------------------

  // sums[k][v] of this group to (groups, kinds, channels).
  void write_sums(const A* sums, int64_t kinds, void* results, int64_t group) const {
    A* to = static_cast<A*>(results) + group * kinds * g_.channels + first_channel_;
    const int64_t lanes = min_of(L, channels_);
    for (int64_t k = 0; k < kinds; ++k) {
      for (int64_t v = 0; v < vectors_; ++v) {
        const A* from = sums + (k * vectors_ + v) * L;
        for (int64_t c = 0; c < lanes; ++c) to[k * g_.channels + channel_of(v) + c] = from[c];
      }
    }
  }

  void write_moments(int64_t group) const {
    double* means = g_.moments + group * 2 * g_.channels + first_channel_;
    for (int64_t v = 0; v < vectors_; ++v) {
      moments_[v].merge();
      double* to = means + channel_of(v);
      moments_[v].write(to, to + g_.channels, min_of(L, channels_));
    }
  }

  const Gather& g_;
  const int64_t tap_count_;
  const bool by_row_;    // results are written, or added to cells, a row at a time
  const bool in_lines_;  // results pass through a line before they are written
  const int64_t block_;
  const int64_t first_channel_;
  const int64_t channels_;
  const int64_t vectors_;
  ResizedRows<S, A> resized_;
  int64_t used_ = 0;
  int64_t clock_ = 0;
  A* sums_;
  A* source_;
  A* other_;
  A* destination_;
  A* line_;
  A* affine_sums_;  // by scale, by shift: [2][v]
  Moments<A>* moments_;
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
    {pack_weight<float, float>, pack_weight<BFloat16, float>, pack_weight<Float16, float>,
     pack_weight<double, double>},
    {Task<float, float>::scratch_bytes, Task<BFloat16, float>::scratch_bytes,
     Task<Float16, float>::scratch_bytes, Task<double, double>::scratch_bytes},
    {Task<float, float>::run, Task<BFloat16, float>::run, Task<Float16, float>::run,
     Task<double, double>::run},
};

}  // namespace dlv3p
