// Batch norm backwards: the sums over a channel, and the gradients by input and residual.
#pragma once

#include <cstdint>

#include "norm.cuh"

namespace dlv3p {

struct NormBackward {
  const void* grad;
  const void* input;
  const void* residual;  // or nullptr
  NormVectors vectors;
  Activation activation;
};

struct NormBackwardApply {
  NormBackward of;
  const float* sum_grad;             // (channels) or nullptr: the statistics are fixed
  const float* sum_grad_normalised;  // likewise
  float count;
  void* grad_input;
  void* grad_residual;  // or nullptr
};

// What both backward works read, and the gradient before the activation from it.
template <class T, int K>
struct BackwardElements {
  template <int V>
  struct Loaded {
    Pack<T, V> grad, input, residual;
  };

  const NormBackward& p;
  NormChannels<K> channels;

  __device__ BackwardElements(const NormBackward& params, int64_t channel)
      : p(params), channels(params.vectors, channel) {}

  template <int V>
  __device__ Loaded<V> load(int64_t at) const {
    Loaded<V> loaded;
    loaded.grad = load_pack<V>(static_cast<const T*>(p.grad) + at);
    loaded.input = load_pack<V>(static_cast<const T*>(p.input) + at);
    residual().load(at, loaded.residual);
    return loaded;
  }

  // `grad` before the activation, `centred` = x - mean.
  template <int V>
  __device__ void through_activation(const Loaded<V>& loaded, float (&grad)[V],
                                     float (&centred)[V]) const {
    unpack(loaded.grad, grad);
    unpack(loaded.input, centred);
#pragma unroll
    for (int v = 0; v < V; ++v) centred[v] -= channels.mean[v % K];
    if (p.activation == Activation::kIdentity) return;
    float z[V];
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int k = v % K;
      z[v] = fmaf(centred[v], channels.scale[k], channels.bias[k]);
    }
    residual().add(loaded.residual, z);
    with_activation(p.activation, [&](auto activation) {
#pragma unroll
      for (int v = 0; v < V; ++v) grad[v] = activation_gradient(activation.value, z[v], grad[v]);
    });
  }

  __device__ Addend<T> residual() const { return {p.residual}; }
};

// Loads of two or three maps each.
template <class T>
constexpr int kBackwardFlight = sizeof(T) == 2 ? 2 : 1;

template <class T_, int K>
struct BackwardApplyWork {
  using T = T_;
  using Params = NormBackwardApply;
  static constexpr int kChannels = K;
  static constexpr int kMostChannels = 4;
  static constexpr int kFlight = kBackwardFlight<T>;
  template <int V>
  using Loaded = typename BackwardElements<T, K>::template Loaded<V>;

  const Params& p;
  BackwardElements<T, K> elements;
  float mean_grad[K];    // sum_grad / count
  float per_centred[K];  // invstd * sum_grad_normalised / count

  __device__ BackwardApplyWork(const Params& params, int64_t channel)
      : p(params), elements(params.of, channel) {
    float invstd[K];
    load_channels(p.sum_grad, channel, 0.0f, mean_grad);
    load_channels(p.sum_grad_normalised, channel, 0.0f, per_centred);
    load_channels(p.of.vectors.invstd, channel, 1.0f, invstd);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      mean_grad[k] /= p.count;
      per_centred[k] *= invstd[k] / p.count;
    }
  }

  template <int V>
  __device__ Loaded<V> load(int64_t at) const {
    return elements.template load<V>(at);
  }

  template <int V, int N>
  __device__ void use(int64_t at, int64_t step, const Loaded<V> (&loaded)[N]) {
#pragma unroll
    for (int n = 0; n < N; ++n) use_one<V>(at + n * step, loaded[n]);
  }

  template <int V>
  __device__ void use_one(int64_t at, const Loaded<V>& loaded) {
    float grad[V], result[V];
    elements.through_activation(loaded, grad, result);
    const bool is_training = p.sum_grad != nullptr;  // else the input does not matter, NaN or not
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int k = v % K;
      const float own = grad[v] - mean_grad[k];
      const float inner = is_training ? fmaf(-per_centred[k], result[v], own) : grad[v];
      result[v] = inner * elements.channels.scale[k];
    }
    store_pack(static_cast<T*>(p.grad_input) + at, pack_of<T>(result));
    if (p.grad_residual) store_pack(static_cast<T*>(p.grad_residual) + at, pack_of<T>(grad));
  }
};

template <class T_, int K>
struct BackwardReduceWork {
  using T = T_;
  using Params = NormBackward;
  static constexpr int kChannels = K;
  static constexpr int kMostChannels = 4;
  static constexpr int kFlight = kBackwardFlight<T>;
  template <int V>
  using Loaded = typename BackwardElements<T, K>::template Loaded<V>;

  BackwardElements<T, K> elements;
  float sums[2 * K] = {};  // of the gradient, of its product with x - mean

  __device__ BackwardReduceWork(const Params& params, int64_t channel)
      : elements(params, channel) {}

  template <int V>
  __device__ Loaded<V> load(int64_t at) const {
    return elements.template load<V>(at);
  }

  template <int V, int N>
  __device__ void use(int64_t, int64_t, const Loaded<V> (&loaded)[N]) {
#pragma unroll
    for (int n = 0; n < N; ++n) use_one<V>(loaded[n]);
  }

  template <int V>
  __device__ void use_one(const Loaded<V>& loaded) {
    float grad[V], centred[V];
    elements.through_activation(loaded, grad, centred);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int k = v % K;
      sums[k] += grad[v];
      sums[K + k] = fmaf(grad[v], centred[v], sums[K + k]);
    }
  }
};

}  // namespace dlv3p
