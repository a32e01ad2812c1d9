// How depthwise convolution in contiguous memory brings planes into shared memory, as floats with
// room for the padding between the rows; see depthwise_planes.cuh.
#pragma once

#include <cstdint>

#include "depthwise.cuh"

namespace dlv3p {

constexpr int kPlanesThreads = 256;
constexpr int kStrip = 4;       // rows of a thread: 18 loads for 36 products with 3x3
constexpr int kStagePacks = 4;  // 16-byte loads in flight per thread

// Division by a number known at launch: exact while dividend * size < 2^32.
struct Divide {
  unsigned size;
  unsigned magic;

  static Divide by(int64_t size) {
    const auto divisor = static_cast<uint64_t>(size);
    return {static_cast<unsigned>(size),
            static_cast<unsigned>(((uint64_t{1} << 32) + divisor - 1) / divisor)};
  }

  __device__ int operator()(int x) const {
    return size == 1 ? x : static_cast<int>(__umulhi(static_cast<unsigned>(x), magic));
  }
};

// One axis: result r reads the source, spread apart, at r * step - offset + tap * dilation.
struct PlanesAxis {
  int source;
  int spread;
  int result;
  int step;
  int offset;
  int dilation;
};

struct PlanesGeometry {
  PlanesAxis rows;
  PlanesAxis columns;
  int64_t planes;  // batch * channels
  int64_t channels;
  int planes_per_block;  // a power of 2; 1 where a block takes a band
  int pad;               // zeros between rows, in front of the first and behind the last
  int pitch;             // of rows in shared memory
  // Rows of the result in phase order: `phases` apart, in groups of kStrip.
  int phases;
  int groups;       // of a phase
  int band_groups;  // of a block
  int bands_per_phase;
  bool whole;       // a block takes every phase and group
  int staged_rows;  // of a plane in a block
  int staged_step;  // source rows from one to the next
  Divide by_result_width;
  Divide by_source_width;
  Divide by_band_groups;
  Divide by_row_packs;  // 16-byte packs that a row may touch
  Divide by_row_spread;
};

// What a block works on.
struct PlanesBlock {
  int64_t plane;
  int planes;
  int band;
  int phase;
  int group;
  int first_row;  // source row of the first staged row; may lie in the padding

  __device__ explicit PlanesBlock(const PlanesGeometry& g, int taps)
      : plane(static_cast<int64_t>(blockIdx.x) * g.planes_per_block),
        planes(g.planes_per_block),
        band(0),
        phase(0),
        group(0),
        first_row(0) {
    if (g.whole) {
      if (plane + planes > g.planes) planes = static_cast<int>(g.planes - plane);
      return;
    }
    const int bands = g.phases * g.bands_per_phase;
    plane = blockIdx.x / bands;
    band = static_cast<int>(blockIdx.x % bands);
    phase = band / g.bands_per_phase;
    group = band % g.bands_per_phase * g.band_groups;
    const int target = (phase + group * kStrip * g.phases) * g.rows.step - g.rows.offset;
    // Upwards to a multiple of the spread, also below 0.
    first_row = g.rows.spread == 1
                    ? target
                    : (target + taps * g.rows.spread + g.rows.spread - 1) / g.rows.spread - taps;
  }
};

// The staged rows of a block that exist: one run of memory, or a run per row.
struct PlanesRuns {
  int first;  // staged row of the first
  int count;
  int length;  // elements of a run
  int64_t start;
  int64_t spacing;

  __device__ PlanesRuns(const PlanesGeometry& g, const PlanesBlock& block) {
    first = block.first_row < 0 ? (-block.first_row + g.staged_step - 1) / g.staged_step : 0;
    const int source = block.first_row + first * g.staged_step;
    int rows = g.rows.source > source ? (g.rows.source - source - 1) / g.staged_step + 1 : 0;
    if (rows > g.staged_rows - first) rows = g.staged_rows - first;
    if (rows < 0) rows = 0;
    start = (block.plane * g.rows.source + source) * g.columns.source;
    spacing = static_cast<int64_t>(g.staged_step) * g.columns.source;
    const bool joined = g.staged_step == 1;
    count = joined ? 1 : rows;
    length = g.columns.source * (joined ? rows * block.planes : 1);
  }
};

// V neighbours of a run, aligned to 16 bytes; those before or behind the run are left out.
template <class T>
struct RunPack {
  static constexpr int V = 16 / sizeof(T);
  Pack<T, V> values;  // where all of them belong to the run
  int run;
  int begin;  // of the pack in the run; may be negative

