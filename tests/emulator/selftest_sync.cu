// Self-test of barriers, votes and shuffles, with kernels that must fail among them.
#include "launch.h"
#include "selftest.h"

namespace dlv3p {

// Sum of every block's part: shuffles inside warps, shared memory across them.
__global__ void block_sum_kernel(SelfTest p) {
  __shared__ float of_warp[32];
  float sum = p.input[blockIdx.x * blockDim.x + threadIdx.x];
  for (int lanes = warpSize / 2; lanes > 0; lanes /= 2) {
    sum += __shfl_down_sync(0xffffffffu, sum, lanes);
  }
  if (threadIdx.x % warpSize == 0) of_warp[threadIdx.x / warpSize] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned warp = 1; warp < blockDim.x / warpSize; ++warp) sum += of_warp[warp];
    p.output[blockIdx.x] = sum;
  }
}

// Tree in shared memory with a barrier for each level; the mode is how often it runs.
__global__ void many_barriers_kernel(SelfTest p) {
  DLV3P_DYNAMIC_SHARED(memory);
  float* tile = reinterpret_cast<float*>(memory);
  for (int64_t round = 0; round < p.mode; ++round) {
    tile[threadIdx.x] = p.input[blockIdx.x * blockDim.x + threadIdx.x];
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) tile[threadIdx.x] += tile[threadIdx.x + half];
      __syncthreads();
    }
  }
  if (threadIdx.x == 0) p.output[blockIdx.x] = tile[0];
}

// One value per thread and vote; a thread votes for what is positive.
__global__ void votes_kernel(SelfTest p) {
  const bool positive = p.input[threadIdx.x] > 0;
  float* of_thread = p.output + threadIdx.x * 6;
  of_thread[0] = __syncthreads_count(positive);
  of_thread[1] = __syncthreads_or(positive);
  of_thread[2] = __syncthreads_and(positive);
  of_thread[3] = __popc(__ballot_sync(0xffffffffu, positive));
  // The halves of a warp vote on their own.
  const unsigned half = threadIdx.x % warpSize < 16 ? 0xffffu : 0xffff0000u;
  of_thread[4] = __any_sync(half, positive);
  of_thread[5] = __all_sync(half, positive);
}

enum Divergence { kEarlyReturn, kTwoBarriers, kMissingLane, kWarpAgainstBlock, kOtherMask };

__global__ void divergent_kernel(SelfTest p) {
  const bool odd = threadIdx.x % 2 == 1;
  switch (p.mode) {
    case kEarlyReturn:
      if (threadIdx.x >= 48) return;
      __syncthreads();
      break;
    case kTwoBarriers:
      if (odd) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case kMissingLane:
      if (odd) __syncwarp();
      break;
    case kWarpAgainstBlock:
      if (odd) {
        __syncwarp();
      } else {
        __syncthreads();
      }
      break;
    case kOtherMask:
      __shfl_sync(odd ? 0xffffffffu : 0x7fffffffu, 1.0f, 0);
      break;
  }
  p.output[threadIdx.x] = 1;
}

enum ShuffleKind { kIndexed, kUp, kDown, kXor };

struct ShuffleParams {
  const void* input;
  void* output;
  int64_t kind;
  int argument;
  int width;
};

template <class T>
__global__ void shuffle_kernel(ShuffleParams p) {
  constexpr unsigned kAll = 0xffffffffu;
  const T value = static_cast<const T*>(p.input)[threadIdx.x];
  T& result = static_cast<T*>(p.output)[threadIdx.x];
  switch (p.kind) {
    case kIndexed:
      result = __shfl_sync(kAll, value, p.argument, p.width);
      break;
    case kUp:
      result = __shfl_up_sync(kAll, value, p.argument, p.width);
      break;
    case kDown:
      result = __shfl_down_sync(kAll, value, p.argument, p.width);
      break;
    case kXor:
      result = __shfl_xor_sync(kAll, value, p.argument, p.width);
      break;
  }
}

namespace {

Tensor block_sum(const Tensor& input, int64_t threads) {
  const int64_t blocks = input.numel() / threads;
  return run_selftest(block_sum_kernel, input, blocks, blocks, threads, 0, 0);
}

Tensor many_barriers(const Tensor& input, int64_t threads, int64_t rounds) {
  const int64_t blocks = input.numel() / threads;
  return run_selftest(many_barriers_kernel, input, blocks, blocks, threads, threads * sizeof(float),
                      rounds);
}

Tensor votes(const Tensor& input) {
  return run_selftest(votes_kernel, input, input.numel() * 6, 1, input.numel(), 0, 0);
}

Tensor divergent(const Tensor& input, int64_t mode) {
  return run_selftest(divergent_kernel, input, input.numel(), 1, input.numel(), 0, mode);
}

Tensor shuffle(const Tensor& input, int64_t kind, int64_t argument, int64_t width) {
  const Tensor output = torch::stable::empty_like(input);
  const ShuffleParams p{input.const_data_ptr(), output.mutable_data_ptr(), kind,
                        static_cast<int>(argument), static_cast<int>(width)};
  const auto launch = [&](auto* kernel) {
    Stream(input).launch(kernel, dim3(1), dim3(static_cast<unsigned>(input.numel())), 0, p);
  };
  switch (input.scalar_type()) {
    case ScalarType::Float:
      launch(shuffle_kernel<float>);
      break;
    case ScalarType::Double:
      launch(shuffle_kernel<double>);
      break;
    case ScalarType::Int:
      launch(shuffle_kernel<int>);
      break;
    default:
      launch(shuffle_kernel<long long>);
  }
  return output;
}

STABLE_TORCH_LIBRARY_FRAGMENT(dlv3p_selftest, m) {
  m.def("block_sum(Tensor input, int threads) -> Tensor");
  m.def("many_barriers(Tensor input, int threads, int rounds) -> Tensor");
  m.def("votes(Tensor input) -> Tensor");
  m.def("divergent(Tensor input, int mode) -> Tensor");
  m.def("shuffle(Tensor input, int kind, int argument, int width) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(dlv3p_selftest, CPU, m) {
  m.impl("block_sum", TORCH_BOX(&block_sum));
  m.impl("many_barriers", TORCH_BOX(&many_barriers));
  m.impl("votes", TORCH_BOX(&votes));
  m.impl("divergent", TORCH_BOX(&divergent));
  m.impl("shuffle", TORCH_BOX(&shuffle));
}

}  // namespace
}  // namespace dlv3p
