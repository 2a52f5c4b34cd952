// Private to cpu_simd.cpp: what both directions make of a chunk's inputs, and the state between chunks.
#pragma once
#include "krait/ops/mamba3_scan/simd_sweep.h"
#include "krait/ops/simd_area.h"

namespace krait::KRAIT_ISA::mamba3 {

// Sizes of padded rows.
struct Padded {
  int64_t P, N, T, R, RP, RN;
  explicit Padded(const m3::Sizes& s)
      : P(padded(s.P)), N(padded(s.N)), T(padded(s.T)), R(s.R), RP(s.R * P), RN(s.R * N) {}
};

// The state of a head between two chunks, or its gradient, in padded rows. The angles are turns (int32) in
// the state, floats in the gradient.
struct Carry {
  float *M, *k, *x, *angle;

  Carry(Area& area, const Padded& n)
      : M(area.take(n.P * n.N)), k(area.take(n.RN)), x(area.take(n.P)), angle(area.take(n.T)) {}
  int32_t* turns() const { return reinterpret_cast<int32_t*>(angle); }
};

// (rows, columns) into `all` padded rows.
static void load_matrix(const float* in, int64_t rows, int64_t columns, int64_t in_stride,
                        int64_t all, float* out) {
  for (int64_t i = 0; i < all; ++i)
    load_vector(in && i < rows ? in + i * in_stride : nullptr, columns, 0,
                out + i * padded(columns));
}

static void store_matrix(const float* in, int64_t rows, int64_t columns, int64_t out_stride,
                         float* out) {
  for (int64_t i = 0; i < rows; ++i) copy(in + i * padded(columns), columns, out + i * out_stride);
}

// All but the angle.
static void load_state(const m3::StateOf<const float>& from, const m3::Sizes& s, const Carry& to) {
  load_matrix(from.ssm, s.P, s.N, s.N, padded(s.P), to.M);
  load_matrix(from.k, s.R, s.N, from.k_stride, s.R, to.k);
  load_vector(from.v, s.P, 0, to.x);
}

static void store_state(const Carry& from, const m3::Sizes& s, const m3::StateOf<float>& to) {
  store_matrix(from.M, s.P, s.N, s.N, to.ssm);
  store_matrix(from.k, s.R, s.N, to.k_stride, to.k);
  copy(from.x, s.P, to.v);
}

static void load_start(const m3::Head& h, const Carry& to) {
  load_state(h.from, h.size, to);
  for (int64_t i = 0; i < padded(h.size.T); ++i)
    to.turns()[i] = h.from.angle && i < h.size.T ? turns_of(h.from.angle[i]) : 0;
}

// Between two chunks; x is read again from the inputs.
static void save(const Carry& from, const m3::Sizes& s, float* to) {
  store_matrix(from.M, s.P, s.N, s.N, to);
  store_matrix(from.k, s.R, s.N, s.N, to + s.P * s.N);
  copy(from.angle, s.T, to + s.P * s.N + s.R * s.N);
}

static void load_saved(const float* from, const m3::Head& h, int64_t t0, const Carry& to) {
  const m3::Sizes& s = h.size;
  load_matrix(from, s.P, s.N, s.N, padded(s.P), to.M);
  load_matrix(from + s.P * s.N, s.R, s.N, s.N, s.R, to.k);
  load_vector(from + s.P * s.N + s.R * s.N, s.T, 0, to.angle);
  load_row(h.x, t0 - 1, 0, s.P, to.x);
}

// A chunk of one head: row 0 is the token before it, rows 1 ... tokens its own.
struct Chunk {
  Padded n;
  int64_t tokens = 0;
  Pairs pairs;
  float *k, *q, *cos, *sin;  // (rows, R, N) twice, (rows, N) twice
  float *v, *w, *y, *gate;   // (rows, R, P): mimo_x x, s v, what is read of the state, silu
  float *x, *z, *tanh;       // (rows, P) twice, (rows, T)
  // A number a row: dt, exp(adt), σ(trap), 1 - σ(trap), γ, dt (1 - σ(trap)), and
  // s[t] = γ[t] + (1 - σ(trap[t+1])) dt[t+1]: the weight of v kᵀ for all later tokens, its own and that of
  // the next token's β together (section 3.3). back: exp(adt) of the next row.
  float *dt, *alpha, *lambda, *mu, *gamma, *next, *s, *back;
  float *mimo_x, *mimo_z, *mimo_o, *norm;  // (R, P), (P)
  float* row;                              // (N)

