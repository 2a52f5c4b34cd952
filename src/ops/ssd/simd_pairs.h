// Private to cpu_simd.cpp: ssd in chunks where x, B and C are bfloat16 and the processor multiplies pairs of them
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
KRAIT_PAIRS static void pair_tile(const PairProduct& p, int64_t i, int64_t j, int64_t k1) {
  const uint32_t *a = p.a + i * p.a_row, *b = p.b + j;
  float* const c = p.c + i * p.c_row + j;
  __m512 sum[kRows][kVectors];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = p.add ? _mm512_loadu_ps(c + r * p.c_row + v * kLanes) : _mm512_setzero_ps();
  const int64_t a_row = p.a_row, a_col = p.a_col, b_row = p.b_row;
  for (int64_t k = 0; k < k1; ++k, a += a_col, b += b_row) {
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
KRAIT_PAIRS static void pair_rows(const PairProduct& p, int64_t i, int64_t n, int64_t k1) {
  int64_t j = 0;
  for (; j + kTileVectors * kLanes <= n; j += kTileVectors * kLanes)
    pair_tile<kRows, kTileVectors>(p, i, j, k1);
  for (; j + kLanes <= n; j += kLanes) pair_tile<kRows, 1>(p, i, j, k1);
}

KRAIT_PAIRS static void pair_product(const PairProduct& p, Triangle triangle = Triangle::none) {
  for (int64_t i = 0; i < p.m; i += kTileRows) {
    const int64_t rows = p.m - i < kTileRows ? p.m - i : kTileRows, end = i + rows;
    int64_t n = p.n, k1 = p.k;
    if (triangle == Triangle::lower_factor) k1 = (end + 1) / 2 < k1 ? (end + 1) / 2 : k1;
    if (triangle == Triangle::lower_result) n = padded(end) < n ? padded(end) : n;
    switch (rows) {
      case 6: pair_rows<6>(p, i, n, k1); break;
      case 5: pair_rows<5>(p, i, n, k1); break;
      case 4: pair_rows<4>(p, i, n, k1); break;
      case 3: pair_rows<3>(p, i, n, k1); break;
      case 2: pair_rows<2>(p, i, n, k1); break;
      default: pair_rows<1>(p, i, n, k1); break;
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

// Rows of B or C as they are, N values each, zeros behind them up to padded(N).
static void copy_rows(const ssd::Rows& in, int64_t t0, int64_t rows, int64_t N, uint16_t* out) {
  const auto* from = static_cast<const uint16_t*>(in.data) + t0 * in.stride;
  for (int64_t i = 0; i < rows; ++i, from += in.stride, out += padded(N)) {
    __builtin_memcpy(out, from, static_cast<size_t>(N) * 2);
    __builtin_memset(out + N, 0, static_cast<size_t>(padded(N) - N) * 2);
  }
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

static void chunked_pairs(const ssd::Forward& w) {
  const ssd::Piece& p = w.piece;
  const int64_t P = p.P, N = p.N, Pp = padded(P), Np = padded(N), PN = P * N;
  const int64_t N2 = (N + 1) / 2, half = kChunk / 2;  // words
  Area area{w.scratch};
  float* const states = area.take(ssd::kHeadSet * N * Pp);  // (heads, N, Pp)
  float *CB = area.take(kChunk * kChunk), *decays = area.take(kChunk);
  float *x = area.take(kChunk * Pp), *dx = area.take(kChunk * Pp), *y = area.take(kChunk * Pp);
  float* const skip = area.take(Pp);
  const Times times = take_times(area);
  uint32_t *B = take_words(area, half * Np),
           *C = take_words(area, half * Np),              // rows of N
               *BT = take_words(area, N2 * kChunk);       // (N2, tokens)
  uint32_t* const B_pairs = take_words(area, half * Np);  // (tokens / 2, N)
  uint32_t *scores = take_words(area, kChunk * half), *x_pairs = take_words(area, half * Pp),
           *S_pairs = take_words(area, N2 * Pp);
  if (p.state_in)
    for (int64_t h = 0; h < p.heads; ++h)
      transpose(p.state_in + h * PN, N, P, N, states + h * N * Pp, Pp, Pp);
  bool has_state = p.state_in;
  for (int64_t t = 0; t < p.tokens; t += kChunk) {
    const int64_t rows = p.tokens - t < kChunk ? p.tokens - t : kChunk, rows2 = (rows + 1) / 2;
    const bool last = t + rows == p.tokens;
    copy_rows(p.B, t, rows, N, halves(B));
    copy_rows(p.C, t, rows, N, halves(C));
    transpose(reinterpret_cast<const float*>(B), Np / 2, rows, N2, reinterpret_cast<float*>(BT),
              kChunk, padded(rows));
    pair_up(halves(B), rows, Np, B_pairs);
    pair_product({rows, padded(rows), N2, C, Np / 2, 1, BT, kChunk, CB, kChunk, false},
                 Triangle::lower_result);
    for (int64_t h = 0; h < p.heads; ++h) {
      float* const S = states + h * N * Pp;
      load_times(p, h, t, rows, times);
      load_skip(p, h, skip);
      load_rows(p.x, t, rows, h * P, P, x);
      if (h + 1 < p.heads) prefetch_rows(p.x, t, rows, (h + 1) * P, P);
      scale_rows(x, times.delta, rows, Pp, dx);
      if (has_state) {
        pair_up(S, N, Pp, S_pairs);
        pair_product({rows, Pp, N2, C, Np / 2, 1, S_pairs, Pp, y, Pp, false});
      }
      pass_through(times, skip, x, rows, Pp, has_state, y);
      score_pairs(CB, times.decay, rows, decays, halves(scores));
      pair_up(dx, rows, Pp, x_pairs);
      pair_product({rows, Pp, rows2, scores, half, 1, x_pairs, Pp, y, Pp, true},
                   Triangle::lower_factor);
      store_rows(w.y, t, rows, h * P, P, y);
      if (last && !w.state_out) continue;
      scale_rows(dx, times.suffix, rows, Pp, dx);
      pair_up(dx, rows, Pp, x_pairs);
      if (has_state) scale(times.prefix[rows - 1], N * Pp, S);
      pair_product({N, Pp, rows2, B_pairs, 1, Np, x_pairs, Pp, S, Pp, has_state});
      if (!last && w.saved)
        copy_floats(S, N * Pp, w.saved + t / kChunk * w.saved_stride + h * N * Pp);
      if (last && w.state_out) transpose(S, Pp, N, P, w.state_out + h * PN, N, N);
    }
    has_state = true;
  }
}

#undef KRAIT_PAIRS

#else
static bool multiplies_pairs(const ssd::Piece&) { return false; }
static void chunked_pairs(const ssd::Forward&) {}
#endif

}  // namespace krait::KRAIT_ISA::ssd_rows
