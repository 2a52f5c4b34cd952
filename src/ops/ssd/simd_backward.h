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

// The parts of the scratch area. What ends in T has tokens as its columns, kChunk of them.
struct BackwardArea {
  float *B, *C, *BT, *CT, *CB, *CB_grad, *dBT, *dCT, *rows_N;  // of the chunk
  float *x, *X, *XT, *g, *gT, *scaled, *dX, *scores, *pairs;   // of one head
  float *from_S_T, *S, *skip, *decays;
  float* dS;  // (heads, N, Pp)
  Times times;
  float *from_state, *to_state, *log_decay;  // one float a token
  float* words;                              // of PairGradients
};

static BackwardArea backward_area(float* scratch, int64_t P, int64_t N) {
  const int64_t Pp = padded(P), Np = padded(N), square = kChunk * kChunk;
  Area a{scratch};
  BackwardArea w;
  for (float** at_N : {&w.B, &w.C, &w.rows_N}) *at_N = a.take(kChunk * Np);
  for (float** N_at : {&w.BT, &w.CT, &w.dBT, &w.dCT, &w.from_S_T}) *N_at = a.take(N * kChunk);
  for (float** at_P : {&w.x, &w.X, &w.g, &w.scaled, &w.dX}) *at_P = a.take(kChunk * Pp);
  for (float** P_at : {&w.XT, &w.gT}) *P_at = a.take(Pp * kChunk);
  for (float** matrix : {&w.CB, &w.CB_grad, &w.scores, &w.pairs}) *matrix = a.take(square);
  w.S = a.take(N * Pp), w.dS = a.take(ssd::kHeadSet * N * Pp);
  w.skip = a.take(Pp), w.decays = a.take(kChunk);
  w.times = take_times(a);
  for (float** row : {&w.from_state, &w.to_state, &w.log_decay}) *row = a.take(kChunk);
  w.words = a.next;
  return w;
}

