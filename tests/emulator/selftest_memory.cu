// Self-test of shared memory, asynchronous copies, atomics and of the errors that must be found.
#include "launch.h"
#include "selftest.h"

namespace dlv3p {

constexpr int kThreads = 64;

// Reverses the block's part twice, through static and through dynamic shared memory.
__global__ void reverse_twice_kernel(SelfTest p) {
  __shared__ float first[kThreads];
  DLV3P_DYNAMIC_SHARED(memory);
  float* second = reinterpret_cast<float*>(memory);
  const int t = threadIdx.x, offset = blockIdx.x * kThreads;
  first[t] = p.input[offset + t];
  __syncthreads();
  second[t] = first[kThreads - 1 - t];
  __syncthreads();
  p.output[offset + t] = second[kThreads - 1 - t];
}

// Reads shared memory that nobody wrote, and leaves it written.
template <class T>
__global__ void unwritten_kernel(SelfTest p) {
  __shared__ T fixed[kThreads];
  DLV3P_DYNAMIC_SHARED(memory);
  T* dynamic = reinterpret_cast<T*>(memory);
  const int t = threadIdx.x;
  p.output[blockIdx.x * kThreads + t] = to_float(t % 2 == 0 ? fixed[t] : dynamic[t]);
  fixed[t] = dynamic[t] = from_float<T>(1);
}

// Order dependence: a barrier is missing between the write and the neighbour's read.
__global__ void missing_barrier_kernel(SelfTest p) {
  __shared__ float tile[kThreads];
  tile[threadIdx.x] = 0;
  __syncthreads();
  tile[threadIdx.x] = p.input[threadIdx.x];
  if (p.mode == 1) __syncthreads();
  p.output[threadIdx.x] = tile[(threadIdx.x + 1) % kThreads];
}

// Order dependence: who comes last wins, among threads (mode 0) or blocks (mode 1).
__global__ void last_wins_kernel(SelfTest p) {
  p.output[0] = p.mode == 0 ? threadIdx.x : blockIdx.x;
}

constexpr int kGroups = 3;

// Copies one piece of the input per group and waits for those that the mode says.
__global__ void async_copy_kernel(SelfTest p) {
  __shared__ __align__(16) float tile[kGroups][kThreads * 4];
  const int t = threadIdx.x;
  for (int group = 0; group < kGroups; ++group) {
    copy_async_16(&tile[group][t * 4], p.input + (group * kThreads + t) * 4);
    copy_async_commit();
  }
  if (p.mode == 2) copy_async_wait<2>();
  if (p.mode == 1) copy_async_wait<1>();
  if (p.mode == 0) copy_async_wait<0>();
  __syncthreads();
  for (int group = 0; group < kGroups; ++group) {
    for (int i = t; i < kThreads * 4; i += kThreads) {
      p.output[group * kThreads * 4 + i] = tile[group][i];
    }
  }
}

__global__ void atomics_kernel(SelfTest p) {
  const float value = p.input[blockIdx.x * blockDim.x + threadIdx.x];
  const int number = static_cast<int>(value);
  atomicAdd(&p.output[0], value);
  auto* counters = reinterpret_cast<int*>(p.output);
  auto* large = reinterpret_cast<unsigned long long*>(p.output + 8);
  atomicAdd(&counters[1], number);
  atomicMax(&counters[2], number);
  atomicMin(&counters[3], number);
  // The first that comes leaves its number, once.
  const int ticket = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) + 1;
  if (atomicCAS(&counters[4], 0, ticket) == 0) atomicAdd(&counters[5], ticket);
  // What was exchanged adds up to the number of threads, but for the last.
  atomicAdd(&counters[6], atomicExch(&counters[7], 1));
  atomicAdd(&large[0], 1ull << 32);
}

enum Error {
  kGlobalWrite,
  kDynamicRead,
  kDynamicWrite,
  kStaticIndex,
  kMisaligned,
  kNull,
  kMisalignedCopy,
  kCopyOutsideShared,
  kOverflow,
  kGlobalStoreToShared,
};

