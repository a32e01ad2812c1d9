// Depthwise convolution in contiguous (NCHW) memory, from planes in shared memory.
//
// A block takes whole planes, or a band of rows of one plane, as floats into shared memory, with
// room for the padding between the rows, so that reading a tap needs no test of the column. A
// thread owns a column and kStrip rows of the result that see common rows of the source: with
// dilation d and stride 1 rows d apart. Its weights and sums stay in registers; neighbouring
// threads own neighbouring columns.
//
// Forward the source is the input. Backward it is the gradient of the output, with its columns
// (and, by a test, its rows) `spread` apart where the convolution has that stride, and the result
// is the input gradient; each gradient that is loaded also meets the input's own value, which makes
// the weight gradient.
#pragma once

#include <cstdint>

#include "depthwise_planes_stage.cuh"
#include "per_channel.cuh"
#include "reduce.cuh"

namespace dlv3p {

// Blocks on a multiprocessor: what the registers for the weights of a KxK kernel leave room for.
constexpr int planes_blocks(int kernel) {
  return kernel == 3 ? 4 : kernel == 5 ? 3 : kernel == 7 ? 2 : 1;
}

struct PlanesForward {
  PlanesGeometry geometry;
  const void* input;
  const void* weight;
  const void* bias;
  void* output;
  ChannelAffine before;
  ChannelAffine behind;
  int64_t image_gap;  // elements between images of the result: it may be channels of a wider map
};

struct PlanesBackward {
  PlanesGeometry geometry;
  const void* grad;
  const void* input;
  const void* weight;
  void* grad_input;  // or nullptr
  float* parts;      // (batch * bands, channels, taps + 2)
  ChannelAffine before;
};

// The plane of a thread: the threads of a block are shared out evenly.
struct PlanesThread {
  int plane;  // in the block
  int index;  // among the threads of the plane
  int step;
  int64_t channel;
  bool active;

  __device__ PlanesThread(const PlanesGeometry& g, const PlanesBlock& block)
      : step(kPlanesThreads / g.planes_per_block) {
    plane = static_cast<int>(threadIdx.x) / step;
    index = static_cast<int>(threadIdx.x) % step;
    active = plane < block.planes;
    channel = (block.plane + (active ? plane : 0)) % g.channels;
  }

  __device__ float* staged(const PlanesGeometry& g, float* of_block) const {
    return of_block + g.pad + plane * g.staged_rows * g.pitch;
  }
};

// A column of kStrip rows of the result.
struct PlanesStrip {
  int column;
  int row;     // of the first
  int target;  // source row, spread apart, of its first tap
  int staged;  // the staged row of that, where rows are not spread
  bool exists;

  // A: in units of the dilation, how far neighbouring rows of a strip are apart in the source.
  template <int A>
  __device__ static PlanesStrip at(const PlanesGeometry& g, const PlanesBlock& block, int index) {
    PlanesStrip strip;
    const int number = g.by_result_width(index);
    strip.column = index - number * g.columns.result;
    const int phase = g.by_band_groups(number);
    const int group = block.group + number - phase * g.band_groups;
    strip.row = block.phase + phase + group * kStrip * g.phases;
    strip.target = strip.row * g.rows.step - g.rows.offset;
    strip.staged =
        g.staged_step == 1 ? strip.target - block.first_row : (group - block.group) * kStrip * A;
    strip.exists = group < g.groups;
    return strip;
  }

  static __device__ int count(const PlanesGeometry& g) {
    return (g.whole ? g.phases : 1) * g.band_groups * g.columns.result;
  }
};

// Which taps of a column read the source; the others read padding, or the zeros between columns
// that are spread apart, and are not multiplied: a factor may be infinite.
template <int K, bool kMaySpread>
struct SeenColumns {
  bool taps[K];

  __device__ SeenColumns(const PlanesAxis& axis, int column) {
    const int spread = kMaySpread ? axis.spread : 1;
    const int first = column * axis.step - axis.offset;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int at = first + k * axis.dilation;
      taps[k] = at >= 0 && at < axis.source * spread && (spread == 1 || at % spread == 0);
    }
  }
};

// Calls use(j, taps) for each source row that the strip sees and that exists: the j-th row, a
// dilation below the one before, with its K taps.
template <int K, int kRows, bool kMaySpread, class Use>
__device__ inline void for_each_row(const PlanesGeometry& g, const PlanesBlock& block,
                                    const PlanesStrip& strip, SharedAddress staged, Use&& use) {
  constexpr int kBytes = sizeof(float);
  const int first = strip.column * g.columns.step - g.columns.offset;
  SharedAddress column[K];
#pragma unroll
  for (int k = 0; k < K; ++k) column[k] = staged + (first + k * g.columns.dilation) * kBytes;
  const int staged_step = g.staged_step == 1 ? g.rows.dilation : 1;
#pragma unroll
  for (int j = 0; j < kRows; ++j) {
    const int target = strip.target + j * g.rows.dilation;
    int row = strip.staged + j * staged_step;
    if (kMaySpread && g.rows.spread > 1) {
      if (target < 0) continue;
      const int source = g.by_row_spread(target);
      if (source * g.rows.spread != target || source >= g.rows.source) continue;
      row = source - block.first_row;
    } else if (static_cast<unsigned>(target) >= static_cast<unsigned>(g.rows.source)) {
      continue;
    }
    const int down = row * g.pitch * kBytes;
    float taps[K];
#pragma unroll
    for (int k = 0; k < K; ++k) taps[k] = load_shared<1, float>(column[k] + down).lane[0];
    use(j, taps);
  }
}

