// one_pass.h for more than a few rows on compute capability 9.0. A block has 64 rows of W for each of its warpgroups and
// kColumns rows of x; blocks of a cluster share out K. One warp asks for tiles of both factors, kStages ahead: the first
// ones of W before the kernels before this one are done.
#pragma once
#include <algorithm>

#include "krait/tensor/cuda/cluster.cuh"
#include "krait/tensor/cuda/hopper.cuh"
#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/one_pass_fours.cuh"
#include "krait/tensor/cuda/tensor_map.h"

namespace krait::cuda {

template <int kGroups_, int kColumns_, int kStages_>
struct HopperTile {
  static constexpr int kGroups = kGroups_, kColumns = kColumns_, kStages = kStages_;
  static constexpr int kRows = 64 * kGroups, kK = 64;  // of a stage
  static constexpr int kSumThreads = 128 * kGroups, kThreads = kSumThreads + 32;
  static constexpr int kWBytes = kRows * kK * 2, kStageBytes = kWBytes + kColumns * kK * 2;
  using Sums = SumTile<kRows, kColumns, 1>;
  static constexpr size_t kRing = std::max(size_t{kStageBytes} * kStages, Sums::kBytes);
  static constexpr size_t kBytes = (kRing + 7) / 8 * 8 + 2 * sizeof(uint64_t) * kStages;
  // On a multiprocessor, of whose 227 KB each takes 1 beside its own.
  static constexpr int kBlocks = kBytes <= 112 * 1024 && kThreads <= 320 ? 2 : 1;
};

template <class Tile, class End>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    one_pass_hopper_kernel(const __grid_constant__ CUtensorMap w,
                           const __grid_constant__ CUtensorMap x, const __grid_constant__ OnePass p,
                           const __grid_constant__ End end, const int split) {
#if KRAIT_HOPPER
  constexpr int kStages = Tile::kStages, kK = Tile::kK;
  extern __shared__ __align__(1024) unsigned char ring[];
  auto* const full = reinterpret_cast<uint64_t*>(ring + Tile::kBytes) - 2 * kStages;
  auto* const empty = full + kStages;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const unsigned rank = split > 1 ? rank_in_cluster() : 0;
  const ClusterShare share((p.K + kK - 1) / kK, rank, split);
  const int64_t n0 = int64_t{share.cluster} * Tile::kRows;
  const int m0 = static_cast<int>(blockIdx.y) * Tile::kColumns;
  const int first = share.first, stages = share.end - first;
  if (thread == 0) {
    for (int i = 0; i < kStages; ++i) {
      start_barrier(full + i, 1);
      start_barrier(empty + i, Tile::kSumThreads / 32);
    }
    fence_barriers();
  }
  __syncthreads();

  if (warp == Tile::kSumThreads / 32) {
    const auto copy_w = [&](int i, int slot) {
      copy_box(ring + slot * Tile::kStageBytes, w, (first + i) * kK, static_cast<int>(n0),
               full + slot);
    };
    const auto copy_x = [&](int i, int slot) {
      copy_box(ring + slot * Tile::kStageBytes + Tile::kWBytes, x, (first + i) * kK, m0,
               full + slot);
    };
    const int ahead = min(stages, kStages);
    if (lane == 0)
      for (int i = 0; i < ahead; ++i) {
        arrive_expecting(full + i, Tile::kStageBytes);
        copy_w(i, i);
      }
    let_next_start();
    wait_for_previous();
    if (lane == 0) {
      for (int i = 0; i < ahead; ++i) copy_x(i, i);
      int slot = 0;
      unsigned parity = 0;
      for (int i = kStages; i < stages; ++i) {
        wait_for_phase(empty + slot, parity);
        arrive_expecting(full + slot, Tile::kStageBytes);
        copy_w(i, slot);
        copy_x(i, slot);
        if (++slot == kStages) slot = 0, parity ^= 1;
      }
    }
    return;
  }

  auto* const parts = reinterpret_cast<float*>(ring);
  PassEndOf<typename Tile::Sums, Tile::kSumThreads, End> last(
      end, parts, n0, p.N, m0, static_cast<int>(p.M), rank, split, thread);
  let_next_start();
  wait_for_previous();
  // Sums of many columns leave no registers for it.
  constexpr bool kHoldsEarly = Tile::kColumns < 128;
  if constexpr (TakesFours<End>) last.hold_factor();
  if (kHoldsEarly) last.hold_first();

  float sums[Tile::kColumns / 2] = {};
  const int group = warp / 4;
  const uint64_t of_w = tile_at(ring + group * 64 * kK * 2), of_x = tile_at(ring + Tile::kWBytes);
  int slot = 0, before = 0;
  unsigned parity = 0;
  for (int i = 0; i < stages; ++i) {
    wait_for_phase(full + slot, parity);
    const uint64_t stage = static_cast<uint64_t>(slot) * (Tile::kStageBytes >> 4);
    begin_products();
#pragma unroll
    for (int k = 0; k < kK / 16; ++k)
      warpgroup_product(sums, of_w + stage + k * kTileStepK, of_x + stage + k * kTileStepK);
    commit_products();
    wait_for_products<1>();
    if (i > 0 && lane == 0) arrive(empty + before);
    before = slot;
    if (++slot == kStages) slot = 0, parity ^= 1;
  }
  wait_for_products<0>();
  last.synchronize();  // all have read the ring

  // Warp w of a group has rows 16w and following.
  float* const mine = parts + 2 * (lane % 4) * Tile::Sums::kStep + warp * 16 + lane / 4;
#pragma unroll
  for (int n = 0; n < Tile::kColumns / 8; ++n)
#pragma unroll
    for (int j = 0; j < 4; ++j)
      mine[(8 * n + j % 2) * Tile::Sums::kStep + j / 2 * 8] = sums[4 * n + j];
  if (!kHoldsEarly) last.hold_first();
  last.finish();
#else
  __trap();
#endif
}

// Blocks of a cluster: all are on the card at once, two on a multiprocessor, each with three stages or more.
template <class Tile>
int hopper_split(int64_t N, int64_t K) {
  constexpr int64_t kMost =
      Tile::kColumns < 128 || Tile::kGroups == 1 ? 208 : 2 * kOnePassProcessors;
  const int64_t strips = ceil_div(N, Tile::kRows);
  return static_cast<int>(
      std::clamp<int64_t>(std::min(kMost / strips, ceil_div(K, Tile::kK) / 3), 1, kMostSplit));
}

template <class Tile, class End>
void launch_hopper(const OnePass& p, const End& end, int split, void* stream) {
  const auto kernel = one_pass_hopper_kernel<Tile, End>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(Tile::kBytes));
  launch_dependent("one_pass", kernel,
                   dim3(static_cast<unsigned>(ceil_div(p.N, Tile::kRows) * split),
                        static_cast<unsigned>(ceil_div(p.M, Tile::kColumns))),
                   Tile::kThreads, Tile::kBytes, static_cast<unsigned>(split), stream,
                   map_of_rows(p.w, p.N, p.K, p.K, Tile::kRows),
                   map_of_rows(p.x, p.M, p.K, p.x_step, Tile::kColumns), p, end, split);
}

