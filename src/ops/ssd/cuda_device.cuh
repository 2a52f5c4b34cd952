// Private to ssd: what its CUDA kernels are made of. Blocks of 256 threads work on one chunk of tokens of one
// head at a time, by products of matrices in shared memory.
#pragma once
#include <cuda_bf16.h>

#include "krait/ops/ssd/cuda.h"
#include "krait/tensor/cuda/math.h"
#include "krait/tensor/cuda/mma.cuh"

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

// Two neighbouring columns, of which `left` exist.
__device__ inline void put_pair(const CudaRows& r, int64_t row, int64_t column, int left, float a,
                                float b) {
  if (r.bf16 && r.runs && left >= 2) {  // `column` is even where runs are
    auto* const to = reinterpret_cast<__nv_bfloat162*>(static_cast<__nv_bfloat16*>(r.data) +
                                                       row * r.stride + column);
    if (r.add) {
      const __nv_bfloat162 old = *to;
      a += static_cast<float>(old.x), b += static_cast<float>(old.y);
    }
    *to = __floats2bfloat162_rn(a, b);
    return;
  }
  if (left >= 1) put(r, row, column, a);
  if (left >= 2) put(r, row, column + 1, b);
}

__device__ inline float rate(const CudaProblem& p, int64_t h) {
  return p.a_is_log ? -expf(p.A[h]) : p.A[h];
}

// Δ of a token, and its slope.
__device__ inline float step_size(const CudaProblem& p, int64_t row, int64_t h, float& slope) {
  const float v = get(p.dt, row, h) + (p.dt_bias ? p.dt_bias[h] : 0.0f);
  float delta = v;
  slope = 1;
  if (p.softplus && v <= 20) {
    delta = log1pf(expf(v));
    slope = 1.0f / (1.0f + expf(-v));
  }
  if (delta < p.dt_min || delta > p.dt_max) slope = 0;
  return delta < p.dt_min ? p.dt_min : delta > p.dt_max ? p.dt_max : delta;  // NaN stays
}

// What a chunk of Q tokens does with the state of a head. Tokens beyond the end have Δ = 0.
template <int Q>
struct Steps {
  float delta[Q], slope[Q];
  float before[Q];  // decay from the state before the chunk through this token
  float after[Q];   // decay from behind this token to the end of the chunk
  float log2[Q];    // matrix units: log2 of `before`
};

// float32 throughout. A thread has of a tile (M, N) the rows ty + 16 i, columns 32 j + 2 tx and the next.
struct Exact {
  using T = float;
  static constexpr int kQ = 32, kPad = 1, kRowParts = 1;
  static constexpr bool kMatrixUnits = false;

  template <int M, int N>
  struct Tile {
    float v[M / 16][N / 32][2];
  };
  template <int M>
  static constexpr int kRows = M / 16;  // of a tile that a thread has a part of

  static __device__ int tx() { return static_cast<int>(threadIdx.x % 16); }
  static __device__ int ty() { return static_cast<int>(threadIdx.x / 16); }

  // f(row, column, v, v of the next column, number of the row among the thread's)
  template <int M, int N, class F>
  static __device__ void for_pairs(Tile<M, N>& t, const F& f) {
#pragma unroll
    for (int i = 0; i < M / 16; ++i)
#pragma unroll
      for (int j = 0; j < N / 32; ++j)
        f(ty() + 16 * i, 32 * j + 2 * tx(), t.v[i][j][0], t.v[i][j][1], i);
  }

  // Of two tiles: f(row, column, the two of a, the two of b, number of the row).
  template <int M, int N, class F>
  static __device__ void for_both(Tile<M, N>& a, Tile<M, N>& b, const F& f) {
#pragma unroll
    for (int i = 0; i < M / 16; ++i)
#pragma unroll
      for (int j = 0; j < N / 32; ++j) f(ty() + 16 * i, 32 * j + 2 * tx(), a.v[i][j], b.v[i][j], i);
  }

