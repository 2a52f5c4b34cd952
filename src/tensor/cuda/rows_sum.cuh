// y = f x Wᵀ, or y += f x Wᵀ, in float32 for many rows of x on compute capability 9.0, f a factor of each row: blocks of a
// cluster share out K. Each sends its sums, straight into shared memory, to the blocks that add them up, always in the
// same order.
#pragma once
#include <utility>

#include "krait/tensor/cuda/cluster.cuh"
#include "krait/tensor/cuda/one_pass_sum.cuh"
#include "krait/tensor/cuda/rows_pass.cuh"

namespace krait::cuda {

struct RowsSum : OnePass {
  float* y = nullptr;  // (M, N), 8 bytes aligned; N is even
};

// kBudget: bytes of shared memory, about.
template <int kN, int kGroups, int kSplit_, int kBudget>
struct SumOfRowsTile : RowsTile<kN, kGroups, kBudget - 64 * kGroups * kN * 4, 5> {
  using Rows = RowsTile<kN, kGroups, kBudget - 64 * kGroups * kN * 4, 5>;
  static constexpr int kSplit = kSplit_;
  static constexpr int kQuads = kN / 8;  // of a thread's sums
  static constexpr int kItems =
      Rows::kWarps * kQuads / kSplit;  // fours of a lane that a block adds
  static constexpr int kMine = (kItems + Rows::kWarps - 1) / Rows::kWarps;  // of a warp
  static constexpr int kSent = 64 * kGroups * kN * 4;  // bytes that come to a block
  static constexpr int kFactorsAt = (Rows::kBytes + 15) / 16 * 16,
                       kSentAt = kFactorsAt + Rows::kSequences * 4, kBarrierAt = kSentAt + kSent,
                       kBytes = kBarrierAt + 8;
  static_assert(kItems * kSplit == Rows::kWarps * kQuads);
};

// Factors: factor(m, lane, lanes) is computed by so many neighbouring lanes together, where they are not kOnes.
template <class Tile, bool kAdds, class Factors>
__global__ void __launch_bounds__(Tile::kThreads)
    rows_sum_kernel(const __grid_constant__ CUtensorMap w, const __grid_constant__ CUtensorMap x,
                    const __grid_constant__ RowsSum p, const __grid_constant__ Factors of) {
#if KRAIT_HOPPER
  constexpr int kSplit = Tile::kSplit, kItems = Tile::kItems, kQuads = Tile::kQuads;
  extern __shared__ __align__(1024) unsigned char ring[];
  auto* const factors = reinterpret_cast<float*>(ring + Tile::kFactorsAt);
  auto* const sent = reinterpret_cast<float4*>(ring + Tile::kSentAt);
  auto* const all_sent = reinterpret_cast<uint64_t*>(ring + Tile::kBarrierAt);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int rank = static_cast<int>(rank_in_cluster()),
            m0 = static_cast<int>(blockIdx.y) * Tile::kSequences, M = static_cast<int>(p.M) - m0;
  const int64_t n0 = static_cast<int64_t>(blockIdx.x / kSplit) * Tile::kN;
  const int all = static_cast<int>((p.K + Tile::kK - 1) / Tile::kK), first = all * rank / kSplit,
            stages = all * (rank + 1) / kSplit - first;
  RowsPass<typename Tile::Rows> pass(ring);
  if (thread == 0) {
    expect_in_block(all_sent, Tile::kSent);
    pass.start();
  }
  __syncthreads();
  arrive_in_cluster();

  if (warp == Tile::kWarps) {
    pass.bring(x, m0, first * Tile::kK, stages, stages, [&](int i) {
      if (lane > 0) return;
      arrive_expecting(pass.barrier_of(i), Tile::kWBytes);
      copy_box(pass.place_of(i), w, (first + i) * Tile::kK, static_cast<int>(n0),
               pass.barrier_of(i));
    });
    __syncwarp();
    wait_in_cluster();
    return;
  }

  let_next_start();
  wait_for_previous();
  if (thread == 0) pass.bring_x(x, m0, first * Tile::kK, stages);
  // Fours that this block adds, in turn by its warps: of sixteen rows of x and eight of W.
  const int g = lane / 4, t = lane % 4;
  const auto row_of = [&](int i, int half) {
    return (rank * kItems + warp + i * Tile::kWarps) / kQuads * Tile::kOfWarp + g + 8 * half;
  };
  const auto column_of = [&](int i) {
    return n0 + (rank * kItems + warp + i * Tile::kWarps) % kQuads * 8 + 2 * t;
  };
  const auto there = [&](int i, int half) {
    return warp + i * Tile::kWarps < kItems && row_of(i, half) < M && column_of(i) < p.N;
  };
  const auto at = [&](int i, int half) {
    return reinterpret_cast<float2*>(p.y + (m0 + row_of(i, half)) * p.N + column_of(i));
  };
  float2 held[Tile::kMine][2] = {};
#pragma unroll
  for (int i = 0; i < Tile::kMine; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (kAdds && there(i, half)) held[i][half] = __ldcg(at(i, half));
  if constexpr (!Factors::kOnes) {
    constexpr int kLanes = Tile::kSumThreads / Tile::kSequences;
    const float f = of.factor(m0 + min(thread / kLanes, M - 1), thread % kLanes, kLanes);
    if (thread % kLanes == 0) factors[thread / kLanes] = f;
  }

  float sums[Tile::kN / 2] = {};
  pass.multiply(sums, stages);
  wait_in_cluster();
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const int item = warp * kQuads + q;
    send_to_block(sent + (rank * kItems + item % kItems) * 32 + lane,
                  float4{sums[4 * q], sums[4 * q + 1], sums[4 * q + 2], sums[4 * q + 3]}, all_sent,
                  static_cast<unsigned>(item / kItems));
  }
  if constexpr (!Factors::kOnes) synchronize_threads<Tile::kSumThreads>();
  wait_for_sent(all_sent);
#pragma unroll
  for (int i = 0; i < Tile::kMine; ++i) {
    const int item = warp + i * Tile::kWarps;
    if (item >= kItems) break;
    float4 sum = sent[item * 32 + lane];
#pragma unroll
    for (int r = 1; r < kSplit; ++r) add_fours(sum, sent[(r * kItems + item) * 32 + lane]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!there(i, half)) continue;
      float2 v = half ? float2{sum.z, sum.w} : float2{sum.x, sum.y};
      if constexpr (!Factors::kOnes) {
        const float f = factors[row_of(i, half)];
        v = {v.x * f, v.y * f};
      }
      *at(i, half) = {held[i][half].x + v.x, held[i][half].y + v.y};
    }
  }
#else
  __trap();
#endif
}

