// Works out which source pixels each destination pixel gathers from; see gather.h.
#pragma once

#include <vector>

#include "../common/conv_geometry.h"
#include "gather.h"

namespace dlv3p {

enum class Direction { kForward, kInputGradient };
enum class RowOrder { kShareSource, kPlain };

class GatherPlanner {
 public:
  // `bands` is a wish: rows that share source rows are kept together where that leaves enough.
  GatherPlanner(Direction direction, const ConvAxis& rows, const ConvAxis& columns, RowOrder order,
                int64_t bands);

  GatherPlan plan() const;  // points into this object

 private:
  void plan_rows(RowOrder order, int64_t bands);
  void plan_columns();
  void add_exact_runs(int64_t phase);
  void add_merged_runs(int64_t phase, std::size_t exact_begin);

  const Direction direction_;
  const ConvAxis rows_axis_;
  const ConvAxis columns_axis_;

  std::vector<RowTaps> rows_;
  std::vector<AxisTap> row_taps_;
  std::vector<int64_t> band_begin_;
  std::vector<ColumnRun> exact_;
  std::vector<ColumnRun> merged_;
  std::vector<AxisTap> column_taps_;
  int64_t zeros_left_ = 0;
  int64_t zeros_right_ = 0;
};

}  // namespace dlv3p
