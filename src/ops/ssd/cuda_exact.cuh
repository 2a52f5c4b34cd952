// Private to ssd: products of float32 in shared memory. Blocks of 256 threads work on one chunk of 32 tokens of one
// head at a time; a thread has of a tile (M, N) the rows ty + 16 i, columns 32 j + 2 tx and the next.
#pragma once
#include "krait/ops/ssd/cuda_device.cuh"

namespace krait::ops::ssd_gpu {
namespace {

constexpr int kQ = static_cast<int>(chunk_of(false)), kPad = 1;

// What a chunk of tokens does with the state of a head. Tokens beyond the end have Δ = 0.
struct Steps {
  float delta[kQ], slope[kQ];
  float before[kQ];  // decay from the state before the chunk through this token
  float after[kQ];   // decay from behind this token to the end of the chunk
};

template <int M, int N>
struct Tile {
  float v[M / 16][N / 32][2];
};

__device__ inline int tx() { return static_cast<int>(threadIdx.x % 16); }
__device__ inline int ty() { return static_cast<int>(threadIdx.x / 16); }

template <int M, int N>
__device__ inline void clear(Tile<M, N>& t) {
  t = Tile<M, N>{};
}

// f(row, column, v, v of the next column, number of the row among the thread's)
template <int M, int N, class F>
__device__ inline void for_pairs(Tile<M, N>& t, const F& f) {
#pragma unroll
  for (int i = 0; i < M / 16; ++i)
#pragma unroll
    for (int j = 0; j < N / 32; ++j)
      f(ty() + 16 * i, 32 * j + 2 * tx(), t.v[i][j][0], t.v[i][j][1], i);
}

// Of two tiles: f(row, column, the two of a, the two of b, number of the row).
template <int M, int N, class F>
__device__ inline void for_both(Tile<M, N>& a, Tile<M, N>& b, const F& f) {
#pragma unroll
  for (int i = 0; i < M / 16; ++i)
#pragma unroll
    for (int j = 0; j < N / 32; ++j) f(ty() + 16 * i, 32 * j + 2 * tx(), a.v[i][j], b.v[i][j], i);
}

// t += a b, over every `step`-th k < K. a is (M, K), or (K, M) where kA; b is (N, K), or (K, N) where kB; rows `lda`,
// `ldb` elements apart.
template <bool kA, bool kB, int M, int N>
__device__ inline void product(Tile<M, N>& t, const float* a, int lda, const float* b, int ldb,
                               int K, int step = 1) {
#pragma unroll 4
  for (int k = 0; k < K; k += step) {
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

// t = the dot products of rows of a and b, as product has them. Even and odd k are summed apart: a term goes through
// half as many roundings, and where D is 1 nothing hides them.
template <int M, int N>
__device__ inline void dot_products(Tile<M, N>& t, const float* a, int lda, const float* b, int ldb,
                                    int K) {
  Tile<M, N> odd;
  clear(t), clear(odd);
  product<false, false>(t, a, lda, b, ldb, K, 2);
  product<false, false>(odd, a + 1, lda, b + 1, ldb, K, 2);
  for_both(t, odd, [](int, int, float* sum, const float* more, int) {
    sum[0] += more[0], sum[1] += more[1];
  });
}

// out (M) (+)= the sums of `part` over the threads of a row.
template <int M>
__device__ inline void sum_rows(float (&part)[M / 16], float* out, bool add) {
#pragma unroll
  for (int i = 0; i < M / 16; ++i) {
#pragma unroll
    for (int lane = 8; lane > 0; lane /= 2) part[i] += __shfl_xor_sync(~0u, part[i], lane);
    float& to = out[ty() + 16 * i];
    if (tx() == 0) to = add ? to + part[i] : part[i];
  }
}

// By one warp: a chunk's steps, and the decays (Q, Q + kPad) from behind token s through token t, from the sum of
// the logarithms of the steps between: products of decays near 1 would round once a step.
__device__ inline void take_steps(const CudaProblem& p, int64_t h, int64_t row, int valid, Steps& s,
                                  float* decays) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float slope = 0, delta = 0, log2 = 0;
  if (lane < valid) {
    delta = step_size(p, h, get(p.dt, row + lane, h), slope);
    log2 = delta * scaled_rate(p, h);
  }
  float between = 0, before = 0;
  for (int t = 0; t < kQ; ++t) {
    const float step = __shfl_sync(~0u, log2, t);
    if (t > lane) between += step;
    if (t <= lane) before += step;
    decays[t * (kQ + kPad) + lane] = cuda::exp2_exact(between);  // read where t >= lane
  }
  s.delta[lane] = delta, s.slope[lane] = slope;
  s.before[lane] = cuda::exp2_exact(before), s.after[lane] = cuda::exp2_exact(between);
}
__device__ inline float decay_of(const float* decays, int t, int s) {
  return decays[t * (kQ + kPad) + s];
}

__device__ inline void store_pair(float* to, float a, float b, int left) {
  if (left >= 1) to[0] = a;
  if (left >= 2) to[1] = b;
}

// Two neighbouring columns, of which `left` exist.
__device__ inline void put_pair(const CudaRows& r, int64_t row, int64_t column, int left, float a,
                                float b) {
  if (left >= 1) put(r, row, column, a);
  if (left >= 2) put(r, row, column + 1, b);
}

// to (kRows, kColumns), rows ld apart = rows [row, row + valid) of r, columns [column, column + columns), and
// zeros beyond.
template <int kRows, int kColumns>
__device__ inline void bring(float* to, int ld, const CudaRows& r, int64_t row, int valid,
                             int64_t column, int columns) {
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kColumns; i += kThreads) {
    const int t = i / kColumns, c = i % kColumns;
    to[t * ld + c] = r.data && t < valid && c < columns ? get(r, row + t, column + c) : 0.0f;
  }
}

}  // namespace
}  // namespace krait::ops::ssd_gpu
