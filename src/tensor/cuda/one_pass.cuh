// The kernel behind one_pass.h, for any use of what comes out. A block has kRows rows of W and all rows of x; up to
// eight blocks of a cluster share out K, and kKG groups of a block's eight warps share out each stage of it. Stages of
// both factors pass through a ring in shared memory: 16 bytes a copy, their places within 128 bytes exchanged by the
// row, so that eight rows of one place lie in different banks. Sums run over warps, then over blocks,
// always in the same order.
#pragma once
#include <algorithm>

#include "krait/tensor/cuda/cluster.cuh"
#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/mma.h"
#include "krait/tensor/cuda/one_pass_fours.cuh"
#include "krait/tensor/cuda/one_pass_hopper.cuh"

namespace krait::cuda {

// Warps: kRG groups of 16 kMT rows of W, kCG of 8 kNT rows of x, kKG of K.
template <int kMT_, int kRG_, int kCG_, int kKG_, int kNT_, int kStages_>
struct OnePassTile {
  static constexpr int kMT = kMT_, kRG = kRG_, kCG = kCG_, kKG = kKG_, kNT = kNT_,
                       kStages = kStages_;
  static constexpr int kThreads = 256;
  static_assert(kRG * kCG * kKG * 32 == kThreads && kNT % 2 == 0);
  static constexpr int kRows = 16 * kMT * kRG, kColumns = 8 * kNT * kCG;
  static constexpr int kK = kRows > 16 ? 64 : 128;  // of a stage
  static constexpr int kSlots = kK / 8;             // of 16 bytes, in a row of a stage
  static constexpr int kSteps = kK / 16 / kKG;      // of 16 elements, of a warp in a stage
  static_assert(kSteps > 0);
  static constexpr int kStageBytes = (kRows + kColumns) * kK * 2;
  using Sums = SumTile<kRows, kColumns, kKG>;
  static constexpr size_t kBytes = std::max(size_t{kStageBytes} * kStages, Sums::kBytes);
};

template <class Tile, class End>
__global__ void __launch_bounds__(Tile::kThreads, 2)
    one_pass_kernel(const __grid_constant__ OnePass p, const __grid_constant__ End end,
                    const int split) {
  constexpr int kRows = Tile::kRows, kColumns = Tile::kColumns, kK = Tile::kK,
                kSlots = Tile::kSlots, kStages = Tile::kStages, kThreads = Tile::kThreads;
  extern __shared__ __align__(128) unsigned char shared[];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int K = static_cast<int>(p.K), M = static_cast<int>(p.M);
  const unsigned rank = split > 1 ? rank_in_cluster() : 0;
  const ClusterShare share((K + kK - 1) / kK, rank, split);
  const int64_t n0 = int64_t{share.cluster} * kRows;
  const int first = share.first, stages = share.end - first;
  const auto place = [](int row, int slot) {
    return (row * kSlots + (slot & ~7) + ((slot ^ row) & 7)) * 16;
  };

  // A thread copies one place of every kAtOnce-th row. Rows behind the last one repeat it; what they give is left out
  // at the end.
  constexpr int kAtOnce = kThreads / kSlots, kOfW = kRows / kAtOnce,
                kOfX = (kColumns + kAtOnce - 1) / kAtOnce, kNextRow = kAtOnce * kSlots * 16;
  static_assert(kAtOnce % 8 == 0 && kOfW > 0);
  const int row = thread / kSlots, slot = thread % kSlots, begin = first * kK + slot * 8;
  const int to = place(row, slot);
  const auto* w = static_cast<const __nv_bfloat16*>(p.w) + n0 * K + begin;
  const auto* x = static_cast<const __nv_bfloat16*>(p.x) + begin;
  int w_row[kOfW], x_row[kOfX];
#pragma unroll
  for (int j = 0; j < kOfW; ++j)
    w_row[j] = static_cast<int>(min(int64_t{row + j * kAtOnce}, p.N - 1 - n0)) * K;
#pragma unroll
  for (int j = 0; j < kOfX; ++j)
    x_row[j] = min(row + j * kAtOnce, M - 1) * static_cast<int>(p.x_step);
  const int end_of_slice = min(K, (first + stages) * kK) - begin;
  int w_left = end_of_slice, x_left = end_of_slice;
  const auto fetch_w = [&](unsigned char* stage) {
#pragma unroll
    for (int j = 0; j < kOfW; ++j) copy_async(stage + to + j * kNextRow, w + w_row[j], w_left > 0);
    w += kK, w_left -= kK;
  };
  const auto fetch_x = [&](unsigned char* stage) {
#pragma unroll
    for (int j = 0; j < kOfX; ++j)
      if (kColumns % kAtOnce == 0 || row + j * kAtOnce < kColumns)
        copy_async(stage + kRows * kK * 2 + to + j * kNextRow, x + x_row[j], x_left > 0);
    x += kK, x_left -= kK;
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) fetch_w(shared + i * Tile::kStageBytes);
  let_next_start();
  wait_for_previous();
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    fetch_x(shared + i * Tile::kStageBytes);
    commit_copies();
  }