  __device__ static const T* begin_of(const T* source, const PlanesRuns& runs, int run) {
    return source + runs.start + run * runs.spacing;
  }

  __device__ bool is_full(const PlanesRuns& runs) const {
    return begin >= 0 && begin + V <= runs.length;
  }

  __device__ void load(const T* source, const PlanesRuns& runs, const Divide& by_packs, int index) {
    run = runs.count > 1 ? by_packs(index) : 0;
    const T* from = begin_of(source, runs, run);
    const int skew = static_cast<int>(reinterpret_cast<uintptr_t>(from) % 16 / sizeof(T));
    begin = (index - run * static_cast<int>(by_packs.size)) * V - skew;
    if (is_full(runs)) values = load_pack<V>(from + begin);
  }

  template <bool kMaySpread>
  __device__ void store(float* staged, const PlanesGeometry& g, const PlanesRuns& runs,
                        const T* source) const {
    const int width = g.columns.source;
    const int spread = kMaySpread ? g.columns.spread : 1;
    int at = begin > 0 ? begin : 0;
    int row = g.by_source_width(at);
    int column = at - row * width;
    float* to = staged + g.pad + (row + runs.first + run) * g.pitch + column * spread;
    const int gap = g.pitch - width * spread;  // from behind a row to the next
    if (is_full(runs) && width >= V) {         // at most one row ends in the pack
      float x[V];
      unpack(values, x);
#pragma unroll
      for (int v = 0; v < V; ++v) (column + v < width ? to : to + gap)[v * spread] = x[v];
      return;
    }
    const T* from = begin_of(source, runs, run);
    const int end = begin + V < runs.length ? begin + V : runs.length;
#pragma unroll 1
    for (; at < end; ++at) {
      *to = to_float(from[at]);
      to += spread;
      if (++column == width) {
        column = 0;
        to += gap;
      }
    }
  }
};

__device__ inline int staged_floats(const PlanesGeometry& g) {
  return g.pad + g.planes_per_block * g.staged_rows * g.pitch;
}

// Brings the block's part of `source` into shared memory, zeros around it.
template <bool kMaySpread, class T>
__device__ inline void stage(const PlanesGeometry& g, const PlanesBlock& block, const T* source,
                             float* staged) {
  constexpr int V = RunPack<T>::V;
  constexpr int kRound = kStagePacks * kPlanesThreads;
  const PlanesRuns runs(g, block);
  const int thread = static_cast<int>(threadIdx.x);
  const int packs =
      runs.count > 1 ? runs.count * static_cast<int>(g.by_row_packs.size) : runs.length / V + 2;
#pragma unroll 1
  for (int round = 0; round == 0 || round < packs; round += kRound) {
    RunPack<T> loaded[kStagePacks];
#pragma unroll
    for (int i = 0; i < kStagePacks; ++i) {
      const int index = round + i * kPlanesThreads + thread;
      if (index < packs) loaded[i].load(source, runs, g.by_row_packs, index);
    }
    if (round == 0) {  // while the first loads are under way
      const Pack<float, 4> zeros{};
#pragma unroll 1
      for (int i = 4 * thread; i < staged_floats(g); i += 4 * kPlanesThreads) {
        store_shared(staged + i, zeros);
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kStagePacks; ++i) {
      const int index = round + i * kPlanesThreads + thread;
      if (index < packs) loaded[i].template store<kMaySpread>(staged, g, runs, source);
    }
  }
  __syncthreads();
}

}  // namespace dlv3p
