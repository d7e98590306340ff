// Threads: torch's OpenMP pool, entered only for more than one thread and never in a forked child.
#pragma once
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastdiff {

// True in a child forked after a parallel region, where libgomp would wait for threads that no longer exist.
bool forked();

// body(i) for i in [0, n); each i is computed alike whoever runs it, so results do not depend on num_threads.
template <class Body>
static inline void parallel_for(int64_t n, int num_threads, const Body& body) {
#ifdef _OPENMP
  if (num_threads > 1 && n > 1 && !forked()) {
#pragma omp parallel for num_threads(num_threads < n ? num_threads : int(n)) schedule(static)
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
#else
  (void)num_threads;
#endif
  for (int64_t i = 0; i < n; ++i) body(i);
}

// Fewer threads where there is little to do: a parallel region costs as much as some ten thousand elements.
static inline int useful_threads(int64_t elements, int num_threads) {
  const int64_t most = elements / 16384;
  return most < 1 ? 1 : most < num_threads ? int(most) : num_threads;
}

}  // namespace fastdiff
