// Batch norm in contiguous memory: a plane of `plane` neighbouring elements for each (n, c).
//
// Planes begin at any alignment. A unit of work, for one warp, is a run of packs of a plane that
// are aligned in the tensor; the first and last unit of a plane also take the elements before and
// behind the aligned packs, one a lane.
#pragma once

#include <cstdint>

#include "norm_backward.cuh"
#include "norm_stats.cuh"

namespace dlv3p {

struct PlaneTiling {
  int64_t batch;
  int64_t channels;
  int64_t plane;
  unsigned units_per_plane;
};

constexpr int kPlaneThreads = 256;
constexpr int kPlaneWarps = kPlaneThreads / kWarpLanes;
constexpr int kPlaneBackwardBlocks = 2;      // per multiprocessor: room for three maps in registers
constexpr int kUnitPacks = 16 * kWarpLanes;  // 8 KB, so that a warp amortises its set-up

template <int V, class Work>
__device__ inline void visit_unit(Work& work, const PlaneTiling& t, int64_t plane, unsigned unit) {
  static_assert(V <= kWarpLanes, "a lane for each element beside the packs");
  const int64_t lane = threadIdx.x % kWarpLanes;
  const int64_t begin = plane * t.plane;
  const int64_t end = begin + t.plane;
  const int64_t first_pack = (begin + V - 1) / V;
  const int64_t last_pack = end / V;
  const int64_t from = first_pack + static_cast<int64_t>(unit) * kUnitPacks;
  const int64_t to = from + kUnitPacks < last_pack ? from + kUnitPacks : last_pack;
  visit_packs<V>(work, (from + lane) * V, to * V, static_cast<int64_t>(kWarpLanes) * V);
  const int64_t head_end = first_pack * V < end ? first_pack * V : end;
  if (unit == 0 && begin + lane < head_end) visit_single<1>(work, begin + lane);
  const int64_t tail = (last_pack * V > head_end ? last_pack * V : head_end) + lane;
  if (unit == t.units_per_plane - 1 && tail < end) visit_single<1>(work, tail);
}

// A warp per unit of an image (grid.x), which goes on with the same unit of later images (grid.y).
template <class Work, int V>
__global__ void __launch_bounds__(kPlaneThreads)
    norm_planes_kernel(typename Work::Params p, PlaneTiling t) {
  static_assert(Work::kChannels == 1, "a plane is of one channel");
  const unsigned index = blockIdx.x * kPlaneWarps + threadIdx.x / kWarpLanes;
  const int64_t channel = index / t.units_per_plane;
  if (channel >= t.channels) return;
  Work work(p, channel);
  for (int64_t image = blockIdx.y; image < t.batch; image += gridDim.y) {
    visit_unit<V>(work, t, image * t.channels + channel, index % t.units_per_plane);
  }
}

// The reductions have a block per channel (grid.x) and piece (grid.y) of its units; neighbouring
// warps take neighbouring units.
template <int V, class Work>
__device__ inline void visit_piece(Work& work, const PlaneTiling& t) {
  const unsigned first = blockIdx.y * kPlaneWarps + threadIdx.x / kWarpLanes;
  const unsigned step = gridDim.y * kPlaneWarps;
  const unsigned images = step / t.units_per_plane;  // a step is `images` planes and `rest` units
  const unsigned rest = step % t.units_per_plane;
  int64_t image = first / t.units_per_plane;
  unsigned unit = first % t.units_per_plane;
  while (image < t.batch) {
    visit_unit<V>(work, t, image * t.channels + blockIdx.x, unit);
    unit += rest;
    image += images + (unit >= t.units_per_plane);
    if (unit >= t.units_per_plane) unit -= t.units_per_plane;
  }
}

// The sum over a block, for every thread of it.
__device__ inline float plane_block_sum(float* scratch, float value) {
  __shared__ float total;
  const float values[1] = {value};
  __syncthreads();  // the last sum has been read
  block_sums<kPlaneThreads>(scratch, values, [&](int, float sum) { total = sum; });
  __syncthreads();
  return total;
}

template <class T, int V>
__global__ void __launch_bounds__(kPlaneThreads)
    norm_stats_planes_kernel(NormStats p, PlaneTiling t, float* parts) {
  __shared__ float scratch[kPlaneThreads];
  const int64_t channel = blockIdx.x;
  StatsWork<T, 1> work(p, channel * t.plane);
  visit_piece<V>(work, t);
  const auto& own = work.moments;
  const float count = plane_block_sum(scratch, own.count);
  // A unit may hold no element, where the packs of its plane end early.
  const float mean = plane_block_sum(scratch, own.count * own.mean[0]) / fmaxf(count, 1.0f);
  const float deviations = plane_block_sum(
      scratch, deviations_around(mean, {own.count, own.mean[0], own.deviations[0]}));
  if (threadIdx.x > 0) return;
  store_moments(parts, blockIdx.y, t.channels, channel, {count, mean, deviations});
  if (blockIdx.y == 0) pivots_behind(parts, gridDim.y, t.channels)[channel] = work.pivot[0];
}

template <class T, int V>
__global__ void __launch_bounds__(kPlaneThreads, kPlaneBackwardBlocks)
    norm_backward_planes_kernel(NormBackward p, PlaneTiling t, float* parts) {
  __shared__ float scratch[2 * kPlaneThreads];
  const int64_t channel = blockIdx.x;
  BackwardReduceWork<T, 1> work(p, channel);
  visit_piece<V>(work, t);
  float* row = parts + static_cast<int64_t>(blockIdx.y) * 2 * t.channels + channel;
  block_sums<kPlaneThreads>(scratch, work.sums, [&](int v, float sum) {
    row[v * t.channels] = v == 0 ? sum : sum * p.vectors.invstd[channel];
  });
}

}  // namespace dlv3p
