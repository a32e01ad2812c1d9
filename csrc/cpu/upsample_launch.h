// From tensors to the structures of upsample.h, for loss and classes.
#pragma once

#include <cstdint>

#include "../common/tensor.h"
#include "gather_launch.h"
#include "parallel.h"
#include "scratch.h"
#include "upsample.h"
#include "upsample_tables.h"

namespace dlv3p {

// How logits are resized and how the work is divided. Holds what `map` points into.
class UpsamplePlan {
 public:
  // `logits` walkable, as in gather_launch.h. A task holds as many rows as `rows_held`, each of all
  // classes and the columns of a tile; there are `least_rows` to a band at least, of those resized
  // (or of the logits, where `by_source`).
  UpsamplePlan(const Tensor& logits, int64_t height, int64_t width, bool align_corners,
               int64_t rows_held, int64_t least_rows, bool by_source);
  UpsamplePlan(const UpsamplePlan&) = delete;
  UpsamplePlan& operator=(const UpsamplePlan&) = delete;

  const Upsample& map() const { return map_; }
  Element element() const { return element_; }

 private:
  void choose_tile(int64_t rows_held);
  void measure_tiles();

  const Element element_;
  const UpsampleTables rows_;
  const UpsampleTables columns_;
  Upsample map_{};
};

// Calls run(task, scratch) for all tasks.
template <class Run>
void for_each_band(const Upsample& map, int64_t scratch_bytes, const Run& run) {
  for_each_task(map.batch * map.bands, [&](int64_t task) {
    thread_local Scratch scratch;
    run(task, scratch.at_least(scratch_bytes));
  });
}

void check_logits(const Tensor& logits, const char* op);

}  // namespace dlv3p
