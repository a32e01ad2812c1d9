#include "gather_plan.h"

#include <algorithm>
#include <numeric>

namespace dlv3p {
namespace {

int64_t destination_size(Direction direction, const ConvAxis& axis) {
  return direction == Direction::kForward ? axis.out : axis.in;
}

// The taps of one destination index that fall inside the source.
std::vector<AxisTap> taps_of(Direction direction, const ConvAxis& axis, int64_t destination) {
  std::vector<AxisTap> taps;
  for (int64_t k = 0; k < axis.kernel; ++k) {
    if (direction == Direction::kForward) {
      const int64_t index = axis.source(destination, k);
      if (index >= 0 && index < axis.in) taps.push_back({k, index});
    } else {
      const int64_t reach = destination + axis.before - k * axis.dilation;
      const int64_t index = reach / axis.stride;
      if (reach >= 0 && reach % axis.stride == 0 && index < axis.out) taps.push_back({k, index});
    }
  }
  return taps;
}

// The smallest step between destination indices that read the same source index by another tap.
int64_t reuse_step(Direction direction, const ConvAxis& axis) {
  return direction == Direction::kForward ? axis.dilation / std::gcd(axis.dilation, axis.stride)
                                          : axis.dilation;
}

bool continues(const std::vector<AxisTap>& taps, const std::vector<AxisTap>& start, int64_t shift) {
  return std::equal(taps.begin(), taps.end(), start.begin(), start.end(),
                    [shift](const AxisTap& a, const AxisTap& b) {
                      return a.k == b.k && a.index == b.index + shift;
                    });
}

}  // namespace

GatherPlanner::GatherPlanner(Direction direction, const ConvAxis& rows, const ConvAxis& columns,
                             int64_t bands) {
  plan_rows(direction, rows, bands);
  plan_columns(direction, columns);
}

void GatherPlanner::plan_rows(Direction direction, const ConvAxis& axis, int64_t bands) {
  const int64_t size = destination_size(direction, axis);
  const int64_t step = std::min(reuse_step(direction, axis), size);
  std::vector<int64_t> phase_begin;
  for (int64_t phase = 0; phase < step; ++phase) {
    phase_begin.push_back(static_cast<int64_t>(rows_.size()));
    for (int64_t row = phase; row < size; row += step) {
      const std::vector<AxisTap> taps = taps_of(direction, axis, row);
      const auto begin = static_cast<int64_t>(row_taps_.size());
      row_taps_.insert(row_taps_.end(), taps.begin(), taps.end());
      rows_.push_back({row, begin, static_cast<int64_t>(row_taps_.size())});
    }
  }
  bands = std::max<int64_t>(1, std::min(bands, size));
  for (int64_t b = 0; b < bands; ++b) {
    band_begin_.push_back(bands <= step ? phase_begin[b * step / bands] : b * size / bands);
  }
  band_begin_.push_back(size);
}

void GatherPlanner::plan_columns(Direction direction, const ConvAxis& axis) {
  const int64_t size = destination_size(direction, axis);
  const bool forward = direction == Direction::kForward;
  const int64_t step = forward ? 1 : axis.stride;
  const int64_t source_step = forward ? axis.stride : 1;
  for (int64_t phase = 0; phase < std::min(step, size); ++phase) {
    std::vector<AxisTap> start;
    for (int64_t column = phase; column < size; column += step) {
      std::vector<AxisTap> taps = taps_of(direction, axis, column);
      const bool grows = column != phase &&
                         continues(taps, start, runs_.back().count * source_step);
      if (grows) {
        ++runs_.back().count;
        continue;
      }
      const auto begin = static_cast<int64_t>(column_taps_.size());
      column_taps_.insert(column_taps_.end(), taps.begin(), taps.end());
      runs_.push_back({column, step, 1, source_step, begin,
                       static_cast<int64_t>(column_taps_.size())});
      start = std::move(taps);
    }
  }
}

GatherPlan GatherPlanner::plan() const {
  return {rows_.data(),
          row_taps_.data(),
          band_begin_.data(),
          static_cast<int64_t>(band_begin_.size()) - 1,
          runs_.data(),
          static_cast<int64_t>(runs_.size()),
          column_taps_.data()};
}

}  // namespace dlv3p
