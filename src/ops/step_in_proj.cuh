// in_proj and the step of the convolution behind it for many sequences on compute capability 9.0, bound by reading the
// weights and moving the convolution's states once. A pair of blocks has kX rows of W that are convolved, as many that are
// not, and all sequences: the pairs of a layer are all on the card at once and have the same to do. The two share out K,
// so that x is read from the second-level cache half as often, and send each other the sums of the channels that the
// other finishes. Stages of both factors pass through two rings in shared memory; the states of the convolution
// follow the weights through theirs, those of four warps' sequences a slot, and go back from there.
#pragma once
#include <algorithm>
#include <utility>

#include "krait/ops/step_parts.cuh"
#include "krait/tensor/cuda/cluster.cuh"
#include "krait/tensor/cuda/one_pass_sum.cuh"
#include "krait/tensor/cuda/rows_pass.cuh"

namespace krait::cuda {

// Where in_proj's rows go: `conv.channels` of them from conv_first through the convolution to u (M, channels), E from
// z_first as they are to z (M, E), both in bfloat16, H from dt_first to dt (M, H) in float32.
struct StepRows {
  const void* w = nullptr;  // (N, K)
  const void* x = nullptr;  // (M, K), dense
  int64_t M = 0, N = 0, K = 0;
  ConvOfStep conv;
  int64_t conv_first = 0, z_first = 0, E = 0, dt_first = 0, H = 0;
  __nv_bfloat16 *u = nullptr, *z = nullptr;
  float* dt = nullptr;

