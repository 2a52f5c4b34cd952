// Private to cpu_simd.cpp: the products of simd_backward.h of bfloat16 pairs. x, g, B and C are multiplied as they are;
// what is rounded are the states, their gradients, the scores and prefix ∘ g.
#pragma once
#include "krait/ops/ssd/simd_backward.h"
#include "krait/ops/ssd/simd_pairs.h"

namespace krait::KRAIT_ISA::ssd_rows {

#if HWY_TARGET <= HWY_AVX3

// As FloatGradients.
class PairGradients {
 public:
  PairGradients(const ssd::Backward& w, const BackwardArea& a) : w_(w), a_(a) {
    Area area{a.words};
    for (uint32_t** rows_N : {&B_, &C_pairs_, &rows_}) *rows_N = take_words(area, kHalf * Np_);
    for (uint32_t** rows_P : {&x_, &g_, &g_pairs_, &scaled_pairs_})
      *rows_P = take_words(area, kHalf * Pp_);
    scores_ = take_words(area, kHalf * kChunk);
    state_ = take_words(area, (p_.N + 1) / 2 * Pp_);
    factor_ = area.take(kChunk);
    xT_ = reinterpret_cast<uint32_t*>(a.XT), gT_ = reinterpret_cast<uint32_t*>(a.gT);
  }

  void begin(int64_t t, int64_t rows) {
    copy_rows(p_.B, t, rows, 0, p_.N, halves(B_));
    copy_rows(p_.C, t, rows, 0, p_.N, halves(rows_));
    pair_up(halves(rows_), rows, Np_, C_pairs_);
  }
  void pair_tokens(int64_t head, int64_t t, int64_t rows) {
    copy_rows(p_.x, t, rows, head * p_.P, p_.P, halves(x_));
    copy_rows(w_.dy, t, rows, head * p_.P, p_.P, halves(g_));
    transpose_words(x_, Pp_ / 2, rows, P2_, xT_);
    transpose_words(g_, Pp_ / 2, rows, P2_, gT_);
    pair_up(halves(g_), rows, Pp_, g_pairs_);
    pair_product({rows, padded(rows), P2_, g_, Pp_ / 2, 1, xT_, kChunk, a_.pairs, kChunk, false},
                 Triangle::lower_result);
    for (int64_t i = 0; i < kChunk; ++i) factor_[i] = i < rows ? a_.times.delta[i] : 0.0f;
    scale_columns(a_.pairs, factor_, rows, padded(rows), a_.pairs);
  }
  void read_dS(int64_t rows, const float* dS) {
    pair_up(dS, p_.N, Pp_, state_);
    pair_product({rows, Pp_, N2_, B_, Np_ / 2, 1, state_, Pp_, a_.dX, Pp_, false});
  }
  void add_dB(int64_t rows, const float* dS) {
    float* const part = a_.from_S_T;
    round_rows(dS, p_.N, Pp_, halves(state_));
    pair_product({p_.N, padded(rows), P2_, state_, Pp_ / 2, 1, xT_, kChunk, part, kChunk, false});
    for (int64_t i = 0; i < rows; ++i) factor_[i] *= a_.times.suffix[i];
    for (int64_t k = 0; k < p_.N * kChunk; k += kChunk)
      for (int64_t j = 0; j < padded(rows); j += kLanes)
        hn::StoreU(hn::MulAdd(at(factor_ + j), at(part + k + j), at(a_.dBT + k + j)), d,
                   a_.dBT + k + j);
  }
  void add_tokens(int64_t rows, bool add) {
    pair_up(a_.scores, rows, kChunk, scores_);
    pair_product({rows, Pp_, (rows + 1) / 2, scores_, 1, kChunk, g_pairs_, Pp_, a_.dX, Pp_, add},
                 Triangle::upper_factor);
  }
  void read_S(int64_t rows, const float* S) {
    round_rows(S, p_.N, Pp_, halves(state_));
    pair_product(
        {p_.N, padded(rows), P2_, state_, Pp_ / 2, 1, gT_, kChunk, a_.from_S_T, kChunk, false});
    for (int64_t i = 0; i < rows; ++i) factor_[i] = a_.times.prefix[i];
    scale_columns(a_.from_S_T, factor_, p_.N, padded(rows), a_.from_S_T);
  }
  void write_dS(int64_t rows, bool add, float* dS) {
    pair_up(a_.scaled, rows, Pp_, scaled_pairs_);
    pair_product({p_.N, Pp_, (rows + 1) / 2, C_pairs_, 1, Np_, scaled_pairs_, Pp_, dS, Pp_, add});
  }

 private:
  static constexpr int64_t kHalf = kChunk / 2;  // words of a chunk's tokens
  const ssd::Backward& w_;
  const ssd::Piece& p_ = w_.piece;
  const BackwardArea& a_;
  const int64_t Pp_ = padded(p_.P), Np_ = padded(p_.N), P2_ = (p_.P + 1) / 2, N2_ = (p_.N + 1) / 2;
  uint32_t *B_, *C_pairs_,        // rows of N, (tokens / 2, N)
      *rows_, *x_, *g_,           // rows of N, of P
      *xT_, *gT_,                 // (P / 2, tokens)
      *g_pairs_, *scaled_pairs_,  // (tokens / 2, P)
      *scores_, *state_;          // (tokens / 2, tokens); (N / 2, P) or rows of P
  float* factor_;                 // a token, zero behind the last
};

#undef KRAIT_PAIRS

#endif

static void backward(const ssd::Backward& w) {
#if HWY_TARGET <= HWY_AVX3
  if (multiplies_pairs(w.piece) && (w.dy.bf16 || !w.dy.data))
    return backward_in_chunks<PairGradients>(w);
#endif
  backward_in_chunks<FloatGradients>(w);
}

}  // namespace krait::KRAIT_ISA::ssd_rows
