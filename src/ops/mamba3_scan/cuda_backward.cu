// Backward of mamba3_scan on the GPU: a block a set of heads of a piece of the sequences, chunk by chunk from
// the end.
#include "krait/ops/mamba3_scan/cuda_head.cuh"

namespace krait::ops::mamba3 {

namespace {

// How backward cuts its work: (piece of the sequences) x (set of neighbouring heads of a group).
struct Cut {
  int64_t heads, sets_of_group, sets, pieces;  // heads: of a set, at most
};

Cut cut_of(const CudaCall& c) {
  constexpr int64_t kFloats = int64_t{1} << 28;  // of the partial sums of dB and dC, about
  const int64_t of_group = c.H / c.G, row = 2 * c.size.R * c.size.N;
  const int64_t for_memory = cuda::ceil_div(c.H * c.tokens * row, kFloats);
  Cut cut;
  cut.heads = std::min(of_group, std::max(for_memory, c.sequences * c.H / kMostBlocks + 1));
  cut.sets_of_group = cuda::ceil_div(of_group, cut.heads);
  cut.sets = cut.sets_of_group * c.G;
  cut.pieces = std::clamp<int64_t>(kMostBlocks / cut.sets, 1, std::max<int64_t>(c.sequences, 1));
  return cut;
}

// What backward adds to a chunk; see Adjoint in cpu_simd.cpp.
struct Adjoint {
  float *dq, *dk, *dy, *u, *turned, *m, *own, *ds, *drift, *scales, *along, *dx;
  __device__ Adjoint(Area& area, const Padded& n) {
    for (float** p : {&dq, &dk}) *p = area.take(n.rows * n.RN);
    for (float** p : {&dy, &u}) *p = area.take(n.rows * n.RP);
    turned = area.take(n.rows * n.T);   // what angles are given, then Θ
    m = area.take(n.rows * n.R * n.R);  // dy of the first rank with v of the second
    for (float** p : {&own, &ds, &drift}) *p = area.take(n.rows);
    for (float** p : {&scales, &along}) *p = area.take(n.rows * n.R);
    dx = area.take(n.rows * n.P);
  }
};

int64_t adjoint_floats(const Sizes& s, int64_t longest) {
  const int64_t P = padded(s.P), N = padded(s.N), T = padded(s.T), rows = rows_of(longest);
  return rows * (2 * s.R * N + 2 * s.R * P + T + P) + fours(rows * s.R * s.R) + 3 * fours(rows) +
         2 * fours(rows * s.R);
}

int64_t block_floats(const Sizes& s, int64_t longest, int64_t heads) {
  return chunk_floats(s, longest) + adjoint_floats(s, longest) + (heads + 1) * carry_floats(s);
}

// The parts of the scratch memory that blocks leave results in.
struct Results {
  float* sums;                 // (pieces, H, sums_size)
  float *dB, *dC, *dangle;     // (sets, tokens, R N) twice, (sets, tokens, T); or null
  float *angle, *ssm, *k, *v;  // (sequences, H, ...), of the states in; or null
  float* blocks;
};

// Takes them from `scratch`, which may be null: then only what is returned counts, the floats in all.
int64_t take_results(const CudaBackward& b, const Cut& cut, float* scratch, Results& r) {
  const CudaCall& c = b.c;
  const Sizes& n = c.size;
  int64_t used = 0;
  const auto take = [&](bool wanted, int64_t floats) -> float* {
    if (!wanted) return nullptr;
    const int64_t at = used;
    used += (floats + 15) / 16 * 16;
    return scratch ? scratch + at : nullptr;
  };
  r.sums = take(true, cut.pieces * c.H * sums_size(n));
  r.dB = take(b.dB.data, cut.sets * c.tokens * n.R * n.N);
  r.dC = take(b.dC.data, cut.sets * c.tokens * n.R * n.N);
  r.dangle = take(b.dangle.data && c.shared_angle, cut.sets * c.tokens * n.T);
  const int64_t states = c.sequences * c.H;
  r.angle = take(b.any_from(), states * n.T);
  r.ssm = take(b.any_from(), states * n.P * n.N);
  r.k = take(b.any_from(), states * n.R * n.N);
  r.v = take(b.any_from(), states * n.P);
  r.blocks = take(true, cut.pieces * cut.sets * block_floats(n, c.longest, cut.heads));
  return used;
}

struct HeadGradients {
  GradRows dx, dz, ddt, dadt, dtrap, dangle;
  Sums sums;
  float *dB, *dC, *dangle_part;  // of the sequence's first token; or null
  bool first;                    // of its set: overwrites the parts
};

// The gates, and dy where there is no norm: it then does not depend on y.
__device__ void gate_rows(const Head& h, const Rows& dout, int64_t t0, const Chunk& c,
                          const Adjoint& a) {
  const Padded& n = c.n;
  each((c.tokens + 1) * n.RP, [&](int64_t i) {
    const int64_t t = i / n.RP, r = i / n.P % n.R, p = i % n.P, rp = r * h.size.P + p;
    const bool there = t > 0 && p < h.size.P;
    const float gate = there && h.z.data ? silu(one_or(h.mimo_z, rp) * c.z[t * n.P + p]) : 1.0f;
    c.gate[i] = gate;
    a.dy[i] =
        there && dout.data ? value_at(dout, t0 + t - 1, p) * one_or(h.mimo_o, rp) * gate : 0.0f;
  });
  __syncthreads();
}

// Back through the sum over ranks, the gate and the norm: dz, the sums of mimo_o, mimo_z and norm, and dy
// where there is a norm.
__device__ void output_gradients(const Head& h, const HeadGradients& g, const Rows& dout,
                                 int64_t t0, const Chunk& c, const Adjoint& a) {
  const Padded& n = c.n;
  const int64_t P = h.size.P;
  const auto dout_at = [&](int64_t t, int64_t p) {
    return dout.data ? value_at(dout, t0 + t - 1, p) : 0.0f;
  };
  if (h.norm) {
    each_warp(c.tokens * n.R, [&](int64_t i) {
      const float* const y = c.y + n.RP + i * n.P;
      const float scale = norm_scale(y, n.P, h);
      float along = 0;  // Σ dnormed normed
      for (int64_t p = threadIdx.x % 32; p < P; p += 32)
        along = fmaf(a.dy[n.RP + i * n.P + p] * h.norm[p], y[p] * scale, along);
#pragma unroll
      for (int lane = 16; lane > 0; lane /= 2) along += __shfl_xor_sync(~0u, along, lane);
      if (first_lane()) a.scales[i] = scale, a.along[i] = along;
    });
  } else {
    each(c.tokens * n.R, [&](int64_t i) { a.scales[i] = 1; });
  }
  __syncthreads();
  each(c.tokens * P, [&](int64_t i) {
    const int64_t t = i / P + 1, p = i % P;
    float dz = 0;
    for (int64_t r = 0; h.z.data && g.dz.data && r < n.R; ++r) {
      const int64_t rp = r * P + p;
      const float value =
          c.y[t * n.RP + r * n.P + p] * a.scales[(t - 1) * n.R + r] * (h.norm ? h.norm[p] : 1.0f);
      const float m = one_or(h.mimo_z, rp);
      dz += dout_at(t, p) * one_or(h.mimo_o, rp) * value * silu_slope(m * c.z[t * n.P + p]) * m;
    }
    put_at(g.dz, t0 + t - 1, p, dz);
  });
  each(n.R * P, [&](int64_t rp) {
    const int64_t r = rp / P, p = rp % P, to = r * n.P + p;
    const float o = one_or(h.mimo_o, rp), weight = h.norm ? h.norm[p] : 1.0f;
    float mimo_o = 0, mimo_z = 0;
    for (int64_t t = 1; t <= c.tokens; ++t) {
      const float value = c.y[t * n.RP + to] * a.scales[(t - 1) * n.R + r] * weight,
                  d = dout_at(t, p);
      mimo_o = fmaf(d * value, c.gate[t * n.RP + to], mimo_o);
      if (!h.z.data) continue;
      const float z = c.z[t * n.P + p];
      mimo_z = fmaf(d * o * value * silu_slope(one_or(h.mimo_z, rp) * z), z, mimo_z);
    }
    g.sums.mimo_o[to] += mimo_o;
    g.sums.mimo_z[to] += mimo_z;
  });
  if (!h.norm) return;
  each(P, [&](int64_t p) {
    float sum = 0;
    for (int64_t i = 0; i < c.tokens * n.R; ++i)
      sum = fmaf(a.dy[n.RP + i * n.P + p], c.y[n.RP + i * n.P + p] * a.scales[i], sum);
    g.sums.norm[p] += sum;
  });
  __syncthreads();
  each(c.tokens * n.R * P, [&](int64_t at) {
    const int64_t i = at / P, p = at % P, place = n.RP + i * n.P + p;
    const float scale = a.scales[i], mean = a.along[i] / static_cast<float>(P) * scale;
    a.dy[place] = (a.dy[place] * h.norm[p] - mean * c.y[place]) * scale;
  });
}

// Once both sweeps are done: s and γ are taken into dk and u, now dv; the token's own part and the skip are added.
__device__ void value_gradients(const Head& h, const HeadGradients& g, const Chunk& c,
                                const Adjoint& a) {
  const Padded& n = c.n;
  const int64_t R = n.R;
  each_warp(c.tokens + 1, [&](int64_t t) {
    const float ds = warp_dot(c.v + t * n.RP, a.u + t * n.RP, n.RP),
                drift = warp_dot(c.q + t * n.RN, a.dq + t * n.RN, n.RN);
    if (first_lane()) a.ds[t] = ds, a.drift[t] = drift;
  });
  each_warp(c.tokens * R * R, [&](int64_t i) {
    const int64_t t = i / (R * R) + 1, r = i / R % R, of = i % R;
    const float m = warp_dot(a.dy + t * n.RP + r * n.P, c.v + t * n.RP + of * n.P, n.P);
    if (first_lane()) a.m[t * R * R + i % (R * R)] = m;
  });
  __syncthreads();
  each(c.tokens, [&](int64_t i) {
    float own = 0;
    for (int64_t at = (i + 1) * R * R; at < (i + 2) * R * R; ++at) own += a.m[at] * c.kq[at];
    a.own[i + 1] = own;
  });
  if (threadIdx.x == 0) {
    float sum = 0;
    for (int64_t t = 1; t <= c.tokens; ++t)
      for (int64_t r = 0; r < R; ++r) sum += a.m[(t * R + r) * R + r];
    *g.sums.D += sum;
  }
  each((c.tokens + 1) * n.RN, [&](int64_t at) {
    const int64_t t = at / n.RN, r = at / n.N % R, e = at % n.N;
    float dq = a.dq[at], dk = a.dk[at] * c.s[t];
    for (int64_t of = 0; t > 0 && of < R; ++of) {
      dq = fmaf(c.gamma[t] * a.m[(t * R + r) * R + of], c.k[t * n.RN + of * n.N + e], dq);
      dk = fmaf(c.gamma[t] * a.m[(t * R + of) * R + r], c.q[t * n.RN + of * n.N + e], dk);
    }
    a.dq[at] = dq;
    a.dk[at] = dk;
  });
  each((c.tokens + 1) * n.RP, [&](int64_t at) {
    const int64_t t = at / n.RP, r = at / n.P % R, p = at % n.P;
    float dv = a.u[at] * c.s[t];
    for (int64_t of = 0; t > 0 && of < R; ++of)
      dv = fmaf(c.gamma[t] * c.kq[(t * R + of) * R + r] + (of == r ? h.D : 0.0f),
                a.dy[t * n.RP + of * n.P + p], dv);
    a.u[at] = dv;
  });
  __syncthreads();
}

// dx, the sums of mimo_x, and what the token before the chunk is given.
__device__ void input_gradients(const Head& h, const HeadGradients& g, int64_t t0, const Chunk& c,
                                const Adjoint& a, const Carry& d_end) {
  const Padded& n = c.n;
  const int64_t P = h.size.P;
  each((c.tokens + 1) * n.P, [&](int64_t i) {
    const int64_t t = i / n.P, p = i % n.P;
    float dx = t == c.tokens ? d_end.x[p] : 0.0f;
    for (int64_t r = 0; p < P && r < n.R; ++r)
      dx = fmaf(a.u[t * n.RP + r * n.P + p], one_or(h.mimo_x, r * P + p), dx);
    a.dx[i] = dx;
    if (t > 0 && p < P) put_at(g.dx, t0 + t - 1, p, dx);
  });
  each(n.RP, [&](int64_t i) {
    float sum = 0;
    for (int64_t t = 0; t <= c.tokens; ++t)
      sum = fmaf(a.u[t * n.RP + i], c.x[t * n.P + i % n.P], sum);
    g.sums.mimo_x[i] += sum;
  });
  each(n.RN, [&](int64_t i) { a.dk[c.tokens * n.RN + i] += d_end.k[i]; });
  __syncthreads();
  each(n.P, [&](int64_t i) { d_end.x[i] = a.dx[i]; });
  each(n.RN, [&](int64_t i) { d_end.k[i] = a.dk[i]; });
}

// Back through the rotation: dB, dC and their biases; what each angle is given, Σ over ranks.
__device__ void turn_back(const Head& h, const HeadGradients& g, int64_t t0, const Chunk& c,
                          const Adjoint& a) {
  const Padded& n = c.n;
  const int64_t N = h.size.N, T = h.size.T, pairs = N / 2;
  each(c.tokens * T, [&](int64_t at) {
    const int64_t t = at / T + 1, i = at % T;
    const Pair p = pair_of(h, i);
    float torque = 0;
    for (int64_t r = 0; r < n.R; ++r) {
      const int64_t row = t * n.RN + r * n.N;
      torque += c.k[row + p.a] * a.dk[row + p.b] - c.k[row + p.b] * a.dk[row + p.a];
      torque += c.q[row + p.a] * a.dq[row + p.b] - c.q[row + p.b] * a.dq[row + p.a];
    }
    a.turned[t * n.T + i] = torque;
  });
  __syncthreads();
  const auto back = [&](float* d) {
    each(c.tokens * n.R * pairs, [&](int64_t at) {
      const int64_t i = at % pairs, r = at / pairs % n.R, t = at / pairs / n.R + 1;
      if (i >= T) return;
      const Pair p = pair_of(h, i);
      float* const row = d + t * n.RN + r * n.N;
      const float cos = c.cos[t * n.T + i], sin = c.sin[t * n.T + i], x = row[p.a], y = row[p.b];
      row[p.a] = x * cos + y * sin;
      row[p.b] = y * cos - x * sin;
    });
  };
  back(a.dk);
  back(a.dq);
  __syncthreads();
  const auto hand_out = [&](const float* d, float* part, float* bias) {
    each(n.R * N, [&](int64_t i) {
      const int64_t r = i / N, e = i % N;
      float sum = 0;
      for (int64_t t = 1; t <= c.tokens; ++t) {
        const float value = d[t * n.RN + r * n.N + e];
        sum += value;
        if (!part) continue;
        float& to = part[(t0 + t - 1) * n.R * N + i];
        to = g.first ? value : to + value;
      }
      bias[r * n.N + e] += sum;
    });
  };
  hand_out(a.dk, g.dB, g.sums.B_bias);
  hand_out(a.dq, g.dC, g.sums.C_bias);
}

// The gradients of what is a number a token, and of the angles. `drift` is <dS, S> after the last token.
__device__ void step_gradients(const Head& h, const HeadGradients& g, int64_t t0, const Chunk& c,
                               const Adjoint& a, const Carry& d_end, float drift) {
  constexpr float kPi = 3.14159265f;
  const Padded& n = c.n;
  const int64_t T = h.size.T;
  each(T, [&](int64_t i) {
    float sum = d_end.angle[i];
    for (int64_t t = c.tokens; t > 0; --t) a.turned[t * n.T + i] = sum += a.turned[t * n.T + i];
    d_end.angle[i] = sum;
  });
  __syncthreads();
  each(c.tokens * T, [&](int64_t at) {
    const int64_t t = at / T + 1, i = at % T;
    const float tanh = c.tanh[t * n.T + i];
    const float value = kPi * c.dt[t] * (1 - tanh * tanh) * a.turned[t * n.T + i];
    put_at(g.dangle, t0 + t - 1, i, value);
    if (!g.dangle_part) return;
    float& to = g.dangle_part[(t0 + t - 1) * T + i];
    to = g.first ? value : to + value;
  });
  each_warp(c.tokens, [&](int64_t at) {
    const int64_t t = at + 1, row = t * n.T;
    const float turned = warp_dot(c.tanh + row, a.turned + row, T);
    const float dgamma = a.ds[t] + a.own[t], dnext = a.ds[t - 1];
    if (!first_lane()) return;
    put_at(g.ddt, t0 + t - 1, 0, c.lambda[t] * dgamma + c.mu[t] * dnext + kPi * turned);
    put_at(g.dtrap, t0 + t - 1, 0, c.dt[t] * (dgamma - dnext) * c.lambda[t] * c.mu[t]);
  });
  if (threadIdx.x == 0) {
    double now = static_cast<double>(drift);
    for (int64_t t = c.tokens; t > 0; --t) {
      now += static_cast<double>(a.drift[t]) - static_cast<double>(c.s[t] * a.ds[t]);
      put_at(g.dadt, t0 + t - 1, 0, static_cast<float>(now));
    }
  }
}

// One chunk of one head. `d_end` is the gradient of the state after it, which becomes that of the one before.
__device__ void backward_chunk(const CudaBackward& b, const Head& h, const HeadGradients& g,
                               const Rows& dout, const float* saved, int64_t t0, Chunk& c,
                               const Adjoint& a, const Carry& start, const Carry& d_end) {
  __syncthreads();
  if (t0 > 0) {
    load_saved(saved + (t0 / kChunk - 1) * b.c.H * saved_size(h.size), h, t0, start);
  } else {
    load_start(h, start);
  }
  c.prepare(h, t0, min(kChunk, h.tokens - t0), start);
  gate_rows(h, dout, t0, c, a);
  sweep_p(c, true, start.M, false, c.w, c.k, c.q, c.y);
  c.add_own(h.D);
  output_gradients(h, g, dout, t0, c, a);
  sweep_n(c, true, start.M, true, c.w, c.k, a.dy,
          a.dq);  // from here on the state after the last token
  float drift = 0;
  each(c.n.P * c.n.N, [&](int64_t i) { drift = fmaf(d_end.M[i], start.M[i], drift); });
  drift = cuda::block_sum(drift);
  sweep_p(c, false, d_end.M, false, a.dy, c.q, c.k, a.u);
  sweep_n(c, false, d_end.M, true, a.dy, c.q, c.v, a.dk);
  value_gradients(h, g, c, a);
  input_gradients(h, g, t0, c, a, d_end);
  __syncthreads();
  turn_back(h, g, t0, c, a);
  step_gradients(h, g, t0, c, a, d_end, drift);
}

__global__ void __launch_bounds__(kThreads, 2)
    backward_kernel(const CudaBackward b, const Results to, const Cut cut, int64_t floats) {
  const CudaCall& c = b.c;
  const Sizes& n = c.size;
  const int64_t set = blockIdx.x % cut.sets, piece = blockIdx.x / cut.sets;
  const int64_t of_group = c.H / c.G, group = set / cut.sets_of_group;
  const int64_t first = group * of_group + set % cut.sets_of_group * cut.heads;
  const int64_t end = min(first + cut.heads, (group + 1) * of_group);
  Area area{to.blocks + blockIdx.x * floats};
  Chunk chunk(area, Padded(n, c.longest));
  const Adjoint adjoint(area, chunk.n);
  const Carry start(area, chunk.n);
  float* const carries = area.next;
  const auto d_end_of = [&](int64_t h) {
    Area at{carries + (h - first) * carry_size(n)};
    return Carry(at, chunk.n);
  };
  const auto sums_of = [&](int64_t h) { return to.sums + (piece * c.H + h) * sums_size(n); };
  for (int64_t h = first; h < end; ++h) each(sums_size(n), [&](int64_t i) { sums_of(h)[i] = 0; });
  const int64_t last = (piece + 1) * c.sequences / cut.pieces;
  for (int64_t i = piece * c.sequences / cut.pieces; i < last; ++i) {
    const Sequence s = sequence(c, i);
    __syncthreads();
    for (int64_t h = first; h < end; ++h) {
      const Carry d_end = d_end_of(h);
      const StateOf<const float> dto = state_at<const float>(b.dto, s.out, h, c);
      load_state(dto, n, d_end);
      load_matrix(dto.angle, 1, n.T, n.T, 1, d_end.angle);
    }
    for (int64_t chunks = (s.tokens + kChunk - 1) / kChunk, k = chunks - 1; k >= 0; --k)
      for (int64_t h = first; h < end; ++h) {
        const auto rows = [&](const GradRows& r, int64_t column) {
          return rows_at(r, s.begin, column);
        };
        const auto part = [&](float* p, int64_t row) {
          return p ? p + (set * c.tokens + s.begin) * row : nullptr;
        };
        HeadGradients g;
        g.dx = rows(b.dx, h * n.P);
        g.dz = rows(b.dz, h * n.P);
        g.ddt = rows(b.ddt, h);
        g.dadt = rows(b.dadt, h);
        g.dtrap = rows(b.dtrap, h);
        g.dangle = c.shared_angle ? GradRows{} : rows(b.dangle, h * n.T);
        g.sums = sums_at(sums_of(h), n);
        g.dB = part(to.dB, n.R * n.N);
        g.dC = part(to.dC, n.R * n.N);
        g.dangle_part = part(to.dangle, n.T);
        g.first = h == first;
        backward_chunk(b, head_of(c, s, h), g, rows_at(b.dy, s.begin, h * n.P), saved_at(c, s, h),
                       k * kChunk, chunk, adjoint, start, d_end_of(h));
      }
    __syncthreads();
    for (int64_t h = first; to.ssm && h < end; ++h) {
      const int64_t at = i * c.H + h;
      const StateOf<float> from = {to.angle + at * n.T, to.ssm + at * n.P * n.N,
                                   to.k + (i * n.R * c.H + h) * n.N, to.v + at * n.P, c.H * n.N};
      const Carry d_end = d_end_of(h);
      store_state(d_end, n, from);
      each(n.T, [&](int64_t e) { from.angle[e] = d_end.angle[e]; });
    }
  }
}

// (H, rows, n) = the sums over the pieces of padded rows.
__global__ void sum_pieces_kernel(const float* first, int64_t step, int64_t pieces, int64_t of_head,
                                  int64_t rows, int64_t n, CudaBackward::Sum to, int64_t all) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= all) return;
  const float* const part = first + i / (rows * n) * of_head + i / n % rows * padded(n) + i % n;
  float sum = to.add ? to.to[i] : 0.0f;
  for (int64_t piece = 0; piece < pieces; ++piece) sum += part[piece * step];
  to.to[i] = sum;
}

