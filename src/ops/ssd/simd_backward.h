// Private to cpu_simd.cpp: the adjoint of ssd, chunk by chunk from the end, a set of heads at a time. With
// X = Δx, g = dy, E[i,j] the decay from token j to token i, S (N, P) the state before the chunk and dS
// the gradient of the state after it:
//
//   dX = (CBᵀ∘E)ᵀ g + E[last,:] ∘ B dS        dC = Σ_heads (gXᵀ∘E) B + (S (prefix ∘ g)ᵀ)ᵀ
//   dB = Σ_heads (gXᵀ∘E)ᵀ C + (dS (E[last,:] ∘ X)ᵀ)ᵀ        dS ← prefix[last] dS + Cᵀ (prefix ∘ g)
//
// The gradient of the log decay of token k is the sum over all pairs that it lies between: every element
// of gXᵀ∘CBᵀ∘E with j < k <= i, and the same with the state before as the earliest j and the state after
// as the latest i. Nothing is subtracted, so nothing cancels.
#pragma once
#include "krait/ops/ssd/simd_chunk.h"

namespace krait::KRAIT_ISA::ssd_rows {

// The parts of the scratch area that all products need. What ends in T has tokens as its columns, kChunk of them.
struct BackwardArea {
  float *CT, *CB, *CB_grad, *dBT, *dCT, *rows_N;           // of the chunk
  float *x, *g, *dX, *scores, *pairs, *S, *skip, *decays;  // of one head
  float* dS;                                               // (heads, N, Pp)
  Times times;
  float *from_state, *to_state, *log_decay;  // one float a token
  Area rest;                                 // of the products
};

static BackwardArea backward_area(float* scratch, int64_t P, int64_t N) {
  const int64_t Pp = padded(P), square = kChunk * kChunk;
  Area a{scratch};
  BackwardArea w;
  w.rows_N = a.take(kChunk * padded(N));
  for (float** N_at : {&w.CT, &w.dBT, &w.dCT}) *N_at = a.take(N * kChunk);
  for (float** at_P : {&w.x, &w.g, &w.dX}) *at_P = a.take(kChunk * Pp);
  for (float** matrix : {&w.CB, &w.CB_grad, &w.scores, &w.pairs}) *matrix = a.take(square);
  w.S = a.take(N * Pp), w.dS = a.take(ssd::kHeadSet * N * Pp);
  w.skip = a.take(Pp), w.decays = a.take(kChunk);
  w.times = take_times(a);
  for (float** row : {&w.from_state, &w.to_state, &w.log_decay}) *row = a.take(kChunk);
  w.rest = a;
  return w;
}

// Of pairs = g xᵀ: scores = CB ∘ E; CB_grad += pairs ∘ Δ ∘ E; pairs = pairs ∘ Δ ∘ scores.
static void score_gradients(const BackwardArea& w, int64_t rows) {
  zero_floats(w.decays, kChunk);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = i * kChunk;
    next_decays(w.times.decay[i], i, w.decays);
    int64_t j = 0;
    for (; j <= i; j += kLanes) {
      const V e = at(w.decays + j), pair = hn::Mul(at(w.pairs + row + j), at(w.times.delta + j));
      const V s = hn::Mul(at(w.CB + row + j), e);
      hn::StoreU(s, d, w.scores + row + j);
      hn::StoreU(hn::MulAdd(pair, e, at(w.CB_grad + row + j)), d, w.CB_grad + row + j);
      hn::StoreU(hn::Mul(pair, s), d, w.pairs + row + j);
    }
    zero_floats(w.scores + row + j, padded(rows) - j);
  }
}

// log_decay[k] = Σ_{j < k <= i} of the pairs, where from_state and to_state are their border rows, and
// `through` is the pair of the two states. `to_state` becomes the sums of columns.
static void sum_pairs_between(const BackwardArea& w, int64_t rows, float through) {
  // pairs of the state before with tokens at and after k, and with the state after
  float before = through;
  for (int64_t k = rows - 1; k >= 0; --k) {
    before += w.from_state[k];
    V sum = hn::Zero(d);
    float* const columns = w.to_state;
    int64_t j = 0;
    for (; j + kLanes <= k; j += kLanes) {
      const V column = hn::Add(at(columns + j), at(w.pairs + k * kChunk + j));
      hn::StoreU(column, d, columns + j);
      sum = hn::Add(sum, column);
    }
    float rest = 0;
    for (; j < k; ++j) rest += columns[j] += w.pairs[k * kChunk + j];
    w.log_decay[k] = before + (sum_lanes(d, sum) + rest);
  }
}