// scores = CB ∘ E; CB_grad += pairs ∘ E; pairs = pairs ∘ scores.
static void score_gradients(const BackwardArea& w, int64_t rows) {
  zero_floats(w.decays, kChunk);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = i * kChunk;
    next_decays(w.times.decay[i], i, w.decays);
    int64_t j = 0;
    for (; j <= i; j += kLanes) {
      const V e = at(w.decays + j), pair = at(w.pairs + row + j);
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
  float before =
      through;  // pairs of the state before with tokens at and after k, and with the state after
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
    ssd::GradRows to = w.ddt;
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

// dCT += from_S_T, and from_state[i] = Σ_n C[i, n] times it: the pairs of the state before with each token.
static void add_from_state(const BackwardArea& a, int64_t N, int64_t columns) {
  for (int64_t j = 0; j < columns; j += kLanes) {
    V sum = hn::Zero(d);
    for (int64_t k = j; k < N * kChunk; k += kChunk) {
      const V part = at(a.from_S_T + k);
      sum = hn::MulAdd(at(a.CT + k), part, sum);
      hn::StoreU(hn::Add(at(a.dCT + k), part), d, a.dCT + k);
    }
    hn::StoreU(sum, d, a.from_state + j);
  }
}

// The products of a head over a chunk, in float32.
class FloatGradients {
 public:
  FloatGradients(const ssd::Backward& w, const BackwardArea& a) : p_(w.piece), a_(a) {}

  void begin(int64_t /*t*/, int64_t /*rows*/) {}
  // pairs = g Xᵀ, its lower half
  void pair_tokens(int64_t /*head*/, int64_t /*t*/, int64_t rows) {
    transpose(a_.X, Pp_, rows, p_.P, a_.XT, kChunk, padded(rows));
    small_product({rows, padded(rows), p_.P, a_.g, Pp_, 1, a_.XT, kChunk, a_.pairs, kChunk, false},
                  Triangle::lower_result);
  }
  // dX = B dS
  void read_dS(int64_t rows, const float* dS) {
    small_product({rows, Pp_, p_.N, a_.B, Np_, 1, dS, Pp_, a_.dX, Pp_, false});
  }
  // dBT += dS (suffix ∘ X)ᵀ
  void add_dB(int64_t rows, const float* dS) {
    scale_columns(a_.XT, a_.times.suffix, p_.P, padded(rows), a_.XT);
    small_product({p_.N, padded(rows), p_.P, dS, Pp_, 1, a_.XT, kChunk, a_.dBT, kChunk, true});
  }
  // dX = scoresᵀ g, or += with `add`
  void add_tokens(int64_t rows, bool add) {
    small_product({rows, Pp_, rows, a_.scores, 1, kChunk, a_.g, Pp_, a_.dX, Pp_, add},
                  Triangle::upper_factor);
  }
  // from_S_T = S (prefix ∘ g)ᵀ
  void read_S(int64_t rows, const float* S) {
    transpose(a_.scaled, Pp_, rows, p_.P, a_.gT, kChunk, padded(rows));
    small_product({p_.N, padded(rows), p_.P, S, Pp_, 1, a_.gT, kChunk, a_.from_S_T, kChunk, false});
  }
  // dS = Cᵀ (prefix ∘ g), or += with `add`
  void write_dS(int64_t rows, bool add, float* dS) {
    small_product({p_.N, Pp_, rows, a_.C, 1, Np_, a_.scaled, Pp_, dS, Pp_, add});
  }

 private:
  const ssd::Piece& p_;
  const BackwardArea& a_;
  const int64_t Pp_ = padded(p_.P), Np_ = padded(p_.N);
};

// One head over one chunk: adds to dBT, dCT and CB_grad of the chunk, updates dS. `S`: (N, Pp) before the
// chunk, or null; has_dS: the gradient of the state after it is not zero.
template <class Products>
static void head_backward(const ssd::Backward& w, const BackwardArea& a, Products& products,
                          int64_t head, int64_t t, int64_t rows, const float* S, bool has_dS,
                          bool wants_dS) {
  const ssd::Piece& p = w.piece;
  const int64_t P = p.P, N = p.N, Pp = padded(P), rp = padded(rows);
  float* const dS = a.dS + head * N * Pp;
  const Times& times = a.times;
  load_times(p, head, t, rows, times);
  load_skip(p, head, a.skip);
  load_rows(p.x, t, rows, head * P, P, a.x);
  load_rows(w.dy, t, rows, head * P, P, a.g);
  if (head + 1 < p.heads) {
    prefetch_rows(p.x, t, rows, (head + 1) * P, P);
    prefetch_rows(w.dy, t, rows, (head + 1) * P, P);
  }
  scale_rows(a.x, times.delta, rows, Pp, a.X);
  products.pair_tokens(head, t, rows);
  score_gradients(a, rows);
  float through = 0;
  zero_floats(a.from_state, rp);
  zero_floats(a.to_state, rp);
  if (has_dS) {
    products.read_dS(rows, dS);
    scale_rows(a.dX, times.suffix, rows, Pp, a.dX);
    for (int64_t i = 0; i < rows; ++i) a.to_state[i] = dot(a.X + i * Pp, a.dX + i * Pp, Pp);
    products.add_dB(rows, dS);
  }
  products.add_tokens(rows, has_dS);
  scale_rows(a.g, times.prefix, rows, Pp, a.scaled);
  if (S) {
    products.read_S(rows, S);
    add_from_state(a, N, rp);
    if (has_dS) through = times.prefix[rows - 1] * dot(dS, S, N * Pp);
  }
  sum_pairs_between(a, rows, through);
  finish_head(w, a, head, t, rows);
  if (!wants_dS) return;
  if (has_dS) scale(times.prefix[rows - 1], N * Pp, dS);
  products.write_dS(rows, has_dS, dS);
}

// part (tokens, N) of dB or dC: the heads' sum from the states, transposed, and scores times the other factor.
static void store_part(const BackwardArea& a, const float* from_states_T,
                       const SmallProduct& scores, Triangle triangle, int64_t rows, int64_t N,
                       float* part) {
  if (!part) return;
  const int64_t Np = padded(N);
  transpose(from_states_T, kChunk, N, rows, a.rows_N, Np, Np);
  small_product(scores, triangle);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t n = 0; n < N; ++n) part[r * N + n] = a.rows_N[r * Np + n];
}

template <class Products>
static void backward_in_chunks(const ssd::Backward& w) {
  const ssd::Piece& p = w.piece;
  const int64_t P = p.P, N = p.N, Pp = padded(P), Np = padded(N), PN = P * N;
  const BackwardArea a = backward_area(w.scratch, P, N);
  Products products(w, a);
  zero_floats(w.sums, p.heads * ssd::sums_size(P));
  bool has_dS = w.dstate_out;
  if (has_dS)
    for (int64_t h = 0; h < p.heads; ++h)
      transpose(w.dstate_out + h * PN, N, P, N, a.dS + h * N * Pp, Pp, Pp);
  for (int64_t i = (p.tokens + kChunk - 1) / kChunk - 1; i >= 0; --i) {
    const int64_t t = i * kChunk, rows = p.tokens - t < kChunk ? p.tokens - t : kChunk,
                  rp = padded(rows);
    load_rows(p.B, t, rows, 0, N, a.B);
    load_rows(p.C, t, rows, 0, N, a.C);
    transpose(a.B, Np, rows, N, a.BT, kChunk, rp);
    transpose(a.C, Np, rows, N, a.CT, kChunk, rp);
    small_product({rows, rp, N, a.C, Np, 1, a.BT, kChunk, a.CB, kChunk, false},
                  Triangle::lower_result);
    products.begin(t, rows);
    zero_floats(a.CB_grad, rows * kChunk);
    zero_floats(a.dBT, N * kChunk);
    zero_floats(a.dCT, N * kChunk);
    for (int64_t h = 0; h < p.heads; ++h) {
      const float* S = i > 0 ? w.saved + (i - 1) * w.saved_stride + h * N * Pp : nullptr;
      if (i == 0 && p.state_in) {
        transpose(p.state_in + h * PN, N, P, N, a.S, Pp, Pp);
        S = a.S;
      }
      head_backward(w, a, products, h, t, rows, S, has_dS, i > 0 || w.dstate_in);
    }
    has_dS = true;
    float *const dC = w.part_dC ? w.part_dC + t * N : nullptr, *const dB = w.part_dB
                                                                               ? w.part_dB + t * N
                                                                               : nullptr;
    store_part(a, a.dCT, {rows, Np, rows, a.CB_grad, kChunk, 1, a.B, Np, a.rows_N, Np, true},
               Triangle::lower_factor, rows, N, dC);
    store_part(a, a.dBT, {rows, Np, rows, a.CB_grad, 1, kChunk, a.C, Np, a.rows_N, Np, true},
               Triangle::upper_factor, rows, N, dB);
  }
  if (!w.dstate_in) return;
  if (!has_dS) return zero_floats(w.dstate_in, p.heads * PN);
  for (int64_t h = 0; h < p.heads; ++h)
    transpose(a.dS + h * N * Pp, Pp, N, P, w.dstate_in + h * PN, N, N);
}

}  // namespace krait::KRAIT_ISA::ssd_rows
