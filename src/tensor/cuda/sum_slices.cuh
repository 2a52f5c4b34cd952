// Sums of columns by blocks of (32, kSumSlices) threads: a warp has 32 columns and a slice of the rows; the slices are
// added in their order.
#pragma once
#include <cstdint>

#include "krait/tensor/cuda/launch_dependent.cuh"

namespace krait::cuda {

constexpr int kSumSlices = 16;

// Calls end(Σ of rows [from, to)) once for each column `col` of a block's threads that is below n, when the kernel before
// this one is done. All threads of the block call it.
template <int kAtOnce, class T, class End>
__device__ inline void sum_column(const T* rows, int64_t step, int64_t from, int64_t to,
                                  int64_t col, int64_t n, const End& end) {
  __shared__ float of_slice[kSumSlices][32];
  const int64_t slice = (to - from + kSumSlices - 1) / kSumSlices;
  const int64_t begin = from + threadIdx.y * slice, behind = min(to, begin + slice);
  wait_for_previous();
  float sum = 0;
  if (col < n) {
#pragma unroll kAtOnce
    for (int64_t r = begin; r < behind; ++r)
      sum += static_cast<float>(__ldcg(rows + r * step + col));
  }
  of_slice[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || col >= n) return;
  float total = 0;
  for (int s = 0; s < kSumSlices; ++s) total += of_slice[s][threadIdx.x];
  end(total);
}

}  // namespace krait::cuda