// dx = Δ dX + D g, ddt, and the sums over time of the head.
static void finish_head(const ssd::Backward& w, const BackwardArea& a, int64_t head, int64_t t,
                        int64_t rows) {
  const ssd::Piece& p = w.piece;
  const int64_t Pp = padded(p.P);
  float* const sums = w.sums + head * ssd::sums_size(p.P);
  for (int64_t i = 0; i < rows; ++i) {
    const float *x = a.x + i * Pp, *g = a.g + i * Pp;
    float* const dX = a.dX + i * Pp;
    const float delta = a.times.delta[i];
    const float ddelta = dot(dX, x, Pp) + p.A[head] * a.log_decay[i];
    const float ddt = ddelta * a.times.slope[i];
    sums[0] += delta * a.log_decay[i];
    sums[1] += ddt;
    for (int64_t j = 0; j < p.P; ++j) sums[2 + j] += g[j] * x[j];
    for (int64_t j = 0; j < Pp; j += kLanes)
      hn::StoreU(hn::MulAdd(hn::Set(d, delta), at(dX + j), hn::Mul(at(a.skip + j), at(g + j))), d,
                 dX + j);
    a.log_decay[i] = ddt;
  }
  store_rows(w.dx, t, rows, head * p.P, p.P, a.dX);
  for (int64_t i = 0; i < rows; ++i) {
    ops::GradRows to = w.ddt;
    if (!to.data) break;
    const int64_t k = (t + i) * to.stride + head;
    if (to.bf16) {
      bf16* const at_k = static_cast<bf16*>(to.data) + k;
      const auto old = to.add ? load(OneLane(), at_k) : hn::Zero(OneLane());
      store(OneLane(), hn::Add(old, hn::Set(OneLane(), a.log_decay[i])), at_k);
    } else {
      float& at_k = static_cast<float*>(to.data)[k];
      at_k = to.add ? at_k + a.log_decay[i] : a.log_decay[i];
    }
  }
}

// out[., j] = factor[j] in[., j] for `lines` lines of kChunk floats, `columns` of them used.
static void scale_columns(const float* in, const float* factor, int64_t lines, int64_t columns,
                          float* out) {
  for (int64_t i = 0; i < lines; ++i)
    for (int64_t j = 0; j < columns; j += kLanes)
      hn::StoreU(hn::Mul(at(in + i * kChunk + j), at(factor + j)), d, out + i * kChunk + j);
}

// part (tokens, N) of dB or dC, of which rows_N are the rows.
static void store_part(const BackwardArea& a, int64_t rows, int64_t N, float* part) {
  for (int64_t r = 0; r < rows; ++r, part += N) copy_floats(a.rows_N + r * padded(N), N, part);
}

// The products of a head over a chunk, in float32.
class FloatGradients {
 public:
  using State = float;

  FloatGradients(const ssd::Backward& w, const BackwardArea& a) : w_(w), a_(a) {
    Area area = a.rest;
    for (float** rows_N : {&B_, &C_}) *rows_N = area.take(kChunk * Np_);
    for (float** N_at : {&BT_, &from_S_T_}) *N_at = area.take(p_.N * kChunk);
    for (float** of_P : {&xT_, &gT_, &scaled_}) *of_P = area.take(kChunk * Pp_);
  }