// (tokens, rows, groups, n) = the sums over the sets of heads of each group of (set, tokens, rows, n).
__global__ void sum_sets_kernel(const float* parts, int64_t sets, int64_t tokens, int64_t rows,
                                int64_t groups, int64_t n, GradRows to) {
  const int64_t row_size = rows * groups * n;
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= tokens * row_size) return;
  const int64_t t = at / row_size, i = at % row_size, row = i / (groups * n),
                group = i / n % groups;
  const int64_t step = tokens * rows * n;
  const float* const part = parts + group * sets * step + (t * rows + row) * n + i % n;
  float sum = 0;
  for (int64_t set = 0; set < sets; ++set) sum += part[set * step];
  put_at(to, t, i, sum);
}

// The gradient of the states handed in, from those of the sequences: a row may have started several, or none.
__global__ void sum_states_kernel(const CudaCall c, const float* of_sequences, int64_t size,
                                  CudaBackward::Sum to, int64_t all) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= all) return;
  const int64_t row = i / size;
  float sum = to.add ? to.to[i] : 0.0f;
  for (int64_t s = c.begin ? 0 : row; s < (c.begin ? c.sequences : row + 1); ++s)
    if (sequence(c, s).in == row) sum += of_sequences[s * size + i % size];
  to.to[i] = sum;
}

