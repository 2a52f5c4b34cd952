// Private to ssd: the dot products that the gradient of Δ is made of, on warpgroups, and how they become that. A warp has a
// strip of 16 tokens.
#pragma once
#include "krait/ops/ssd/cuda_matrix_dots.cuh"
#include "krait/ops/ssd/cuda_warpgroup.cuh"

namespace krait::ops::ssd_gpu {
namespace {

constexpr int kTilesOfPairs = 10;  // of 16 s and 16 t, none of earlier t
__device__ inline int tile_of_pairs(int s16, int t16) {
  return 4 * s16 - s16 * (s16 + 1) / 2 + t16;
}

// Of a head, as they lie in memory.
struct alignas(16) RawSteps {
  float2 steps[kQ];  // Δ, log2 of the decay from the chunk's begin
  float slopes[kQ];
  float A, D;
};

// The dot products of a head that dΔ is made of.
struct alignas(16) HeadDots {
  float start[kQ], end[kQ], u[kQ];  // e dy·S C; f x·dS B; x·u
  float between
      [4][kQ];  // of each strip of 16 s, Σ of W[s, t] over s < k <= t for the k from the strip on
  float across[4], D[4];  // of each strip: Σ dS S, Σ dy·x
};

// Rows t0 + g and + 8 of a tile, in the places of sums of products.
__device__ inline void load_rows(uint32_t (&v)[4][4], const unsigned char* tile, int t0) {
#pragma unroll
  for (int k = 0; k < 4; ++k)
    cuda::load_matrices(v[k], tile + in_tile(t0 + lane_of() % 16, 2 * k + lane_of() / 16));
}
// sums (+)= for both rows the dot product of v and w.
__device__ inline void dot_rows(float (&sums)[2], const float (&v)[8][4],
                                const uint32_t (&w)[4][4]) {
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint32_t pair = w[j / 2][j % 2 * 2 + r];
      sums[r] = fmaf(v[j][2 * r], low_bf16(pair), fmaf(v[j][2 * r + 1], high_bf16(pair), sums[r]));
    }
}
__device__ inline void keep_rows(float (&to)[kQ], int t0, float (&parts)[2], bool again) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float sum = sum_of_row(parts[r]);
    if (lane_of() % 4 == 0) keep(to[t0 + lane_of() / 4 + 8 * r], sum, again);
  }
}

// Of four columns' parts, v[i] of column 8 (i / 2) + 2 (lane % 4) + i % 2, the sums over the lanes of equal lane % 4: a lane
// gets that of column_of_sum().
__device__ inline int column_of_sum() {
  return lane_of() / 16 * 8 + lane_of() % 4 * 2 + lane_of() / 8 % 2;
}
__device__ inline float sum_of_columns(const float (&v)[4]) {
  const bool second = lane_of() / 16 != 0, odd = lane_of() / 8 % 2 != 0;
  float a = second ? v[2] : v[0], b = second ? v[3] : v[1];
  a += __shfl_xor_sync(~0u, second ? v[0] : v[2], 16);
  b += __shfl_xor_sync(~0u, second ? v[1] : v[3], 16);
  float sum = odd ? b : a;
  sum += __shfl_xor_sync(~0u, odd ? a : b, 8);
  return sum + __shfl_xor_sync(~0u, sum, 4);
}

// Σ dS S, 16 channels at once, as the diagonal of a product. Warps of strips with fewer pairs take more of it.
template <int NT>
__device__ inline void dot_states(HeadDots& dots, const unsigned char* S, const unsigned char* dS,
                                  int strip, bool again) {
  const int lane = lane_of(), g = lane / 4, t2 = lane % 4 * 2;
  const int first = strip < 2 ? 0 : 2 * strip - 3, end = first + (strip < 3 ? strip : 1);
#pragma unroll 1
  for (int i = first; i < end; ++i) {
    float c[2][4] = {};
#pragma unroll
    for (int n = 0; n < 4 * NT; ++n) {
      const int at = n / 4 * kTileBytes + in_tile(16 * i + lane % 16, n % 4 * 2 + lane / 16);
      uint32_t a[4], b[4];
      cuda::load_matrices(a, S + at);
      cuda::load_matrices(b, dS + at);
      cuda::mma_bf16(c[0], a, b[0], b[2]);
      cuda::mma_bf16(c[1], a, b[1], b[3]);
    }
    const float sum = sum_of_warp(g == t2       ? c[0][0] + c[1][2]
                                  : g == t2 + 1 ? c[0][1] + c[1][3]
                                                : 0.0f);
    if (lane == 0) keep(dots.across[i], sum, again);
  }
}

