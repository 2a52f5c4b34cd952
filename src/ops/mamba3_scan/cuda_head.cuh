// Private to mamba3_scan on the GPU: what forward and backward do with a head alike.
#pragma once
#include <algorithm>

#include "krait/ops/mamba3_scan/cuda_chunk.cuh"

namespace krait::ops::mamba3 {

namespace {  // device code of one translation unit

constexpr int64_t kMostBlocks = 528;  // each has scratch memory of its own

constexpr int64_t fours(int64_t n) { return (n + 3) / 4 * 4; }
constexpr int64_t rows_of(int64_t longest) { return std::min(kChunk, longest) + 1; }

// Floats of a Chunk and of a Carry, as their constructors take them.
int64_t chunk_floats(const Sizes& s, int64_t longest) {
  const int64_t P = padded(s.P), N = padded(s.N), T = padded(s.T), rows = rows_of(longest);
  return rows * (2 * s.R * N + 4 * T + 4 * s.R * P + 2 * P) + 8 * fours(rows) +
         fours(rows * s.R * s.R);
}
int64_t carry_floats(const Sizes& s) {
  return padded(s.P) * padded(s.N) + s.R * padded(s.N) + padded(s.P) + padded(s.T);
}

__device__ float* saved_at(const CudaCall& c, const Sequence& s, int64_t h) {
  return c.saved ? c.saved + (s.begin / kChunk * c.H + h) * saved_size(c.size) : nullptr;
}

// 1 / sqrt(mean(y²) + eps) over P values in padded rows. A warp calls.
__device__ float norm_scale(const float* y, int64_t n, const Head& h) {
  return 1.0f / sqrtf(warp_dot(y, y, n) / static_cast<float>(h.size.P) + h.norm_eps);
}

__device__ float silu(float x) { return x / (1.0f + expf(-x)); }
__device__ float silu_slope(float x) {
  const float s = sigmoid(x);
  return s * (1.0f + x * (1.0f - s));
}

// Norm, gate and sum over ranks; kq takes the scales of the norm.
__device__ void output_rows(const Head& h, const Chunk& c, int64_t t0, const GradRows& y) {
  const Padded& n = c.n;
  float* const scales = c.kq;  // (rows, R): no longer needed as kq
  if (h.norm) {
    each_warp(c.tokens * n.R, [&](int64_t i) {
      const float scale = norm_scale(c.y + n.RP + i * n.P, n.P, h);
      if (first_lane()) scales[i] = scale;
    });
    __syncthreads();
  }
  each(c.tokens * h.size.P, [&](int64_t i) {
    const int64_t t = i / h.size.P + 1, p = i % h.size.P;
    float sum = 0;
    for (int64_t r = 0; r < n.R; ++r) {
      const int64_t rp = r * h.size.P + p;
      float value = c.y[t * n.RP + r * n.P + p];
      if (h.norm) value *= scales[(t - 1) * n.R + r] * h.norm[p];
      if (h.z.data) value *= silu(one_or(h.mimo_z, rp) * c.z[t * n.P + p]);
      sum = fmaf(one_or(h.mimo_o, rp), value, sum);
    }
    put_at(y, t0 + t - 1, p, sum);
  });
}

}  // namespace

}  // namespace krait::ops::mamba3
