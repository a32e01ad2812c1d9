#include "huge_pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dlv3p {

void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // Smaller blocks are handed out again by the allocator with their pages in place (glibc's largest
  // threshold for that is 32 MiB).
  constexpr int64_t kFreshFromSystem = int64_t{32} << 20;
  constexpr std::uintptr_t kHugePage = std::uintptr_t{2} << 20;
  if (bytes < kFreshFromSystem) return;
  const auto begin = (reinterpret_cast<std::uintptr_t>(data) + kHugePage - 1) / kHugePage;
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + bytes) / kHugePage;
  // Only advice: where it is refused the tensor is as good as before.
  madvise(reinterpret_cast<void*>(begin * kHugePage), (end - begin) * kHugePage, MADV_HUGEPAGE);
#endif
}

}  // namespace dlv3p
