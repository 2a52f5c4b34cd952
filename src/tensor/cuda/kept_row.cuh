// A row in the registers of a team of few warps: several teams on a multiprocessor hide each other's waiting.
#pragma once
#include <algorithm>
#include <cstdint>

#include "krait/tensor/cuda/math.h"
#include "krait/tensor/cuda/mma.h"

namespace krait::cuda {

constexpr unsigned kMostTeamWarps = 10;  // of a row
constexpr unsigned kWarpsOfTeams = 4;    // of a block, where its teams have fewer
constexpr int kTeamRegisters = 128;      // of a thread: four such blocks fit on a multiprocessor

// How a row of n elements is spread over a team: `runs` runs of V neighbouring elements a thread, `few` or `many` of
// them, whichever leaves less of a team idle; no threads: the row is too long. Blocks are of (threads, teams).
struct KeptRow {
  int runs;
  unsigned threads, teams;

  KeptRow(int64_t n, int V, int few, int many) {
    const int64_t all = std::max<int64_t>(1, ceil_div(n, int64_t{32} * V)),
                  of_few = ceil_div(all, few), of_many = ceil_div(all, many);
    runs = of_many * many <= of_few * few ? many : few;
    const auto warps = static_cast<unsigned>(runs == many ? of_many : of_few);
    threads = warps <= kMostTeamWarps ? 32 * warps : 0;
    teams = std::max(1u, kWarpsOfTeams / warps);
  }
};

// Where the thread's k-th run of V elements of a row begins.
template <int V>
__device__ inline int kept_column(int k) {
  return (k * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * V;
}

// Each x[i] becomes its sum over the team, in a fixed order. All its threads call it, with one `half` for all calls:
// it is 0 and 1 in turns, so that who writes a half has met all readers of it at the barrier between. With kAlone the
// block is one team: where teams have barriers of their own, no more than four blocks fit on a multiprocessor.
template <bool kAlone, int N>
__device__ inline void team_sums(float (&x)[N], int& half) {
  __shared__ float of_warps[2][kAlone ? 1 : kWarpsOfTeams][kMostTeamWarps][N];
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] += __shfl_xor_sync(~0u, x[i], lane);
  }
  if (!kAlone && blockDim.x == 32) return;
  half ^= 1;
  auto& mine = of_warps[half][kAlone ? 0 : threadIdx.y];
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int i = 0; i < N; ++i) mine[threadIdx.x / 32][i] = x[i];
  }
  if constexpr (kAlone) {
    __syncthreads();
  } else {
    asm volatile("bar.sync %0, %1;" ::"r"(threadIdx.y + 1), "r"(blockDim.x) : "memory");
  }
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = 0;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] += mine[w][i];
  }
}

// Rows on their way into shared memory, kRowsAhead before the one at work. A thread copies what it reads itself, runs
// of V: no barrier is needed.
constexpr int kRowsAhead = 1, kRowStages = kRowsAhead + 1;
constexpr size_t kMostOfStages =
    96 * 1024;  // a block of any GPU from compute capability 8.0 on has that

template <class T, int V, int K>
class StagedRows {
 public:
  static constexpr size_t bytes(unsigned threads) {
    return sizeof(Run<V, T>) * kRowStages * K * threads;
  }
  // Takes its part of the shared memory at `memory`, if it is `used`, and moves `memory` behind it.
  __device__ explicit StagedRows(unsigned char*& memory, bool used = true)
      : stages_(reinterpret_cast<Run<V, T>*>(memory)) {
    if (used) memory += bytes(blockDim.x * blockDim.y);
  }
  __device__ void copy(int stage, int k, const T* from) {
    copy_async<sizeof(Run<V, T>)>(at(stage, k), from);
  }
  __device__ void read(int stage, int k, float (&to)[V]) const {
    load<V>(reinterpret_cast<const T*>(at(stage, k)), to);
  }

 private:
  __device__ Run<V, T>* at(int stage, int k) const {
    return stages_ + (stage * K + k) * static_cast<int>(blockDim.x * blockDim.y) +
           static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  }
  Run<V, T>* stages_;
};

// Calls work(row, next, stage) for the rows of the thread's team, each once fetch(row, stage) has brought it; then comes
// row `next`, if it is not negative. The teams of the grid walk through the rows side by side, from the last one on: what
// the kernel before has written last may still be in the second-level cache.
template <class Fetch, class Work>
__device__ inline void for_staged_rows(int64_t rows, const Fetch& fetch, const Work& work) {
  const int64_t step = int64_t{gridDim.x} * blockDim.y;
  const int64_t last = rows - 1 - (int64_t{blockIdx.x} * blockDim.y + threadIdx.y);
#pragma unroll
  for (int i = 0; i < kRowsAhead; ++i) {
    if (last - i * step >= 0) fetch(last - i * step, i);
    commit_copies();
  }
  int stage = 0;
  for (int64_t row = last; row >= 0; row -= step) {
    const int free = stage == 0 ? kRowsAhead : stage - 1;  // of the row before
    if (row - kRowsAhead * step >= 0) fetch(row - kRowsAhead * step, free);
    commit_copies();
    wait_for_copies<kRowsAhead>();
    work(row, row - step, stage);
    stage = stage == kRowsAhead ? 0 : stage + 1;
  }
}

// The sums that the teams have of their columns are added in the order of the teams and written to `to` (n), if it is
// not null. `shared`: room for teams x n floats that nobody uses any more. All threads call it.
template <int V, int K>
__device__ inline void write_team_sums(const float (&of_thread)[K][V], int n, float* shared,
                                       float* to) {
  __syncthreads();
#pragma unroll
  for (int k = 0; k < K; ++k)
    if (kept_column<V>(k) < n) {
#pragma unroll
      for (int v = 0; v < V; v += 4) {
        const float four[4] = {of_thread[k][v], of_thread[k][v + 1], of_thread[k][v + 2],
                               of_thread[k][v + 3]};
        store<4>(shared + static_cast<int>(threadIdx.y) * n + kept_column<V>(k) + v, four);
      }
    }
  __syncthreads();
  const int threads = static_cast<int>(blockDim.x * blockDim.y);
  for (int i = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x); i < n && to;
       i += threads) {
    float sum = 0;
    for (unsigned team = 0; team < blockDim.y; ++team)
      sum += shared[static_cast<int>(team) * n + i];
    to[i] = sum;
  }
}

}  // namespace krait::cuda
