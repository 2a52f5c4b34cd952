// Private to cpu_simd.cpp: the adjoint of ssd, chunk by chunk from the end, a set of heads at a time. With
// X = Δx, g = dy, E[i,j] the decay from token j to token i, S the state before the chunk and dS the
// gradient of the state after it:
//
//   dX = (CBᵀ∘E)ᵀ g + E[last,:] ∘ B dS        dC = Σ_heads (gXᵀ∘E) B + prefix ∘ g Sᵀ
//   dB = Σ_heads (gXᵀ∘E)ᵀ C + E[last,:] ∘ X dSᵀ        dS ← prefix[last] dS + (prefix ∘ g)ᵀ C
//
// The gradient of the log decay of token k is the sum over all pairs that it lies between: every element
// of gXᵀ∘CBᵀ∘E with j < k <= i, and the same with the state before as the earliest j and the state after
// as the latest i. Nothing is subtracted, so nothing cancels.
#pragma once
#include "krait/ops/ssd/simd_chunk.h"

namespace krait::KRAIT_ISA::ssd_rows {

// The parts of the scratch area.
struct BackwardArea {
  float *B, *C, *BT, *CB, *dB, *dC, *CB_grad;                     // of the chunk
  float *x, *X, *XT, *g, *scaled, *dX, *scores, *pairs, *rows_N;  // of one head
  float *S, *dST, *skip, *decays;
  float* dS;  // (heads, P, Np)
  Times times;
  float *from_state, *to_state, *log_decay;  // one float a token
};

static BackwardArea backward_area(float* scratch, int64_t P, int64_t N) {
  const int64_t Pp = padded(P), Np = padded(N), square = kChunk * kChunk;
  Area a{scratch};
  BackwardArea w;
  for (float** at_N : {&w.B, &w.C, &w.dB, &w.dC, &w.rows_N}) *at_N = a.take(kChunk * Np);
  for (float** at_P : {&w.x, &w.X, &w.g, &w.scaled, &w.dX}) *at_P = a.take(kChunk * Pp);
  for (float** matrix : {&w.CB, &w.CB_grad, &w.scores, &w.pairs}) *matrix = a.take(square);
  w.BT = a.take(N * kChunk), w.XT = a.take(Pp * kChunk);
  w.S = a.take(P * Np), w.dST = a.take(N * Pp), w.dS = a.take(ssd::kHeadSet * P * Np);
  w.skip = a.take(Pp), w.decays = a.take(kChunk);
  w.times = take_times(a);
  for (float** row : {&w.from_state, &w.to_state, &w.log_decay}) *row = a.take(kChunk);
  return w;
}

static void copy_padded(const float* in, int64_t rows, int64_t columns, float* out) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < padded(columns); ++j)
      out[i * padded(columns) + j] = j < columns ? in[i * columns + j] : 0.0f;
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
  for (int64_t j = rows; j < padded(rows); ++j) w.to_state[j] = 0;
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

static void add_floats(const float* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i += kLanes) hn::StoreU(hn::Add(at(to + i), at(from + i)), d, to + i);
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

