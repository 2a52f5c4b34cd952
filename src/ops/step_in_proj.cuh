// in_proj and the step of the convolution behind it for many sequences on compute capability 9.0, bound by reading the
// weights and moving the convolution's states once. A block has kX rows of W that are convolved, as many that are not,
// and all sequences, so that the blocks of a layer are all on the card at once and have the same to do. Stages of both
// factors pass through two rings in shared memory; the states of the convolution follow the weights through theirs, a
// warp's sixteen sequences a slot, and go back from there.
#pragma once
#include <algorithm>

#include "krait/ops/step_parts.cuh"
#include "krait/tensor/cuda/one_pass.h"
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

  int64_t blocks(int64_t rows) const {
    return std::max(ceil_div(conv.channels, rows), ceil_div(E, rows) + ceil_div(H, rows));
  }
};

template <int kX_, int kGroups>
struct StepRowsTile : RowsTile<2 * kX_, kGroups, 208 << 10, 7> {
  using Rows = RowsTile<2 * kX_, kGroups, 208 << 10, 7>;
  static constexpr int kX = kX_, kStateBytes = 16 * kX;  // of a sequence
  static_assert(Rows::kWBytes == Rows::kOfWarp * kStateBytes && Rows::kWStages >= Rows::kWarps);
  static constexpr int kTapsAt = (Rows::kBytes + 15) / 16 * 16, kBytes = kTapsAt + 20 * kX;
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    step_rows_kernel(const __grid_constant__ CUtensorMap w, const __grid_constant__ CUtensorMap x,
                     const __grid_constant__ StepRows p) {
#if KRAIT_HOPPER
  constexpr int kX = Tile::kX;
  extern __shared__ __align__(1024) unsigned char ring[];
  auto* const taps = reinterpret_cast<float4*>(ring + Tile::kTapsAt);
  auto* const biases = reinterpret_cast<float*>(taps + kX);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int stages = static_cast<int>((p.K + Tile::kK - 1) / Tile::kK), M = static_cast<int>(p.M);
  const int first = static_cast<int>(blockIdx.x) * kX,
            convolved = min(static_cast<int>(p.conv.channels) - first, kX),
            after_z = first - static_cast<int>(p.E + kX - 1) / kX * kX;
  RowsPass<typename Tile::Rows> pass(ring);
  if (thread == 0) pass.start();
  if (thread < convolved) {
    const ConvOfStep::OfRow of = p.conv.of_row(first + thread);
    taps[thread] = of.k, biases[thread] = of.bias;
  }
  __syncthreads();

  if (warp == Tile::kWarps) {
    const int64_t other = after_z < 0 ? p.z_first + first : p.dt_first + after_z;
    // Stages of W, then the states of the warps' sequences.
    pass.bring(x, 0, 0, stages, stages + Tile::kWarps, [&](int i) {
      unsigned char* const to = pass.place_of(i);
      uint64_t* const barrier = pass.barrier_of(i);
      if (i < stages) {
        if (lane > 0) return;
        arrive_expecting(barrier, Tile::kWBytes);
        copy_box(to, w, i * Tile::kK, static_cast<int>(p.conv_first) + first, barrier);
        copy_box(to + Tile::kWBytes / 2, w, i * Tile::kK, static_cast<int>(other), barrier);
        return;
      }
      const int m0 = (i - stages) * Tile::kOfWarp, count = min(M - m0, Tile::kOfWarp);
      if (count <= 0 || convolved <= 0) return;
      if (lane == 0) arrive_expecting(barrier, static_cast<unsigned>(count * convolved * 16));
      __syncwarp();
      if (lane < count)
        copy_run(to + lane * Tile::kStateBytes,
                 p.conv.state + ((m0 + lane) * p.conv.channels + first) * 4,
                 static_cast<unsigned>(convolved * 16), barrier);
    });
    return;
  }

  let_next_start();
  wait_for_previous();
  float sums[Tile::kN / 2] = {};
  pass.multiply(sums, stages);

  // A lane has columns 2t and 2t + 1 of every eight, of two sequences of its warp's sixteen.
  const int row = lane / 4, t = lane % 4, m0 = warp * Tile::kOfWarp, count = min(M - m0, 16);
  if (count <= 0) return;
#pragma unroll
  for (int j = 0; j < kX / 8; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int n = 8 * j + 2 * t, m = m0 + row + 8 * half;
      const float* const v = sums + kX / 2 + 4 * j + 2 * half;
      if (m >= M) continue;
      if (after_z < 0) {
        if (first + n < p.E)
          *reinterpret_cast<__nv_bfloat162*>(p.z + m * p.E + first + n) =
              __floats2bfloat162_rn(v[0], v[1]);
      } else {
        if (after_z + n < p.H) p.dt[m * p.H + after_z + n] = v[0];
        if (after_z + n + 1 < p.H) p.dt[m * p.H + after_z + n + 1] = v[1];
      }
    }
  if (convolved <= 0) return;
  auto* const states = reinterpret_cast<float4*>(pass.place_of(stages + warp));
  pass.wait_for(stages + warp);
#pragma unroll
  for (int j = 0; j < kX / 8; ++j) {
    const int n = 8 * j + 2 * t;
    if (n >= convolved) break;
    const float4 k[2] = {taps[n], taps[n + 1]};
    const float bias[2] = {biases[n], biases[n + 1]};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + 8 * half;
      if (r >= count) continue;
      float y[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float4& state = states[r * kX + n + c];
        const float4 old = state;
        const float now =
            static_cast<float>(static_cast<__nv_bfloat16>(sums[4 * j + 2 * half + c]));
        state = {old.y, old.z, old.w, now};
        float sum = fmaf(k[c].x, old.y, bias[c]);
        sum = fmaf(k[c].y, old.z, sum);
        sum = fmaf(k[c].z, old.w, sum);
        sum = fmaf(k[c].w, now, sum);
        y[c] = sum * sigmoid<true>(sum);
      }
      *reinterpret_cast<__nv_bfloat162*>(p.u + (m0 + r) * p.conv.channels + first + n) =
          __floats2bfloat162_rn(y[0], y[1]);
    }
  }
  fence_for_copies();
  __syncwarp();
  if (lane >= count) return;
  send_run(p.conv.state + ((m0 + lane) * p.conv.channels + first) * 4,
           reinterpret_cast<const unsigned char*>(states) + lane * Tile::kStateBytes,
           static_cast<unsigned>(convolved * 16));
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
    launch_dependent("step_in_proj", kernel, dim3(static_cast<unsigned>(p.blocks(kX))),
                     Tile::kThreads, Tile::kBytes, 1, stream, map_of_rows(p.w, p.N, p.K, p.K, kX),
                     map_of_rows(p.x, p.M, p.K, p.K, Tile::kSequences), p);
  };
  p.M <= 64 ? launch(StepRowsTile<kX, 1>{}) : launch(StepRowsTile<kX, 2>{});
}

// Whether there are enough rows of x, and of W for half of the card, where the blocks of some tile are all on it at once;
// then it is done. (H200: with narrower blocks a layer of mamba-130m is slower.)
inline bool step_rows(const StepRows& p, void* stream) {
  if (p.M <= kMostFewRows || p.blocks(32) < kOnePassProcessors / 2 || !on_hopper()) return false;
  const auto fits = [&](int64_t rows) { return p.blocks(rows) <= kOnePassProcessors; };
  if (fits(32)) return launch_step_rows<32>(p, stream), true;
  if (fits(40)) return launch_step_rows<40>(p, stream), true;
  if (fits(48)) return launch_step_rows<48>(p, stream), true;
  return false;
}

}  // namespace krait::cuda
