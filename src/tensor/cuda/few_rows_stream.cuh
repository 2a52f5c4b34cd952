// The product of few_rows.cuh, in bfloat16, where W is large and there are more than a few rows of x or many of W, on
// compute capability 9.0. W passes through a ring in shared memory, brought by the copy engine: its first stages before
// the kernels before this one are done. x lies in shared memory, normed on its way there or as it is. Warps have 16
// rows of W each, in kAlongK groups that share out a stage. Blocks of a cluster share out K, and send their sums, straight
// into shared memory, to those that add them up, always in the same order; a block that is alone takes one tile of W
// after the other.
#pragma once
#include <algorithm>

#include "krait/tensor/cuda/cluster.cuh"
#include "krait/tensor/cuda/few_rows.cuh"
#include "krait/tensor/cuda/mma.h"
#include "krait/tensor/cuda/one_pass_sum.cuh"
#include "krait/tensor/cuda/tensor_map.h"

namespace krait::cuda {

// kN: rows of W of a cluster of kSplit blocks; kTiles: of eight rows of x, one or two.
template <int kN_, int kSplit_, int kAlongK_, int kTiles_, int kStages_>
struct StreamTile {
  static constexpr int kN = kN_, kSplit = kSplit_, kAlongK = kAlongK_, kTiles = kTiles_,
                       kStages = kStages_;
  static constexpr bool kAlone = kSplit == 1;
  static constexpr int kStrips = kN / 16, kWarps = kStrips * kAlongK, kSumThreads = 32 * kWarps,
                       kThreads = kSumThreads + 32;
  static constexpr int kK = 64;  // of a stage
  static constexpr int kSteps = kK / 16 / kAlongK, kLoads = kTiles == 2 ? kSteps : kSteps / 2;
  static constexpr int kColumns = 8 * kTiles, kOfWarp = (kColumns + kWarps - 1) / kWarps;
  static constexpr int kWBytes = kN * kK * 2, kXBytes = kColumns * kK * 2;
  // Fours of each lane, of eight rows of x and a strip: those of a cluster belong to its blocks in turn.
  static constexpr int kFours = kStrips * kTiles / kSplit,
                       kMine = kAlone ? kTiles : (kFours + kWarps - 1) / kWarps,
                       kSources = kSplit * kAlongK;
  static constexpr int kXParts = 4;                    // in which x comes, as it is
  static constexpr int kPiece = 512, kMostPieces = 8;  // of a row of x that is normed
  static_assert(kN % 16 == 0 && kN <= 256 && kThreads <= 1024 && kLoads > 0);
  static_assert(kAlone ? kAlongK == 1 : kFours * kSplit == kStrips * kTiles);

  // In shared memory, behind the ring and x; `stages`: the most that a block has of x.
  int stages, sent_at, squares_at, norm_at, barriers_at, bytes;
  StreamTile(int64_t K, bool normed)
      : stages(static_cast<int>(ceil_div(ceil_div(K, kK), kSplit))),
        sent_at(kStages * kWBytes + stages * kXBytes),
        squares_at(sent_at + (kAlone ? 0 : kSources * kFours * 512)),
        norm_at(squares_at + (normed ? kSplit * kMostPieces : 1) * kColumns * 4),
        barriers_at(norm_at + (normed ? stages * kK * 4 : 0)),
        bytes(barriers_at + 8 * (2 * kStages + kXParts + 1)) {}

  bool fits() const { return bytes <= 227 << 10 && stages * kK <= kPiece * kMostPieces; }

