#include "huge_pages.h"

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dlv3p {

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // Two to three huge pages at least: rounding to whole ones leaves little out.
  constexpr int64_t kLarge = int64_t{6} << 20;
  constexpr std::uintptr_t kHugePage = std::uintptr_t{2} << 20;
  if (bytes < kLarge) return;
  const auto begin = (reinterpret_cast<std::uintptr_t>(data) + kHugePage - 1) / kHugePage;
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + bytes) / kHugePage;
  // Only advice: where it is refused the tensor is as good as before.
  madvise(reinterpret_cast<void*>(begin * kHugePage), (end - begin) * kHugePage, MADV_HUGEPAGE);
#endif
}

}  // namespace dlv3p
