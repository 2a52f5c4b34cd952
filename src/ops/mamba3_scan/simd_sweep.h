// Private to cpu_simd.cpp: the one loop over (token, p, n). A matrix M (P, N) is carried over tokens:
//
//   M *= scale[t]
//   out_p[t,r] += M  of_n[t,r]           out_n[t,r] += Mᵀ of_p[t,r]
//   M += Σ_r w[t,r] a[t,r]ᵀ
//
// Forward in time it is the state; backward in time its gradient. A tile of M stays in registers for all
// tokens of a chunk; lanes are over n.
#pragma once
#include "krait/ops/mamba3_scan/simd_rows.h"

namespace krait::KRAIT_ISA::mamba3 {

struct Sweep {
  int64_t rows = 0, first = 0, step = 1;  // tokens first, first + step, ...
  int64_t P = 0, N = 0, R = 1;            // padded
  float* M = nullptr;
  const float* scale = nullptr;                  // (rows)
  const float *w = nullptr, *a = nullptr;        // (rows, R, P), (rows, R, N)
  const float *of_n = nullptr, *of_p = nullptr;  // (rows, R, N), (rows, R, P)
  float *out_p = nullptr, *out_n = nullptr;      // (rows, R, P), (rows, R, N)
};

// Vectors of N in a tile: as many as leave room for what is read beside it.
#if HWY_TARGET <= HWY_AVX3
constexpr int kTileVectors = 4;
#else
constexpr int kTileVectors = kLanes >= kPad / 2 ? 2 : 1;
#endif

template <int kVectors, bool kOutP, bool kOutN>
static HWY_INLINE void sweep_tile(const Sweep& s, int64_t p, int64_t n) {
  V m[kSumsTogether][kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kSumsTogether; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) m[i][v] = at(s.M + (p + i) * s.N + n, v * kLanes);
  for (int64_t row = 0, t = s.first; row < s.rows; ++row, t += s.step) {
    const V scale = hn::Set(d, s.scale[t]);
#pragma GCC unroll 4
    for (int i = 0; i < kSumsTogether; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) m[i][v] = hn::Mul(m[i][v], scale);
    for (int64_t r = 0; r < s.R; ++r) {
      const int64_t at_p = (t * s.R + r) * s.P + p, at_n = (t * s.R + r) * s.N + n;
      if constexpr (kOutP) {
        V sum[kSumsTogether];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const V x = at(s.of_n + at_n, v * kLanes);
#pragma GCC unroll 4
          for (int i = 0; i < kSumsTogether; ++i)
            sum[i] = v == 0 ? hn::Mul(m[i][v], x) : hn::MulAdd(m[i][v], x, sum[i]);
        }
        add_sums_of_lanes(d, sum, s.out_p + at_p);
      }
      if constexpr (kOutN) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          V sum = at(s.out_n + at_n, v * kLanes);
#pragma GCC unroll 4
          for (int i = 0; i < kSumsTogether; ++i)
            sum = hn::MulAdd(m[i][v], hn::Set(d, s.of_p[at_p + i]), sum);
          put(sum, s.out_n + at_n, v * kLanes);
        }
      }
    }
    for (int64_t r = 0; r < s.R; ++r) {
      const int64_t at_p = (t * s.R + r) * s.P + p, at_n = (t * s.R + r) * s.N + n;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const V a = at(s.a + at_n, v * kLanes);
#pragma GCC unroll 4
        for (int i = 0; i < kSumsTogether; ++i)
          m[i][v] = hn::MulAdd(hn::Set(d, s.w[at_p + i]), a, m[i][v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kSumsTogether; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) put(m[i][v], s.M + (p + i) * s.N + n, v * kLanes);
}

template <int kVectors, bool kOutP, bool kOutN>
static int64_t sweep_columns(const Sweep& s, int64_t n) {
  for (; n + kVectors * kLanes <= s.N; n += kVectors * kLanes)
    for (int64_t p = 0; p < s.P; p += kSumsTogether) sweep_tile<kVectors, kOutP, kOutN>(s, p, n);
  return n;
}

template <bool kOutP, bool kOutN>
static void sweep(const Sweep& s) {
  int64_t n = sweep_columns<kTileVectors, kOutP, kOutN>(s, 0);
  if constexpr (kTileVectors > 2) n = sweep_columns<2, kOutP, kOutN>(s, n);
  sweep_columns<1, kOutP, kOutN>(s, n);
}

}  // namespace krait::KRAIT_ISA::mamba3
