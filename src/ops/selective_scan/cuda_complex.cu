// selective_scan of complex states on NVIDIA GPUs, plainly. Forward: a warp a channel of a sequence, a lane every
// 32nd state. Backward: a warp 32 channels of a piece of the sequences, one state after the other, each chunk of
// time once forwards from the saved state before it and once back; dB and dC are summed over the warp by shuffles.
#include "krait/ops/selective_scan/cuda_complex.h"
#include "krait/ops/selective_scan/cuda_value.cuh"
#include "krait/ops/selective_scan/cuda_work.cuh"

namespace krait::ops::scan {
namespace {

constexpr int kWarps = 4;          // of a block that goes forward
constexpr int kMostInterval = 32;  // cuda_saved_interval of few states
constexpr int64_t kMostPieces = 64;

struct Number {
  float re = 0, im = 0;
};
__device__ inline Number product(Number a, Number b) {
  return {fmaf(a.re, b.re, -a.im * b.im), fmaf(a.re, b.im, a.im * b.re)};
}
__device__ inline Number product_conj(Number a, Number b) {
  return {fmaf(a.re, b.re, a.im * b.im), fmaf(a.im, b.re, -a.re * b.im)};
}
__device__ inline Number add_scaled(float s, Number a, Number sum) {
  return {fmaf(s, a.re, sum.re), fmaf(s, a.im, sum.im)};
}
__device__ inline Number number_at(const float* pairs, int64_t n) {
  return {pairs[2 * n], pairs[2 * n + 1]};
}
__device__ inline Number number_at(const CudaRows& r, int64_t at, int64_t n) {
  return {value(r, at + 2 * n), value(r, at + 2 * n + 1)};
}

// (re log2(e), im)
__device__ inline Number scaled(Number A) { return {scaled_A(A.re, false), A.im}; }
__device__ inline Number decay_of(float delta, Number A2) {
  const float size = exp2_of<false>(delta * A2.re);
  float sine, cosine;
  sincosf(delta * A2.im, &sine, &cosine);
  return {size * cosine, size * sine};
}

// Of all tokens.
struct Sum {
  double re = 0, im = 0;
  __device__ void add(float a, float b) { re += a, im += b; }
};

// Δ before the softplus.
__device__ inline float step_of(const CudaProblem& p, int64_t token, int64_t e) {
  return value(p.dt, token * p.dt.stride + e) + (p.dt_bias ? p.dt_bias[e] : 0.0f);
}
// To half a unit in the last place: it multiplies the angles of all states, and what it is off by on the mean adds up over
// slow decays (in float32 up to ten times the error of a plain run).
__device__ inline float delta_of(const CudaProblem& p, float step) {
  return p.softplus && !(step > 40) ? static_cast<float>(log1p(exp(static_cast<double>(step))))
                                    : step;
}
__device__ inline int64_t place_of_BC(const CudaRows& r, bool constant, const CudaProblem& p,
                                      int64_t token, int64_t e) {
  return constant ? e * p.N : token * r.stride + e / (p.E / p.G) * r.group;
}

template <int kEach>
__global__ void __launch_bounds__(32 * kWarps)
    forward_kernel(const __grid_constant__ CudaForward w) {
  const CudaProblem& p = w.p;
  const int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32, pairs = p.N / 2;
  if (i >= p.sequences * p.E) return;
  const int64_t e = i % p.E, interval = cuda_saved_interval(p.N);
  const int lane = threadIdx.x % 32;
  const Span s = sequence(p, i / p.E);
  Number h[kEach], A[kEach];
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int64_t n = lane + 32 * k;
    if (n >= pairs) break;
    A[k] = scaled(number_at(p.A + e * p.N, n));
    if (p.state_in && s.in >= 0) h[k] = number_at(p.state_in + (s.in * p.E + e) * p.N, n);
  }
  const auto keep = [&](float* to) {
#pragma unroll
    for (int k = 0; k < kEach; ++k)
      if (lane + 32 * k < pairs) reinterpret_cast<float2*>(to)[lane + 32 * k] = {h[k].re, h[k].im};
  };
  float deltas = 0;  // a lane has one of 32 tokens
  for (int64_t t = 0; t < s.tokens; ++t) {
    if (t % 32 == 0 && t + lane < s.tokens) deltas = delta_of(p, step_of(p, s.begin + t + lane, e));
    if (w.saved && t > 0 && t % interval == 0)
      keep(w.saved + ((s.begin / interval + t / interval - 1) * p.E + e) * p.N);
    const int64_t token = s.begin + t;
    const float u = value(p.u, token * p.u.stride + e),
                delta = __shfl_sync(~0u, deltas, static_cast<int>(t % 32));
    const int64_t at_B = place_of_BC(p.B, p.constant_B, p, token, e),
                  at_C = place_of_BC(p.C, p.constant_C, p, token, e);
    float y = 0;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const int64_t n = lane + 32 * k;
      if (n >= pairs) break;
      h[k] = add_scaled(delta * u, number_at(p.B, at_B, n), product(decay_of(delta, A[k]), h[k]));
      y += 2 * product(number_at(p.C, at_C, n), h[k]).re;
    }
#pragma unroll
    for (int m = 16; m > 0; m /= 2) y += __shfl_xor_sync(~0u, y, m);
    if (lane > 0) continue;
    y = fmaf(p.D ? p.D[e] : 0.0f, u, y);
    if (p.z.data) {
      const float z = value(p.z, token * p.z.stride + e);
      y *= z * sigmoid<false>(z);
    }
    set_value(w.y, token * w.y.stride + e, y);
  }
  if (w.state_out && s.out >= 0) keep(w.state_out + (s.out * p.E + e) * p.N);
}