  int64_t pairs(int64_t rows) const {
    return std::max(ceil_div(conv.channels, rows), ceil_div(E, rows) + ceil_div(H, rows));
  }
};

template <int kX, int kGroups>
using RowsOfStep = RowsTile<2 * kX, kGroups, (208 << 10) - 256 * kGroups * kX, kX <= 64 ? 6 : 4>;

template <int kX_, int kGroups>
struct StepRowsTile : RowsOfStep<kX_, kGroups> {
  using Rows = RowsOfStep<kX_, kGroups>;
  static constexpr int kX = kX_, kHalf = kX / 2;     // channels that a block finishes
  static constexpr int kStateBytes = 8 * kHalf;      // of a sequence
  static constexpr int kOfSlot = 4 * Rows::kOfWarp;  // sequences
  static constexpr int kSlots = Rows::kSequences / kOfSlot;
  static_assert(Rows::kWBytes == kOfSlot * kStateBytes && Rows::kWStages >= kSlots);
  static constexpr int kQuads = kHalf / 8;  // of a thread's sums: convolved, and as many others
  static constexpr int kSent = Rows::kWarps * 2 * kQuads * 512;  // bytes that come to a block
  static constexpr int kSentAt = (Rows::kBytes + 15) / 16 * 16, kTapsAt = kSentAt + kSent,
                       kBarrierAt = kTapsAt + 20 * kHalf, kBytes = kBarrierAt + 8;
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    step_rows_kernel(const __grid_constant__ CUtensorMap w, const __grid_constant__ CUtensorMap x,
                     const __grid_constant__ StepRows p) {
#if KRAIT_HOPPER
  constexpr int kX = Tile::kX, kHalf = Tile::kHalf, kQuads = Tile::kQuads;
  extern __shared__ __align__(1024) unsigned char ring[];
  auto* const sent = reinterpret_cast<float4*>(ring + Tile::kSentAt);
  auto* const taps = reinterpret_cast<float4*>(ring + Tile::kTapsAt);
  auto* const biases = reinterpret_cast<float*>(taps + kHalf);
  auto* const all_sent = reinterpret_cast<uint64_t*>(ring + Tile::kBarrierAt);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int rank = static_cast<int>(rank_in_cluster()), M = static_cast<int>(p.M);
  const int all = static_cast<int>((p.K + Tile::kK - 1) / Tile::kK), from = all * rank / 2,
            stages = all * (rank + 1) / 2 - from;
  // The pair's first row of each kind, and this block's.
  const int first = static_cast<int>(blockIdx.x) / 2 * kX, own = first + rank * kHalf,
            convolved = min(static_cast<int>(p.conv.channels) - own, kHalf),
            after_z = static_cast<int>(p.E + kX - 1) / kX * kX;
  RowsPass<typename Tile::Rows> pass(ring);
  if (thread == 0) {
    expect_in_block(all_sent, Tile::kSent);
    pass.start();
  }
  if (thread < convolved) {
    const ConvOfStep::OfRow of = p.conv.of_row(own + thread);
    taps[thread] = of.k, biases[thread] = of.bias;
  }
  __syncthreads();
  arrive_in_cluster();

  if (warp == Tile::kWarps) {
    const int64_t other = first < after_z ? p.z_first + first : p.dt_first + first - after_z;
    // Stages of W, then the states of the warps' sequences.
    pass.bring(x, 0, from * Tile::kK, stages, stages + Tile::kSlots, [&](int i) {
      unsigned char* const to = pass.place_of(i);
      uint64_t* const barrier = pass.barrier_of(i);
      if (i < stages) {
        if (lane > 0) return;
        const int column = (from + i) * Tile::kK;
        arrive_expecting(barrier, Tile::kWBytes);
        copy_box(to, w, column, static_cast<int>(p.conv_first) + first, barrier);
        copy_box(to + Tile::kWBytes / 2, w, column, static_cast<int>(other), barrier);
        return;
      }
      const int m0 = (i - stages) * Tile::kOfSlot, count = min(M - m0, Tile::kOfSlot);
      if (count <= 0 || convolved <= 0) return;
      if (lane == 0) arrive_expecting(barrier, static_cast<unsigned>(count * convolved * 8));
      __syncwarp();
      for (int m = lane; m < count; m += 32)
        copy_run(to + m * Tile::kStateBytes, p.conv.state + (m0 + m) * p.conv.channels + own,
                 static_cast<unsigned>(convolved * 8), barrier);
    });
    __syncwarp();
    wait_in_cluster();
    return;
  }

  let_next_start();
  wait_for_previous();
  if (thread == 0) pass.bring_x(x, 0, from * Tile::kK, stages);
  float sums[Tile::kN / 2] = {};
  pass.multiply(sums, stages);

  // A lane has columns 2t and 2t + 1 of every eight, of two sequences of its warp's sixteen: of the fours of either kind
  // the first kQuads are for the block of rank 0.
  wait_in_cluster();
  float4 mine[2 * kQuads];
  const auto exchange = [&]<int kRank>(std::integral_constant<int, kRank>) {
#pragma unroll
    for (int i = 0; i < 2 * kQuads; ++i) {
      const int of_first = i / kQuads * 2 * kQuads + i % kQuads;
      const float* const own_sums = sums + 4 * (of_first + kRank * kQuads);
      const float* const others = sums + 4 * (of_first + (1 - kRank) * kQuads);
      mine[i] = {own_sums[0], own_sums[1], own_sums[2], own_sums[3]};
      send_to_block(sent + (warp * 2 * kQuads + i) * 32 + lane,
                    float4{others[0], others[1], others[2], others[3]}, all_sent, 1 - kRank);
    }
  };
  rank == 0 ? exchange(std::integral_constant<int, 0>())
            : exchange(std::integral_constant<int, 1>());
  wait_for_sent(all_sent);
#pragma unroll
  for (int i = 0; i < 2 * kQuads; ++i)
    add_fours(mine[i], sent[(warp * 2 * kQuads + i) * 32 + lane]);

  const int row = lane / 4, t = lane % 4, m0 = warp * Tile::kOfWarp, count = min(M - m0, 16);
  if (count <= 0) return;
#pragma unroll
  for (int i = 0; i < kQuads; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int n = own + 8 * i + 2 * t, m = m0 + row + 8 * half;
      const float4 four = mine[kQuads + i];
      const float2 v = half ? float2{four.z, four.w} : float2{four.x, four.y};
      if (m >= M) continue;
      if (first < after_z) {
        if (n < p.E)
          *reinterpret_cast<__nv_bfloat162*>(p.z + m * p.E + n) = __floats2bfloat162_rn(v.x, v.y);
      } else {
        const int h = n - after_z;
        if (h < p.H) p.dt[m * p.H + h] = v.x;
        if (h + 1 < p.H) p.dt[m * p.H + h + 1] = v.y;
      }
    }
  if (convolved <= 0) return;
  const int slot = stages + warp / 4;
  unsigned char* const of_warp = pass.place_of(slot) + warp % 4 * Tile::kOfWarp * Tile::kStateBytes;
  auto* const states = reinterpret_cast<uint4*>(of_warp);  // of two channels
  pass.wait_for(slot);
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    const int n = 8 * i + 2 * t;
    if (n >= convolved) break;
    const float4 k[2] = {taps[n], taps[n + 1]};
    const float bias[2] = {biases[n], biases[n + 1]};
    const float values[4] = {mine[i].x, mine[i].y, mine[i].z, mine[i].w};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + 8 * half;
      if (r >= count) continue;
      uint4& state = states[(r * kHalf + n) / 2];
      ConvOfStep::Held inputs[2] = {{{state.x, state.y}}, {{state.z, state.w}}};
      float y[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        inputs[c] = inputs[c].then(static_cast<__nv_bfloat16>(values[2 * half + c]));
        const float sum = convolve(inputs[c].floats(), k[c], bias[c]);
        y[c] = sum * sigmoid<true>(sum);
      }
      state = {inputs[0].v.x, inputs[0].v.y, inputs[1].v.x, inputs[1].v.y};
      *reinterpret_cast<__nv_bfloat162*>(p.u + (m0 + r) * p.conv.channels + own + n) =
          __floats2bfloat162_rn(y[0], y[1]);
    }
  }
  fence_for_copies();
  __syncwarp();
  if (lane >= count) return;
  send_run(p.conv.state + (m0 + lane) * p.conv.channels + own, of_warp + lane * Tile::kStateBytes,
           static_cast<unsigned>(convolved * 8));
  commit_sent();
  wait_for_sent_reads<0>();
#else
  __trap();
#endif
}

