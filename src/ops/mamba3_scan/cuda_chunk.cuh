// Private to this room: a chunk of one head as a block of threads has it, in scratch memory of its own; the same
// quantities and layouts as in simd_chunk.h. Row 0 is the token before the chunk. Rows over P and N are padded
// with zeros. Functions here are called by all threads; a barrier lies between what one writes and another reads.
#pragma once
#include "krait/ops/mamba3_scan/cuda.h"
#include "krait/tensor/cuda/math.h"

namespace krait::ops::mamba3 {

constexpr int kThreads = 256;

struct Area {
  float* next;
  __device__ float* take(int64_t n) {
    float* const p = next;
    next += (n + 3) / 4 * 4;
    return p;
  }
};

struct Sequence {
  int64_t begin, tokens, in, out;
};

__device__ inline Sequence sequence(const CudaCall& c, int64_t s) {
  if (!c.begin) return {s * c.L, c.L, s, s};
  return {c.begin[s], c.begin[s + 1] - c.begin[s], c.row_in[s], c.row_out[s]};
}

__device__ inline Rows rows_at(const Rows& r, int64_t token, int64_t column) {
  if (!r.data) return r;
  const int64_t bytes = r.bf16 ? 2 : 4;
  return {static_cast<const char*>(r.data) + (token * r.stride + column) * bytes, r.stride, r.bf16};
}

__device__ inline GradRows rows_at(const GradRows& r, int64_t token, int64_t column) {
  if (!r.data) return r;
  const int64_t bytes = r.bf16 ? 2 : 4;
  return {static_cast<char*>(r.data) + (token * r.stride + column) * bytes, r.stride, r.bf16,
          r.add};
}

template <class F>
__device__ StateOf<F> state_at(const StateOf<float>& s, int64_t row, int64_t h, const CudaCall& c) {
  if (row < 0 || !s.ssm) return {};
  const Sizes& n = c.size;
  const int64_t head = row * c.H + h;
  return {s.angle + head * n.T, s.ssm + head * n.P * n.N, s.k + (row * n.R * c.H + h) * n.N,
          s.v + head * n.P, c.H * n.N};
}

__device__ inline float value_at(const Rows& r, int64_t t, int64_t i) {
  const int64_t at = t * r.stride + i;
  return r.bf16 ? static_cast<float>(static_cast<const __nv_bfloat16*>(r.data)[at])
                : static_cast<const float*>(r.data)[at];
}

__device__ inline void put_at(const GradRows& r, int64_t t, int64_t i, float value) {
  if (!r.data) return;
  const int64_t at = t * r.stride + i;
  if (r.bf16) {
    auto& to = static_cast<__nv_bfloat16*>(r.data)[at];
    to = static_cast<__nv_bfloat16>(r.add ? static_cast<float>(to) + value : value);
  } else {
    float& to = static_cast<float*>(r.data)[at];
    to = r.add ? to + value : value;
  }
}

// One head of one sequence.
__device__ inline Head head_of(const CudaCall& c, const Sequence& s, int64_t h) {
  const Sizes& n = c.size;
  const int64_t group = h / (c.H / c.G);
  const auto floats = [](const float* p, int64_t i) { return p ? p + i : nullptr; };
  Head w;
  w.size = n;
  w.tokens = s.tokens;
  w.halves = c.halves;
  w.x = rows_at(c.x, s.begin, h * n.P);
  w.z = rows_at(c.z, s.begin, h * n.P);
  w.B = rows_at(c.B, s.begin, group * n.N);
  w.C = rows_at(c.C, s.begin, group * n.N);
  w.rank_stride = c.G * n.N;
  w.dt = rows_at(c.dt, s.begin, h);
  w.adt = rows_at(c.adt, s.begin, h);
  w.trap = rows_at(c.trap, s.begin, h);
  w.angle = rows_at(c.angle, s.begin, c.shared_angle ? 0 : h * n.T);
  w.B_bias = floats(c.B_bias, h * n.R * n.N);
  w.C_bias = floats(c.C_bias, h * n.R * n.N);
  w.mimo_x = floats(c.mimo_x, h * n.R * n.P);
  w.mimo_z = floats(c.mimo_z, h * n.R * n.P);
  w.mimo_o = floats(c.mimo_o, h * n.R * n.P);
  w.norm = floats(c.norm, h * n.P);
  w.norm_eps = c.norm_eps;
  w.D = c.D ? c.D[h] : 0.0f;
  w.from = state_at<const float>(c.from, s.in, h, c);
  return w;
}

// f(i) for i in [0, n), spread over the block.
template <class F>
__device__ void each(int64_t n, const F& f) {
  for (int64_t i = threadIdx.x; i < n; i += kThreads) f(i);
}

// f(i) for i in [0, n), a warp each; all of its lanes call.
template <class F>
__device__ void each_warp(int64_t n, const F& f) {
  for (int64_t i = threadIdx.x / 32; i < n; i += kThreads / 32) f(i);
}

__device__ inline float warp_dot(const float* a, const float* b, int64_t n) {
  float sum = 0;
  for (int64_t i = threadIdx.x % 32; i < n; i += 32) sum = fmaf(a[i], b[i], sum);
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(~0u, sum, lane);
  return sum;
}

// What the block adds up: the lane 0 of a warp.
__device__ inline bool first_lane() { return threadIdx.x % 32 == 0; }

// Sizes of padded rows, and of the rows of a chunk.
struct Padded {
  int64_t P, N, T, R, RP, RN, rows;
  __device__ Padded(const Sizes& s, int64_t longest)
      : P(padded(s.P)),
        N(padded(s.N)),
        T(padded(s.T)),
        R(s.R),
        RP(s.R * P),
        RN(s.R * N),
        rows(min(kChunk, longest) + 1) {}
};

// The state of a head between two chunks, or its gradient; see simd_chunk.h.
struct Carry {
  float *M, *k, *x, *angle;
  __device__ Carry(Area& area, const Padded& n)
      : M(area.take(n.P * n.N)), k(area.take(n.RN)), x(area.take(n.P)), angle(area.take(n.T)) {}
  __device__ int32_t* turns() const { return reinterpret_cast<int32_t*>(angle); }
};

// to (rows, padded columns) from (rows, columns) at a distance; zeros beyond, and everywhere without `from`.
__device__ inline void load_matrix(const float* from, int64_t rows, int64_t columns, int64_t stride,
                                   int64_t all, float* to) {
  const int64_t width = padded(columns);
  each(all * width, [&](int64_t i) {
    const int64_t r = i / width, k = i % width;
    to[i] = from && r < rows && k < columns ? from[r * stride + k] : 0.0f;
  });
}

__device__ inline void store_matrix(const float* from, int64_t rows, int64_t columns,
                                    int64_t stride, float* to) {
  each(rows * columns, [&](int64_t i) {
    to[i / columns * stride + i % columns] = from[i / columns * padded(columns) + i % columns];
  });
}

// All but the angle.
__device__ inline void load_state(const StateOf<const float>& from, const Sizes& s,
                                  const Carry& to) {
  load_matrix(from.ssm, s.P, s.N, s.N, padded(s.P), to.M);
  load_matrix(from.k, s.R, s.N, from.k_stride, s.R, to.k);
  load_matrix(from.v, 1, s.P, s.P, 1, to.x);
}

__device__ inline void store_state(const Carry& from, const Sizes& s, const StateOf<float>& to) {
  store_matrix(from.M, s.P, s.N, s.N, to.ssm);
  store_matrix(from.k, s.R, s.N, to.k_stride, to.k);
  store_matrix(from.x, 1, s.P, s.P, to.v);
}

__device__ inline int32_t turns_of(float angle) {
  const double turns = static_cast<double>(angle) * 0.15915494309189535;
  const double part = turns - floor(turns);
  return static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint64_t>(part * 0x1p32)));
}

