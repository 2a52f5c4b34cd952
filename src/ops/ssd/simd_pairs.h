// Private to cpu_simd.cpp: a chunk's products where x, B and C are bfloat16 and the processor multiplies pairs of them
// (AVX512_BF16): the operands of the products are rounded to bfloat16, their sums and the state from chunk to chunk
// stay float32. Pairs are neighbours in the index that is summed over, two to a word.
//
// What is done with a product's sums is done while they are in registers (`End`): a pass over memory for each step
// would take as long as the products.
#pragma once
#include "krait/ops/ssd/simd_chunk.h"

namespace krait::KRAIT_ISA::ssd_rows {

#if HWY_TARGET <= HWY_AVX3

#define KRAIT_PAIRS __attribute__((target("avx512bf16")))
#define KRAIT_PAIRS_INLINED __attribute__((target("avx512bf16"), always_inline))

// As SmallProduct, of words: k counts them. The sums go to an End.
struct PairProduct {
  int64_t m, n, k;
  const uint32_t* a;
  int64_t a_row, a_col;
  const uint32_t* b;
  int64_t b_row;
};

// A tile of sums, from row i and column j on.
template <int kRows, int kVectors>
struct Sums {
  static constexpr int64_t kHeight = kRows;
  int64_t i, j;
  __m512 at[kRows][kVectors];

  // += rows i.. of a times columns j.. of b, words [k0, k1) of what is summed over.
  KRAIT_PAIRS_INLINED void add(const PairProduct& p, int64_t k0, int64_t k1) {
    const uint32_t *a = p.a + i * p.a_row + k0 * p.a_col, *b = p.b + k0 * p.b_row + j;
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
          at[r][v] = _mm512_dpbf16_ps(at[r][v], (__m512bh)factor, (__m512bh)row[v]);
      }
    }
  }
  // sum = f(row, column, sum)
  template <class F>
  KRAIT_PAIRS_INLINED void each(const F& f) {
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) at[r][v] = f(i + r, j + v * kLanes, at[r][v]);
  }
};

// c = the sums, or c += them.
template <bool kAdd>
struct ToMatrix {
  float* c;
  int64_t c_row;
  template <class S>
  KRAIT_PAIRS_INLINED void operator()(S& sums) const {
    sums.each([&](int64_t i, int64_t j, __m512 s) KRAIT_PAIRS_INLINED {
      float* const to = c + i * c_row + j;
      if (kAdd) s = _mm512_add_ps(s, _mm512_loadu_ps(to));
      _mm512_storeu_ps(to, s);
      return s;
    });
  }
};

template <int kRows, int kVectors, class End>
KRAIT_PAIRS static void pair_tile(const PairProduct& p, int64_t i, int64_t j, int64_t k0,
                                  int64_t k1, const End& end) {
  Sums<kRows, kVectors> sums{i, j, {}};
  sums.add(p, k0, k1);
  end(sums);
}

template <int kRows, class End>
KRAIT_PAIRS static void pair_rows(const PairProduct& p, int64_t i, int64_t n, int64_t k0,
                                  int64_t k1, const End& end) {
  int64_t j = 0;
  for (; j + kTileVectors * kLanes <= n; j += kTileVectors * kLanes)
    pair_tile<kRows, kTileVectors>(p, i, j, k0, k1, end);
  for (; j + kLanes <= n; j += kLanes) pair_tile<kRows, 1>(p, i, j, k0, k1, end);
}

template <class End>
KRAIT_PAIRS static void pair_product(const PairProduct& p, const End& to,
                                     Triangle triangle = Triangle::none) {
  for (int64_t i = 0; i < p.m; i += kTileRows) {
    const int64_t rows = p.m - i < kTileRows ? p.m - i : kTileRows, end = i + rows;
    int64_t n = p.n, k0 = 0, k1 = p.k;
    if (triangle == Triangle::lower_factor) k1 = (end + 1) / 2 < k1 ? (end + 1) / 2 : k1;
    if (triangle == Triangle::upper_factor) k0 = i / 2;
    if (triangle == Triangle::lower_result) n = padded(end) < n ? padded(end) : n;
    switch (rows) {
      case 6: pair_rows<6>(p, i, n, k0, k1, to); break;
      case 5: pair_rows<5>(p, i, n, k0, k1, to); break;
      case 4: pair_rows<4>(p, i, n, k0, k1, to); break;
      case 3: pair_rows<3>(p, i, n, k0, k1, to); break;
      case 2: pair_rows<2>(p, i, n, k0, k1, to); break;
      default: pair_rows<1>(p, i, n, k0, k1, to); break;
    }
  }
}

