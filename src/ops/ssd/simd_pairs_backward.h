// Private to cpu_simd.cpp: the products of simd_backward.h of bfloat16 pairs. x, g, B and C are multiplied as they are;
// what is rounded are the states, their gradients, the scores and their gradients, and prefix ∘ g.
#pragma once
#include "krait/ops/ssd/simd_backward.h"
#include "krait/ops/ssd/simd_pairs.h"

namespace krait::KRAIT_ISA::ssd_rows {

#if HWY_TARGET <= HWY_AVX3

// dX = suffix ∘ the sums + scoresᵀ g; to_state += Δ times the rows' products of x and the first of these.
struct ToDX {
  const BackwardArea& a;
  PairProduct tokens;
  int64_t row;
  template <class S>
  KRAIT_PAIRS_INLINED void operator()(S& sums) const {
    __m512 products[S::kHeight] = {};
    sums.each([&](int64_t i, int64_t j, __m512 s) KRAIT_PAIRS_INLINED {
      s = _mm512_mul_ps(_mm512_set1_ps(a.times.suffix[i]), s);
      __m512& product = products[i - sums.i];
      product = _mm512_fmadd_ps(s, _mm512_loadu_ps(a.x + i * row + j), product);
      return s;
    });
    for (int64_t r = 0; r < S::kHeight; ++r)
      a.to_state[sums.i + r] += a.times.delta[sums.i + r] * _mm512_reduce_add_ps(products[r]);
    sums.add(tokens, sums.i / 2, tokens.k);
    sums.each([&](int64_t i, int64_t j, __m512 s) KRAIT_PAIRS_INLINED {
      _mm512_storeu_ps(a.dX + i * row + j, s);
      return s;
    });
  }
};

// dBT += the sums ∘ arriving
struct ToDB {
  const BackwardArea& a;
  template <class S>
  KRAIT_PAIRS_INLINED void operator()(S& sums) const {
    sums.each([&](int64_t i, int64_t j, __m512 s) KRAIT_PAIRS_INLINED {
      float* const to = a.dBT + i * kChunk + j;
      _mm512_storeu_ps(
          to, _mm512_fmadd_ps(_mm512_loadu_ps(a.times.arriving + j), s, _mm512_loadu_ps(to)));
      return s;
    });
  }
};

// dCT += the sums ∘ prefix; from_state += CT times that, summed over its rows.
struct ToDC {
  const BackwardArea& a;
  template <class S>
  KRAIT_PAIRS_INLINED void operator()(S& sums) const {
    sums.each([&](int64_t i, int64_t j, __m512 s) KRAIT_PAIRS_INLINED {
      float *const to = a.dCT + i * kChunk + j, *const sum = a.from_state + j;
      s = _mm512_mul_ps(_mm512_loadu_ps(a.times.prefix + j), s);
      _mm512_storeu_ps(to, _mm512_add_ps(s, _mm512_loadu_ps(to)));
      _mm512_storeu_ps(
          sum, _mm512_fmadd_ps(_mm512_loadu_ps(a.CT + i * kChunk + j), s, _mm512_loadu_ps(sum)));
      return s;
    });
  }
};

// As FloatGradients.
class PairGradients {
 public:
  using State = uint16_t;

  PairGradients(const ssd::Backward& w, const BackwardArea& a) : w_(w), a_(a), area_(a.rest) {
    C_pairs_ = take_words(area_, kHalf * Np_);
    for (uint32_t** rows_P : {&x_, &g_, &g_pairs_, &scaled_pairs_})
      *rows_P = take_words(area_, kHalf * Pp_);
    for (uint32_t** P_at : {&xT_, &gT_}) *P_at = take_words(area_, P2_ * kChunk);
    scores_ = take_words(area_, kHalf * kChunk);
    dS_pairs_ = take_words(area_, chunk_.N2 * Pp_);
    for (uint32_t** state : {&dS_, &first_}) *state = take_words(area_, p_.N * Pp_ / 2);
  }

