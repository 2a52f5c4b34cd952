// Threads of the CPU: one pool (OpenMP's), one way to split work.
#pragma once
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <exception>

namespace krait {

inline int threads() { return omp_get_max_threads(); }
inline void set_threads(int n) { omp_set_num_threads(n); }

// Runs fn(i) for i in [0, n), spread over the threads in contiguous ranges. The pieces must be chosen
// by the caller from the shapes alone, never from the number of threads: then the bits of the result
// do not depend on it. The first exception of any piece is rethrown.
template <class F>
void parallel_for(int64_t n, const F& fn) {
  if (n <= 1 || threads() == 1 || omp_in_parallel()) {
    for (int64_t i = 0; i < n; ++i) fn(i);
    return;
  }
  std::exception_ptr error;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n; ++i) {
    try {
      fn(i);
    } catch (...) {
#pragma omp critical(krait_parallel_for)
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

// The same over ranges: fn(begin, end) for pieces of `grain` elements of [0, n).
template <class F>
void parallel_ranges(int64_t n, int64_t grain, const F& fn) {
  parallel_for((n + grain - 1) / grain,
               [&](int64_t i) { fn(i * grain, std::min(n, (i + 1) * grain)); });
}

}  // namespace krait