  // t += a b, over k < K. a is (M, K), or (K, M) where kA; b is (N, K), or (K, N) where kB; rows `lda`, `ldb`
  // elements apart.
  template <bool kA, bool kB, int M, int N>
  static __device__ void product(Tile<M, N>& t, const T* a, int lda, const T* b, int ldb, int K) {
#pragma unroll 4
    for (int k = 0; k < K; ++k) {
      float x[M / 16], y[N / 32][2];
#pragma unroll
      for (int i = 0; i < M / 16; ++i) {
        const int row = ty() + 16 * i;
        x[i] = kA ? a[k * lda + row] : a[row * lda + k];
      }
#pragma unroll
      for (int j = 0; j < N / 32; ++j)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int column = 32 * j + 2 * tx() + c;
          y[j][c] = kB ? b[k * ldb + column] : b[column * ldb + k];
        }
#pragma unroll
      for (int i = 0; i < M / 16; ++i)
#pragma unroll
        for (int j = 0; j < N / 32; ++j)
#pragma unroll
          for (int c = 0; c < 2; ++c) t.v[i][j][c] = fmaf(x[i], y[j][c], t.v[i][j][c]);
    }
  }

  // out (kRowParts, M) (+)= the sums of `part` over the threads of a row.
  template <int M>
  static __device__ void sum_rows(float (&part)[M / 16], float* out, bool add) {
#pragma unroll
    for (int i = 0; i < M / 16; ++i) {
#pragma unroll
      for (int lane = 8; lane > 0; lane /= 2) part[i] += __shfl_xor_sync(~0u, part[i], lane);
      float& to = out[ty() + 16 * i];
      if (tx() == 0) to = add ? to + part[i] : part[i];
    }
  }

  // By one warp: a chunk's steps, and the decays (Q, Q + kPad) from behind token s through token t: products
  // of the steps between, never a ratio.
  static __device__ void take_steps(const CudaProblem& p, int64_t h, int64_t row, int valid,
                                    Steps<kQ>& s, float* decays) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    float slope = 0, delta = 0, decay = 1;
    if (lane < valid) {
      delta = step_size(p, row + lane, h, slope);
      decay = expf(delta * rate(p, h));
    }
    float between = 1, before = 1;
    for (int t = 0; t < kQ; ++t) {
      const float a = __shfl_sync(~0u, decay, t);
      if (t > lane) between *= a;
      if (t <= lane) before *= a;
      decays[t * (kQ + kPad) + lane] = between;  // read where t >= lane
    }
    s.delta[lane] = delta, s.slope[lane] = slope;
    s.before[lane] = before, s.after[lane] = between;
  }
  static __device__ float decay(const Steps<kQ>&, const float* decays, int t, int s) {
    return decays[t * (kQ + kPad) + s];
  }
};

// Operands in bfloat16, sums in float32. Warps stand 2 x 4 over a tile.
struct Halves {
  using T = __nv_bfloat16;
  static constexpr int kQ = 64, kPad = 8, kRowParts = 4;
  static constexpr bool kMatrixUnits = true;

  template <int M, int N>
  struct Tile {
    float v[M / 32][N / 32][4];
  };
  template <int M>
  static constexpr int kRows = M / 16;

  static __device__ int lane() { return static_cast<int>(threadIdx.x % 32); }
  static __device__ int warp_row() { return static_cast<int>(threadIdx.x / 128); }
  static __device__ int warp_column() { return static_cast<int>(threadIdx.x / 32 % 4); }

