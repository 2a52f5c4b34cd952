// The states' part of a layer's step for many sequences on compute capability 9.0, bound by moving the states once:
// they pass through rings in shared memory, brought and taken away by the copy engine, in tiles of 16 KB or less. One
// warp asks for tiles, the first ones before the kernels before this one are done, and sends them back when eight
// warps have moved them on.
#pragma once
#include <algorithm>

#include "krait/ops/mamba2_step/cuda.h"
#include "krait/ops/step_parts.cuh"
#include "krait/tensor/cuda/hopper.cuh"
#include "krait/tensor/cuda/one_pass.h"

namespace krait::cuda {

// Some channels of a head of one row, each a part of one warp's lanes.
template <class S, int kN>
struct StateTile {
  static constexpr int kWarps = 8, kThreads = 32 * kWarps + 32;
  static constexpr int kRowBytes = kN * static_cast<int>(sizeof(S)), kCount = StateRun<S>::kCount;
  static constexpr int kChannels = std::min(kStep2Channels, (16 << 10) / kRowBytes);
  static constexpr int kLanes = kN / kCount, kAtOnce = 32 / kLanes;  // of a channel; channels
  static constexpr int kOfWarp = kChannels / kWarps, kPasses = kOfWarp / kAtOnce;
  static_assert(kLanes <= 32 && kPasses > 0 && kPasses <= kLanes);

