// Memory in larger pages, where the system has them on request.
#pragma once
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastdiff {
namespace FD_LEVEL {

// Asks for it of [p, p + bytes), before that is written: filters of megabytes are read from end to end, and every page that
// begins is a translation more.
static inline void in_large_pages(void* p, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t from = (uintptr_t(p) + kPage - 1) / kPage * kPage, to = (uintptr_t(p) + bytes) / kPage * kPage;
  if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#endif
}

}  // namespace FD_LEVEL
}  // namespace fastdiff
