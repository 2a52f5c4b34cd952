// Small matrix products out of the caches, for cpu_simd.cpp files: one thread, float32, no packing. For the
// products inside an op; large ones are krait/tensor/products.h.
#pragma once
#include <hwy/highway.h>

#include <cstdint>

#include "krait/ops/simd_math.h"

namespace krait::KRAIT_ISA {

using ProductTag = hn::CappedTag<float, 16>;
constexpr int kProductLanes = static_cast<int>(hn::MaxLanes(ProductTag()));

// Which part of a product is nonzero or wanted. The last rows of a tile may see, or write, a few elements
// beyond the diagonal: those of a triangular factor must be zero there.
enum class Triangle {
  none,
  lower_factor,  // a[i, k] = 0 for k > i
  upper_factor,  // a[i, k] = 0 for k < i
  lower_result,  // c[i, j] is wanted for j <= i only
};

// c (m, n) = a (m, k) b (k, n), or += with `add`. Element (i, l) of a stands at a[i a_row + l a_col]; rows
// of b and c are dense; n is a multiple of 16, and everything up to it is computed.
struct SmallProduct {
  int64_t m, n, k;
  const float* a;
  int64_t a_row, a_col;
  const float* b;
  int64_t b_row;
  float* c;
  int64_t c_row;
  bool add;
};

// Rows [i, i + kRows), columns [j, j + kVectors vectors), a's columns [k0, k1): the sums stay in registers. With `add`
// they are made first: added to what stands there one by one, thousands of terms would be less exact.
template <int kRows, int kVectors>
static void product_tile(const SmallProduct& p, int64_t i, int64_t j, int64_t k0, int64_t k1) {
  const ProductTag d;
  using V = Vec<ProductTag>;
  const float* a = p.a + i * p.a_row + k0 * p.a_col;
  const float* b = p.b + k0 * p.b_row + j;
  float* c = p.c + i * p.c_row + j;
  V sum[kRows][kVectors];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::Zero(d);
  const int64_t a_row = p.a_row, a_col = p.a_col, b_row = p.b_row;
  for (int64_t k = k0; k < k1; ++k, a += a_col, b += b_row) {
    V row[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) row[v] = hn::LoadU(d, b + v * kProductLanes);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const V factor = hn::Set(d, a[r * a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(factor, row[v], sum[r][v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* const to = c + r * p.c_row + v * kProductLanes;
      hn::StoreU(p.add ? hn::Add(hn::LoadU(d, to), sum[r][v]) : sum[r][v], d, to);
    }
}

// As many sums as leave room for a row of b and a factor: 24 of 32 registers, or 12 of 16.
constexpr int kTileRows = 6;
#if HWY_TARGET <= HWY_AVX3
constexpr int kTileVectors = 4;
#else
constexpr int kTileVectors = 2;
#endif

template <int kRows>
static void product_rows(const SmallProduct& p, int64_t i, int64_t n, int64_t k0, int64_t k1) {
  int64_t j = 0;
  for (; j + kTileVectors * kProductLanes <= n; j += kTileVectors * kProductLanes)
    product_tile<kRows, kTileVectors>(p, i, j, k0, k1);
  for (; j + kProductLanes <= n; j += kProductLanes) product_tile<kRows, 1>(p, i, j, k0, k1);
}

static void small_product(const SmallProduct& p, Triangle triangle = Triangle::none) {
  for (int64_t i = 0; i < p.m; i += kTileRows) {
    const int64_t rows = p.m - i < kTileRows ? p.m - i : kTileRows, end = i + rows;
    int64_t n = p.n, k0 = 0, k1 = p.k;
    if (triangle == Triangle::lower_factor) k1 = end < k1 ? end : k1;
    if (triangle == Triangle::upper_factor) k0 = i;
    if (triangle == Triangle::lower_result) n = (end + 15) / 16 * 16 < n ? (end + 15) / 16 * 16 : n;
    switch (rows) {
      case 6: product_rows<6>(p, i, n, k0, k1); break;
      case 5: product_rows<5>(p, i, n, k0, k1); break;
      case 4: product_rows<4>(p, i, n, k0, k1); break;
      case 3: product_rows<3>(p, i, n, k0, k1); break;
      case 2: product_rows<2>(p, i, n, k0, k1); break;
      default: product_rows<1>(p, i, n, k0, k1); break;
    }
  }
}

}  // namespace krait::KRAIT_ISA
