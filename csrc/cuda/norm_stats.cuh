// Mean and variance of every channel.
#pragma once

#include <cstdint>

#include "norm.cuh"

namespace dlv3p {

struct NormStats {
  const void* input;
};

// Moments of the differences to the first element of the channel in the map.
template <class T_, int K>
struct StatsWork {
  using T = T_;
  using Params = NormStats;
  static constexpr int kChannels = K;
  static constexpr int kMostChannels = 4;
  static constexpr int kFlight = 4;
  template <int V>
  using Loaded = Pack<T, V>;

  const Params& p;
  float pivot[K];
  GrowingMoments<K> moments;

  // `first` is the offset of the first element of channel `channel`.
  __device__ StatsWork(const Params& params, int64_t first) : p(params) {
    unpack(load_pack<K>(static_cast<const T*>(p.input) + first), pivot);
  }

  template <int V>
  __device__ Loaded<V> load(int64_t at) const {
    return load_pack<V>(static_cast<const T*>(p.input) + at);
  }

  template <int V, int N>
  __device__ void use(int64_t, int64_t, const Loaded<V> (&loaded)[N]) {
    constexpr int kOfChannel = N * V / K;  // values of each channel
    float differences[kOfChannel][K];
    for (int n = 0; n < N; ++n) {
      float x[V];
      unpack(loaded[n], x);
#pragma unroll
      for (int v = 0; v < V; ++v) differences[(n * V + v) / K][v % K] = x[v] - pivot[v % K];
    }
    moments.add(differences);
  }
};

// The first stage leaves the pivots behind the partial moments.
__host__ __device__ inline float* pivots_behind(float* parts, int64_t count, int64_t channels) {
  return parts + count * 3 * channels;
}

}  // namespace dlv3p
