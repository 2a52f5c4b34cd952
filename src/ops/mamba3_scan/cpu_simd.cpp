// mamba3_scan: one head of one sequence forward, a few heads of a group backward. See mamba3_scan.h.
#include "krait/ops/mamba3_scan/simd_chunk.h"

namespace krait::KRAIT_ISA {
namespace mamba3 {

static int64_t chunk_tokens(const m3::Head& h, int64_t t0) {
  return h.tokens - t0 < m3::kChunk ? h.tokens - t0 : m3::kChunk;
}

static Sweep forward_sweep(const Chunk& c, float* M) {
  Sweep s = c.sweep_over_rows();
  s.M = M;
  s.scale = c.alpha;  // exp(0) for row 0
  s.w = c.w, s.a = c.k;
  s.of_n = c.q, s.out_p = c.y;
  return s;
}

// 1 / sqrt(mean(y²) + eps) over P values in padded rows.
static float norm_scale(const float* y, int64_t n, const m3::Head& h) {
  return 1.0f / __builtin_sqrtf(dot(y, y, n) / static_cast<float>(h.size.P) + h.norm_eps);
}

// Norm, gate and sum over ranks of row t.
static void output_row(const m3::Head& h, const Chunk& c, int64_t t, float* out) {
  const auto& n = c.n;
  fill(0, n.P, out);
  for (int64_t r = 0; r < n.R; ++r) {
    const float* y = c.y + t * n.RP + r * n.P;
    const V scale = hn::Set(d, h.norm ? norm_scale(y, n.P, h) : 1.0f);
    for_row(n.P, [&](int64_t p) {
      V value = hn::Mul(hn::Mul(at(y, p), scale), at(c.norm, p));
      if (h.z.data)
        value = hn::Mul(value, Silu(d, hn::Mul(at(c.mimo_z + r * n.P, p), at(c.z + t * n.P, p))));
      put(hn::MulAdd(at(c.mimo_o + r * n.P, p), value, at(out, p)), out, p);
    });
  }
}

static void forward(const m3::Forward& w) {
  const m3::Head& h = w.head;
  Area area{w.scratch};
  Chunk c(area, h.size);
  const Carry carry(area, c.n);
  c.set_head(h);
  load_start(h, carry);
  for (int64_t t0 = 0; t0 < h.tokens; t0 += m3::kChunk) {
    if (t0 > 0 && w.saved) save(carry, h.size, w.saved + (t0 / m3::kChunk - 1) * w.saved_stride);
    c.prepare(h, t0, chunk_tokens(h, t0), carry);
    fill(0, (c.tokens + 1) * c.n.RP, c.y);
    sweep<true, false>(forward_sweep(c, carry.M));
    add_own(c, h.D);
    for (int64_t t = 1; t <= c.tokens; ++t) {
      output_row(h, c, t, c.gate);
      store_row(w.y, t0 + t - 1, h.size.P, c.gate);
    }
  }
  if (!w.to.ssm) return;
  store_state(carry, h.size, w.to);
  for (int64_t i = 0; i < h.size.T; ++i) w.to.angle[i] = angle_of(carry.turns()[i]);
}

// What backward adds to a chunk.
struct Adjoint {
  float *dq, *dk;           // (rows, R, N)
  float *dy, *u;            // (rows, R, P): of y before the norm; what is read of dS, then dv
  float* dangle;            // (T)
  float *own, *ds, *drift;  // a number a row: <dy, v>·<k, q>, d s, <dq, q> of the state's part
  float *out, *dz, *dx;     // (P)
  float* sum;               // (N)