unsigned blocks_for(int64_t n) { return static_cast<unsigned>(cuda::ceil_div(n, 256)); }

void add_up(const CudaBackward& b, const Cut& cut, const Results& r, cudaStream_t stream) {
  const CudaCall& c = b.c;
  const Sizes& n = c.size;
  const Sums at = sums_at(r.sums, n);
  const auto pieces = [&](const float* first, int64_t rows, int64_t size,
                          const CudaBackward::Sum& to) {
    const int64_t all = c.H * rows * size;
    if (!to.to || all == 0) return;
    sum_pieces_kernel<<<blocks_for(all), 256, 0, stream>>>(first, c.H * sums_size(n), cut.pieces,
                                                           sums_size(n), rows, size, to, all);
  };
  pieces(at.B_bias, n.R, n.N, b.dB_bias);
  pieces(at.C_bias, n.R, n.N, b.dC_bias);
  pieces(at.mimo_x, n.R, n.P, b.dmimo_x);
  pieces(at.mimo_z, n.R, n.P, b.dmimo_z);
  pieces(at.mimo_o, n.R, n.P, b.dmimo_o);
  pieces(at.norm, 1, n.P, b.dnorm);
  pieces(at.D, 1, 1, b.dD);
  const auto sets = [&](const float* parts, int64_t count, int64_t rows, int64_t groups,
                        int64_t size, const GradRows& to) {
    const int64_t all = c.tokens * rows * groups * size;
    if (!parts || all == 0) return;
    sum_sets_kernel<<<blocks_for(all), 256, 0, stream>>>(parts, count, c.tokens, rows, groups, size,
                                                         to);
  };
  sets(r.dB, cut.sets_of_group, n.R, c.G, n.N, b.dB);
  sets(r.dC, cut.sets_of_group, n.R, c.G, n.N, b.dC);
  sets(r.dangle, cut.sets, 1, 1, n.T, b.dangle);
  const auto states = [&](const float* of, int64_t size, const CudaBackward::Sum& to) {
    const int64_t all = b.from_rows * size;
    if (!to.to || all == 0) return;
    sum_states_kernel<<<blocks_for(all), 256, 0, stream>>>(c, of, size, to, all);
  };
  states(r.angle, c.H * n.T, b.dfrom_angle);
  states(r.ssm, c.H * n.P * n.N, b.dfrom_ssm);
  states(r.k, n.R * c.H * n.N, b.dfrom_k);
  states(r.v, c.H * n.P, b.dfrom_v);
}

}  // namespace

int64_t cuda_backward_scratch(const CudaBackward& b) {
  Results r;
  return take_results(b, cut_of(b.c), nullptr, r);
}

void cuda_backward(const CudaBackward& b, void* stream) {
  const Cut cut = cut_of(b.c);
  const auto s = static_cast<cudaStream_t>(stream);
  Results r;
  take_results(b, cut, b.c.scratch, r);
  backward_kernel<<<static_cast<unsigned>(cut.pieces * cut.sets), kThreads, 0, s>>>(
      b, r, cut, block_floats(b.c.size, b.c.longest, cut.heads));
  cuda::check_launch("mamba3_scan backward");
  add_up(b, cut, r, s);
  cuda::check_launch("mamba3_scan backward, sums");
}

}  // namespace krait::ops::mamba3
