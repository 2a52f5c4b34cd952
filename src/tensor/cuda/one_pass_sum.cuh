// How a block's tile of sums becomes results: sums of warps that share out K are added, then those of the blocks of a
// cluster, always in the same order, and each element is given to an end.
//
// An end is called as end(n, m, Σ_k x[m, k] w[n, k], end.hold(n, m), end.of_row(n)) once for each element of the product;
// both are called early, to read what the end needs beside the sums: of_row before what makes x is complete, once for
// all elements of a thread, which are of one row of W.
#pragma once
#include "krait/tensor/cuda/cluster.cuh"
#include "krait/tensor/cuda/one_pass.h"

namespace krait::cuda {

// Sums of kRows rows of W by kColumns rows of x, once for each of kParts parts of K, and a factor for each row of x.
template <int kRows_, int kColumns_, int kParts_>
struct SumTile {
  static constexpr int kRows = kRows_, kColumns = kColumns_, kParts = kParts_;
  // Floats between rows of sums: what a warp writes at once falls into different banks.
  static constexpr int kStep = kRows + 4;
  static constexpr int kSums = kColumns * kStep;
  static constexpr size_t kBytes = sizeof(float) * (kSums * kParts + kColumns);
};

// Of the first kThreads threads of a block.
template <int kThreads>
__device__ inline void synchronize_threads() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

__device__ inline void add_fours(float4& sum, float4 b) {
  sum.x += b.x, sum.y += b.y, sum.z += b.z, sum.w += b.w;
}

// Of four elements, which stand at `first` in the first part.
template <class Tile>
__device__ inline float4 sum_of_parts(const float4* first) {
  float4 sum = *first;
#pragma unroll
  for (int i = 1; i < Tile::kParts; ++i) add_fours(sum, first[i * Tile::kSums / 4]);
  return sum;
}

// The view of one of the kThreads threads that do it; `parts` is (kParts, kColumns, kStep) in shared memory. The cluster's
// blocks share out the elements: runs of kRun in turn. In a run, of which a thread has four, neighbouring elements have
// neighbouring rows of W.
template <class Tile, int kThreads, class End>
class PassEnd {
 public:
  // The block's first element is (n0, m0), of M rows of x; it is block `rank` of `split`.
  __device__ PassEnd(const End& end, float* parts, int64_t n0, int64_t N, int m0, int M,
                     unsigned rank, int split, int thread)
      : end_(end),
        parts_(parts),
        n0_(n0),
        N_(N),
        m0_(m0),
        elements_(min(M - m0, Tile::kColumns) * Tile::kRows),
        stride_(split * kRun),
        mine_(static_cast<int>(rank) * kRun),
        split_(split),
        thread_(thread) {
    static_assert(!End::kFactors && kThreads % Tile::kRows == 0);
    if (row_of(thread) < N) of_row_ = end.of_row(row_of(thread));
  }

  // Of the kThreads threads.
  __device__ void synchronize() { synchronize_threads<kThreads>(); }

  // May be called before there are sums.
  __device__ void hold_first() { hold(mine_); }

  // After hold_first, and when each thread has put its sums.
  __device__ void finish() {
    synchronize();
    if (Tile::kParts > 1)
      for (int e = 4 * thread_; e < elements_; e += kRun) sum_over_warps(e);
    if (split_ > 1) {
      synchronize_cluster();
#pragma unroll 2
      for (int e = mine_ + 4 * thread_; e < elements_; e += stride_) sum_over_blocks(e);
    }
    synchronize();
    for (int run = mine_; run < elements_; run += kTogether * stride_) {
      if (run > mine_) hold(run);
#pragma unroll
      for (int i = 0; i < 4 * kTogether; ++i) {
        const int e = element(run, i);
        if (e >= elements_ || row_of(e) >= N_) continue;
        end_(row_of(e), m0_ + e / Tile::kRows, *place_of(e), held_[i], of_row_);
      }
    }
    if (split_ > 1) leave_cluster();  // another block may still read this one's memory
  }

 private:
  static constexpr int kRun = 4 * kThreads, kTogether = 2;  // runs
  __device__ int64_t row_of(int element) const { return n0_ + element % Tile::kRows; }
  __device__ float* place_of(int element) const {
    return parts_ + element / Tile::kRows * Tile::kStep + element % Tile::kRows;
  }
  __device__ int element(int run, int i) const {
    return run + i / 4 * stride_ + i % 4 * kThreads + thread_;
  }
  __device__ void hold(int run) {
#pragma unroll
    for (int i = 0; i < 4 * kTogether; ++i)
      if (const int e = element(run, i); e < elements_ && row_of(e) < N_)
        held_[i] = end_.hold(row_of(e), m0_ + e / Tile::kRows);
  }

  // Four at a time. What comes out stands where it is read by this block alone.
  __device__ void sum_over_warps(int e) const {
    auto* const at = reinterpret_cast<float4*>(place_of(e));
    *at = sum_of_parts<Tile>(at);
  }
  __device__ void sum_over_blocks(int e) const {
    float* const at = place_of(e);
    float4 of_blocks[kMostSplit], sum{};
#pragma unroll
    for (int r = 0; r < kMostSplit; ++r)
      if (r < split_) of_blocks[r] = four_of_block(at, static_cast<unsigned>(r));
#pragma unroll
    for (int r = 0; r < kMostSplit; ++r)
      if (r < split_) add_fours(sum, of_blocks[r]);
    *reinterpret_cast<float4*>(at) = sum;
  }

  const End& end_;
  float* const parts_;
  const int64_t n0_, N_;
  const int m0_, elements_, stride_, mine_, split_, thread_;
  typename End::OfRow of_row_;
  typename End::Held held_[4 * kTogether];
};

}  // namespace krait::cuda
