// Private to cpu_simd.cpp: a chunk's products where x, B and C are bfloat16 and the processor multiplies pairs of them
// (AVX512_BF16): the operands of the products are rounded to bfloat16, their sums and the state from chunk to chunk
// stay float32. Pairs are neighbours in the index that is summed over, two to a word.
#pragma once
#include "krait/ops/ssd/simd_chunk.h"

namespace krait::KRAIT_ISA::ssd_rows {

#if HWY_TARGET <= HWY_AVX3

#define KRAIT_PAIRS __attribute__((target("avx512bf16")))

static bool multiplies_pairs(const ssd::Piece& p) {
  return p.x.bf16 && p.B.bf16 && p.C.bf16 && __builtin_cpu_supports("avx512bf16");
}

// As SmallProduct, of words: k counts them.
struct PairProduct {
  int64_t m, n, k;
  const uint32_t* a;
  int64_t a_row, a_col;
  const uint32_t* b;
  int64_t b_row;
  float* c;
  int64_t c_row;
  bool add;
};

template <int kRows, int kVectors>
KRAIT_PAIRS static void pair_tile(const PairProduct& p, int64_t i, int64_t j, int64_t k0,
                                  int64_t k1) {
  const uint32_t *a = p.a + i * p.a_row + k0 * p.a_col, *b = p.b + k0 * p.b_row + j;
  float* const c = p.c + i * p.c_row + j;
  __m512 sum[kRows][kVectors];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = p.add ? _mm512_loadu_ps(c + r * p.c_row + v * kLanes) : _mm512_setzero_ps();
  const int64_t a_row = p.a_row, a_col = p.a_col, b_row = p.b_row;
  for (int64_t k = k0; k < k1; ++k, a += a_col, b += b_row) {
    __m512i row[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) row[v] = _mm512_loadu_si512(b + v * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m512i factor = _mm512_set1_epi32(static_cast<int>(a[r * a_row]));
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        sum[r][v] = _mm512_dpbf16_ps(sum[r][v], (__m512bh)factor, (__m512bh)row[v]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(c + r * p.c_row + v * kLanes, sum[r][v]);
}

template <int kRows>
KRAIT_PAIRS static void pair_rows(const PairProduct& p, int64_t i, int64_t n, int64_t k0,
                                  int64_t k1) {
  int64_t j = 0;
  for (; j + kTileVectors * kLanes <= n; j += kTileVectors * kLanes)
    pair_tile<kRows, kTileVectors>(p, i, j, k0, k1);
  for (; j + kLanes <= n; j += kLanes) pair_tile<kRows, 1>(p, i, j, k0, k1);
}

KRAIT_PAIRS static void pair_product(const PairProduct& p, Triangle triangle = Triangle::none) {
  for (int64_t i = 0; i < p.m; i += kTileRows) {
    const int64_t rows = p.m - i < kTileRows ? p.m - i : kTileRows, end = i + rows;
    int64_t n = p.n, k0 = 0, k1 = p.k;
    if (triangle == Triangle::lower_factor) k1 = (end + 1) / 2 < k1 ? (end + 1) / 2 : k1;
    if (triangle == Triangle::upper_factor) k0 = i / 2;
    if (triangle == Triangle::lower_result) n = padded(end) < n ? padded(end) : n;
    switch (rows) {
      case 6: pair_rows<6>(p, i, n, k0, k1); break;
      case 5: pair_rows<5>(p, i, n, k0, k1); break;
      case 4: pair_rows<4>(p, i, n, k0, k1); break;
      case 3: pair_rows<3>(p, i, n, k0, k1); break;
      case 2: pair_rows<2>(p, i, n, k0, k1); break;
      default: pair_rows<1>(p, i, n, k0, k1); break;
    }
  }
}

KRAIT_PAIRS static HWY_INLINE __m512i rounded(const float* p) {  // 16 words, the upper halves zero
  return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(p)));
}

// out[i / 2] = rows i and i + 1 of `width` floats as pairs; beyond the last row zeros.
KRAIT_PAIRS static void pair_up(const float* in, int64_t rows, int64_t width, uint32_t* out) {
  for (int64_t i = 0; i < rows; i += 2, in += 2 * width, out += width)
    for (int64_t j = 0; j < width; j += kLanes) {
      const __m512i upper = i + 1 < rows ? rounded(in + width + j) : _mm512_setzero_si512();
      _mm512_storeu_si512(out + j, _mm512_or_si512(rounded(in + j), _mm512_slli_epi32(upper, 16)));
    }
}

// load_rows of what is bfloat16, as it is.
static void copy_rows(const ssd::Rows& in, int64_t t0, int64_t rows, int64_t column,
                      int64_t columns, uint16_t* out) {
  const int64_t width = padded(columns);
  if (!in.data) {
    __builtin_memset(out, 0, static_cast<size_t>(rows * width) * 2);
    return;
  }
  const auto* from = static_cast<const uint16_t*>(in.data) + t0 * in.stride + column;
  for (int64_t i = 0; i < rows; ++i, from += in.stride, out += width) {
    __builtin_memcpy(out, from, static_cast<size_t>(columns) * 2);
    __builtin_memset(out + columns, 0, static_cast<size_t>(width - columns) * 2);
  }
}

// Rows of `width` floats, rounded.
KRAIT_PAIRS static void round_rows(const float* in, int64_t rows, int64_t width, uint16_t* out) {
  for (int64_t i = 0; i < rows * width; i += kLanes)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i),
                        (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(in + i)));
}