  Chunk(Area& area, const m3::Sizes& size) : n(size) {
    const int64_t rows = m3::kRows, numbers = m3::kRows + kPad;
    for (float** p : {&k, &q}) *p = area.take(rows * n.RN);
    for (float** p : {&cos, &sin}) *p = area.take(rows * (n.N / 2));
    for (float** p : {&v, &w, &y, &gate}) *p = area.take(rows * n.RP);
    for (float** p : {&x, &z}) *p = area.take(rows * n.P);
    tanh = area.take(rows * n.T);
    for (float** p : {&dt, &alpha, &lambda, &mu, &gamma, &next, &s, &back}) *p = area.take(numbers);
    for (float** p : {&mimo_x, &mimo_z, &mimo_o}) *p = area.take(n.RP);
    norm = area.take(n.P);
    row = area.take(n.N);
  }

  // The parameters that are the same for all chunks of a head.
  void set_head(const m3::Head& h) {
    pairs = {h.size.N, h.halves};
    for (int64_t r = 0; r < n.R; ++r) {
      const auto load_one = [&](const float* from, float* to) {
        load_vector(from ? from + r * h.size.P : nullptr, h.size.P, 1, to + r * n.P);
      };
      load_one(h.mimo_x, mimo_x);
      load_one(h.mimo_z, mimo_z);
      load_one(h.mimo_o, mimo_o);
    }
    load_vector(h.norm, h.size.P, 1, norm);
  }

  // Everything above but y and gate for tokens t0 ... ; the state before them is `carry`, whose k, x and
  // angle become those of the last token.
  void prepare(const m3::Head& h, int64_t t0, int64_t count, const Carry& carry);

  // The parts of a sweep that both directions share.
  Sweep sweep_over_rows() const {
    Sweep sweep;
    sweep.rows = tokens + 1;
    sweep.P = n.P, sweep.N = n.N, sweep.R = n.R;
    return sweep;
  }

