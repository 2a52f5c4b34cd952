// Private to ssd: the dot products that the gradient of Δ is made of, on matrix units, and how they become that.
#pragma once
#include "krait/ops/ssd/cuda_gradient.cuh"
#include "krait/ops/ssd/cuda_matrix.cuh"

namespace krait::ops::ssd_gpu {
namespace {

// Warps of a block: four strips of 16 tokens, of which kParts warps each have a part of the columns.
constexpr int kParts = 4, kStripThreads = 32 * kParts, kBlock = 4 * kStripThreads;

struct alignas(16) HeadSteps {
  float delta[kQ], slope[kQ], log2[kQ];
  float before[kQ],
      after[kQ];  // decay from the chunk's begin through a token; from behind it to the end
  float through;
};

// The dot products of a head that dΔ is made of; (kParts, kQ) where the warps of a strip have parts of them.
struct alignas(16) Dots {
  float start[kParts][kQ], end[kParts][kQ];  // e dy·S C; f x·dS B
  float u[kParts][kQ];                       // x·u
  // Sums of W[t, s] on either side of the strips: over s in strips before that of t; for each strip over its t,
  // s in strips before it; within a strip over the pairs that a step lies between.
  float left[kParts][kQ], below[4][kQ], diagonal[kQ];
  float across[kBlock / 32];  // Σ dS S
  float D[4];                 // Σ dy·x
};

// A warp's tokens, two a lane, in order: the sum over all before each; over each and all behind it.
__device__ inline void sum_before(float (&v)[2]) {
  const int lane = lane_of();
  float sum = v[0] + v[1];
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const float other = __shfl_up_sync(~0u, sum, d);
    if (lane >= d) sum += other;
  }
  const float before = __shfl_up_sync(~0u, sum, 1);
  v[1] = (lane > 0 ? before : 0.0f) + v[0];
  v[0] = lane > 0 ? before : 0.0f;
}
template <int kLanes>  // within groups of so many lanes
__device__ inline void sum_from(float (&v)[2]) {
  const int lane = lane_of() % kLanes;
  float sum = v[0] + v[1];
#pragma unroll
  for (int d = 1; d < kLanes; d *= 2) {
    const float other = __shfl_down_sync(~0u, sum, d);
    if (lane + d < kLanes) sum += other;
  }
  const float behind = __shfl_down_sync(~0u, sum, 1);
  v[1] += lane + 1 < kLanes ? behind : 0.0f;
  v[0] = sum;
}

__device__ inline void keep(float& to, float value, bool add) { to = add ? to + value : value; }

// Sum over the four lanes of a row.
__device__ inline float sum_of_row(float v) {
  v += __shfl_xor_sync(~0u, v, 1);
  return v + __shfl_xor_sync(~0u, v, 2);
}
__device__ inline float sum_of_warp(float v) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  return v;
}

// For each row k of a diagonal tile W (16 t, 16 s), two neighbours of 8 columns: Σ of W[t, s] over s < k <= t. A
// lane gets those of rows g and g + 8.
__device__ inline void sum_between(const float (&left)[4], const float (&right)[4],
                                   float (&sums)[2]) {
  const int lane = lane_of(), g = lane / 4, t2 = lane % 4 * 2;
  sums[0] = sums[1] = 0;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const int s = c / 2 * 8 + t2 + c % 2;
    float upper = c < 2 ? left[c] : right[c - 2], lower = c < 2 ? left[c + 2] : right[c];
#pragma unroll
    for (int d = 1; d < 8; d *= 2) {
      const float of_upper = __shfl_down_sync(~0u, upper, 4 * d);
      const float of_lower = __shfl_down_sync(~0u, lower, 4 * d);
      if (g + d < 8) upper += of_upper, lower += of_lower;
    }
    upper += __shfl_sync(~0u, lower, lane % 4);
    if (s < g) sums[0] += upper;
    if (s < g + 8) sums[1] += lower;
  }
  sums[0] = sum_of_row(sums[0]), sums[1] = sum_of_row(sums[1]);
}

__device__ inline float sum_of_parts(const float (&parts)[kParts][kQ], int t) {
  float sum = 0;
#pragma unroll
  for (const auto& part : parts) sum += part[t];
  return sum;
}

// dΔ of a head and what follows from it, by one warp.
__device__ void finish_head(const Gradient& w, const HeadSteps& steps, const Dots& dots, int64_t h,
                            int64_t row, int valid, float* sums) {
  const int lane = lane_of(), strip = lane / 8;
  const float A = rate(w.p, h);
  float across = 0;
#pragma unroll
  for (const float part : dots.across) across += part;
  float start[2], end[2], left[2], sum[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 2 * lane + i;
    start[i] = sum_of_parts(dots.start, t);
    end[i] = steps.delta[t] * sum_of_parts(dots.end, t);
    left[i] = sum_of_parts(dots.left, t);
  }
  sum_from<32>(start);
  sum_before(end);
  sum_from<8>(left);
#pragma unroll
  for (int i = 0; i < 2; ++i)
    sum[i] = across * steps.through + start[i] + end[i] + left[i] + dots.diagonal[2 * lane + i];
#pragma unroll
  for (int r = 1; r < 4; ++r) {
    float below[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) below[i] = strip < r ? dots.below[r][2 * lane + i] : 0.0f;
    sum_before(below);
    if (strip < r) sum[0] += below[0], sum[1] += below[1];
  }
  float dA = 0, dbias = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int k = 2 * lane + i;
    if (k >= valid) break;
    const float ddt = fmaf(A, sum[i], sum_of_parts(dots.u, k)) * steps.slope[k];
    dA = fmaf(steps.delta[k], sum[i], dA);
    dbias += ddt;
    if (w.ddt.data) put(w.ddt, row + k, h, ddt);
  }
  dA = sum_of_warp(dA), dbias = sum_of_warp(dbias);
  if (lane != 0 || !sums) return;
  sums[0] = dA, sums[1] = dbias;
  if (!w.p.D_per_channel) sums[2] = dots.D[0] + dots.D[1] + dots.D[2] + dots.D[3];
}

}  // namespace
}  // namespace krait::ops::ssd_gpu
