// Sums over the pieces of maps, merged in the order of the pieces, so that they do not depend on
// the number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/tensor.h"
#include "gather_sums.h"
#include "norm_cut.h"

namespace dlv3p {

// Sums of every piece and channel, as the kernels write them.
class Pieces {
 public:
  explicit Pieces(int64_t channels) : channels_(channels) {}

  // Makes room for the pieces of a map, behind those of the maps before.
  void append(const Cut& cut);
  // Where the kernels write the statistics, or the sums, of the map appended last.
  void take_statistics(NormBlock& whole);
  void take_sums(NormBlock& whole);

  MeanAndVariance merged_statistics(Element element) const;
  // Totals of the first and of the second sums, the latter times `factors`.
  Tensor total_first(ScalarType type) const;
  Tensor total_second(const Tensor& factors) const;

 private:
  template <class A>
  void merge(const MeanAndVariance& result) const;
  template <class A>
  void total(const std::vector<double>& sums, const A* factors, const Tensor& result) const;

  const int64_t channels_;
  int64_t last_ = 0;           // first piece of the map appended last
  std::vector<int64_t> rows_;  // values per channel of each piece
  std::vector<double> first_;
  std::vector<double> second_;
  std::vector<double> pivots_;  // of statistics only
};

// Adds the statistics of a map to `pieces`; `cut` is that of the map.
void measure(const Tensor& map, const Cut& cut, Pieces& pieces);

}  // namespace dlv3p