// Applies `before` to the staged source; the padding stays zero.
template <class T>
__device__ inline void apply_before(const PlanesGeometry& g, const PlanesBlock& block,
                                    const PlanesThread& thread, const ChannelAffine& affine,
                                    float* staged) {
  float scale[1], shift[1];
  load_channels(affine.scale, thread.channel, 1.0f, scale);
  load_channels(affine.shift, thread.channel, 0.0f, shift);
  with_activation(affine.activation, [&](auto activation) {
#pragma unroll 1
    for (int i = thread.index; i < g.staged_rows * g.columns.source; i += thread.step) {
      const int row = g.by_source_width(i);
      const int source = block.first_row + row * g.staged_step;
      if (source < 0 || source >= g.rows.source) continue;
      float& x = staged[row * g.pitch + i - row * g.columns.source];
      x = activate(activation.value, fmaf(x, scale[0], shift[0]));
    }
  });
  __syncthreads();
}

template <class T, int K, int A>
__global__ void __launch_bounds__(kPlanesThreads, planes_blocks(K))
    depthwise_planes_fwd_kernel(PlanesForward p) {
  DLV3P_DYNAMIC_SHARED(shared);
  const PlanesGeometry& g = p.geometry;
  const PlanesBlock block(g, K);
  const PlanesThread thread(g, block);
  stage<false>(g, block, static_cast<const T*>(p.input), reinterpret_cast<float*>(shared));
  float* staged = thread.staged(g, reinterpret_cast<float*>(shared));
  if (!p.before.is_identity()) apply_before<T>(g, block, thread, p.before, staged);
  if (!thread.active) return;
  float weight[K * K];
#pragma unroll
  for (int k = 0; k < K * K; ++k) {
    weight[k] = to_float(static_cast<const T*>(p.weight)[thread.channel * K * K + k]);
  }
  const float bias = p.bias ? to_float(static_cast<const T*>(p.bias)[thread.channel]) : 0.0f;
  float scale[1], shift[1];
  load_channels(p.behind.scale, thread.channel, 1.0f, scale);
  load_channels(p.behind.shift, thread.channel, 0.0f, shift);
  const int64_t plane = block.plane + thread.plane;
  T* output = static_cast<T*>(p.output) + plane * g.rows.result * g.columns.result +
              plane / g.channels * p.image_gap;
  const SharedAddress rows = shared_address(staged);
#pragma unroll 1
  for (int i = thread.index; i < PlanesStrip::count(g); i += thread.step) {
    const PlanesStrip strip = PlanesStrip::at<A>(g, block, i);
    if (!strip.exists) continue;
    const SeenColumns<K, false> seen(g.columns, strip.column);
    float sum[kStrip];
#pragma unroll
    for (int r = 0; r < kStrip; ++r) sum[r] = bias;
    for_each_row<K, (kStrip - 1) * A + K, false>(
        g, block, strip, rows, [&](int j, const float (&taps)[K]) {
#pragma unroll
          for (int r = 0; r < kStrip; ++r) {
            if (j < r * A || j >= r * A + K) continue;
#pragma unroll
            for (int k = 0; k < K; ++k) {
              if (seen.taps[k]) sum[r] = fmaf(taps[k], weight[(j - r * A) * K + k], sum[r]);
            }
          }
        });
    with_activation(p.behind.activation, [&](auto activation) {
#pragma unroll
      for (int r = 0; r < kStrip; ++r) {
        sum[r] = activate(activation.value, fmaf(sum[r], scale[0], shift[0]));
      }
    });
#pragma unroll
    for (int r = 0; r < kStrip; ++r) {
      const int row = strip.row + r * g.phases;
      if (row < g.rows.result) {
        output[row * g.columns.result + strip.column] = from_float<T>(sum[r]);
      }
    }
  }
}

// Sums of V values over the threads of each plane of a block; use(plane, v, sum) in one thread.
template <int V, class Use>
__device__ inline void plane_sums(const PlanesThread& thread, int planes, const float (&values)[V],
                                  float* scratch, Use&& use) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  __syncthreads();  // the scratch was read
#pragma unroll
  for (int v = 0; v < V; ++v) scratch[v * kPlanesThreads + threadIdx.x] = values[v];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x) / kWarpLanes; i < planes * V;
       i += kPlanesThreads / kWarpLanes) {
    const int plane = i / V;
    const int v = i % V;
    const float* from = scratch + v * kPlanesThreads + plane * thread.step;
    float sum = 0.0f;
#pragma unroll 1
    for (int at = lane; at < thread.step; at += kWarpLanes) sum += from[at];
    sum = warp_sum(sum);
    if (lane == 0) use(plane, v, sum);
  }
}