  // Takes B and C of `rows` tokens from t on; CB = C Bᵀ, its lower half.
  void begin(int64_t t, int64_t rows) {
    load_rows(p_.B, t, rows, 0, p_.N, B_);
    load_rows(p_.C, t, rows, 0, p_.N, C_);
    transpose(B_, Np_, rows, p_.N, BT_, kChunk, padded(rows));
    transpose(C_, Np_, rows, p_.N, a_.CT, kChunk, padded(rows));
    small_product({rows, padded(rows), p_.N, C_, Np_, 1, BT_, kChunk, a_.CB, kChunk, false},
                  Triangle::lower_result);
  }
  // Takes x and g of a head; pairs = g xᵀ, its lower half.
  void begin_head(int64_t head, int64_t t, int64_t rows) {
    load_rows(p_.x, t, rows, head * p_.P, p_.P, a_.x);
    load_rows(w_.dy, t, rows, head * p_.P, p_.P, a_.g);
    transpose(a_.x, Pp_, rows, p_.P, xT_, kChunk, padded(rows));
    small_product({rows, padded(rows), p_.P, a_.g, Pp_, 1, xT_, kChunk, a_.pairs, kChunk, false},
                  Triangle::lower_result);
  }
  // The first state as it is kept.
  const float* first(const float* S) { return S; }
  // Σ dS S, with an S. After this come make_dX, add_dB and write_dS, which takes dS times the chunk's decay.
  float take(int64_t /*rows*/, float* dS, const float* S) {
    return S ? dot(dS, S, p_.N * Pp_) : 0.0f;
  }
  // dX = suffix ∘ B dS + scoresᵀ g, where has_dS; to_state = the rows' products of Δx and the first of these.
  void make_dX(int64_t rows, const float* dS, bool has_dS) {
    if (has_dS) {
      small_product({rows, Pp_, p_.N, B_, Np_, 1, dS, Pp_, a_.dX, Pp_, false});
      scale_rows(a_.dX, a_.times.suffix, rows, Pp_, a_.dX);
      for (int64_t i = 0; i < rows; ++i)
        a_.to_state[i] = a_.times.delta[i] * dot(a_.x + i * Pp_, a_.dX + i * Pp_, Pp_);
    }
    small_product({rows, Pp_, rows, a_.scores, 1, kChunk, a_.g, Pp_, a_.dX, Pp_, has_dS},
                  Triangle::upper_factor);
  }
  // dBT += dS (the arriving x)ᵀ
  void add_dB(int64_t rows, const float* dS) {
    scale_columns(xT_, a_.times.arriving, p_.P, padded(rows), xT_);
    small_product({p_.N, padded(rows), p_.P, dS, Pp_, 1, xT_, kChunk, a_.dBT, kChunk, true});
  }
  // Adds S (prefix ∘ g)ᵀ to dCT; from_state = the sums over n of C times it.
  void add_dC(int64_t rows, const float* S) {
    scale_rows(a_.g, a_.times.prefix, rows, Pp_, scaled_);
    transpose(scaled_, Pp_, rows, p_.P, gT_, kChunk, padded(rows));
    small_product({p_.N, padded(rows), p_.P, S, Pp_, 1, gT_, kChunk, from_S_T_, kChunk, false});
    for (int64_t j = 0; j < padded(rows); j += kLanes) {
      V sum = hn::Zero(d);
      for (int64_t k = j; k < p_.N * kChunk; k += kChunk) {
        const V part = at(from_S_T_ + k);
        sum = hn::MulAdd(at(a_.CT + k), part, sum);
        hn::StoreU(hn::Add(at(a_.dCT + k), part), d, a_.dCT + k);
      }
      hn::StoreU(sum, d, a_.from_state + j);
    }
  }
  // dS = Cᵀ (prefix ∘ g), and the decayed dS with has_dS.
  void write_dS(int64_t rows, bool has_dS, float* dS) {
    scale_rows(a_.g, a_.times.prefix, rows, Pp_, scaled_);
    if (has_dS) scale(a_.times.prefix[rows - 1], p_.N * Pp_, dS);
    small_product({p_.N, Pp_, rows, C_, 1, Np_, scaled_, Pp_, dS, Pp_, has_dS});
  }
  // rows_N += CB_grad B, or CB_gradᵀ C.
  void add_to_dC(int64_t rows) {
    small_product({rows, Np_, rows, a_.CB_grad, kChunk, 1, B_, Np_, a_.rows_N, Np_, true},
                  Triangle::lower_factor);
  }
  void add_to_dB(int64_t rows) {
    small_product({rows, Np_, rows, a_.CB_grad, 1, kChunk, C_, Np_, a_.rows_N, Np_, true},
                  Triangle::upper_factor);
  }

 private:
  const ssd::Backward& w_;
  const ssd::Piece& p_ = w_.piece;
  const BackwardArea& a_;
  const int64_t Pp_ = padded(p_.P), Np_ = padded(p_.N);
  float *B_, *C_, *BT_, *from_S_T_, *xT_, *gT_, *scaled_;
};

// Asks for a state piece by piece, so that there is always something else to do meanwhile.
template <class T>
struct StateAhead {
  const T* at;  // null: none
  int64_t piece;
  void prefetch_piece() {
    if (!at) return;
    constexpr auto kLine = static_cast<int64_t>(64 / sizeof(T));
    for (int64_t i = 0; i < piece; i += kLine) __builtin_prefetch(at + i, 0, 2);
    at += piece;
  }
};

