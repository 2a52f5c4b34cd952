// A row in the registers of a block of few warps: several such blocks on a multiprocessor hide each other's waiting.
#pragma once
#include <algorithm>
#include <cstdint>

#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

constexpr int kKeptRun = 4;            // neighbouring elements of a thread
constexpr int kMostKeptThreads = 320;  // of a block

// How a row of n elements is spread: `runs` runs a thread, 2 or 4; no threads: the row is too long.
struct KeptRow {
  int runs;
  unsigned threads;

  explicit KeptRow(int64_t n) {
    const int64_t pairs = std::max<int64_t>(1, ceil_div(n, int64_t{2} * 32 * kKeptRun));
    runs = pairs % 2 == 0 ? 4 : 2;
    const int64_t wanted = 32 * pairs * 2 / runs;
    threads = wanted <= kMostKeptThreads ? static_cast<unsigned>(wanted) : 0;
  }
};

// Where the thread's k-th run of a row begins.
__device__ inline int64_t kept_column(int k) {
  return (int64_t{k} * blockDim.x + threadIdx.x) * kKeptRun;
}

// Each x[i] becomes its sum over the block, in a fixed order. All threads call it, with one `half` for all calls: it
// is 0 and 1 in turns, so that who writes a half has met all readers of it at the barrier between.
template <int N>
__device__ inline void block_sums(float (&x)[N], int& half) {
  __shared__ float of_warps[2][kMostKeptThreads / 32][N];
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] += __shfl_xor_sync(~0u, x[i], lane);
  }
  half ^= 1;
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int i = 0; i < N; ++i) of_warps[half][threadIdx.x / 32][i] = x[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = 0;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] += of_warps[half][w][i];
  }
}

}  // namespace krait::cuda