  // Whether the clusters that W takes are on the card at once, and most of it.
  static bool fills(int64_t N) {
    const int64_t blocks = ceil_div(N, kN) * kSplit;
    return blocks <= kOnePassProcessors && blocks * 4 >= kOnePassProcessors * 3;
  }
};

// `end` as few_rows_kernel calls it.
template <class Tile, bool kNormed, class End>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    few_rows_stream_kernel(const __grid_constant__ CUtensorMap w,
                           const __grid_constant__ CUtensorMap x, const __grid_constant__ FewRows p,
                           const __grid_constant__ Normed norm, const __grid_constant__ End end,
                           const __grid_constant__ Tile at) {
#if KRAIT_HOPPER
  constexpr int kK = Tile::kK, kTiles = Tile::kTiles, kColumns = Tile::kColumns,
                kSplit = Tile::kSplit, kStages = Tile::kStages, kWarps = Tile::kWarps;
  static_assert(Tile::kAlone ? !kNormed && !End::kFactors : !kNormed || !End::kFactors);
  extern __shared__ __align__(1024) unsigned char ring[];
  unsigned char* const xs = ring + kStages * Tile::kWBytes;
  auto* const sent = reinterpret_cast<float4*>(ring + at.sent_at);
  auto* const squares = reinterpret_cast<float*>(ring + at.squares_at);
  auto* const of_norm = reinterpret_cast<float*>(ring + at.norm_at);
  auto* const full = reinterpret_cast<uint64_t*>(ring + at.barriers_at);
  uint64_t *const empty = full + kStages, *const x_full = empty + kStages,
                  *const all_sent = x_full + Tile::kXParts;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int K = static_cast<int>(p.K), M = static_cast<int>(p.M), N = static_cast<int>(p.N);
  const int rank = Tile::kAlone ? 0 : static_cast<int>(rank_in_cluster());
  const int all = (K + kK - 1) / kK, first = all * rank / kSplit,
            stages = all * (rank + 1) / kSplit - first, k0 = first * kK,
            k_end = min(K, k0 + stages * kK);
  const int step = static_cast<int>(gridDim.x) / kSplit * Tile::kN;  // to the next tile of W
  int n0 = static_cast<int>(blockIdx.x) / kSplit * Tile::kN;
  const int rounds = Tile::kAlone ? (N - n0 + step - 1) / step : 1;
  // Of a row of x in this block, and in the one that has most.
  const int pieces = (k_end - k0 + Tile::kPiece - 1) / Tile::kPiece,
            most_pieces = (at.stages * kK + Tile::kPiece - 1) / Tile::kPiece;

  int k = k0;
  const auto copy_next = [&](int slot) {
    arrive_expecting(full + slot, Tile::kWBytes);
    copy_box(ring + slot * Tile::kWBytes, w, k, n0, full + slot);
    k += kK;
    if (Tile::kAlone && k >= k_end) k = k0, n0 += step;
  };
  const bool copies = warp == kWarps;  // the others multiply
  const int in_all = rounds * stages;
  if (copies && lane == 0) {
    for (int i = 0; i < kStages; ++i) {
      start_barrier(full + i, 1);
      start_barrier(empty + i, kWarps * kArriving);
    }
    for (int i = 0; i < Tile::kXParts; ++i) start_barrier(x_full + i, 1);
    const int sums = Tile::kSources * Tile::kFours * 512,
              of_squares = kNormed ? kSplit * most_pieces * M * 4 : 0;
    expect_in_block(all_sent, static_cast<unsigned>(Tile::kAlone ? 0 : sums + of_squares));
    for (int i = 0; i < min(in_all, kStages); ++i) copy_next(i);
  }
  if (kNormed && !copies) {
    for (int i = thread; i < stages * kK; i += Tile::kSumThreads)
      of_norm[i] = k0 + i < K ? __ldg(norm.w + k0 + i) : 0.0f;
    const int places = (kColumns - M) * 8;  // of 16 bytes, of rows that are not there
    for (int i = thread; i < stages * places; i += Tile::kSumThreads)
      *reinterpret_cast<uint4*>(xs + i / places * Tile::kXBytes + M * 128 + i % places * 16) = {};
  }
  __syncthreads();
  if (!Tile::kAlone) arrive_in_cluster();
  if (copies) {
    let_next_start();
    wait_for_previous();
    if (lane == 0) {
      for (int i = 0, part = 0; !kNormed && part < Tile::kXParts; ++part) {
        const int last = stages * (part + 1) / Tile::kXParts;
        arrive_expecting(x_full + part, static_cast<unsigned>((last - i) * Tile::kXBytes));
        for (; i < last; ++i) copy_box(xs + i * Tile::kXBytes, x, k0 + i * kK, 0, x_full + part);
      }
      int slot = 0;
      unsigned parity = 0;
      for (int i = kStages; i < in_all; ++i) {
        wait_for_phase(empty + slot, parity);
        copy_next(slot);
        if (++slot == kStages) slot = 0, parity ^= 1;
      }
    }
    __syncwarp();
    if (!Tile::kAlone) wait_in_cluster();
    return;
  }

  const auto synchronize = [] {  // the warps that multiply
    asm volatile("bar.sync 1, %0;" ::"n"(Tile::kSumThreads) : "memory");
  };
  const int strip = warp % Tile::kStrips, along = warp / Tile::kStrips, g = lane / 4, t = lane % 4;

  // What this lane finishes: of each four rows g, g, g + 8, g + 8 of a strip of W and rows 2t, 2t + 1, 2t, 2t + 1 of x.
  const auto of_all = [&](int i) {
    return Tile::kAlone ? warp * kTiles + i : (warp + i * kWarps) * kSplit + rank;
  };
  const auto n_of = [&](int i, int j) { return n0 + of_all(i) / kTiles * 16 + g + j / 2 * 8; };
  const auto m_of = [&](int i, int j) { return of_all(i) % kTiles * 8 + 2 * t + j % 2; };
  const auto there = [&](int i, int j) {
    return (Tile::kAlone || warp + i * kWarps < Tile::kFours) && m_of(i, j) < M && n_of(i, j) < N;
  };
  typename End::Held held[Tile::kMine][4];
  const auto hold = [&] {
#pragma unroll
    for (int i = 0; i < Tile::kMine; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (there(i, j)) held[i][j] = end.hold(n_of(i, j), m_of(i, j));
  };
  if constexpr (End::kHoldsEarly) hold();
  let_next_start();
  wait_for_previous();
  if constexpr (!End::kHoldsEarly) hold();
  float of_factors[Tile::kOfWarp];
  if constexpr (End::kFactors) {
#pragma unroll
    for (int i = 0; i < Tile::kOfWarp; ++i)
      if (const int m = warp + i * kWarps; m < M) of_factors[i] = end.part(m);
  }

  if constexpr (kNormed) {
    constexpr int kTogether = 4, kRuns = Tile::kPiece / 128;
    const auto* const stream = static_cast<const float*>(p.x);
    const int tasks = M * pieces;
    bool others_started = false;
    for (int task = warp; task < tasks; task += kTogether * kWarps) {
      float4 v[kTogether][kRuns];
#pragma unroll
      for (int a = 0; a < kTogether; ++a) {
        const int of = task + a * kWarps, m = of % M;
#pragma unroll
        for (int r = 0; r < kRuns; ++r) {
          const int k = k0 + of / M * Tile::kPiece + r * 128 + 4 * lane;
          v[a][r] = of < tasks && k < k_end
                        ? __ldcg(reinterpret_cast<const float4*>(stream + m * p.x_step + k))
                        : float4{};
        }
      }
      float square[kTogether] = {};
#pragma unroll
      for (int a = 0; a < kTogether; ++a) {
        const int of = task + a * kWarps, m = of % M;
#pragma unroll
        for (int r = 0; r < kRuns; ++r) {
          const int k = of / M * Tile::kPiece + r * 128 + 4 * lane;
          const float4 f = v[a][r];
          square[a] = fmaf(f.x, f.x, fmaf(f.y, f.y, fmaf(f.z, f.z, fmaf(f.w, f.w, square[a]))));
          if (of >= tasks || k >= stages * kK) continue;
          const float4 scale = *reinterpret_cast<const float4*>(of_norm + k);
          *reinterpret_cast<uint2*>(xs + k / kK * Tile::kXBytes + m * 128 +
                                    ((k % kK / 8) ^ (m & 7)) * 16 + k % 8 * 2) = {
              two_bf16(f.x * scale.x, f.y * scale.y), two_bf16(f.z * scale.z, f.w * scale.w)};
        }
#pragma unroll
        for (int i = 16; i > 0; i /= 2) square[a] += __shfl_xor_sync(~0u, square[a], i);
      }
      if (!others_started) wait_in_cluster();
      others_started = true;
#pragma unroll
      for (int a = 0; a < kTogether; ++a)
        if (const int of = task + a * kWarps; of < tasks && lane < kSplit)
          send_to_block(squares + (rank * most_pieces + of / M) * kColumns + of % M, square[a],
                        all_sent, static_cast<unsigned>(lane));
    }
    if (!others_started) wait_in_cluster();
    // Where others have a piece more.
    for (int i = tasks + thread; i < most_pieces * M; i += Tile::kSumThreads)
      for (unsigned to = 0; to < kSplit; ++to)
        send_to_block(squares + (rank * most_pieces + i / M) * kColumns + i % M, 0.0f, all_sent,
                      to);
    synchronize();
  } else if (!Tile::kAlone) {
    wait_in_cluster();
  }

  int of_w[Tile::kSteps], of_x[Tile::kLoads];  // where the lane's rows are in a stage
#pragma unroll
  for (int s = 0; s < Tile::kSteps; ++s) {
    const int row = strip * 16 + lane % 16, place = 2 * (along * Tile::kSteps + s) + lane / 16;
    of_w[s] = row * 128 + (place ^ (row & 7)) * 16;
  }
#pragma unroll
  for (int s = 0; s < Tile::kLoads; ++s) {  // two tiles for a step, or one for two steps
    const int m = (kTiles == 2 ? lane / 16 * 8 : 0) + lane % 8,
              place = kTiles == 2 ? 2 * (along * Tile::kSteps + s) + lane / 8 % 2
                                  : 2 * (along * Tile::kSteps + 2 * s) + lane / 8;
    of_x[s] = m * 128 + (place ^ (m & 7)) * 16;
  }

  const auto finish = [&](int i, float4 sum) {
    const float values[4] = {sum.x, sum.y, sum.z, sum.w};
    float f[2] = {1, 1};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int m = m_of(i, j);
      if constexpr (kNormed) {
        float square = 0;
        for (int q = 0; q < kSplit * most_pieces; ++q) square += squares[q * kColumns + m];
        f[j] = rsqrtf(fmaf(square, 1.0f / static_cast<float>(K), norm.eps));
      } else if constexpr (End::kFactors) {
        f[j] = squares[m];
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (there(i, j)) end(n_of(i, j), m_of(i, j), values[j] * f[j % 2], held[i][j]);
  };
  int slot = 0, before = -1;
  unsigned parity = 0;
#pragma unroll 1
  for (int round = 0; round < rounds; ++round) {
    if (round > 0) n0 += step, hold();
    float sums[kTiles][4] = {};
    int part = 0, part_end = 0;
#pragma unroll 1
    for (int i = 0; i < stages; ++i) {
      // A slot is left in the stage behind its own, where its products have taken what was loaded from it: the assembler
      // may move them behind an arrival at the end of their own, but not around the loop.
      if (before >= 0) warp_arrives<kArriving>(empty + before);
      before = slot;
      for (; !kNormed && round == 0 && i >= part_end; part_end = stages * ++part / Tile::kXParts)
        wait_for_phase(x_full + part, 0);
      wait_for_phase(full + slot, parity);
      uint32_t a[Tile::kSteps][4], b[Tile::kLoads][4];
#pragma unroll
      for (int s = 0; s < Tile::kSteps; ++s)
        load_matrices(a[s], ring + slot * Tile::kWBytes + of_w[s]);
#pragma unroll
      for (int s = 0; s < Tile::kLoads; ++s) load_matrices(b[s], xs + i * Tile::kXBytes + of_x[s]);
#pragma unroll
      for (int s = 0; s < Tile::kSteps; ++s) {
        if constexpr (kTiles == 2) {
          mma_bf16(sums[0], a[s], b[s][0], b[s][1]);
          mma_bf16(sums[kTiles - 1], a[s], b[s][2], b[s][3]);
        } else {
          mma_bf16(sums[0], a[s], b[s / 2][s % 2 * 2], b[s / 2][s % 2 * 2 + 1]);
        }
      }
      if (++slot == kStages) slot = 0, parity ^= 1;
    }
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const float4 four{sums[i][0], sums[i][1], sums[i][2], sums[i][3]};
      if constexpr (Tile::kAlone) {
        finish(i, four);
      } else {
        const int of = strip * kTiles + i;
        send_to_block(
            sent + ((rank * Tile::kAlongK + along) * Tile::kFours + of / kSplit) * 32 + lane, four,
            all_sent, static_cast<unsigned>(of % kSplit));
      }
    }
  }
  if constexpr (!Tile::kAlone) {
    if constexpr (End::kFactors) {
#pragma unroll
      for (int i = 0; i < Tile::kOfWarp; ++i)
        if (const int m = warp + i * kWarps; m < M) {
          const float f = end.factor_of(of_factors[i]);
          if (lane == 0) squares[m] = f;
        }
      synchronize();
    }
    if (warp >= Tile::kFours) return;
    wait_for_sent(all_sent);
#pragma unroll
    for (int i = 0; i < Tile::kMine; ++i) {
      const int four = warp + i * kWarps;
      if (four >= Tile::kFours) break;
      float4 sum = sent[four * 32 + lane];
#pragma unroll
      for (int r = 1; r < Tile::kSources; ++r)
        add_fours(sum, sent[(r * Tile::kFours + four) * 32 + lane]);
      finish(i, sum);
    }
  }
#else
  __trap();
#endif
}

// As few_rows_into and normed_few_rows_into (few_rows.cuh), where the tile fits K.
template <class Tile, bool kNormed = false, class End>
void stream_rows(const FewRows& p, const Normed& norm, const End& end, void* stream) {
  const auto kernel = few_rows_stream_kernel<Tile, kNormed, End>;
  const Tile at(p.K, kNormed);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, at.bytes);
  const int64_t tiles = ceil_div(p.N, Tile::kN);
  const CUtensorMap w = map_of_rows(p.w, p.N, p.K, p.K, Tile::kN);
  launch_dependent("few_rows", kernel,
                   dim3(static_cast<unsigned>(Tile::kAlone ? std::min(tiles, kOnePassProcessors)
                                                           : tiles * Tile::kSplit)),
                   Tile::kThreads, static_cast<size_t>(at.bytes), Tile::kSplit, stream, w,
                   kNormed ? w : map_of_rows(p.x, p.M, p.K, p.x_step, Tile::kColumns), p, norm, end,
                   at);
}

}  // namespace krait::cuda