  void begin(int64_t t, int64_t rows) {
    chunk_.begin(p_, t, rows, a_.CB);
    pair_up(halves(chunk_.C), rows, Np_, C_pairs_);
    widen_rows(halves(chunk_.C), rows, Np_, a_.rows_N);
    transpose(a_.rows_N, Np_, rows, p_.N, a_.CT, kChunk, padded(rows));
  }
  void begin_head(int64_t head, int64_t t, int64_t rows) {
    copy_rows(p_.x, t, rows, head * p_.P, p_.P, halves(x_));
    copy_rows(w_.dy, t, rows, head * p_.P, p_.P, halves(g_));
    widen_rows(halves(x_), rows, Pp_, a_.x);
    widen_rows(halves(g_), rows, Pp_, a_.g);
    transpose_words(x_, Pp_ / 2, rows, P2_, xT_);
    transpose_words(g_, Pp_ / 2, rows, P2_, gT_);
    pair_up(halves(g_), rows, Pp_, g_pairs_);
    pair_product({rows, padded(rows), P2_, g_, Pp_ / 2, 1, xT_, kChunk},
                 ToMatrix<false>{a_.pairs, kChunk}, Triangle::lower_result);
  }
  const uint16_t* first(const float* S) {
    round_rows(S, p_.N, Pp_, halves(first_));
    return halves(first_);
  }
  float take(int64_t rows, float* dS, const uint16_t* S) {
    return take_state(dS, p_.N, Pp_, a_.times.prefix[rows - 1], dS_pairs_, halves(dS_), S);
  }
  void make_dX(int64_t rows, const float* /*dS*/, bool has_dS) {
    pair_up(a_.scores, nullptr, rows, kChunk, scores_);
    const PairProduct tokens{rows, Pp_, (rows + 1) / 2, scores_, 1, kChunk, g_pairs_, Pp_};
    pair_product({rows, Pp_, has_dS ? chunk_.N2 : 0, chunk_.B, Np_ / 2, 1, dS_pairs_, Pp_},
                 ToDX{a_, tokens, Pp_});
  }
  void add_dB(int64_t rows, const float* /*dS*/) {
    pair_product({p_.N, padded(rows), P2_, dS_, Pp_ / 2, 1, xT_, kChunk}, ToDB{a_});
  }
  void add_dC(int64_t rows, const uint16_t* S) {
    const auto* const words = reinterpret_cast<const uint32_t*>(S);
    pair_product({p_.N, padded(rows), P2_, words, Pp_ / 2, 1, gT_, kChunk}, ToDC{a_});
  }
  void write_dS(int64_t rows, bool has_dS, float* dS) {
    pair_up(a_.g, a_.times.prefix, rows, Pp_, scaled_pairs_);
    const PairProduct p{p_.N, Pp_, (rows + 1) / 2, C_pairs_, 1, Np_, scaled_pairs_, Pp_};
    has_dS ? pair_product(p, ToMatrix<true>{dS, Pp_}) : pair_product(p, ToMatrix<false>{dS, Pp_});
  }
  void add_to_dC(int64_t rows) {
    round_rows(a_.CB_grad, rows, kChunk, halves(scores_));
    pair_product({rows, Np_, (rows + 1) / 2, scores_, kHalf, 1, chunk_.B_pairs, Np_},
                 ToMatrix<true>{a_.rows_N, Np_}, Triangle::lower_factor);
  }
  void add_to_dB(int64_t rows) {
    pair_up(a_.CB_grad, nullptr, rows, kChunk, scores_);
    pair_product({rows, Np_, (rows + 1) / 2, scores_, 1, kChunk, C_pairs_, Np_},
                 ToMatrix<true>{a_.rows_N, Np_}, Triangle::upper_factor);
  }

 private:
  const ssd::Backward& w_;
  const ssd::Piece& p_ = w_.piece;
  const BackwardArea& a_;
  Area area_;
  PairChunk chunk_{p_, area_};
  const int64_t Pp_ = padded(p_.P), Np_ = padded(p_.N), P2_ = (p_.P + 1) / 2;
  uint32_t *C_pairs_,             // (tokens / 2, N)
      *x_, *g_,                   // rows of P
      *xT_, *gT_,                 // (P / 2, tokens)
      *g_pairs_, *scaled_pairs_,  // (tokens / 2, P)
      *scores_,                   // (tokens / 2, tokens)
      *dS_pairs_, *dS_, *first_;  // (N / 2, P), and rows of P
};

#undef KRAIT_PAIRS
#undef KRAIT_PAIRS_INLINED

#endif

static void backward(const ssd::Backward& w) {
#if HWY_TARGET <= HWY_AVX3
  if (w.piece.pairs) return backward_in_chunks<PairGradients>(w);
#endif
  backward_in_chunks<FloatGradients>(w);
}

}  // namespace krait::KRAIT_ISA::ssd_rows