// Columns of words of `rows` rows, as transpose().
static void transpose_words(const uint32_t* in, int64_t in_row, int64_t rows, int64_t columns,
                            uint32_t* out) {
  transpose(reinterpret_cast<const float*>(in), in_row, rows, columns,
            reinterpret_cast<float*>(out), kChunk, padded(rows));
}

// out[i / 2] = rows i and i + 1 of `width` bfloat16 as pairs.
static void pair_up(const uint16_t* in, int64_t rows, int64_t width, uint32_t* out) {
  for (int64_t i = 0; i < rows; i += 2, in += 2 * width, out += width)
    for (int64_t j = 0; j < width; ++j)
      out[j] = in[j] | (i + 1 < rows ? uint32_t{in[width + j]} << 16 : 0u);
}

// scores as in score(), as rows of kChunk bfloat16.
KRAIT_PAIRS static void score_pairs(const float* CB, const float* decay, int64_t rows,
                                    float* decays, uint16_t* scores) {
  zero_floats(decays, kChunk);
  for (int64_t i = 0; i < rows; ++i, CB += kChunk, scores += kChunk) {
    next_decays(decay[i], i, decays);
    for (int64_t j = 0; j < padded(rows); j += kLanes) {
      const __m512 s = j <= i ? _mm512_mul_ps(_mm512_loadu_ps(CB + j), _mm512_loadu_ps(decays + j))
                              : _mm512_setzero_ps();
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(scores + j), (__m256i)_mm512_cvtneps_pbh(s));
    }
  }
}

static uint32_t* take_words(Area& area, int64_t n) {
  return reinterpret_cast<uint32_t*>(area.take(n));
}
static uint16_t* halves(uint32_t* words) { return reinterpret_cast<uint16_t*>(words); }

// As FloatProducts of cpu_simd.cpp.
class PairProducts {
 public:
  PairProducts(const ssd::Piece& p, Area& area)
      : p_(p),
        B_(take_words(area, kHalf * Np_)),
        C_(take_words(area, kHalf * Np_)),
        BT_(take_words(area, N2_ * kChunk)),
        B_pairs_(take_words(area, kHalf * Np_)),
        scores_(take_words(area, kChunk * kHalf)),
        x_pairs_(take_words(area, kHalf * Pp_)),
        S_pairs_(take_words(area, N2_ * Pp_)) {}

  void begin(int64_t t, int64_t rows, float* CB) {
    copy_rows(p_.B, t, rows, 0, p_.N, halves(B_));
    copy_rows(p_.C, t, rows, 0, p_.N, halves(C_));
    transpose_words(B_, Np_ / 2, rows, N2_, BT_);
    pair_up(halves(B_), rows, Np_, B_pairs_);
    pair_product({rows, padded(rows), N2_, C_, Np_ / 2, 1, BT_, kChunk, CB, kChunk, false},
                 Triangle::lower_result);
  }
  void read_state(int64_t rows, const float* S, float* y) {
    pair_up(S, p_.N, Pp_, S_pairs_);
    pair_product({rows, Pp_, N2_, C_, Np_ / 2, 1, S_pairs_, Pp_, y, Pp_, false});
  }
  void add_tokens(int64_t rows, const float* CB, const float* decay, float* decays, const float* dx,
                  float* y) {
    score_pairs(CB, decay, rows, decays, halves(scores_));
    pair_up(dx, rows, Pp_, x_pairs_);
    pair_product({rows, Pp_, (rows + 1) / 2, scores_, kHalf, 1, x_pairs_, Pp_, y, Pp_, true},
                 Triangle::lower_factor);
  }
  void write_state(int64_t rows, const float* dx, bool add, float* S) {
    pair_up(dx, rows, Pp_, x_pairs_);
    pair_product({p_.N, Pp_, (rows + 1) / 2, B_pairs_, 1, Np_, x_pairs_, Pp_, S, Pp_, add});
  }

 private:
  static constexpr int64_t kHalf = kChunk / 2;  // words of a chunk's tokens
  const ssd::Piece& p_;
  const int64_t Pp_ = padded(p_.P), Np_ = padded(p_.N), N2_ = (p_.N + 1) / 2;
  uint32_t *B_, *C_,  // rows of N
      *BT_,           // (N2, tokens)
      *B_pairs_,      // (tokens / 2, N)
      *scores_, *x_pairs_, *S_pairs_;
};

#endif

}  // namespace krait::KRAIT_ISA::ssd_rows