  // Of a stage: states, B and C, x, z, y, and sums of squares of each warp.
  static constexpr int kBC = kChannels * kRowBytes, kX = kBC + 4 * kN, kZ = kX + 2 * kChannels,
                       kY = kZ + 2 * kChannels, kSquares = kY + 2 * kChannels,
                       kStageBytes = (kSquares + 4 * kWarps + 127) / 128 * 128;
  static constexpr int kComing = kY;  // bytes
  static constexpr int kStages = (110 << 10) / (kStageBytes + 16);
  static constexpr int kBytes = kStages * (kStageBytes + 16);
};

template <class S, int kN>
__global__ void __launch_bounds__(StateTile<S, kN>::kThreads, 2)
    states_kernel(const __grid_constant__ Step2State p, const int tiles) {
#if KRAIT_HOPPER
  using Tile = StateTile<S, kN>;
  using Run = StateRun<S>;
  using bfloat16 = __nv_bfloat16;
  constexpr int kStages = Tile::kStages, kCount = Tile::kCount, kLanes = Tile::kLanes,
                kPasses = Tile::kPasses, kChannels = Tile::kChannels;
  extern __shared__ __align__(128) unsigned char state_ring[];
  auto* const full = reinterpret_cast<uint64_t*>(state_ring + kStages * Tile::kStageBytes);
  auto* const moved = full + kStages;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int64_t E = p.H * kStep2Channels;
  const int of_row = static_cast<int>(E) / kChannels, step = static_cast<int>(gridDim.x),
            mine = (tiles - static_cast<int>(blockIdx.x) + step - 1) / step;
  const auto tile_of = [&](int i) { return static_cast<int>(blockIdx.x) + i * step; };
  if (thread == 0) {
    for (int i = 0; i < kStages; ++i) {
      start_barrier(full + i, 1);
      start_barrier(moved + i, Tile::kWarps);
    }
    fence_barriers();
  }
  __syncthreads();

  if (warp == Tile::kWarps) {
    // States that are here stay until they are written back, and then make room for others (H200: 1 to 1.5% of a layer).
    const uint64_t here = kept_longest(), written = given_up_first();
    const auto states_at = [&](int i) {
      return static_cast<unsigned char*>(p.state) + int64_t{tile_of(i)} * Tile::kBC;
    };
    const auto copy_states = [&](int i, int slot) {
      arrive_expecting(full + slot, Tile::kComing);
      copy_run(state_ring + slot * Tile::kStageBytes, states_at(i), Tile::kBC, full + slot, here);
    };
    const auto copy_rows = [&](int i, int slot) {
      unsigned char* const to = state_ring + slot * Tile::kStageBytes;
      const int64_t m = tile_of(i) / of_row, e0 = int64_t{tile_of(i)} * kChannels - m * E;
      const auto* const xBC = static_cast<const bfloat16*>(p.xBC) + m * (E + 2 * kN);
      copy_run(to + Tile::kBC, xBC + E, 4 * kN, full + slot);
      copy_run(to + Tile::kX, xBC + e0, 2 * kChannels, full + slot);
      copy_run(to + Tile::kZ, static_cast<const bfloat16*>(p.z) + m * E + e0, 2 * kChannels,
               full + slot);
    };
    const int ahead = min(mine, kStages);
    if (lane == 0)
      for (int i = 0; i < ahead; ++i) copy_states(i, i);
    let_next_start();
    wait_for_previous();
    if (lane > 0) return;
    for (int i = 0; i < ahead; ++i) copy_rows(i, i);
    int slot = 0, before = 0;
    unsigned parity = 0;
    for (int i = 0; i < mine; ++i) {
      wait_for_phase(moved + slot, parity);
      const unsigned char* const stage = state_ring + slot * Tile::kStageBytes;
      send_run(states_at(i), stage, Tile::kBC, written);
      send_run(static_cast<bfloat16*>(p.y) + int64_t{tile_of(i)} * kChannels, stage + Tile::kY,
               2 * kChannels);
      commit_sent();
      const auto* const of_warps = reinterpret_cast<const float4*>(stage + Tile::kSquares);
      const float4 a = of_warps[0], b = of_warps[1];
      p.squares[tile_of(i)] = ((a.x + a.y) + (a.z + a.w)) + ((b.x + b.y) + (b.z + b.w));
      // The slot before this one is asked for again when what it sent has been read.
      if (const int next = i - 1 + kStages; i > 0 && next < mine) {
        wait_for_sent_reads<1>();
        copy_states(next, before);
        copy_rows(next, before);
      }
      before = slot;
      if (++slot == kStages) slot = 0, parity ^= 1;
    }
    wait_for_sent_reads<0>();
    return;
  }

  const int group = lane / kLanes, n0 = lane % kLanes * kCount, c0 = warp * Tile::kOfWarp + group;
  // The channel that a lane finishes, where it is of the first kPasses of its channel.
  const bool finishes = lane % kLanes < kPasses;
  const int own = finishes ? c0 + lane % kLanes * Tile::kAtOnce : 0;
  let_next_start();
  wait_for_previous();
  struct OfTile {
    float dt, bias, A_log, D, w;
  };
  const auto of_tile = [&](int i) -> OfTile {
    const int t = tile_of(i);
    const int64_t m = t / of_row, e0 = int64_t{t} * kChannels - m * E, h = e0 / kStep2Channels;
    return {__ldcg(p.dt + m * p.H + h), __ldg(p.dt_bias + h), __ldg(p.A_log + h),
            __ldg(p.D + (p.D_per_channel ? e0 + own : h)), __ldg(p.w + e0 + own)};
  };
  OfTile next{};
  if (mine > 0) next = of_tile(0);
  int slot = 0;
  unsigned parity = 0;
  for (int i = 0; i < mine; ++i) {
    const OfTile of = next;
    if (i + 1 < mine) next = of_tile(i + 1);
    float slope, delta = softplus<false>(of.dt + of.bias, slope);
    delta = delta < p.dt_low ? p.dt_low : delta > p.dt_high ? p.dt_high : delta;  // NaN stays
    const float decay = exp2_exact(delta * scaled_A(of.A_log, true));
    unsigned char* const stage = state_ring + slot * Tile::kStageBytes;
    wait_for_phase(full + slot, parity);

    float B[kCount], C[kCount], y = 0;
    const auto* const BC = reinterpret_cast<const bfloat16*>(stage + Tile::kBC) + n0;
    const auto* const x = reinterpret_cast<const bfloat16*>(stage + Tile::kX);
#pragma unroll
    for (int j = 0; j < kCount; j += 4) {
      const uint2 b = *reinterpret_cast<const uint2*>(BC + j),
                  c = *reinterpret_cast<const uint2*>(BC + kN + j);
      B[j] = low_bf16(b.x), B[j + 1] = high_bf16(b.x), B[j + 2] = low_bf16(b.y),
      B[j + 3] = high_bf16(b.y);
      C[j] = low_bf16(c.x), C[j + 1] = high_bf16(c.x), C[j + 2] = low_bf16(c.y),
      C[j + 3] = high_bf16(c.y);
    }
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int c = c0 + pass * Tile::kAtOnce;
      auto* const at = reinterpret_cast<S*>(stage) + c * kN + n0;
      const float of_x = delta * static_cast<float>(x[c]);
      const Run held{*reinterpret_cast<const uint4*>(at)};
      float s[kCount], sum = 0;
      held.get(s);
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        s[j] = fmaf(decay, s[j], of_x * B[j]);
        sum = fmaf(s[j], C[j], sum);
      }
      *reinterpret_cast<uint4*>(at) = Run::of(s);
#pragma unroll
      for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
      if (lane % kLanes == pass) y = sum;
    }
    float square = 0;
    if (finishes) {
      const float z = static_cast<float>(reinterpret_cast<const bfloat16*>(stage + Tile::kZ)[own]);
      const float v = fmaf(of.D, static_cast<float>(x[own]), y) * z * sigmoid<true>(z);
      square = v * v;
      reinterpret_cast<bfloat16*>(stage + Tile::kY)[own] = static_cast<bfloat16>(v * of.w);
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) square += __shfl_xor_sync(~0u, square, lanes);
    if (lane == 0) reinterpret_cast<float*>(stage + Tile::kSquares)[warp] = square;
    fence_for_copies();
    __syncwarp();
    if (lane == 0) arrive(moved + slot);
    if (++slot == kStages) slot = 0, parity ^= 1;
  }
#else
  __trap();
#endif
}

template <class S, int kN>
void launch_states(const Step2State& p, void* stream) {
  using Tile = StateTile<S, kN>;
  const auto kernel = states_kernel<S, kN>;
  const int64_t tiles = p.M * p.H * kStep2Channels / Tile::kChannels;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kBytes);
  launch_dependent("mamba2_step", kernel,
                   dim3(static_cast<unsigned>(std::min(tiles, 2 * kOnePassProcessors))),
                   Tile::kThreads, Tile::kBytes, 1, stream, p, static_cast<int>(tiles));
}

}  // namespace krait::cuda