// Rows (tokens, E) that a thread leaves for itself from state to state.
struct ComplexWork {
  Work k;
  float *delta, *g, *y, *s_A, *s_B;
};

// Lanes beyond the channels of the group take part in sums alone.
struct Adjoint {
  const ComplexWork& q;
  const Work& k;
  const CudaBackward& w;
  const CudaProblem& p;
  int64_t set, e;
  int lane;
  bool there;
  Number (*states)[32], (*decays)[32];  // of a chunk

  __device__ void prepare(const Span& s) const {
    for (int64_t token = s.begin; token < s.begin + s.tokens && there; ++token) {
      const int64_t at = token * p.E + e;
      float g = w.dy.data ? value(w.dy, token * w.dy.stride + e) : 0.0f;
      if (p.z.data) {
        const float z = value(p.z, token * p.z.stride + e);
        g *= z * sigmoid<false>(z);
      }
      q.delta[at] = delta_of(p, step_of(p, token, e));
      q.g[at] = g;
      q.y[at] = (p.D ? p.D[e] : 0.0f) * value(p.u, token * p.u.stride + e);
      q.s_A[at] = q.s_B[at] = 0;
    }
  }

  // State n of one sequence.
  __device__ void state(int64_t unit, const Span& s, int64_t n, Number A, Sum (&dABC)[3]) const {
    const int64_t interval = cuda_saved_interval(p.N), at_state = e * p.N;
    const Number A2 = scaled(A);
    Number dh;
    if (there && w.dstate_out && s.out >= 0)
      dh = number_at(w.dstate_out + s.out * p.E * p.N + at_state, n);
    for (int64_t i = ceil_div(s.tokens, interval) - 1; i >= 0; --i) {
      const int64_t first = s.begin + i * interval, left = s.tokens - i * interval,
                    steps = left < interval ? left : interval;
      Number h;
      if (there && i > 0)
        h = number_at(k.w.saved + (s.begin / interval + i - 1) * p.E * p.N + at_state, n);
      else if (there && p.state_in && s.in >= 0)
        h = number_at(p.state_in + s.in * p.E * p.N + at_state, n);
      for (int64_t j = 0; j < steps && there; ++j) {
        const int64_t token = first + j, at = token * p.E + e;
        const float delta = q.delta[at], x = delta * value(p.u, token * p.u.stride + e);
        states[j][lane] = h;
        decays[j][lane] = decay_of(delta, A2);
        h = add_scaled(x, number_at(p.B, place_of_BC(p.B, p.constant_B, p, token, e), n),
                       product(decays[j][lane], h));
        q.y[at] +=
            2 * product(number_at(p.C, place_of_BC(p.C, p.constant_C, p, token, e), n), h).re;
      }
      for (int64_t j = steps - 1; j >= 0; --j) {
        const int64_t token = first + j;
        float part[4] = {};
        if (there) {
          const Number B = number_at(p.B, place_of_BC(p.B, p.constant_B, p, token, e), n),
                       C = number_at(p.C, place_of_BC(p.C, p.constant_C, p, token, e), n);
          const int64_t at = token * p.E + e;
          const float delta = q.delta[at], g = 2 * q.g[at],
                      x = delta * value(p.u, token * p.u.stride + e);
          dh = add_scaled(g, {C.re, -C.im}, dh);
          part[0] = x * dh.re, part[1] = x * dh.im, part[2] = g * h.re, part[3] = -g * h.im;
          dABC[1].add(part[0], part[1]);
          dABC[2].add(part[2], part[3]);
          q.s_B[at] += product_conj(dh, B).re;
          h = states[j][lane];
          dh = product_conj(dh, decays[j][lane]);
          const Number d = product_conj(dh, h);  // of Δ A
          q.s_A[at] += product_conj(d, A).re;
          dABC[0].add(delta * d.re, delta * d.im);
        }
        if (!k.parts) continue;
        sum_transposed<32, 1>(part, lane);
        const int64_t row = set * k.part_rows + k.part_row(unit, s.begin, token - s.begin);
        if (lane % 8 == 0) k.parts[row * 2 * p.N + 4 * n + lane / 8] = part[0];
      }
    }
    if (there && k.dstates)
      reinterpret_cast<float2*>(k.dstates + unit * p.E * p.N + at_state)[n] = {dh.re, dh.im};
  }

