// Works out which source pixels each destination pixel gathers from; see gather.h.
#pragma once

#include <vector>

#include "../common/conv_geometry.h"
#include "gather.h"

namespace dlv3p {

enum class Direction { kForward, kInputGradient };

class GatherPlanner {
 public:
  // `bands` is a wish: rows that share source rows are kept together where that leaves enough.
  GatherPlanner(Direction direction, const ConvAxis& rows, const ConvAxis& columns, int64_t bands);

  GatherPlan plan() const;  // points into this object

 private:
  void plan_rows(Direction direction, const ConvAxis& axis, int64_t bands);
  void plan_columns(Direction direction, const ConvAxis& axis);

  std::vector<RowTaps> rows_;
  std::vector<AxisTap> row_taps_;
  std::vector<int64_t> band_begin_;
  std::vector<ColumnRun> runs_;
  std::vector<AxisTap> column_taps_;
};

}  // namespace dlv3p