template <int kX>
void launch_step_rows(const StepRows& p, void* stream) {
  const auto launch = [&]<class Tile>(Tile) {
    const auto kernel = step_rows_kernel<Tile>;
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kBytes);
    launch_dependent("step_in_proj", kernel, dim3(static_cast<unsigned>(2 * p.pairs(kX))),
                     Tile::kThreads, Tile::kBytes, 2, stream, map_of_rows(p.w, p.N, p.K, p.K, kX),
                     map_of_rows(p.x, p.M, p.K, p.K, Tile::kSequences), p);
  };
  p.M <= 64 ? launch(StepRowsTile<kX, 1>{}) : launch(StepRowsTile<kX, 2>{});
}

// Whether there are more than a few rows of x and enough of W, and the pairs of some tile are all on the card at once; then
// it is done. (H200, 64 rows: a layer of mamba-130m is slower by it, 17.8 us against 17.2.)
inline bool step_rows(const StepRows& p, void* stream) {
  if (p.M <= kMostFewRows || p.pairs(32) < kOnePassProcessors / 2 || !on_hopper()) return false;
  const auto launch = [&]<int kX>(std::integral_constant<int, kX>) {
    if (2 * p.pairs(kX) > kOnePassProcessors) return false;
    launch_step_rows<kX>(p, stream);
    return true;
  };
  const auto first_of = [&]<int... kX>(std::integer_sequence<int, kX...>) {
    return (launch(std::integral_constant<int, kX>()) || ...);
  };
  return first_of(std::integer_sequence<int, 48, 64, 80, 96>());
}

}  // namespace krait::cuda