 private:
  void set_numbers(const m3::Head& h, int64_t t0);
  void turn(const ops::Rows& in, const float* bias, const m3::Head& h, int64_t token,
            int64_t at_row, float* to);
};

inline void Chunk::set_numbers(const m3::Head& h, int64_t t0) {
  const int64_t rows = tokens + 1;
  for (int64_t t = 1; t < rows; ++t) {
    dt[t] = number(h.dt, t0 + t - 1);
    alpha[t] = number(h.adt, t0 + t - 1);
    lambda[t] = number(h.trap, t0 + t - 1);
  }
  dt[0] = alpha[0] = lambda[0] = 0;
  for_lanes(0, rows, [&](auto tag, int64_t t) {
    const auto delta = load(tag, dt + t), trap = load(tag, lambda + t);
    const auto one = Sigmoid(tag, trap), other = Sigmoid(tag, hn::Neg(trap));
    store(tag, Exp(tag, load(tag, alpha + t)), alpha + t);
    store(tag, one, lambda + t);
    store(tag, other, mu + t);
    store(tag, hn::Mul(one, delta), gamma + t);
    store(tag, hn::Mul(other, delta), next + t);
  });
  for (int64_t t = 0; t < tokens; ++t) {
    s[t] = gamma[t] + next[t + 1];
    back[t] = alpha[t + 1];
  }
  s[tokens] = gamma[tokens];
  back[tokens] = 1;
}

// A row (R, N) of B or C with its bias, turned.
inline void Chunk::turn(const ops::Rows& in, const float* bias, const m3::Head& h, int64_t token,
                        int64_t at_row, float* to) {
  for (int64_t r = 0; r < n.R; ++r) {
    load_row(in, token, r * h.rank_stride, h.size.N, row);
    for_lanes(0, h.size.N, [&](auto tag, int64_t i) {
      store(tag, hn::Add(load(tag, row + i), load(tag, bias + r * h.size.N + i)), row + i);
    });
    turn_pairs(pairs, row, cos + at_row * (n.N / 2), sin + at_row * (n.N / 2), to + r * n.N);
    for (int64_t i = h.size.N; i < n.N; ++i) to[r * n.N + i] = 0;
  }
}

inline void Chunk::prepare(const m3::Head& h, int64_t t0, int64_t count, const Carry& carry) {
  tokens = count;
  set_numbers(h, t0);
  copy(carry.k, n.RN, k);
  fill(0, n.RN, q);
  copy(carry.x, n.P, x);
  for (int64_t t = 1; t <= tokens; ++t) {
    const int64_t token = t0 + t - 1;
    load_row(h.angle, token, 0, h.size.T, tanh + t * n.T);
    float *c = cos + t * (n.N / 2), *s_of = sin + t * (n.N / 2);
    fill(1, n.N / 2, c);
    fill(0, n.N / 2, s_of);
    const auto turn_angles = [&](auto tag, int64_t i) {
      const auto a = Tanh(tag, load(tag, tanh + t * n.T + i));
      const hn::RebindToSigned<decltype(tag)> di;
      const auto now = hn::Add(hn::LoadU(di, carry.turns() + i),
                               turns_of_half(tag, hn::Mul(a, hn::Set(tag, dt[t]))));
      Vec<decltype(tag)> sine, cosine;
      SinCos(tag, now, sine, cosine);
      hn::StoreU(now, di, carry.turns() + i);
      store(tag, a, tanh + t * n.T + i);
      store(tag, sine, s_of + i);
      store(tag, cosine, c + i);
    };
    for_lanes(0, h.size.T, turn_angles);
    turn(h.B, h.B_bias, h, token, t, k + t * n.RN);
    turn(h.C, h.C_bias, h, token, t, q + t * n.RN);
    load_row(h.x, token, 0, h.size.P, x + t * n.P);
    load_row(h.z, token, 0, h.size.P, z + t * n.P);
  }
  for (int64_t t = 0; t <= tokens; ++t)
    for (int64_t r = 0; r < n.R; ++r)
      for_row(n.P, [&](int64_t p) {
        const V value = hn::Mul(at(mimo_x + r * n.P, p), at(x + t * n.P, p));
        put(value, v + t * n.RP + r * n.P, p);
        put(hn::Mul(hn::Set(d, s[t]), value), w + t * n.RP + r * n.P, p);
      });
  copy(k + tokens * n.RN, n.RN, carry.k);
  copy(x + tokens * n.P, n.P, carry.x);
}

// To what was read of the state: the token's own part, γ (k·q) v, and the skip.
static void add_own(const Chunk& c, float D) {
  const auto& n = c.n;
  for (int64_t t = 1; t <= c.tokens; ++t)
    for (int64_t r = 0; r < n.R; ++r) {
      float* y = c.y + t * n.RP + r * n.P;
      for (int64_t of = 0; of < n.R; ++of) {
        const float kq = dot(c.k + t * n.RN + of * n.N, c.q + t * n.RN + r * n.N, n.N);
        axpy(c.gamma[t] * kq + (of == r ? D : 0), c.v + t * n.RP + of * n.P, n.P, y);
      }
    }
}

}  // namespace krait::KRAIT_ISA::mamba3