KRAIT_PAIRS static HWY_INLINE __m256i load_halves(const uint16_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
KRAIT_PAIRS static HWY_INLINE void store_halves(__m256i halves, uint16_t* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves);
}
KRAIT_PAIRS static HWY_INLINE __m256i rounded(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
KRAIT_PAIRS static HWY_INLINE __m512 widened(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
KRAIT_PAIRS static HWY_INLINE __m512i pairs_of(__m256i first, __m256i second) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(first),
                         _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

// out[i / 2] = rows i and i + 1 of `width` floats as pairs, each row times its factor where there are factors;
// beyond the last row zeros.
KRAIT_PAIRS static void pair_up(const float* in, const float* factor, int64_t rows, int64_t width,
                                uint32_t* out) {
  const auto row = [&](int64_t i, int64_t j) KRAIT_PAIRS_INLINED {
    if (i >= rows) return _mm256_setzero_si256();
    const __m512 x = _mm512_loadu_ps(in + i * width + j);
    return rounded(factor ? _mm512_mul_ps(_mm512_set1_ps(factor[i]), x) : x);
  };
  for (int64_t i = 0; i < rows; i += 2, out += width)
    for (int64_t j = 0; j < width; j += kLanes)
      _mm512_storeu_si512(out + j, pairs_of(row(i, j), row(i + 1, j)));
}

// The same of rows of bfloat16.
KRAIT_PAIRS static void pair_up(const uint16_t* in, int64_t rows, int64_t width, uint32_t* out) {
  for (int64_t i = 0; i < rows; i += 2, in += 2 * width, out += width)
    for (int64_t j = 0; j < width; j += kLanes)
      _mm512_storeu_si512(
          out + j, pairs_of(load_halves(in + j),
                            i + 1 < rows ? load_halves(in + width + j) : _mm256_setzero_si256()));
}

// load_rows of what is bfloat16, as it is.
static void copy_rows(const ops::Rows& in, int64_t t0, int64_t rows, int64_t column,
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

KRAIT_PAIRS static void widen_rows(const uint16_t* in, int64_t rows, int64_t width, float* out) {
  for (int64_t i = 0; i < rows * width; i += kLanes)
    _mm512_storeu_ps(out + i, widened(load_halves(in + i)));
}

KRAIT_PAIRS static void round_rows(const float* in, int64_t rows, int64_t width, uint16_t* out) {
  for (int64_t i = 0; i < rows * width; i += kLanes)
    store_halves(rounded(_mm512_loadu_ps(in + i)), out + i);
}

// Rounds a state (N, width), or its gradient, to pairs of its rows and, where wanted, to rows; then multiplies
// it by `factor`. Returns the sum of its products with `other`, of bfloat16, where that is not null.
KRAIT_PAIRS static float take_state(float* S, int64_t N, int64_t width, float factor,
                                    uint32_t* pairs, uint16_t* rows, const uint16_t* other) {
  __m512 sum = _mm512_setzero_ps();
  const auto row = [&](int64_t n, int64_t j) KRAIT_PAIRS_INLINED {
    if (n >= N) return _mm256_setzero_si256();
    const int64_t at_j = n * width + j;
    const __m512 x = _mm512_loadu_ps(S + at_j);
    const __m256i halves = rounded(x);
    if (rows) store_halves(halves, rows + at_j);
    if (other) sum = _mm512_fmadd_ps(x, widened(load_halves(other + at_j)), sum);
    _mm512_storeu_ps(S + at_j, _mm512_mul_ps(_mm512_set1_ps(factor), x));
    return halves;
  };
  for (int64_t n = 0; n < N; n += 2, pairs += width)
    for (int64_t j = 0; j < width; j += kLanes)
      _mm512_storeu_si512(pairs + j, pairs_of(row(n, j), row(n + 1, j)));
  return _mm512_reduce_add_ps(sum);
}

// Columns of words of `rows` rows, as transpose().
static void transpose_words(const uint32_t* in, int64_t in_row, int64_t rows, int64_t columns,
                            uint32_t* out) {
  transpose(reinterpret_cast<const float*>(in), in_row, rows, columns,
            reinterpret_cast<float*>(out), kChunk, padded(rows));
}

// scores as in score(), as rows of kChunk bfloat16.
KRAIT_PAIRS static void score_pairs(const float* CB, const float* decay, int64_t rows,
                                    float* decays, uint16_t* scores) {
  zero_floats(decays, kChunk);
  for (int64_t i = 0; i < rows; ++i, CB += kChunk, scores += kChunk) {
    next_decays(decay[i], i, decays);
    for (int64_t j = 0; j < padded(rows); j += kLanes)
      store_halves(
          rounded(j <= i ? _mm512_mul_ps(_mm512_loadu_ps(CB + j), _mm512_loadu_ps(decays + j))
                         : _mm512_setzero_ps()),
          scores + j);
  }
}

static uint32_t* take_words(Area& area, int64_t n) {
  return reinterpret_cast<uint32_t*>(area.take(n));
}
static uint16_t* halves(uint32_t* words) { return reinterpret_cast<uint16_t*>(words); }

constexpr int64_t kHalf = kChunk / 2;  // words of a chunk's tokens

// B and C of a chunk.
struct PairChunk {
  int64_t Np, N2;
  uint32_t *B, *C,  // rows of N
      *BT,          // (N2, tokens)
      *B_pairs;     // (tokens / 2, N)

  PairChunk(const ssd::Piece& p, Area& area)
      : Np(padded(p.N)),
        N2((p.N + 1) / 2),
        B(take_words(area, kHalf * Np)),
        C(take_words(area, kHalf * Np)),
        BT(take_words(area, N2 * kChunk)),
        B_pairs(take_words(area, kHalf * Np)) {}

  // Takes `rows` tokens from t on; CB = C Bᵀ, its lower half.
  void begin(const ssd::Piece& p, int64_t t, int64_t rows, float* CB) {
    copy_rows(p.B, t, rows, 0, p.N, halves(B));
    copy_rows(p.C, t, rows, 0, p.N, halves(C));
    transpose_words(B, Np / 2, rows, N2, BT);
    pair_up(halves(B), rows, Np, B_pairs);
    pair_product({rows, padded(rows), N2, C, Np / 2, 1, BT, kChunk}, ToMatrix<false>{CB, kChunk},
                 Triangle::lower_result);
  }
};

// y = prefix ∘ the sums + scores Δx + D x
struct ToY {
  const float *prefix, *skip, *x;
  PairProduct tokens;
  float* y;
  int64_t y_row;
  template <class S>
  KRAIT_PAIRS_INLINED void operator()(S& sums) const {
    sums.each([&](int64_t i, int64_t, __m512 s)
                  KRAIT_PAIRS_INLINED { return _mm512_mul_ps(_mm512_set1_ps(prefix[i]), s); });
    const int64_t end = (sums.i + S::kHeight + 1) / 2;
    sums.add(tokens, 0, end < tokens.k ? end : tokens.k);
    sums.each([&](int64_t i, int64_t j, __m512 s) KRAIT_PAIRS_INLINED {
      s = _mm512_fmadd_ps(_mm512_loadu_ps(skip + j), _mm512_loadu_ps(x + i * y_row + j), s);
      _mm512_storeu_ps(y + i * y_row + j, s);
      return s;
    });
  }
};

// As FloatProducts of cpu_simd.cpp.
class PairProducts {
 public:
  using State = uint16_t;

  PairProducts(const ssd::Piece& p, Area& area)
      : p_(p),
        chunk_(p, area),
        scores_(take_words(area, kChunk * kHalf)),
        x_pairs_(take_words(area, kHalf * Pp_)),
        S_pairs_(take_words(area, chunk_.N2 * Pp_)),
        decays_(area.take(kChunk)) {}

  void begin(int64_t t, int64_t rows, float* CB) { chunk_.begin(p_, t, rows, CB); }
  void take(float decay, float* S, uint16_t* kept) {
    take_state(S, p_.N, Pp_, decay, S_pairs_, kept, nullptr);
  }
  void make_y(int64_t rows, bool has_state, const float* CB, const Times& times, const float* skip,
              const float* x, const float* /*S*/, float* y) {
    score_pairs(CB, times.decay, rows, decays_, halves(scores_));
    pair_up(x, times.delta, rows, Pp_, x_pairs_);
    const PairProduct tokens{rows, Pp_, (rows + 1) / 2, scores_, kHalf, 1, x_pairs_, Pp_};
    pair_product({rows, Pp_, has_state ? chunk_.N2 : 0, chunk_.C, chunk_.Np / 2, 1, S_pairs_, Pp_},
                 ToY{times.prefix, skip, x, tokens, y, Pp_});
  }
  void write_state(int64_t rows, const Times& times, const float* x, bool add, float* S) {
    pair_up(x, times.arriving, rows, Pp_, x_pairs_);
    const PairProduct p{p_.N, Pp_, (rows + 1) / 2, chunk_.B_pairs, 1, chunk_.Np, x_pairs_, Pp_};
    add ? pair_product(p, ToMatrix<true>{S, Pp_}) : pair_product(p, ToMatrix<false>{S, Pp_});
  }

 private:
  const ssd::Piece& p_;
  const int64_t Pp_ = padded(p_.P);
  PairChunk chunk_;
  uint32_t *scores_, *x_pairs_, *S_pairs_;
  float* decays_;
};

#endif

}  // namespace krait::KRAIT_ISA::ssd_rows