  template <int M, int N, class F>
  static __device__ void for_pairs(Tile<M, N>& t, const F& f) {
#pragma unroll
    for (int i = 0; i < M / 32; ++i)
#pragma unroll
      for (int j = 0; j < N / 32; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          f(warp_row() * (M / 2) + 16 * i + 8 * half + lane() / 4,
            warp_column() * (N / 4) + 8 * j + lane() % 4 * 2, t.v[i][j][2 * half],
            t.v[i][j][2 * half + 1], 2 * i + half);
  }

  template <int M, int N, class F>
  static __device__ void for_both(Tile<M, N>& a, Tile<M, N>& b, const F& f) {
#pragma unroll
    for (int i = 0; i < M / 32; ++i)
#pragma unroll
      for (int j = 0; j < N / 32; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          f(warp_row() * (M / 2) + 16 * i + 8 * half + lane() / 4,
            warp_column() * (N / 4) + 8 * j + lane() % 4 * 2, a.v[i][j] + 2 * half,
            b.v[i][j] + 2 * half, 2 * i + half);
  }

  template <bool kA, bool kB, int M, int N>
  static __device__ void product(Tile<M, N>& t, const T* a, int lda, const T* b, int ldb, int K) {
    static_assert(M % 32 == 0 && N % 64 == 0);
    const int l = lane(), row = warp_row() * (M / 2), column = warp_column() * (N / 4);
    // Where this lane's row of the first matrices begins.
    const T* const from_a = kA ? a + (l % 8 + l / 16 * 8) * lda + row + l / 8 % 2 * 8
                               : a + (row + l % 16) * lda + l / 16 * 8;
    const T* const from_b = kB ? b + (l % 8 + l / 8 % 2 * 8) * ldb + column + l / 16 * 8
                               : b + (column + l % 8 + l / 16 * 8) * ldb + l / 8 % 2 * 8;
#pragma unroll 2
    for (int k = 0; k < K; k += 16) {
      uint32_t x[M / 32][4], y[N / 64][4];
#pragma unroll
      for (int i = 0; i < M / 32; ++i)
        cuda::load_matrices<kA>(x[i], kA ? from_a + k * lda + 16 * i : from_a + 16 * i * lda + k);
#pragma unroll
      for (int j = 0; j < N / 64; ++j)
        cuda::load_matrices<kB>(y[j], kB ? from_b + k * ldb + 16 * j : from_b + 16 * j * ldb + k);
#pragma unroll
      for (int i = 0; i < M / 32; ++i)
#pragma unroll
        for (int j = 0; j < N / 64; ++j) {
          cuda::mma_bf16(t.v[i][2 * j], x[i], y[j][0], y[j][1]);
          cuda::mma_bf16(t.v[i][2 * j + 1], x[i], y[j][2], y[j][3]);
        }
    }
  }

  template <int M>
  static __device__ void sum_rows(float (&part)[M / 16], float* out, bool add) {
#pragma unroll
    for (int i = 0; i < M / 16; ++i) {
      part[i] += __shfl_xor_sync(~0u, part[i], 2);
      part[i] += __shfl_xor_sync(~0u, part[i], 1);
      float& to = out[warp_column() * M + warp_row() * (M / 2) + 8 * i + lane() / 4];
      if (lane() % 4 == 0) to = add ? to + part[i] : part[i];
    }
  }

  // Decays by differences of sums of logarithms; a step that leaves nothing counts as 2^-150.
  static __device__ void take_steps(const CudaProblem& p, int64_t h, int64_t row, int valid,
                                    Steps<kQ>& s, float*) {
    const int l = lane();
    float before = 0;
    const float a = rate(p, h) * 1.44269504f;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int t = 32 * half + l;
      float slope = 0, delta = 0;
      if (t < valid) delta = step_size(p, row + t, h, slope);
      float sum = delta * a;
      if (sum < -150.0f) sum = -150.0f;
#pragma unroll
      for (int d = 1; d < 32; d *= 2) {
        const float other = __shfl_up_sync(~0u, sum, d);
        if (l >= d) sum += other;
      }
      sum += before;
      before = __shfl_sync(~0u, sum, 31);
      s.delta[t] = delta, s.slope[t] = slope, s.log2[t] = sum, s.before[t] = cuda::exp2_fast(sum);
    }
    __syncwarp();
#pragma unroll
    for (int t = l; t < kQ; t += 32) s.after[t] = cuda::exp2_fast(before - s.log2[t]);
  }
  static __device__ float decay(const Steps<kQ>& s, const float*, int t, int from) {
    return cuda::exp2_fast(s.log2[t] - s.log2[from]);
  }
};

template <class E>
__device__ inline float sum_of_parts(const float* parts, int M, int row) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < E::kRowParts; ++i) sum += parts[i * M + row];
  return sum;
}

__device__ inline void store_pair(float* to, float a, float b, int left) {
  if (left >= 1) to[0] = a;
  if (left >= 2) to[1] = b;
}
__device__ inline void store_pair(__nv_bfloat16* to, float a, float b, int left) {  // left is even
  if (left >= 2) *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(a, b);
}

template <class Tile>
__device__ inline void clear(Tile& t) {
  t = Tile{};
}

// to (kRows, kColumns), rows ld apart = rows [row, row + valid) of r, columns [column, column + columns), and
// zeros beyond.
template <int kRows, int kColumns, class T>
__device__ inline void bring(T* to, int ld, const CudaRows& r, int64_t row, int valid,
                             int64_t column, int columns) {
  if (sizeof(T) == 2 && r.runs && columns % 8 == 0) {
    constexpr int kRuns = kColumns / 8;
    const auto* const from = static_cast<const __nv_bfloat16*>(r.data) + row * r.stride + column;
#pragma unroll
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kRuns; i += kThreads) {
      const int t = i / kRuns, c = i % kRuns * 8;
      uint4 run = {0, 0, 0, 0};
      if (t < valid && c < columns) run = *reinterpret_cast<const uint4*>(from + t * r.stride + c);
      *reinterpret_cast<uint4*>(to + t * ld + c) = run;
    }
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kColumns; i += kThreads) {
    const int t = i / kColumns, c = i % kColumns;
    to[t * ld + c] =
        static_cast<T>(r.data && t < valid && c < columns ? get(r, row + t, column + c) : 0.0f);
  }
}

}  // namespace
}  // namespace krait::ops::ssd_gpu