// In [0, 2π).
__device__ inline float angle_of(int32_t turns) {
  const float a =
      static_cast<float>(static_cast<double>(static_cast<uint32_t>(turns)) * 1.4629180792671596e-9);
  return a < 6.2831853f ? a : 0.0f;
}

// The fraction of a turn `half` / 2; any size. In float64, as what makes it: steps may be many turns long, and
// an error of one turns all that come after.
__device__ inline int32_t turns_of_half(double half) {
  const double turn = half * 0.5, part = turn - rint(turn);
  return static_cast<int32_t>(static_cast<uint32_t>(static_cast<int64_t>(rint(part * 0x1p32))));
}

// The quarter turn around a multiple of one: exact.
__device__ inline void sin_cos(int32_t turns, float& sine, float& cosine) {
  const auto t = static_cast<uint32_t>(turns);
  const uint32_t quarter = (t + (1u << 29)) >> 30;
  const auto rest = static_cast<int32_t>(t - (quarter << 30));
  float s, c;
  sincospif(static_cast<float>(rest) * 0x1p-31f, &s, &c);
  const float a = quarter % 2 == 0 ? s : c, b = quarter % 2 == 0 ? c : s;
  sine = quarter % 4 >= 2 ? -a : a;
  cosine = quarter % 4 == 1 || quarter % 4 == 2 ? -b : b;
}