// One head over one chunk: adds to dB, dC and CB_grad of the chunk, updates dS. `state`: (P, N) before the
// chunk, or null; has_dS: the gradient of the state after it is not zero.
static void head_backward(const ssd::Backward& w, const BackwardArea& a, int64_t head, int64_t t,
                          int64_t rows, const float* state, bool has_dS, bool wants_dS) {
  const ssd::Piece& p = w.piece;
  const int64_t P = p.P, N = p.N, Pp = padded(P), Np = padded(N), rp = padded(rows);
  float* const dS = a.dS + head * P * Np;
  const Times& times = a.times;
  load_times(p, head, t, rows, times);
  load_skip(p, head, a.skip);
  load_rows(p.x, t, rows, head * P, P, a.x);
  load_rows(w.dy, t, rows, head * P, P, a.g);
  scale_rows(a.x, times.delta, rows, Pp, a.X);
  transpose(a.X, Pp, rows, P, a.XT, kChunk, rp);
  small_product({rows, rp, P, a.g, Pp, 1, a.XT, kChunk, a.pairs, kChunk, false},
                Triangle::lower_result);
  score_gradients(a, rows);
  float through = 0;
  zero_floats(a.from_state, rows);
  zero_floats(a.to_state, rows);
  if (has_dS) {
    transpose(dS, Np, P, N, a.dST, Pp, Pp);
    small_product({rows, Pp, N, a.B, Np, 1, a.dST, Pp, a.dX, Pp, false});
    scale_rows(a.dX, times.suffix, rows, Pp, a.dX);
    scale_rows(a.X, times.suffix, rows, Pp, a.scaled);
    small_product({rows, Np, P, a.scaled, Pp, 1, dS, Np, a.rows_N, Np, false});
    add_floats(a.rows_N, rows * Np, a.dB);
    for (int64_t i = 0; i < rows; ++i) a.to_state[i] = dot(a.B + i * Np, a.rows_N + i * Np, Np);
  }
  small_product({rows, Pp, rows, a.scores, 1, kChunk, a.g, Pp, a.dX, Pp, has_dS},
                Triangle::upper_factor);
  scale_rows(a.g, times.prefix, rows, Pp, a.scaled);
  if (state) {
    copy_padded(state, P, N, a.S);
    small_product({rows, Np, P, a.scaled, Pp, 1, a.S, Np, a.rows_N, Np, false});
    add_floats(a.rows_N, rows * Np, a.dC);
    for (int64_t i = 0; i < rows; ++i) a.from_state[i] = dot(a.C + i * Np, a.rows_N + i * Np, Np);
    if (has_dS) through = times.prefix[rows - 1] * dot(dS, a.S, P * Np);
  }
  sum_pairs_between(a, rows, through);
  finish_head(w, a, head, t, rows);
  if (!wants_dS) return;
  if (has_dS) scale(times.prefix[rows - 1], P * Np, dS);
  small_product({P, Np, rows, a.scaled, 1, Pp, a.C, Np, dS, Np, has_dS});
}

static void backward(const ssd::Backward& w) {
  const ssd::Piece& p = w.piece;
  const int64_t P = p.P, N = p.N, Np = padded(N), PN = P * N;
  const BackwardArea a = backward_area(w.scratch, P, N);
  zero_floats(w.sums, p.heads * ssd::sums_size(P));
  bool has_dS = w.dstate_out;
  if (has_dS)
    for (int64_t h = 0; h < p.heads; ++h)
      copy_padded(w.dstate_out + h * PN, P, N, a.dS + h * P * Np);
  for (int64_t i = (p.tokens + kChunk - 1) / kChunk - 1; i >= 0; --i) {
    const int64_t t = i * kChunk, rows = p.tokens - t < kChunk ? p.tokens - t : kChunk;
    const float* const state = i > 0 ? w.saved + (i - 1) * w.saved_stride : p.state_in;
    load_rows(p.B, t, rows, 0, N, a.B);
    load_rows(p.C, t, rows, 0, N, a.C);
    transpose(a.B, Np, rows, N, a.BT, kChunk, padded(rows));
    small_product({rows, padded(rows), N, a.C, Np, 1, a.BT, kChunk, a.CB, kChunk, false},
                  Triangle::lower_result);
    zero_floats(a.CB_grad, rows * kChunk);
    zero_floats(a.dB, rows * Np);
    zero_floats(a.dC, rows * Np);
    for (int64_t h = 0; h < p.heads; ++h)
      head_backward(w, a, h, t, rows, state ? state + h * PN : nullptr, has_dS,
                    i > 0 || w.dstate_in);
    has_dS = true;
    small_product({rows, Np, rows, a.CB_grad, kChunk, 1, a.B, Np, a.dC, Np, true},
                  Triangle::lower_factor);
    small_product({rows, Np, rows, a.CB_grad, 1, kChunk, a.C, Np, a.dB, Np, true},
                  Triangle::upper_factor);
    const auto store_part = [&](const float* from, float* to) {
      if (!to) return;
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t n = 0; n < N; ++n) to[(t + r) * N + n] = from[r * Np + n];
    };
    store_part(a.dB, w.part_dB);
    store_part(a.dC, w.part_dC);
  }
  if (!w.dstate_in) return;
  for (int64_t h = 0; h < p.heads; ++h)
    for (int64_t r = 0; r < P; ++r)
      for (int64_t n = 0; n < N; ++n)
        w.dstate_in[h * PN + r * N + n] = has_dS ? a.dS[(h * P + r) * Np + n] : 0.0f;
}

}  // namespace krait::KRAIT_ISA::ssd_rows
