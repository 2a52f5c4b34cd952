// Tiles of attention: products of small matrices that lie in the first two caches, and moving rows in and
// out of them. Only for cpu_simd.cpp files.
#pragma once
#include "krait/ops/attention/kernels.h"
#include "krait/ops/simd_math.h"

namespace krait::KRAIT_ISA {

constexpr int64_t kTileLanes = hn::MaxLanes(Lanes());
// Vectors of a row of the result that are summed at once: 64 columns where there are 32 registers, else 16.
constexpr int kTileVectors = HWY_MAX_BYTES == 64 ? 4 : static_cast<int>(16 / kTileLanes);
constexpr int kTileRows = HWY_MAX_BYTES == 64 ? 6 : 4;

// A matrix of float32 by its element (0, 0) and two distances.
struct Operand {
  const float* data;
  int64_t row, column;
};

// With `add` the sum is made first: added to what stands there one by one, thousands of terms would be less exact.
template <int R, int V>
HWY_INLINE void product_block(int64_t K, Operand a, const float* b, int64_t b_row, float* c,
                              int64_t c_row, bool add) {
  const Lanes d;
  Vec<Lanes> sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = hn::Zero(d);
  for (int64_t k = 0; k < K; ++k) {
    Vec<Lanes> bk[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) bk[v] = hn::LoadU(d, b + k * b_row + v * kTileLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto ak = hn::Set(d, a.data[r * a.row + k * a.column]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = hn::MulAdd(ak, bk[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* const to = c + r * c_row + v * kTileLanes;
      hn::StoreU(add ? hn::Add(hn::LoadU(d, to), sum[r][v]) : sum[r][v], d, to);
    }
}

template <int V>
HWY_INLINE void product_columns(int64_t M, int64_t K, Operand a, const float* b, int64_t b_row,
                                float* c, int64_t c_row, bool add) {
  int64_t m = 0;
  for (; m + kTileRows <= M; m += kTileRows)
    product_block<kTileRows, V>(K, {a.data + m * a.row, a.row, a.column}, b, b_row, c + m * c_row,
                                c_row, add);
  for (; m + 2 <= M; m += 2)
    product_block<2, V>(K, {a.data + m * a.row, a.row, a.column}, b, b_row, c + m * c_row, c_row,
                        add);
  if (m < M)
    product_block<1, V>(K, {a.data + m * a.row, a.row, a.column}, b, b_row, c + m * c_row, c_row,
                        add);
}

// C (M, N) = A (M, K) · B (K, N), or C += with `add`; rows of B and C dense, N a multiple of 16. Each element
// is one sum in the order of k.
HWY_INLINE void product(int64_t M, int64_t N, int64_t K, Operand a, const float* b, int64_t b_row,
                        float* c, int64_t c_row, bool add) {
  constexpr int64_t kWide = kTileVectors * kTileLanes;
  int64_t n = 0;
  for (; n + kWide <= N; n += kWide)
    product_columns<kTileVectors>(M, K, a, b + n, b_row, c + n, c_row, add);
  if constexpr (kWide > 16) {
    for (; n < N; n += 16)
      product_columns<static_cast<int>(16 / kTileLanes)>(M, K, a, b + n, b_row, c + n, c_row, add);
  }
}

// to (n, padded) = scale · from (n, P), zeros behind each row.
template <class T>
HWY_INLINE void load_rows(const T* from, int64_t from_row, int64_t n, int64_t P, int64_t padded,
                          float scale, float* to) {
  for (int64_t i = 0; i < n; ++i) {
    for_lanes(0, P, [&](auto d, int64_t p) HWY_ATTR {
      hn::StoreU(hn::Mul(load(d, from + i * from_row + p), hn::Set(d, scale)), d,
                 to + i * padded + p);
    });
    for (int64_t p = P; p < padded; ++p) to[i * padded + p] = 0;
  }
}

// to (P, kAttentionKeys) = from (n, P) transposed, zeros in the columns from n on.
template <class T>
HWY_INLINE void load_columns(const T* from, int64_t from_row, int64_t n, int64_t P, float* to) {
  constexpr int64_t kBlock = 16;  // columns of a cache line of `to`
  for (int64_t i0 = 0; i0 < kAttentionKeys; i0 += kBlock) {
    for (int64_t p = 0; p < P; ++p) {
      float* line = to + p * kAttentionKeys + i0;
      for (int64_t i = 0; i < kBlock; ++i)
        line[i] = i0 + i < n ? static_cast<float>(from[(i0 + i) * from_row + p]) : 0.0f;
    }
  }
}

// to (P) = scale · from, or += with `add`; rounded once.
template <class T>
HWY_INLINE void store_row(const float* from, int64_t P, float scale, bool add, T* to) {
  for_lanes(0, P, [&](auto d, int64_t p) HWY_ATTR {
    auto v = hn::Mul(hn::LoadU(d, from + p), hn::Set(d, scale));
    if (add) v = hn::Add(v, load(d, to + p));
    store(d, v, to + p);
  });
}

// One sum in the order of `product`: of a row of it, the same bits.
HWY_INLINE float dot(const float* a, const float* b, int64_t n) {
  const OneLane d;
  auto sum = hn::Zero(d);
  for (int64_t i = 0; i < n; ++i) sum = hn::MulAdd(hn::Set(d, a[i]), hn::Set(d, b[i]), sum);
  return hn::GetLane(sum);
}

HWY_INLINE float exp_of(float x) { return hn::GetLane(Exp(OneLane(), hn::Set(OneLane(), x))); }

}  // namespace krait::KRAIT_ISA
