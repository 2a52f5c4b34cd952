// A row in the registers of a block of few warps: several such blocks on a multiprocessor hide each other's waiting.
#pragma once
#include <algorithm>
#include <cstdint>

#include "krait/tensor/cuda/math.h"
#include "krait/tensor/cuda/mma.h"

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

// Rows on their way into shared memory, kRowsAhead before the one at work. A thread copies what it reads itself, runs
// of four: no barrier is needed.
constexpr int kRowsAhead = 2, kRowStages = kRowsAhead + 1;
constexpr size_t kMostOfStages =
    96 * 1024;  // a block of any GPU from compute capability 8.0 on has that

template <class T, int K>
class StagedRows {
 public:
  static constexpr size_t bytes(unsigned threads) {
    return sizeof(Run<kKeptRun, T>) * kRowStages * K * threads;
  }
  // Takes its part of the shared memory at `memory`, if it is `used`, and moves `memory` behind it.
  __device__ explicit StagedRows(unsigned char*& memory, bool used = true)
      : stages_(reinterpret_cast<Run<kKeptRun, T>*>(memory)) {
    if (used) memory += bytes(blockDim.x);
  }
  __device__ void copy(int stage, int k, const T* from) {
    constexpr int kBytes = sizeof(Run<kKeptRun, T>);
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(at(stage, k)));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(kBytes)
                 : "memory");
  }
  __device__ void read(int stage, int k, float (&to)[kKeptRun]) const {
    load<kKeptRun>(reinterpret_cast<const T*>(at(stage, k)), to);
  }

 private:
  __device__ Run<kKeptRun, T>* at(int stage, int k) const {
    return stages_ + (stage * K + k) * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
  }
  Run<kKeptRun, T>* stages_;
};

// Calls work(row, stage) for the rows from `begin` to `end`, each once fetch(row, stage) has brought it.
template <class Fetch, class Work>
__device__ inline void for_staged_rows(int64_t begin, int64_t end, const Fetch& fetch,
                                       const Work& work) {
#pragma unroll
  for (int i = 0; i < kRowsAhead; ++i) {
    if (begin + i < end) fetch(begin + i, i);
    commit_copies();
  }
  int stage = 0;
  for (int64_t row = begin; row < end; ++row) {
    const int free = stage == 0 ? kRowsAhead : stage - 1;  // of the row before
    if (row + kRowsAhead < end) fetch(row + kRowsAhead, free);
    commit_copies();
    wait_for_copies<kRowsAhead>();
    work(row, stage);
    stage = stage == kRowsAhead ? 0 : stage + 1;
  }
}

}  // namespace krait::cuda