template <class T, int K>
__global__ void __launch_bounds__(kPlanesThreads, planes_blocks(K + 2))
    depthwise_planes_bwd_kernel(PlanesBackward p) {
  DLV3P_DYNAMIC_SHARED(shared);
  constexpr int kTaps = K * K;
  const PlanesGeometry& g = p.geometry;
  const PlanesBlock block(g, K);
  const PlanesThread thread(g, block);
  stage<true>(g, block, static_cast<const T*>(p.grad), reinterpret_cast<float*>(shared));
  const SharedAddress rows = shared_address(thread.staged(g, reinterpret_cast<float*>(shared)));
  float weight[kTaps];  // the last tap first: the gradient meets them in that order
  float weight_sums[kTaps] = {};
#pragma unroll
  for (int k = 0; k < kTaps; ++k) {
    weight[k] = to_float(static_cast<const T*>(p.weight)[thread.channel * kTaps + kTaps - 1 - k]);
  }
  float scale[1], shift[1];
  load_channels(p.before.scale, thread.channel, 1.0f, scale);
  load_channels(p.before.shift, thread.channel, 0.0f, shift);
  float affine_sums[2] = {};
  const int64_t plane = (block.plane + thread.plane) * g.rows.result * g.columns.result;
  const T* input = static_cast<const T*>(p.input) + plane;
  const int strips = thread.active ? PlanesStrip::count(g) : 0;
#pragma unroll 1
  for (int i = thread.index; i < strips; i += thread.step) {
    const PlanesStrip strip = PlanesStrip::at<1>(g, block, i);
    if (!strip.exists) continue;
    const SeenColumns<K, true> seen(g.columns, strip.column);
    float x[kStrip], z[kStrip], grad[kStrip] = {};
#pragma unroll
    for (int r = 0; r < kStrip; ++r) {
      const int row = strip.row + r * g.phases;
      x[r] = row < g.rows.result ? to_float(input[row * g.columns.result + strip.column]) : 0.0f;
    }
    with_activation(p.before.activation, [&](auto activation) {
#pragma unroll
      for (int r = 0; r < kStrip; ++r) {
        const bool exists = strip.row + r * g.phases < g.rows.result;
        z[r] = exists ? activate(activation.value, fmaf(x[r], scale[0], shift[0])) : 0.0f;
      }
    });
    for_each_row<K, kStrip - 1 + K, true>(
        g, block, strip, rows, [&](int j, const float (&taps)[K]) {
#pragma unroll
          for (int r = 0; r < kStrip; ++r) {
            if (j < r || j >= r + K || strip.row + r * g.phases >= g.rows.result) continue;
#pragma unroll
            for (int k = 0; k < K; ++k) {
              if (!seen.taps[k]) continue;
              const int tap = (j - r) * K + k;
              grad[r] = fmaf(taps[k], weight[tap], grad[r]);
              weight_sums[tap] = fmaf(taps[k], z[r], weight_sums[tap]);
            }
          }
        });
    with_activation(p.before.activation, [&](auto activation) {
#pragma unroll
      for (int r = 0; r < kStrip; ++r) {
        const float z = fmaf(x[r], scale[0], shift[0]);
        grad[r] = activation_gradient(activation.value, z, grad[r]);
      }
    });
#pragma unroll
    for (int r = 0; r < kStrip; ++r) {
      const int row = strip.row + r * g.phases;
      if (row >= g.rows.result) continue;
      affine_sums[0] = fmaf(grad[r], x[r], affine_sums[0]);
      affine_sums[1] += grad[r];
      if (p.grad_input) {
        static_cast<T*>(p.grad_input)[plane + row * g.columns.result + strip.column] =
            from_float<T>(grad[r] * scale[0]);
      }
    }
  }
  if (!p.parts) return;
  const int bands = g.whole ? 1 : g.phases * g.bands_per_phase;
  const auto part_of = [&](int of_block) {
    const int64_t image = (block.plane + of_block) / g.channels;
    const int64_t channel = (block.plane + of_block) % g.channels;
    return p.parts + ((image * bands + block.band) * g.channels + channel) * (kTaps + 2);
  };
  // A row of taps at a time: the room of a plane is enough for it.
#pragma unroll
  for (int k = 0; k < K; ++k) {
    float values[K];
#pragma unroll
    for (int i = 0; i < K; ++i) values[i] = weight_sums[k * K + i];
    plane_sums(
        thread, block.planes, values, reinterpret_cast<float*>(shared),
        [&](int of_block, int v, float sum) { part_of(of_block)[kTaps - 1 - (k * K + v)] = sum; });
  }
  plane_sums(thread, block.planes, affine_sums, reinterpret_cast<float*>(shared),
             [&](int of_block, int v, float sum) { part_of(of_block)[kTaps + v] = sum; });
}

}  // namespace dlv3p
