// The tables of an axis that is resized, worked out by the rule of resize.h.
#pragma once

#include <cstdint>
#include <vector>

#include "gather.h"
#include "upsample_axis.h"

namespace dlv3p {

// `axis` points into it.
class UpsampleTables {
 public:
  UpsampleTables(Element element, int64_t in, int64_t out, bool align_corners);
  UpsampleTables(const UpsampleTables&) = delete;
  UpsampleTables& operator=(const UpsampleTables&) = delete;

  const UpsampleAxis& axis() const { return axis_; }

 private:
  template <class A>
  void fill(int64_t in, int64_t out, bool align_corners, std::vector<A>& weights);

  std::vector<int32_t> first_;
  std::vector<int32_t> second_;
  std::vector<float> weights_;
  std::vector<double> wide_weights_;  // beside float64 maps
  UpsampleAxis axis_;
};

}  // namespace dlv3p
