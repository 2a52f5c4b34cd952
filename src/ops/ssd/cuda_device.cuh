// Private to ssd: what its CUDA kernels share: where sequences, chunks and elements are.
#pragma once
#include <cuda_bf16.h>

#include "krait/ops/ssd/cuda.h"
#include "krait/tensor/cuda/exponentials.cuh"
#include "krait/tensor/cuda/math.h"

namespace krait::ops::ssd_gpu {
namespace {

using cuda::ceil_div;

constexpr int kThreads = 256;
constexpr int kP = 64;  // channels of a head that a block takes at once

// Unit i of sequence s, and its tokens.
struct Place {
  int64_t s, i, units, begin, tokens;
  bool there;
};

__device__ inline int64_t begin_of(const CudaProblem& p, int64_t s) {
  return p.begin ? p.begin[s] : s * p.L;
}

__device__ inline int64_t first_slot(const CudaProblem& p, int64_t s, int64_t unit) {
  return p.begin ? p.begin[s] / unit + s : s * ceil_div(p.L, unit);
}

__device__ inline Place place_of(const CudaProblem& p, int64_t slot, int64_t unit) {
  int64_t low = 0, high = p.sequences;  // first_slot(low) <= slot, and the answer is below `high`
  if (!p.begin) {
    low = slot / ceil_div(p.L, unit);
  } else {
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (first_slot(p, middle, unit) <= slot ? low : high) = middle;
    }
  }
  Place a;
  const int64_t begin = begin_of(p, low), tokens = begin_of(p, low + 1) - begin;
  a.s = low, a.i = slot - first_slot(p, low, unit), a.units = ceil_div(tokens, unit);
  a.there = a.i < a.units;
  a.begin = begin + a.i * unit;
  a.tokens = min(unit, tokens - a.i * unit);
  return a;
}

__device__ inline float get(const CudaRows& r, int64_t row, int64_t column) {
  const int64_t at = row * r.stride + column;
  return r.bf16 ? static_cast<float>(static_cast<const __nv_bfloat16*>(r.data)[at])
                : static_cast<const float*>(r.data)[at];
}

__device__ inline void put(const CudaRows& r, int64_t row, int64_t column, float value) {
  const int64_t at = row * r.stride + column;
  if (r.bf16) {
    __nv_bfloat16& to = static_cast<__nv_bfloat16*>(r.data)[at];
    to = static_cast<__nv_bfloat16>(r.add ? static_cast<float>(to) + value : value);
  } else {
    float& to = static_cast<float*>(r.data)[at];
    to = r.add ? to + value : value;
  }
}

// A of a head, and A log2(e).
__device__ inline float scaled_rate(const CudaProblem& p, int64_t h) {
  return cuda::scaled_A(p.A[h], p.a_is_log);
}
__device__ inline float rate_of(const CudaProblem& p, float A) {
  return p.a_is_log ? cuda::scaled_A(A, true) * cuda::kLn2 : A;
}
__device__ inline float rate(const CudaProblem& p, int64_t h) { return rate_of(p, p.A[h]); }

// Δ of a token that has `dt`, and its slope.
__device__ inline float step_size(const CudaProblem& p, int64_t h, float dt, float& slope) {
  const float v = dt + (p.dt_bias ? p.dt_bias[h] : 0.0f);
  float delta = v;
  slope = 1;
  if (p.softplus && v <= 20) {
    float e;
    delta = cuda::softplus<false>(v, e);
    slope = cuda::sigmoid<false>(v);
  }
  if (delta < p.dt_min || delta > p.dt_max) slope = 0;
  return delta < p.dt_min ? p.dt_min : delta > p.dt_max ? p.dt_max : delta;  // NaN stays
}

}  // namespace
}  // namespace krait::ops::ssd_gpu