struct NoFactors {
  static constexpr bool kOnes = true;
};

template <class Tile, bool kAdds, class Factors>
void launch_rows_sum(const RowsSum& p, const Factors& of, void* stream) {
  const auto kernel = rows_sum_kernel<Tile, kAdds, Factors>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kBytes);
  launch_dependent("rows_sum", kernel,
                   dim3(static_cast<unsigned>(ceil_div(p.N, Tile::Rows::kN) * Tile::kSplit),
                        static_cast<unsigned>(ceil_div(p.M, Tile::kSequences))),
                   Tile::kThreads, Tile::kBytes, Tile::kSplit, stream,
                   map_of_rows(p.w, p.N, p.K, p.K, Tile::Rows::kN),
                   map_of_rows(p.x, p.M, p.K, p.x_step, Tile::kSequences), p, of);
}

// Of blocks with all of a multiprocessor's memory, on an H200 at once.
constexpr int64_t kMostClustersOfFour = 30;

// y += f x Wᵀ, where the clusters of some tile are all on the card at once. M is at most 128.
template <class Factors>
bool rows_added(const RowsSum& p, const Factors& of, void* stream) {
  const auto launch = [&]<int kN>(std::integral_constant<int, kN>) {
    if (ceil_div(p.N, kN) > kMostClustersOfFour) return false;
    p.M <= 64 ? launch_rows_sum<SumOfRowsTile<kN, 1, 4, 216 << 10>, true>(p, of, stream)
              : launch_rows_sum<SumOfRowsTile<kN, 2, 4, 216 << 10>, true>(p, of, stream);
    return true;
  };
  const auto first_of = [&]<int... kN>(std::integer_sequence<int, kN...>) {
    return (launch(std::integral_constant<int, kN>()) || ...);
  };
  return first_of(std::integer_sequence<int, 32, 40, 56, 72, 88>());
}

// y = x Wᵀ for a narrow W, in blocks that leave much of the shared memory to others.
inline bool narrow_rows(const RowsSum& p, void* stream) {
  if (p.N > 256) return false;
  launch_rows_sum<SumOfRowsTile<32, 1, 8, 80 << 10>, false>(p, NoFactors{}, stream);
  return true;
}

}  // namespace krait::cuda