  const int rg = warp % Tile::kRG, cg = warp / Tile::kRG % Tile::kCG,
            kg = warp / (Tile::kRG * Tile::kCG);
  int of_a[Tile::kSteps], of_b[Tile::kSteps];  // where the lane's rows are in a stage
#pragma unroll
  for (int s = 0; s < Tile::kSteps; ++s) {
    const int k = 2 * (kg * Tile::kSteps + s);
    of_a[s] = place(rg * 16 * Tile::kMT + lane % 16, k + lane / 16);
    of_b[s] =
        kRows * kK * 2 + place(cg * 8 * Tile::kNT + lane / 16 * 8 + lane % 8, k + lane / 8 % 2);
  }
  float sums[Tile::kMT][Tile::kNT][4] = {};
  int read = 0, write = (kStages - 1) * Tile::kStageBytes;
#pragma unroll 1
  for (int i = 0; i < stages; ++i) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    fetch_w(shared + write);
    fetch_x(shared + write);
    commit_copies();
    const unsigned char* const stage = shared + read;
#pragma unroll
    for (int s = 0; s < Tile::kSteps; ++s) {
      uint32_t a[Tile::kMT][4];
#pragma unroll
      for (int m = 0; m < Tile::kMT; ++m)
        load_matrices(a[m], stage + of_a[s] + m * 16 * kSlots * 16);
#pragma unroll
      for (int n = 0; n < Tile::kNT; n += 2) {
        uint32_t b[4];
        load_matrices(b, stage + of_b[s] + n * 8 * kSlots * 16);
#pragma unroll
        for (int m = 0; m < Tile::kMT; ++m) {
          mma_bf16(sums[m][n], a[m], b[0], b[1]);
          mma_bf16(sums[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
    read = read == (kStages - 1) * Tile::kStageBytes ? 0 : read + Tile::kStageBytes;
    write = write == (kStages - 1) * Tile::kStageBytes ? 0 : write + Tile::kStageBytes;
  }
  wait_for_copies<0>();
  __syncthreads();

  auto* const parts = reinterpret_cast<float*>(shared);  // (kKG, kColumns, kStep)
  {
    float* const mine = parts + kg * Tile::Sums::kSums +
                        (cg * 8 * Tile::kNT + 2 * (lane % 4)) * Tile::Sums::kStep +
                        rg * 16 * Tile::kMT + lane / 4;
#pragma unroll
    for (int m = 0; m < Tile::kMT; ++m)
#pragma unroll
      for (int n = 0; n < Tile::kNT; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          mine[(8 * n + j % 2) * Tile::Sums::kStep + 16 * m + j / 2 * 8] = sums[m][n][j];
  }

  PassEndOf<typename Tile::Sums, kThreads, End> last(end, parts, n0, p.N, 0, M, rank, split,
                                                     thread);
  if constexpr (TakesFours<End>) last.hold_factor();
  last.hold_first();
  last.finish();
}

// Blocks of a cluster: all blocks are on the card at once, two on a multiprocessor, and few of them or each with a good
// part of K.
template <class Tile>
int one_pass_split(int64_t N, int64_t K) {
  const int64_t strips = ceil_div(N, Tile::kRows), stages = ceil_div(K, Tile::kK);
  int split = 1;
  while (split < kMostSplit && strips * split * 2 <= 2 * kOnePassProcessors &&
         (strips * split < kOnePassProcessors / 2 ? stages >= split * 4 : stages >= split * 24))
    split *= 2;
  return split;
}

template <class Tile, class End>
void launch_one_pass(const OnePass& p, const End& end, void* stream) {
  const auto kernel = one_pass_kernel<Tile, End>;
  const int split = one_pass_split<Tile>(p.N, p.K);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(Tile::kBytes));
  launch_dependent("one_pass", kernel,
                   dim3(static_cast<unsigned>(ceil_div(p.N, Tile::kRows) * split)), Tile::kThreads,
                   Tile::kBytes, static_cast<unsigned>(split), stream, p, end, split);
}

// Wide blocks read x less often, but must fill half of the card.
template <class Wide, class Narrow, class End>
void one_pass_of(const OnePass& p, const End& end, void* stream) {
  if (ceil_div(p.N, Wide::kRows) * one_pass_split<Wide>(p.N, p.K) >= kOnePassProcessors / 2)
    return launch_one_pass<Wide>(p, end, stream);
  launch_one_pass<Narrow>(p, end, stream);
}

// `end` as PassEnd calls it. M is at most kMostOnePassRows.
template <class End>
void one_pass_into(const OnePass& p, const End& end, void* stream) {
  if (p.M > 16 && on_hopper()) return hopper_pass_into(p, end, stream);
  if (p.M <= 16) {
    one_pass_of<OnePassTile<2, 2, 1, 4, 2, 9>, OnePassTile<1, 1, 1, 8, 2, 6>>(p, end, stream);
  } else if (p.M <= 64) {
    one_pass_of<OnePassTile<2, 2, 1, 4, 8, 5>, OnePassTile<1, 1, 1, 8, 8, 5>>(p, end, stream);
  } else {
    one_pass_of<OnePassTile<2, 2, 2, 2, 8, 4>, OnePassTile<1, 1, 2, 4, 8, 3>>(p, end, stream);
  }
}

}  // namespace krait::cuda
