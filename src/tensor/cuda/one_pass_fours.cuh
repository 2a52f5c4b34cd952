// What one_pass_sum.cuh does, for ends that take four elements at once from registers: called as
// end(n, m, sums, end.hold(n, m)) for n, n + 1, n + 2 and n + 3, n a multiple of four, of which only the first need be
// below N. With End::kFactors sums are multiplied by end.factor(m, i, lanes), which so many neighbouring lanes compute
// together.
#pragma once
#include <type_traits>

#include "krait/tensor/cuda/one_pass_sum.cuh"

namespace krait::cuda {

// Sizes and names as in PassEnd; factors stand behind `parts`. The warps of the cluster's blocks take 128 neighbouring elements in turn.
template <class Tile, int kThreads, class End>
class PassFours {
 public:
  static_assert(End::kFours);
  __device__ PassFours(const End& end, float* parts, int64_t n0, int64_t N, int m0, int M,
                       unsigned rank, int split, int thread)
      : end_(end),
        parts_(parts),
        n0_(n0),
        N_(N),
        m0_(m0),
        M_(M),
        elements_(min(M - m0, Tile::kColumns) * Tile::kRows),
        step_(split * kThreads * 4),
        first_((static_cast<int>(rank) * kThreads + thread) * 4),
        split_(split),
        thread_(thread) {}

  __device__ void synchronize() { synchronize_threads<kThreads>(); }
  __device__ void hold_first() { hold(first_); }

  // Before hold_first and finish, when what the factors are made of is complete.
  __device__ void hold_factor() {
    if constexpr (End::kFactors)
      factor_ = end_.factor(min(m0_ + thread_ / kOfColumn, M_ - 1), thread_ % kOfColumn, kOfColumn);
  }

  __device__ void finish() {
    float* const factors = parts_ + Tile::kSums * Tile::kParts;
    if (End::kFactors && thread_ % kOfColumn == 0) factors[thread_ / kOfColumn] = factor_;
    synchronize();
    if (Tile::kParts > 1) {
      for (int e = 4 * thread_; e < elements_; e += 4 * kThreads)
        *place_of(e) = sum_of_parts<Tile>(place_of(e));
      synchronize();
    }
    if (split_ > 1) synchronize_cluster();
    for (int e = first_; e < elements_; e += kTogether * step_) {
      if (e > first_) hold(e);
      float4 sums[kTogether];
      sum_over_blocks(e, sums);
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
        if (const int at = e + i * step_; at < elements_ && row_of(at) < N_) {
          if constexpr (End::kFactors) {
            const float f = factors[at / Tile::kRows];
            sums[i] = {sums[i].x * f, sums[i].y * f, sums[i].z * f, sums[i].w * f};
          }
          end_(row_of(at), column_of(at), sums[i], held_[i]);
        }
    }
    if (split_ > 1) leave_cluster();  // another block may still read this one's memory
  }

 private:
  static constexpr int kTogether = 2;
  static constexpr int kOfColumn = kThreads / Tile::kColumns;  // threads
  static_assert(!End::kFactors || (kOfColumn > 0 && kOfColumn <= 32));

  __device__ int64_t row_of(int element) const { return n0_ + element % Tile::kRows; }
  __device__ int column_of(int element) const { return m0_ + element / Tile::kRows; }
  __device__ float4* place_of(int element) const {
    return reinterpret_cast<float4*>(parts_ + element / Tile::kRows * Tile::kStep +
                                     element % Tile::kRows);
  }
  __device__ void hold(int e) {
#pragma unroll
    for (int i = 0; i < kTogether; ++i)
      if (const int at = e + i * step_; at < elements_ && row_of(at) < N_)
        held_[i] = end_.hold(row_of(at), column_of(at));
  }
  // What is behind the last element is of no use.
  __device__ void sum_over_blocks(int e, float4 (&sums)[kTogether]) const {
    const float4* at[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) at[i] = place_of(min(e + i * step_, elements_ - 4));
    if (split_ == 1) {
#pragma unroll
      for (int i = 0; i < kTogether; ++i) sums[i] = *at[i];
      return;
    }
    float4 of_blocks[kMostSplit][kTogether];
#pragma unroll
    for (int r = 0; r < kMostSplit; ++r)
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
        if (r < split_)
          of_blocks[r][i] =
              four_of_block(reinterpret_cast<const float*>(at[i]), static_cast<unsigned>(r));
#pragma unroll
    for (int i = 0; i < kTogether; ++i) sums[i] = of_blocks[0][i];
#pragma unroll
    for (int r = 1; r < kMostSplit; ++r)
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
        if (r < split_) add_fours(sums[i], of_blocks[r][i]);
  }

  const End& end_;
  float* const parts_;
  const int64_t n0_, N_;
  const int m0_, M_, elements_, step_, first_, split_, thread_;
  float factor_ = 0;
  typename End::Held held_[kTogether];
};

template <class End>
concept TakesFours = requires {
  End::kFours;
};

template <class Tile, int kThreads, class End>
using PassEndOf = std::conditional_t<TakesFours<End>, PassFours<Tile, kThreads, End>,
                                     PassEnd<Tile, kThreads, End>>;

}  // namespace krait::cuda
