// Batch norm: what is done to an element, whatever the memory format. norm_rows.cuh and
// norm_planes.cuh walk over the elements.
//
// A work belongs to a thread and holds what it needs of its K channels: K is V, the elements of a
// pack, in channels_last memory, and 1 in contiguous memory. `load<V>(at)` fetches the elements
// from offset `at`; `use<V>(at, step, loaded)` treats those of at, at + step, ...: kFlight loads
// are under way before the first use. kMostChannels is the largest K that fits in 64 registers.
#pragma once

#include <cmath>
#include <cstdint>

#include "per_channel.cuh"
#include "reduce.cuh"

namespace dlv3p {

// (channels) each; a missing weight is 1, a missing bias 0.
struct NormVectors {
  const float* mean;
  const float* invstd;
  const float* weight;
  const float* bias;
};

struct NormApply {
  const void* input;
  const void* residual;  // or nullptr
  void* output;
  NormVectors vectors;
  Activation activation;
};

struct NormFinalise {
  const float* mean;
  const float* var;
  const float* running_mean;  // or nullptr
  const float* running_var;
  float* invstd;
  float* new_running_mean;
  float* new_running_var;
  int64_t channels;
  double momentum;
  double eps;
  double unbias;  // count / (count - 1)
};

// (x - mean) first: with x * scale + shift a mean far larger than the standard deviation would
// cancel.
template <int K>
struct NormChannels {
  float mean[K];
  float scale[K];  // invstd * weight
  float bias[K];

  __device__ NormChannels(const NormVectors& vectors, int64_t channel) {
    float weight[K];
    load_channels(vectors.mean, channel, 0.0f, mean);
    load_channels(vectors.invstd, channel, 1.0f, scale);
    load_channels(vectors.weight, channel, 1.0f, weight);
    load_channels(vectors.bias, channel, 0.0f, bias);
#pragma unroll
    for (int k = 0; k < K; ++k) scale[k] *= weight[k];
  }
};

// A map that is added to others, if it is there.
template <class T>
struct Addend {
  const void* map;  // or nullptr

  // Nothing is loaded where there is nothing to add.
  template <int V>
  __device__ void load(int64_t at, Pack<T, V>& pack) const {
    if (map) pack = load_pack<V>(static_cast<const T*>(map) + at);
  }

  template <int V>
  __device__ void add(const Pack<T, V>& pack, float (&values)[V]) const {
    if (!map) return;
    float addends[V];
    unpack(pack, addends);
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] += addends[v];
  }
};

template <class T_, int K>
struct ApplyWork {
  using T = T_;
  using Params = NormApply;
  static constexpr int kChannels = K;
  static constexpr int kMostChannels = 8;
  static constexpr int kFlight = 2;

  template <int V>
  struct Loaded {
    Pack<T, V> input, residual;
  };

  const Params& p;
  NormChannels<K> channels;

  __device__ ApplyWork(const Params& params, int64_t channel)
      : p(params), channels(params.vectors, channel) {}

  template <int V>
  __device__ Loaded<V> load(int64_t at) const {
    Loaded<V> loaded;
    loaded.input = load_pack<V>(static_cast<const T*>(p.input) + at);
    residual().load(at, loaded.residual);
    return loaded;
  }

  template <int V, int N>
  __device__ void use(int64_t at, int64_t step, const Loaded<V> (&loaded)[N]) {
#pragma unroll
    for (int n = 0; n < N; ++n) use_one<V>(at + n * step, loaded[n]);
  }

  template <int V>
  __device__ void use_one(int64_t at, const Loaded<V>& loaded) {
    float z[V];
    unpack(loaded.input, z);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int k = v % K;
      z[v] = fmaf(z[v] - channels.mean[k], channels.scale[k], channels.bias[k]);
    }
    residual().add(loaded.residual, z);
    with_activation(p.activation, [&](auto activation) {
#pragma unroll
      for (int v = 0; v < V; ++v) z[v] = activate(activation.value, z[v]);
    });
    store_pack(static_cast<T*>(p.output) + at, pack_of<T>(z));
  }

  __device__ Addend<T> residual() const { return {p.residual}; }
};

template <int V, class Work>
__device__ inline void visit_single(Work& work, int64_t at) {
  const typename Work::template Loaded<V> loaded[1] = {work.template load<V>(at)};
  work.template use<V>(at, 0, loaded);
}

// Visits first, first + step, ... below `last`; kFlight loads are under way before the first use.
template <int V, class Work>
__device__ inline void visit_packs(Work& work, int64_t first, int64_t last, int64_t step) {
  constexpr int kFlight = Work::kFlight;
  int64_t at = first;
#pragma unroll 1
  for (; at + (kFlight - 1) * step < last; at += kFlight * step) {
    typename Work::template Loaded<V> loaded[kFlight];
#pragma unroll
    for (int f = 0; f < kFlight; ++f) loaded[f] = work.template load<V>(at + f * step);
    work.template use<V>(at, step, loaded);
  }
#pragma unroll 1
  for (; at < last; at += step) visit_single<V>(work, at);
}

// In float64: a few operations per channel, and what is stored is rounded once.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) norm_finalise_kernel(NormFinalise p) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c >= p.channels) return;
  const double var = p.var[c];
  p.invstd[c] = static_cast<float>(1.0 / sqrt(var + p.eps));
  if (!p.running_mean) return;
  const auto update = [&](float old, double now) {
    return static_cast<float>((1.0 - p.momentum) * old + p.momentum * now);
  };
  p.new_running_mean[c] = update(p.running_mean[c], p.mean[c]);
  p.new_running_var[c] = update(p.running_var[c], var * p.unbias);
}

}  // namespace dlv3p
