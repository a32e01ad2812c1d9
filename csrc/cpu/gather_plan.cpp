#include "gather_plan.h"

#include <algorithm>
#include <numeric>

namespace dlv3p {
namespace {

// How a gather walks one axis, from destination to source.
struct Walk {
  Walk(Direction direction, const ConvAxis& axis)
      : axis(axis),
        forward(direction == Direction::kForward),
        size(forward ? axis.out : axis.in),
        source_size(forward ? axis.in : axis.out),
        // Destination indices this far apart see the same taps, source_step further on.
        step(forward ? 1 : axis.stride),
        source_step(forward ? axis.stride : 1),
        // Destination indices this far apart read the same source index by another tap.
        reuse_step(forward ? axis.dilation / std::gcd(axis.dilation, axis.stride) : axis.dilation) {
  }

  // Whether tap k of a destination index falls on the source's grid; `index` may lie outside it.
  bool reaches(int64_t destination, int64_t k, int64_t& index) const {
    if (forward) {
      index = axis.source(destination, k);
      return true;
    }
    const int64_t reach = destination + axis.before - k * axis.dilation;
    index = reach / axis.stride;
    return reach % axis.stride == 0;
  }

  bool inside(int64_t index) const { return index >= 0 && index < source_size; }

  int64_t add_taps(int64_t destination, std::vector<AxisTap>& taps) const {
    int64_t count = 0;
    for (int64_t k = 0; k < axis.kernel; ++k) {
      int64_t index;
      if (!reaches(destination, k, index) || !inside(index)) continue;
      taps.push_back({k, index});
      ++count;
    }
    return count;
  }

  const ConvAxis& axis;
  const bool forward;
  const int64_t size;
  const int64_t source_size;
  const int64_t step;
  const int64_t source_step;
  const int64_t reuse_step;
};

}  // namespace

GatherPlanner::GatherPlanner(Direction direction, const ConvAxis& rows, const ConvAxis& columns,
                             RowOrder order, int64_t bands)
    : direction_(direction), rows_axis_(rows), columns_axis_(columns) {
  plan_rows(order, bands);
  plan_columns();
}

void GatherPlanner::plan_rows(RowOrder order, int64_t bands) {
  const Walk walk(direction_, rows_axis_);
  const int64_t phases = order == RowOrder::kPlain ? 1 : std::min(walk.reuse_step, walk.size);
  std::vector<int64_t> phase_begin;
  for (int64_t phase = 0; phase < phases; ++phase) {
    phase_begin.push_back(static_cast<int64_t>(rows_.size()));
    for (int64_t row = phase; row < walk.size; row += phases) {
      const auto begin = static_cast<int64_t>(row_taps_.size());
      rows_.push_back({row, begin, begin + walk.add_taps(row, row_taps_)});
    }
  }
  bands = std::clamp<int64_t>(bands, 1, walk.size);
  for (int64_t b = 0; b < bands; ++b) {
    band_begin_.push_back(bands <= phases ? phase_begin[b * phases / bands]
                                          : b * walk.size / bands);
  }
  band_begin_.push_back(walk.size);
}

void GatherPlanner::plan_columns() {
  const Walk walk(direction_, columns_axis_);
  for (int64_t phase = 0; phase < std::min(walk.step, walk.size); ++phase) {
    const std::size_t begin = exact_.size();
    add_exact_runs(phase);
    add_merged_runs(phase, begin);
  }
}

void GatherPlanner::add_exact_runs(int64_t phase) {
  const Walk walk(direction_, columns_axis_);
  for (int64_t column = phase; column < walk.size; column += walk.step) {
    const auto begin = static_cast<int64_t>(column_taps_.size());
    const int64_t count = walk.add_taps(column, column_taps_);
    if (column != phase) {
      ColumnRun& run = exact_.back();
      const auto continues = [shift = run.count * walk.source_step](const AxisTap& first,
                                                                    const AxisTap& tap) {
        return tap.k == first.k && tap.index == first.index + shift;
      };
      const auto taps = column_taps_.begin();
      if (std::equal(taps + run.tap_begin, taps + run.tap_end, taps + begin, taps + begin + count,
                     continues)) {
        ++run.count;
        column_taps_.resize(begin);
        continue;
      }
    }
    exact_.push_back({column, walk.step, 1, walk.source_step, begin, begin + count});
  }
}

// One run for the whole phase where reading zeros costs at most a fifth more multiply-adds.
void GatherPlanner::add_merged_runs(int64_t phase, std::size_t exact_begin) {
  const Walk walk(direction_, columns_axis_);
  int64_t exact_taps = 0;
  for (std::size_t r = exact_begin; r < exact_.size(); ++r) {
    exact_taps += exact_[r].count * (exact_[r].tap_end - exact_[r].tap_begin);
  }
  const int64_t columns = (walk.size - phase + walk.step - 1) / walk.step;
  const int64_t reach = (columns - 1) * walk.source_step;
  const auto begin = static_cast<int64_t>(column_taps_.size());
  int64_t left = 0;
  int64_t right = 0;
  for (int64_t k = 0; k < walk.axis.kernel; ++k) {
    int64_t index;
    const bool used =
        walk.reaches(phase, k, index) && index < walk.source_size && index + reach >= 0;
    if (!used) continue;
    column_taps_.push_back({k, index});
    left = std::max(left, -index);
    right = std::max(right, index + reach - walk.source_size + 1);
  }
  const auto end = static_cast<int64_t>(column_taps_.size());
  if (5 * columns * (end - begin) > 6 * exact_taps) {
    column_taps_.resize(begin);
    merged_.insert(merged_.end(), exact_.begin() + exact_begin, exact_.end());
    return;
  }
  zeros_left_ = std::max(zeros_left_, left);
  zeros_right_ = std::max(zeros_right_, right);
  merged_.push_back({phase, walk.step, columns, walk.source_step, begin, end});
}

GatherPlan GatherPlanner::plan() const {
  const Walk walk(direction_, columns_axis_);
  const auto view = [](const std::vector<ColumnRun>& runs) {
    return ColumnRuns{runs.data(), static_cast<int64_t>(runs.size())};
  };
  return {rows_.data(),
          row_taps_.data(),
          band_begin_.data(),
          static_cast<int64_t>(band_begin_.size()) - 1,
          view(exact_),
          view(merged_),
          column_taps_.data(),
          zeros_left_,
          zeros_left_ + walk.source_size + zeros_right_};
}

}  // namespace dlv3p
