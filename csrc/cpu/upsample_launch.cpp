#include "upsample_launch.h"

#include <algorithm>
#include <limits>

namespace dlv3p {
namespace {

// What a task holds shall stay in a core's own caches; narrower tiles cost more than they give.
constexpr int64_t kTileBytes = 64 * 1024;
constexpr int64_t kLeastTile = 128;
constexpr int64_t kMostTile = 256;
// Whole vectors of every instruction set and type.
constexpr int64_t kTileStep = 16;
static_assert(kLeastTile % kTileStep == 0 && kMostTile % kTileStep == 0);

constexpr int64_t kTasksPerThread = 4;

int64_t extent_of(const Tensor& t) {
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  return last + 1;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

UpsamplePlan::UpsamplePlan(const Tensor& logits, int64_t height, int64_t width, bool align_corners,
                           int64_t rows_held, int64_t least_rows, bool by_source)
    : element_(element_of(logits)),
      rows_(element_, logits.size(2), height, align_corners),
      columns_(element_, logits.size(3), width, align_corners) {
  map_.logits = map_of(logits);
  map_.extent = extent_of(logits);
  map_.batch = logits.size(0);
  map_.classes = logits.size(1);
  map_.rows = rows_.axis();
  map_.columns = columns_.axis();
  const int64_t wanted = kTasksPerThread * torch::stable::get_num_threads();
  const int64_t rows = by_source ? map_.rows.in : map_.rows.out;
  map_.bands = std::clamp<int64_t>(ceil_div(wanted, std::max<int64_t>(1, map_.batch)), 1,
                                   std::max<int64_t>(1, rows / least_rows));
  choose_tile(rows_held);
  measure_tiles();
}

void UpsamplePlan::choose_tile(int64_t rows_held) {
  const int64_t fitting = kTileBytes / (rows_held * map_.classes * sum_bytes(element_));
  const int64_t most = std::min(kMostTile, ceil_div(map_.columns.out, kTileStep) * kTileStep);
  map_.tile = std::min(most, std::max(kLeastTile, fitting / kTileStep * kTileStep));
}

void UpsamplePlan::measure_tiles() {
  const UpsampleAxis& columns = map_.columns;
  for (int64_t begin = 0; begin < columns.out; begin += map_.tile) {
    const int64_t end = std::min(columns.out, begin + map_.tile);
    const int64_t first = begin == 0 ? 0 : columns.first[begin];
    const int64_t next = end == columns.out ? columns.in : columns.first[end];
    const int64_t last = columns.second[end - 1] + int64_t{1};
    map_.most_source = std::max(map_.most_source, std::max(next, last) - first);
  }
}

void check_logits(const Tensor& logits, const char* op) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  STD_TORCH_CHECK(logits.dim() == 4 && logits.size(1) > 0 && logits.size(2) > 0 &&
                      logits.size(3) > 0 && logits.size(1) <= kMost && logits.size(2) <= kMost &&
                      logits.size(3) <= kMost,
                  op, ": logits must have 4 dimensions, none of them empty but the first");
}

}  // namespace dlv3p