  __device__ void finish(const Span& s, double& dD, double& ddt_bias) const {
    for (int64_t token = s.begin; token < s.begin + s.tokens && there; ++token) {
      const int64_t at = token * p.E + e;
      const float u = value(p.u, token * p.u.stride + e), g = q.g[at];
      const float du = fmaf(q.delta[at], q.s_B[at], (p.D ? p.D[e] : 0.0f) * g);
      float ddt = fmaf(u, q.s_B[at], q.s_A[at]);
      if (p.softplus) ddt *= sigmoid<false>(step_of(p, token, e));
      dD += g * u;
      ddt_bias += ddt;
      if (w.du.data) set_value(w.du, token * w.du.stride + e, du);
      if (w.ddt.data) set_value(w.ddt, token * w.ddt.stride + e, ddt);
      if (!w.dz.data) continue;
      const float z = value(p.z, token * p.z.stride + e), gate = sigmoid<false>(z);
      const float dy = w.dy.data ? value(w.dy, token * w.dy.stride + e) : 0.0f;
      set_value(w.dz, token * w.dz.stride + e, dy * q.y[at] * gate * fmaf(z, 1.0f - gate, 1.0f));
    }
  }
};

__global__ void __launch_bounds__(32) backward_kernel(const __grid_constant__ ComplexWork q) {
  __shared__ Number states[kMostInterval][32], decays[kMostInterval][32];
  const Work& k = q.k;
  const CudaProblem& p = k.w.p;
  const int lane = threadIdx.x;
  const int64_t sets = p.G * k.blocks, set = blockIdx.x % sets, piece = blockIdx.x / sets;
  const int64_t in_group = p.E / p.G, at = set % k.blocks * 32 + lane;
  const int64_t e = set / k.blocks * in_group + (at < in_group ? at : in_group - 1);
  const Adjoint of{q, k, k.w, p, set, e, lane, at < in_group, states, decays};
  const int64_t first = first_of(k, piece);
  const auto units = [&](const auto& f) {
    for (int64_t unit = first; unit < k.units() && piece_of(k, unit) == piece; ++unit)
      f(unit, sequence(p, unit));
  };
  units([&](int64_t, const Span& s) { of.prepare(s); });
  for (int64_t n = 0; n < p.N / 2; ++n) {
    Sum d[3];  // of A, and of constant B and C
    units(
        [&](int64_t unit, const Span& s) { of.state(unit, s, n, number_at(p.A + e * p.N, n), d); });
    float* const to[] = {k.dA, p.constant_B ? k.dB : nullptr, p.constant_C ? k.dC : nullptr};
    for (int i = 0; i < 3; ++i)
      if (to[i] && of.there)
        reinterpret_cast<float2*>(to[i] + (piece * p.E + e) * p.N)[n] = {
            static_cast<float>(d[i].re), static_cast<float>(d[i].im)};
  }
  double dD = 0, ddt_bias = 0;
  units([&](int64_t, const Span& s) { of.finish(s, dD, ddt_bias); });
  if (!of.there) return;
  k.dD[piece * p.E + e] = static_cast<float>(dD);
  k.ddt_bias[piece * p.E + e] = static_cast<float>(ddt_bias);
}