// Blocks of 128 rows of W where they fill the card; of 64 where a narrow matrix's sums are stored, of 64 and few rows of
// x where nothing else fills it (H200, 64 rows, W 2048 x 4096: 8.4 us by blocks of 64, 10.1 by 128).
template <class Wide, class Narrow, class Short, class End>
void hopper_pass_of(const OnePass& p, const End& end, void* stream) {
  const auto blocks = [&]<class Tile>(Tile) {
    return ceil_div(p.N, Tile::kRows) * hopper_split<Tile>(p.N, p.K);
  };
  const auto launch = [&]<class Tile>(Tile) {
    launch_hopper<Tile>(p, end, hopper_split<Tile>(p.N, p.K), stream);
  };
  if (blocks(Wide{}) > 120 && !(TakesFours<End> && p.N <= 4096)) return launch(Wide{});
  blocks(Narrow{}) >= kOnePassProcessors / 2 ? launch(Narrow{}) : launch(Short{});
}

// `end` as PassEnd calls it.
template <class End>
void hopper_pass_into(const OnePass& p, const End& end, void* stream) {
  using Short = HopperTile<1, 32, 9>;
  if (p.M <= 32) {
    hopper_pass_of<HopperTile<2, 32, 5>, Short, Short>(p, end, stream);
  } else if (p.M <= 64) {
    hopper_pass_of<HopperTile<2, 64, 4>, HopperTile<1, 64, 6>, Short>(p, end, stream);
  } else {
    hopper_pass_of<HopperTile<2, 128, 3>, HopperTile<1, 128, 4>, Short>(p, end, stream);
  }
}

}  // namespace krait::cuda