__device__ inline void load_start(const Head& h, const Carry& to) {
  load_state(h.from, h.size, to);
  each(padded(h.size.T), [&](int64_t i) {
    to.turns()[i] = h.from.angle && i < h.size.T ? turns_of(h.from.angle[i]) : 0;
  });
}

// Between two chunks; x is read again from the inputs.
__device__ inline void save(const Carry& from, const Sizes& s, float* to) {
  store_matrix(from.M, s.P, s.N, s.N, to);
  store_matrix(from.k, s.R, s.N, s.N, to + s.P * s.N);
  each(s.T, [&](int64_t i) { to[s.P * s.N + s.R * s.N + i] = from.angle[i]; });
}

__device__ inline void load_saved(const float* from, const Head& h, int64_t t0, const Carry& to) {
  const Sizes& s = h.size;
  load_matrix(from, s.P, s.N, s.N, padded(s.P), to.M);
  load_matrix(from + s.P * s.N, s.R, s.N, s.N, s.R, to.k);
  load_matrix(from + s.P * s.N + s.R * s.N, 1, s.T, s.T, 1, to.angle);
  each(padded(s.P), [&](int64_t i) { to.x[i] = i < s.P ? value_at(h.x, t0 - 1, i) : 0.0f; });
}

// A pair of dimensions that are turned together.
struct Pair {
  int64_t a, b;
};
__device__ inline Pair pair_of(const Head& h, int64_t i) {
  return h.halves ? Pair{i, i + h.size.N / 2} : Pair{2 * i, 2 * i + 1};
}

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ inline float exact_sigmoid(double x) { return static_cast<float>(1 / (1 + exp(-x))); }
__device__ inline float one_or(const float* p, int64_t i) { return p ? p[i] : 1.0f; }

struct Chunk {
  Padded n;
  int64_t tokens = 0;
  float *k, *q;             // (rows, R, N)
  float *cos, *sin;         // (rows, T)
  float *v, *w, *y, *gate;  // (rows, R, P)
  float *x, *z, *tanh;      // (rows, P) twice, (rows, T)
  int32_t* turns;           // (rows, T)
  // A number a row; see simd_chunk.h.
  float *dt, *alpha, *lambda, *mu, *gamma, *next, *s, *back;
  float* kq;  // (rows, R, R): k of the second rank with q of the first

  __device__ Chunk(Area& area, const Padded& sizes) : n(sizes) {
    for (float** p : {&k, &q}) *p = area.take(n.rows * n.RN);
    for (float** p : {&cos, &sin, &tanh}) *p = area.take(n.rows * n.T);
    for (float** p : {&v, &w, &y, &gate}) *p = area.take(n.rows * n.RP);
    for (float** p : {&x, &z}) *p = area.take(n.rows * n.P);
    turns = reinterpret_cast<int32_t*>(area.take(n.rows * n.T));
    for (float** p : {&dt, &alpha, &lambda, &mu, &gamma, &next, &s, &back}) *p = area.take(n.rows);
    kq = area.take(n.rows * n.R * n.R);
  }

  // A row (R, N) of B or C with its bias, turned, and the same of every token.
  __device__ void turn(const Head& h, const Rows& in, const float* bias, int64_t t0,
                       float* to) const {
    const int64_t N = h.size.N, pairs = N / 2, each_row = pairs + (n.N - 2 * pairs);
    each(tokens * n.R * each_row, [&](int64_t at) {
      const int64_t i = at % each_row, r = at / each_row % n.R, t = at / each_row / n.R + 1;
      const auto read = [&](int64_t e) {
        return value_at(in, t0 + t - 1, r * h.rank_stride + e) + bias[r * N + e];
      };
      float* const row = to + t * n.RN + r * n.N;
      if (i >= pairs) {  // an odd last one, then the padding
        const int64_t e = pairs + i;
        row[e] = e < N ? read(e) : 0.0f;
        return;
      }
      const Pair p = pair_of(h, i);
      const float a = read(p.a), b = read(p.b);
      const float c_of = i < h.size.T ? cos[t * n.T + i] : 1.0f,
                  s_of = i < h.size.T ? sin[t * n.T + i] : 0.0f;
      row[p.a] = a * c_of - b * s_of;
      row[p.b] = b * c_of + a * s_of;
    });
  }