// One thread does what the mode says, just outside of what it may.
__global__ void bad_access_kernel(SelfTest p) {
  __shared__ __align__(16) float fixed[kThreads];
  DLV3P_DYNAMIC_SHARED(memory);
  float* dynamic = reinterpret_cast<float*>(memory);
  fixed[threadIdx.x] = dynamic[threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x != 5) return;
  switch (p.mode) {
    case kGlobalWrite:
      p.output[p.count] = 1;
      break;
    case kDynamicRead:
      p.output[0] = dynamic[kThreads];
      break;
    case kDynamicWrite:
      dynamic[kThreads] = 1;
      break;
    case kStaticIndex:
      p.output[0] = fixed[p.count];
      break;
    case kMisaligned:
      p.output[0] = load_pack<4>(p.input + 1).lane[0];
      break;
    case kNull:
      p.output[0] = *static_cast<const float*>(p.count == kThreads ? nullptr : p.input);
      break;
    case kMisalignedCopy:
      copy_async_16(fixed + 1, p.input);
      break;
    case kCopyOutsideShared:
      copy_async_16(p.output, p.input);
      break;
    case kOverflow:
      p.output[0] = static_cast<int>(p.count) * 0x7fffffff;
      break;
    case kGlobalStoreToShared:
      store_pack(dynamic, Pack<float, 4>{});
      break;
  }
}

namespace {

Tensor reverse_twice(const Tensor& input) {
  const int64_t count = input.numel();
  return run_selftest(reverse_twice_kernel, input, count, count / kThreads, kThreads,
                      kThreads * sizeof(float), 0);
}

Tensor unwritten(const Tensor& input, bool half) {
  const int64_t count = input.numel();
  return run_selftest(half ? unwritten_kernel<Half> : unwritten_kernel<float>, input, count,
                      count / kThreads, kThreads, kThreads * sizeof(float), 0);
}

Tensor missing_barrier(const Tensor& input, bool repaired) {
  return run_selftest(missing_barrier_kernel, input, kThreads, 1, kThreads, 0, repaired);
}

Tensor last_wins(const Tensor& input, bool blocks) {
  return run_selftest(last_wins_kernel, input, 1, blocks ? 64 : 1, blocks ? 1 : 64, 0, blocks);
}

Tensor async_copy(const Tensor& input, int64_t most_pending) {
  return run_selftest(async_copy_kernel, input, input.numel(), 1, kThreads, 0, most_pending);
}

Tensor atomics(const Tensor& input) {
  return run_selftest(atomics_kernel, input, 10, input.numel() / kThreads, kThreads, 0, 0);
}

Tensor bad_access(const Tensor& input, int64_t mode) {
  return run_selftest(bad_access_kernel, input, kThreads, 1, kThreads, kThreads * sizeof(float),
                      mode);
}

Tensor launch_of(const Tensor& input, int64_t blocks, int64_t threads, int64_t shared_bytes) {
  return run_selftest(last_wins_kernel, input, 1, blocks, threads, shared_bytes, 0);
}

STABLE_TORCH_LIBRARY_FRAGMENT(dlv3p_selftest, m) {
  m.def("reverse_twice(Tensor input) -> Tensor");
  m.def("unwritten(Tensor input, bool half) -> Tensor");
  m.def("missing_barrier(Tensor input, bool repaired) -> Tensor");
  m.def("last_wins(Tensor input, bool blocks) -> Tensor");
  m.def("async_copy(Tensor input, int most_pending) -> Tensor");
  m.def("atomics(Tensor input) -> Tensor");
  m.def("bad_access(Tensor input, int mode) -> Tensor");
  m.def("launch_of(Tensor input, int blocks, int threads, int shared_bytes) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(dlv3p_selftest, CPU, m) {
  m.impl("reverse_twice", TORCH_BOX(&reverse_twice));
  m.impl("unwritten", TORCH_BOX(&unwritten));
  m.impl("missing_barrier", TORCH_BOX(&missing_barrier));
  m.impl("last_wins", TORCH_BOX(&last_wins));
  m.impl("async_copy", TORCH_BOX(&async_copy));
  m.impl("atomics", TORCH_BOX(&atomics));
  m.impl("bad_access", TORCH_BOX(&bad_access));
  m.impl("launch_of", TORCH_BOX(&launch_of));
}

}  // namespace
}  // namespace dlv3p