ComplexWork plan(const CudaProblem& p, Memory& at) {
  ComplexWork q{};
  Work& k = q.k;
  k.blocks = ceil_div(p.E / p.G, 32);
  k.pieces = std::clamp<int64_t>(p.sequences, 1, kMostPieces);
  k.span = k.segment = std::max<int64_t>(p.begin ? p.tokens : p.L, 1);
  k.part_rows = p.tokens;
  k.dstates = at.take(p.state_in ? p.sequences * p.E * p.N : 0);
  k.parts = at.take(p.constant_B && p.constant_C ? 0 : p.G * k.blocks * p.tokens * 2 * p.N);
  take_sums(p, k, at);
  for (float** rows : {&q.delta, &q.g, &q.y, &q.s_A, &q.s_B}) *rows = at.take(p.tokens * p.E);
  return q;
}

}  // namespace

void cuda_complex_forward(const CudaForward& w, void* stream) {
  const CudaProblem& p = w.p;
  const auto blocks = static_cast<unsigned>(cuda::ceil_div(p.sequences * p.E, kWarps));
  if (blocks == 0) return;
  const auto queue = static_cast<cudaStream_t>(stream);
  const auto kernel = p.N <= 64    ? forward_kernel<1>
                      : p.N <= 128 ? forward_kernel<2>
                                   : forward_kernel<4>;
  kernel<<<blocks, 32 * kWarps, 0, queue>>>(w);
  cuda::check_launch("selective_scan of complex states");
}

int64_t cuda_complex_scratch(const CudaProblem& p) {
  Memory at{nullptr};
  plan(p, at);
  return at.taken;
}

void cuda_complex_backward(const CudaBackward& w, void* stream) {
  const CudaProblem& p = w.p;
  Memory at{w.scratch};
  ComplexWork q = plan(p, at);
  Work& k = q.k;
  k.w = w;
  if (!w.dB.data && !w.dC.data) k.parts = nullptr;
  if (!w.dstate_in.to) k.dstates = nullptr;
  const auto queue = static_cast<cudaStream_t>(stream);
  if (p.E * p.N == 0) return;
  backward_kernel<<<static_cast<unsigned>(p.G * k.blocks * k.pieces), 32, 0, queue>>>(q);
  cuda::check_launch("selective_scan backward of complex states");
  // A state's four parts lie together: pairs of dB and dC by turns.
  launch_sums<2>(k, static_cast<int>(2 * p.N), queue);
}

}  // namespace krait::ops::scan