  // Everything above but y, gate and kq for tokens t0 ... ; the state before them is `carry`, whose k, x and
  // angle become those of the last token.
  __device__ void prepare(const Head& h, int64_t t0, int64_t count, const Carry& carry) {
    tokens = count;
    const int64_t T = h.size.T, P = h.size.P;
    __syncthreads();
    each(tokens + 1, [&](int64_t t) {
      const bool own = t > 0;
      const float delta = own ? value_at(h.dt, t0 + t - 1, 0) : 0.0f,
                  trap = own ? value_at(h.trap, t0 + t - 1, 0) : 0.0f;
      dt[t] = delta;
      // A few numbers a chunk, on which all of it depends.
      alpha[t] =
          own ? static_cast<float>(exp(static_cast<double>(value_at(h.adt, t0 + t - 1, 0)))) : 1.0f;
      lambda[t] = exact_sigmoid(static_cast<double>(trap));
      mu[t] = exact_sigmoid(-static_cast<double>(trap));
      gamma[t] = lambda[t] * delta;
      next[t] = mu[t] * delta;
    });
    each(n.RN, [&](int64_t i) {
      k[i] = carry.k[i];
      q[i] = 0;
    });
    each((tokens + 1) * n.P, [&](int64_t i) {
      const int64_t t = i / n.P, p = i % n.P;
      x[i] = t == 0 ? carry.x[p] : p < P ? value_at(h.x, t0 + t - 1, p) : 0.0f;
      z[i] = t > 0 && p < P && h.z.data ? value_at(h.z, t0 + t - 1, p) : 0.0f;
    });
    __syncthreads();
    each(tokens + 1, [&](int64_t t) {
      s[t] = t < tokens ? gamma[t] + next[t + 1] : gamma[t];
      back[t] = t < tokens ? alpha[t + 1] : 1.0f;
    });
    each(tokens * T, [&](int64_t at) {
      const int64_t t = at / T + 1, i = at % T;
      const double a = ::tanh(static_cast<double>(value_at(h.angle, t0 + t - 1, i)));
      tanh[t * n.T + i] = static_cast<float>(a);
      turns[t * n.T + i] = turns_of_half(a * static_cast<double>(dt[t]));
    });
    __syncthreads();
    each(T, [&](int64_t i) {
      auto now = static_cast<uint32_t>(carry.turns()[i]);
      for (int64_t t = 1; t <= tokens; ++t) {
        now += static_cast<uint32_t>(turns[t * n.T + i]);
        turns[t * n.T + i] = static_cast<int32_t>(now);
      }
      carry.turns()[i] = static_cast<int32_t>(now);
    });
    each((tokens + 1) * n.RP, [&](int64_t i) {
      const int64_t t = i / n.RP, r = i / n.P % n.R, p = i % n.P;
      const float m = p < P ? one_or(h.mimo_x, r * P + p) : 0.0f;
      v[i] = m * x[t * n.P + p];
      w[i] = s[t] * v[i];
    });
    __syncthreads();
    each(tokens * T, [&](int64_t at) {
      const int64_t i = (at / T + 1) * n.T + at % T;
      sin_cos(turns[i], sin[i], cos[i]);
    });
    each(n.P, [&](int64_t p) { carry.x[p] = x[tokens * n.P + p]; });
    __syncthreads();
    turn(h, h.B, h.B_bias, t0, k);
    turn(h, h.C, h.C_bias, t0, q);
    __syncthreads();
    each(n.RN, [&](int64_t i) { carry.k[i] = k[tokens * n.RN + i]; });
  }

  // To what was read of the state: the token's own part, γ (k·q) v, and the skip.
  __device__ void add_own(float D) const {
    const int64_t R = n.R;
    each_warp(tokens * R * R, [&](int64_t i) {
      const int64_t t = i / (R * R) + 1, r = i / R % R, of = i % R;
      const float dot = warp_dot(k + t * n.RN + of * n.N, q + t * n.RN + r * n.N, n.N);
      if (first_lane()) kq[t * R * R + i % (R * R)] = dot;
    });
    __syncthreads();
    each(tokens * n.RP, [&](int64_t i) {
      const int64_t t = i / n.RP + 1, r = i / n.P % R, p = i % n.P;
      float sum = y[i + n.RP];
      for (int64_t of = 0; of < R; ++of)
        sum = fmaf(gamma[t] * kq[(t * R + r) * R + of] + (of == r ? D : 0.0f),
                   v[t * n.RP + of * n.P + p], sum);
      y[i + n.RP] = sum;
    });
    __syncthreads();
  }
};