// One head over one chunk: adds to dBT, dCT and CB_grad of the chunk, updates dS. `S`: (N, Pp) before the
// chunk, or null; next_S: what comes after it, or null; has_dS: the gradient of the state after it is not zero.
template <class Products>
static void head_backward(const ssd::Backward& w, const BackwardArea& a, Products& products,
                          int64_t head, int64_t t, int64_t rows, const typename Products::State* S,
                          const typename Products::State* next_S, bool has_dS, bool wants_dS) {
  const ssd::Piece& p = w.piece;
  const int64_t P = p.P;
  float* const dS = a.dS + head * p.N * padded(P);
  load_times(p, head, t, rows, a.times);
  load_skip(p, head, a.skip);
  products.begin_head(head, t, rows);
  const Ahead next = ahead(p, t, head, -kChunk);
  prefetch_rows(p, p.x, next.t, next.head * P, P);
  prefetch_rows(p, w.dy, next.t, next.head * P, P);
  score_gradients(a, rows);
  zero_floats(a.from_state, kChunk);
  zero_floats(a.to_state, kChunk);
  const float through = has_dS ? a.times.prefix[rows - 1] * products.take(rows, dS, S) : 0.0f;
  StateAhead<typename Products::State> state_ahead{next_S, p.N * padded(P) / 4};
  state_ahead.prefetch_piece();
  products.make_dX(rows, dS, has_dS);
  state_ahead.prefetch_piece();
  if (has_dS) products.add_dB(rows, dS);
  state_ahead.prefetch_piece();
  if (S) products.add_dC(rows, S);
  state_ahead.prefetch_piece();
  sum_pairs_between(a, rows, through);
  finish_head(w, a, head, t, rows);
  if (wants_dS) products.write_dS(rows, has_dS, dS);
}

template <class Products>
static void backward_in_chunks(const ssd::Backward& w) {
  using State = typename Products::State;
  const ssd::Piece& p = w.piece;
  const int64_t P = p.P, N = p.N, Pp = padded(P), Np = padded(N), PN = P * N;
  const BackwardArea a = backward_area(w.scratch, P, N);
  Products products(w, a);
  zero_floats(w.sums, p.heads * ssd::sums_size(P));
  bool has_dS = w.dstate_out;
  if (has_dS)
    for (int64_t h = 0; h < p.heads; ++h)
      transpose(w.dstate_out + h * PN, N, P, N, a.dS + h * N * Pp, Pp, Pp);
  const auto saved = [&](int64_t i, int64_t h) {
    const auto* const first = static_cast<const State*>(w.saved);
    return i > 0 ? first + (i - 1) * w.saved_stride + h * N * Pp : nullptr;
  };
  for (int64_t i = (p.tokens + kChunk - 1) / kChunk - 1; i >= 0; --i) {
    const int64_t t = i * kChunk, rows = p.tokens - t < kChunk ? p.tokens - t : kChunk;
    products.begin(t, rows);
    zero_floats(a.CB_grad, rows * kChunk);
    zero_floats(a.dBT, N * kChunk);
    zero_floats(a.dCT, N * kChunk);
    for (int64_t h = 0; h < p.heads; ++h) {
      const State* S = saved(i, h);
      if (i == 0 && p.state_in) {
        transpose(p.state_in + h * PN, N, P, N, a.S, Pp, Pp);
        S = products.first(a.S);
      }
      const State* const next_S = h + 1 < p.heads ? saved(i, h + 1) : saved(i - 1, 0);
      head_backward(w, a, products, h, t, rows, S, next_S, has_dS, i > 0 || w.dstate_in);
    }
    has_dS = true;
    if (w.part_dC) {
      transpose(a.dCT, kChunk, N, rows, a.rows_N, Np, Np);
      products.add_to_dC(rows);
      store_part(a, rows, N, w.part_dC + t * N);
    }
    if (w.part_dB) {
      transpose(a.dBT, kChunk, N, rows, a.rows_N, Np, Np);
      products.add_to_dB(rows);
      store_part(a, rows, N, w.part_dB + t * N);
    }
  }
  if (!w.dstate_in) return;
  if (!has_dS) return zero_floats(w.dstate_in, p.heads * PN);
  for (int64_t h = 0; h < p.heads; ++h)
    transpose(a.dS + h * N * Pp, Pp, N, P, w.dstate_in + h * PN, N, N);
}

}  // namespace krait::KRAIT_ISA::ssd_rows