// K = (dy xᵀ)ᵀ and what follows from it: D K Δ added to its sum over heads, the scores D G, of W = G D K Δ the sums that dΔ is
// made of.
__device__ inline void add_pairs(float (&sum_DK)[8][4], uint32_t (&scores)[4][4],
                                 const float (&K)[8][4], const float4* G_, const RawSteps& steps,
                                 const float (&delta)[2], const float (&log2_s)[2], HeadDots& dots,
                                 int strip, bool again) {
  const int lane = lane_of(), g = lane / 4, t2 = lane % 4 * 2;
  const uint32_t ones = 0x3f803f80,  // pairs of t, one where not before k = g
      triangle = (t2 >= g ? 0x3f80 : 0) | (t2 + 1 >= g ? 0x3f800000 : 0);
  float behind[4] = {};  // sums of W[s, t] over the tiles of later t
#pragma unroll
  for (int t16 = 3; t16 >= 0; --t16) {
    if (t16 < strip) {
#pragma unroll
      for (uint32_t& none : scores[t16]) none = 0;
      continue;
    }
    const bool diagonal = t16 == strip;
    float W[2][4], DG[2][4];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float4 of_t = *reinterpret_cast<const float4*>(steps.steps + 16 * t16 + 8 * j + t2);
      const float4 v = G_[tile_of_pairs(strip, t16) * 64 + 32 * j + lane];
      const float G[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float decay = cuda::exp2_fast((e % 2 ? of_t.w : of_t.y) - log2_s[e / 2]);
        if (diagonal && 8 * j + t2 + e % 2 < g + e / 2 * 8) decay = 0;
        DG[j][e] = decay * G[e];
        const float DK = decay * (K[2 * t16 + j][e] * delta[e / 2]);
        sum_DK[2 * t16 + j][e] += DK;
        W[j][e] = G[e] * DK;
      }
    }
    cuda::pack_a(scores[t16], DG[0], DG[1]);
    uint32_t a[4];
    cuda::pack_a(a, W[0], W[1]);
    float from[2][4];  // sums of W[s, t] over t >= k
#pragma unroll
    for (int e = 0; e < 4; ++e) from[0][e] = from[1][e] = behind[e];
    cuda::mma_bf16(from[0], a, triangle, ones);
    cuda::mma_bf16(from[1], a, 0, triangle);
    cuda::mma_bf16(behind, a, ones, ones);
    float sums[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int k = i / 2 * 8 + t2 + i % 2;
      const float upper = from[i / 2][i % 2], lower = from[i / 2][2 + i % 2];
      sums[i] = (diagonal && k <= g ? 0.0f : upper) + (diagonal && k <= g + 8 ? 0.0f : lower);
    }
    const float sum = sum_of_columns(sums);
    if (g % 2 == 0) keep(dots.between[strip][16 * t16 + column_of_sum()], sum, again);
    if (diagonal) {
      const float(&left)[4] = K[2 * t16], (&right)[4] = K[2 * t16 + 1];
      const float trace = sum_of_warp(g == t2       ? left[0] + right[2]
                                      : g == t2 + 1 ? left[1] + right[3]
                                                    : 0.0f);
      if (lane == 0) keep(dots.D[strip], trace, again);
    }
  }
}

// dΔ of a head and what follows from it, by one warp.
__device__ void finish(const Gradient& w, const RawSteps& steps, const HeadDots& dots, int64_t h,
                       int64_t row, int valid, float* sums) {
  const int lane = lane_of(), strip = lane / 8;
  const float across = (dots.across[0] + dots.across[1] + dots.across[2] + dots.across[3]) *
                       cuda::exp2_fast(steps.steps[kQ - 1].y);
  float start[2], end[2], sum[2], u[2], delta[2], slope[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 2 * lane + i;
    delta[i] = steps.steps[t].x, slope[i] = steps.slopes[t];
    start[i] = dots.start[t], end[i] = delta[i] * dots.end[t], u[i] = dots.u[t];
  }
  sum_from<32>(start);
  sum_before(end);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum[i] = across + start[i] + end[i];
#pragma unroll
    for (int s16 = 0; s16 < 4; ++s16)
      if (s16 <= strip) sum[i] += dots.between[s16][2 * lane + i];
  }
  put_steps(w, rate_of(w.p, steps.A), delta, slope, h, row, valid, sum, u, dots.D, sums);
}

}  // namespace
}  // namespace krait::ops::ssd_gpu
