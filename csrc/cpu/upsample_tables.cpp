#include "upsample_tables.h"

#include "../common/resize.h"

namespace dlv3p {

UpsampleTables::UpsampleTables(Element element, int64_t in, int64_t out, bool align_corners)
    : first_(out), second_(out) {
  if (element == Element::kFloat64) {
    fill(in, out, align_corners, wide_weights_);
  } else {
    fill(in, out, align_corners, weights_);
  }
}

template <class A>
void UpsampleTables::fill(int64_t in, int64_t out, bool align_corners, std::vector<A>& weights) {
  const ResizeAxis<A> axis = resize_axis<A>(in, out, align_corners);
  weights.resize(2 * out);
  for (int64_t o = 0; o < out; ++o) {
    const ResizeSource<A> source = axis.source(o);
    first_[o] = static_cast<int32_t>(source.first);
    second_[o] = static_cast<int32_t>(source.second);
    weights[o] = source.weight_first;
    weights[out + o] = source.weight_second;
  }
  axis_ = {in, out, first_.data(), second_.data(), weights.data(), weights.data() + out};
}

}  // namespace dlv3p