  Adjoint(Area& area, const Padded& n) {
    for (float** p : {&dq, &dk}) *p = area.take(m3::kRows * n.RN);
    for (float** p : {&dy, &u}) *p = area.take(m3::kRows * n.RP);
    dangle = area.take(n.T);
    for (float** p : {&own, &ds, &drift}) *p = area.take(m3::kRows + kPad);
    for (float** p : {&out, &dz, &dx}) *p = area.take(n.P);
    sum = area.take(n.N);
  }
};

// The gates, and where there is no norm dy: it then does not depend on y.
static void gate_rows(const m3::Head& h, const ops::Rows& dout, int64_t t0, const Chunk& c,
                      const Adjoint& a) {
  const auto& n = c.n;
  for (int64_t t = 1; t <= c.tokens; ++t) {
    load_row(dout, t0 + t - 1, 0, h.size.P, a.out);
    for (int64_t r = 0; r < n.R; ++r)
      for_row(n.P, [&](int64_t p) {
        const int64_t i = t * n.RP + r * n.P + p;
        const V gate = h.z.data ? Silu(d, hn::Mul(at(c.mimo_z + r * n.P, p), at(c.z + t * n.P, p)))
                                : hn::Set(d, 1.0f);
        put(gate, c.gate, i);
        put(hn::Mul(hn::Mul(at(a.out, p), at(c.mimo_o + r * n.P, p)), gate), a.dy, i);
      });
  }
}

// Back through the sum over ranks, the gate and the norm: dz, the sums of mimo_o, mimo_z and norm, and dy
// where there is a norm.
static void output_gradients(const m3::Head& h, const m3::HeadGrads& g, const ops::Rows& dout,
                             int64_t t0, const Chunk& c, const Adjoint& a) {
  const auto& n = c.n;
  for (int64_t t = 1; t <= c.tokens; ++t) {
    load_row(dout, t0 + t - 1, 0, h.size.P, a.out);
    fill(0, n.P, a.dz);
    for (int64_t r = 0; r < n.R; ++r) {
      const float* y = c.y + t * n.RP + r * n.P;
      float* dy = a.dy + t * n.RP + r * n.P;
      const float scale = h.norm ? norm_scale(y, n.P, h) : 1.0f;
      V along = hn::Zero(d);  // Σ dn n
      for_row(n.P, [&](int64_t p) {
        const int64_t rp = r * n.P + p;
        const V normed = hn::Mul(at(y, p), hn::Set(d, scale)), weight = at(c.norm, p);
        const V gate = at(c.gate, t * n.RP + rp), value = hn::Mul(normed, weight);
        const V dout_p = at(a.out, p), dgated = hn::Mul(dout_p, at(c.mimo_o, rp));
        put(hn::MulAdd(hn::Mul(dout_p, value), gate, at(g.sums.mimo_o, rp)), g.sums.mimo_o, rp);
        if (h.z.data) {
          const V z = at(c.z + t * n.P, p), m = at(c.mimo_z, rp);
          const V darg = hn::Mul(hn::Mul(dgated, value), SiluSlope(d, hn::Mul(m, z)));
          put(hn::MulAdd(darg, m, at(a.dz, p)), a.dz, p);
          put(hn::MulAdd(darg, z, at(g.sums.mimo_z, rp)), g.sums.mimo_z, rp);
        }
        if (h.norm) {
          const V dvalue = hn::Mul(dgated, gate), dnormed = hn::Mul(dvalue, weight);
          put(hn::MulAdd(dvalue, normed, at(g.sums.norm, p)), g.sums.norm, p);
          along = hn::MulAdd(dnormed, normed, along);
          put(dnormed, dy, p);
        }
      });
      if (!h.norm) continue;
      const V mean = hn::Set(d, sum_lanes(d, along) / static_cast<float>(h.size.P) * scale);
      for_row(n.P, [&](int64_t p) {
        const V of = hn::Mul(hn::Sub(at(dy, p), hn::Mul(mean, at(y, p))), hn::Set(d, scale));
        put(of, dy, p);
      });
    }
    store_row(g.dz, t0 + t - 1, h.size.P, a.dz);
  }
}

// Row t, once both sweeps are done: s and γ are taken into dk and dv; the token's own part and the skip are
// added; what is left is dx.
static void value_gradients(const m3::Head& h, const m3::HeadGrads& g, int64_t t, const Chunk& c,
                            const Adjoint& a) {
  const auto& n = c.n;
  const float *k = c.k + t * n.RN, *q = c.q + t * n.RN, *v = c.v + t * n.RP, *dy = a.dy + t * n.RP;
  float *dk = a.dk + t * n.RN, *dq = a.dq + t * n.RN, *u = a.u + t * n.RP;
  a.ds[t] = dot(v, u, n.RP);
  a.drift[t] = dot(q, dq, n.RN);
  const V s = hn::Set(d, c.s[t]);
  for_row(n.RN, [&](int64_t i) { put(hn::Mul(at(dk, i), s), dk, i); });
  for_row(n.RP, [&](int64_t i) { put(hn::Mul(at(u, i), s), u, i); });
  float own = 0;
  for (int64_t r = 0; t > 0 && r < n.R; ++r)
    for (int64_t of = 0; of < n.R; ++of) {
      const float *k_of = k + of * n.N, *v_of = v + of * n.P, gamma = c.gamma[t];
      const float *q_r = q + r * n.N, *dy_r = dy + r * n.P;
      const float m = dot(dy_r, v_of, n.P), kq = dot(k_of, q_r, n.N);
      own += m * kq;
      if (of == r) *g.sums.D += m;
      axpy(gamma * m, k_of, n.N, dq + r * n.N);
      axpy(gamma * m, q_r, n.N, dk + of * n.N);
      axpy(gamma * kq + (of == r ? h.D : 0), dy_r, n.P, u + of * n.P);
    }
  a.own[t] = own;
  fill(0, n.P, a.dx);
  for (int64_t r = 0; r < n.R; ++r)
    for_row(n.P, [&](int64_t p) {
      const int64_t rp = r * n.P + p;
      put(hn::MulAdd(at(u, rp), at(c.mimo_x, rp), at(a.dx, p)), a.dx, p);
      put(hn::MulAdd(at(u, rp), at(c.x + t * n.P, p), at(g.sums.mimo_x, rp)), g.sums.mimo_x, rp);
    });
}

// Back through the rotation of one row (N): adds to a.sum what the angles of its pairs are given, and the
// gradient of the input to `sums` and `bias`.
static void turn_back(const float* turned, const float* dturned, const Chunk& c, int64_t t,
                      const Adjoint& a, float* sums, float* bias) {
  const int64_t at_row = t * (c.n.N / 2);
  for_lanes(0, c.pairs.count(), [&](auto tag, int64_t i) {
    const auto cos = load(tag, c.cos + at_row + i), sin = load(tag, c.sin + at_row + i);
    Vec<decltype(tag)> x, y, dx, dy;
    c.pairs.load(tag, turned, i, x, y);
    c.pairs.load(tag, dturned, i, dx, dy);
    const auto torque = hn::NegMulAdd(y, dx, hn::Mul(x, dy));
    store(tag, hn::Add(load(tag, a.sum + i), torque), a.sum + i);
    c.pairs.store(tag, hn::MulAdd(dy, sin, hn::Mul(dx, cos)),
                  hn::NegMulAdd(dx, sin, hn::Mul(dy, cos)), c.row, i);
  });
  for_lanes(0, c.pairs.N, [&](auto tag, int64_t i) {
    const auto value = load(tag, c.row + i);
    store(tag, hn::Add(load(tag, bias + i), value), bias + i);
    store(tag, hn::Add(load(tag, sums + i), value), sums + i);
  });
}

// One chunk of one head. `start` is the state before it, `d_end` the gradient of that after it, which
// becomes that of the one before. Adds to dB and dC (tokens, R, N) and to dangle (tokens, T), and to the head's
// sums over tokens, which are made in `sums` first: of thousands of tokens one by one they would be less exact.
static void backward_chunk(const m3::Backward& w, int head, int64_t t0, Chunk& c, const Adjoint& a,
                           const Carry& start, const Carry& d_end, float* dB, float* dC,
                           float* dangle, float* sums) {
  const m3::Head& h = w.head[head];
  m3::HeadGrads g = w.grads[head];
  fill(0, m3::sums_size(h.size), sums);
  g.sums = m3::sums_at(sums, h.size);
  const int64_t N = h.size.N, R = h.size.R, T = h.size.T;
  c.set_head(h);
  const auto load_chunk_start = [&] {
    if (t0 > 0) {
      load_saved(g.saved + (t0 / m3::kChunk - 1) * w.saved_stride, h, t0, start);
    } else {
      load_start(h, start);
    }
  };
  load_chunk_start();
  c.prepare(h, t0, chunk_tokens(h, t0), start);
  const auto& n = c.n;
  const int64_t rows = c.tokens + 1;
  for (float* p : {c.y, a.dy, a.u}) fill(0, rows * n.RP, p);
  for (float* p : {a.dq, a.dk}) fill(0, rows * n.RN, p);
  gate_rows(h, w.dy[head], t0, c, a);

  Sweep along = forward_sweep(c, start.M);
  along.of_p = a.dy, along.out_n = a.dq;
  if (h.norm) {
    sweep<true, false>(along);
  } else {
    sweep<true, true>(along);
  }
  add_own(c, h.D);
  output_gradients(h, g, w.dy[head], t0, c, a);
  if (h.norm) {
    load_chunk_start();
    sweep<false, true>(along);
  }
  double drift = dot(d_end.M, start.M, n.P * n.N);  // <dS, S> after the last token

  Sweep against = c.sweep_over_rows();
  against.M = d_end.M;
  against.first = c.tokens, against.step = -1;
  against.scale = c.back;
  against.w = a.dy, against.a = c.q;
  against.of_n = c.k, against.out_p = a.u;
  against.of_p = c.v, against.out_n = a.dk;
  sweep<true, true>(against);

  for (int64_t t = c.tokens; t >= 0; --t) {
    value_gradients(h, g, t, c, a);
    if (t == c.tokens) {
      axpy(1, d_end.k, n.RN, a.dk + t * n.RN);
      axpy(1, d_end.x, n.P, a.dx);
    }
    if (t > 0) store_row(g.dx, t0 + t - 1, h.size.P, a.dx);
  }
  copy(a.dx, n.P, d_end.x);
  copy(a.dk, n.RN, d_end.k);

  constexpr float kPi = 3.14159265f;
  for (int64_t t = c.tokens; t > 0; --t) {
    const int64_t token = t0 + t - 1;
    fill(0, n.N, a.sum);
    for (int64_t r = 0; r < R; ++r) {
      const int64_t i = t * n.RN + r * n.N, to = ((t - 1) * R + r) * N;
      turn_back(c.k + i, a.dk + i, c, t, a, dB + to, g.sums.B_bias + r * n.N);
      turn_back(c.q + i, a.dq + i, c, t, a, dC + to, g.sums.C_bias + r * n.N);
    }
    float turned = 0;  // Σ tanh Θ
    const float* tanh = c.tanh + t * n.T;
    for (int64_t i = 0; i < T; ++i) {
      d_end.angle[i] += a.sum[i];
      turned += tanh[i] * d_end.angle[i];
      a.dangle[i] = kPi * c.dt[t] * (1 - tanh[i] * tanh[i]) * d_end.angle[i];
      dangle[(t - 1) * T + i] += a.dangle[i];
    }
    store_row(g.dangle, token, T, a.dangle);
    drift += static_cast<double>(a.drift[t]) - static_cast<double>(c.s[t] * a.ds[t]);
    const float dgamma = a.ds[t] + a.own[t], dnext = a.ds[t - 1];
    put_number(g.dadt, token, static_cast<float>(drift));
    put_number(g.ddt, token, c.lambda[t] * dgamma + c.mu[t] * dnext + kPi * turned);
    put_number(g.dtrap, token, c.dt[t] * (dgamma - dnext) * c.lambda[t] * c.mu[t]);
  }
  float* const all = w.grads[head].sums.B_bias;  // the first of them
  for (int64_t i = 0; i < m3::sums_size(h.size); ++i) all[i] += sums[i];
}

static void backward(const m3::Backward& w) {
  const m3::Sizes& size = w.head[0].size;
  Area area{w.scratch};
  Chunk c(area, size);
  const Adjoint a(area, c.n);
  const Carry start(area, c.n);
  const int64_t in_row = size.R * size.N;
  float *dB = area.take(m3::kChunk * in_row), *dC = area.take(m3::kChunk * in_row);
  float* dangle = area.take(m3::kChunk * size.T);
  float* sums = area.take(m3::sums_size(size));
  float* of_heads = area.next;
  const auto d_end = [&](int head) {
    Area at_head{of_heads + head * m3::carry_size(size)};
    return Carry(at_head, c.n);
  };
  for (int i = 0; i < w.heads; ++i) {
    load_state(w.grads[i].dto, size, d_end(i));
    load_vector(w.grads[i].dto.angle, size.T, 0, d_end(i).angle);
  }
  const int64_t tokens = w.head[0].tokens, chunks = (tokens + m3::kChunk - 1) / m3::kChunk;
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    const int64_t t0 = chunk * m3::kChunk, count = chunk_tokens(w.head[0], t0);
    for (float* p : {dB, dC}) fill(0, count * in_row, p);
    fill(0, count * size.T, dangle);
    for (int i = 0; i < w.heads; ++i)
      backward_chunk(w, i, t0, c, a, start, d_end(i), dB, dC, dangle, sums);
    if (w.part_dB) copy(dB, count * in_row, w.part_dB + t0 * in_row);
    if (w.part_dC) copy(dC, count * in_row, w.part_dC + t0 * in_row);
    if (w.part_dangle) copy(dangle, count * size.T, w.part_dangle + t0 * size.T);
  }
  for (int i = 0; i < w.heads; ++i) {
    const m3::StateOf<float>& to = w.grads[i].dfrom;
    if (!to.ssm) continue;
    store_state(d_end(i), size, to);
    copy(d_end(i).angle, size.T, to.angle);
  }
}

}  // namespace mamba3

const ops::mamba3::Kernels mamba3_scan_kernels = {mamba3::forward, mamba3::backward};

}  // namespace krait::KRAIT_ISA
