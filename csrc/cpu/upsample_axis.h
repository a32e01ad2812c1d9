// Where a resized map reads along one axis: plain data, for code compiled per instruction set.
#pragma once

#include <cstdint>

namespace dlv3p {

// By resized index; weights in the accumulation type.
struct UpsampleAxis {
  int64_t in;
  int64_t out;
  const int32_t* first;
  const int32_t* second;
  const void* weight_first;
  const void* weight_second;
};

}  // namespace dlv3p
