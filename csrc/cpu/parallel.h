// Tasks on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace dlv3p {

// Calls run(task) for every task. Threads take the next one when they are done with one, as cores
// may differ in speed; results must not depend on which thread that is.
template <class Run>
void for_each_task(int64_t tasks, const Run& run) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(tasks, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t task; (task = next.fetch_add(1)) < tasks;) run(task);
    }
  });
}

}  // namespace dlv3p