// A matrix M carried over tokens first, first + step, ...:
//
//   M *= scale[t]      out[t,r] = M of_b[t,r]      M += Σ_r wa[t,r] wb[t,r]ᵀ
//
// A row of it belongs to kOfRow neighbouring threads, 32 elements each, which stay in registers for all tokens.
struct Sweep {
  int64_t rows, first, step;
  int64_t A, B, R;  // padded
  float* M;
  int64_t a_step, b_step;
  bool write;  // M itself
  const float* scale;
  const float *wa, *wb, *of_b;  // (rows, R, A), (rows, R, B) twice
  float* out;                   // (rows, R, A)
};

template <int kOfRow>
__device__ __noinline__ void sweep(const Sweep& s) {  // else its registers crowd out others'
  constexpr int kRuns = 8, kA = kThreads / kOfRow, kB = kOfRow * kRuns * 4;
  __syncthreads();
  const int part = static_cast<int>(threadIdx.x) % kOfRow;
  for (int64_t a0 = 0; a0 < s.A; a0 += kA)
    for (int64_t b0 = 0; b0 < s.B; b0 += kB) {
      const int64_t a = a0 + threadIdx.x / kOfRow;
      const bool here = a < s.A;
      const int64_t b_first = b0 + part * 4;
      float m[kRuns][4];
#pragma unroll
      for (int i = 0; i < kRuns; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int64_t b = b_first + i * 4 * kOfRow + j;
          m[i][j] = here && b < s.B ? s.M[a * s.a_step + b * s.b_step] : 0.0f;
        }
      for (int64_t row = 0, t = s.first; row < s.rows; ++row, t += s.step) {
        const float scale = s.scale[t];
#pragma unroll
        for (int i = 0; i < kRuns; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) m[i][j] *= scale;
        for (int64_t r = 0; r < s.R; ++r) {
          const float* const of = s.of_b + (t * s.R + r) * s.B + b_first;
          float sum = 0;
#pragma unroll
          for (int i = 0; i < kRuns; ++i) {
            float v[4] = {};
            if (b_first + i * 4 * kOfRow < s.B) cuda::load<4>(of + i * 4 * kOfRow, v);
#pragma unroll
            for (int j = 0; j < 4; ++j) sum = fmaf(m[i][j], v[j], sum);
          }
#pragma unroll
          for (int lane = 1; lane < kOfRow; lane *= 2) sum += __shfl_xor_sync(~0u, sum, lane);
          if (part == 0 && here) {
            float& to = s.out[(t * s.R + r) * s.A + a];
            to = b0 == 0 ? sum : to + sum;
          }
        }
        for (int64_t r = 0; r < s.R; ++r) {
          const float* const of = s.wb + (t * s.R + r) * s.B + b_first;
          const float w = here ? s.wa[(t * s.R + r) * s.A + a] : 0.0f;
#pragma unroll
          for (int i = 0; i < kRuns; ++i) {
            float v[4] = {};
            if (b_first + i * 4 * kOfRow < s.B) cuda::load<4>(of + i * 4 * kOfRow, v);
#pragma unroll
            for (int j = 0; j < 4; ++j) m[i][j] = fmaf(w, v[j], m[i][j]);
          }
        }
      }
      if (!s.write || !here) continue;
#pragma unroll
      for (int i = 0; i < kRuns; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int64_t b = b_first + i * 4 * kOfRow + j;
          if (b < s.B) s.M[a * s.a_step + b * s.b_step] = m[i][j];
        }
    }
  __syncthreads();
}

// Forward in time y (rows, R, P), what is read of the state, or backward u from its gradient.
__device__ inline void sweep_p(const Chunk& c, bool forward, float* M, bool write, const float* w,
                               const float* a, const float* of, float* out) {
  const Padded& n = c.n;
  sweep<4>({c.tokens + 1, forward ? 0 : c.tokens, forward ? 1 : -1, n.P, n.N, n.R, M, n.N, 1, write,
            forward ? c.alpha : c.back, w, a, of, out});
}

// The same transposed: out (rows, R, N).
__device__ inline void sweep_n(const Chunk& c, bool forward, float* M, bool write, const float* w,
                               const float* a, const float* of, float* out) {
  const Padded& n = c.n;
  sweep<2>({c.tokens + 1, forward ? 0 : c.tokens, forward ? 1 : -1, n.N, n.P, n.R, M, 1, n.N, write,
            forward ? c.alpha : c.back, a, w, of, out});
}

}  // namespace krait::ops::mamba3
