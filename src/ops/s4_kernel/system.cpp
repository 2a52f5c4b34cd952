#include "krait/ops/s4_kernel/system.h"

#include <cmath>

namespace krait::ops::s4 {

static void check_tensor(const char* name, const Tensor& t, const Shape& shape) {
  require(t && t.dtype == DType::f32 && t.contiguous() && t.shape == shape,
          "[s4_kernel] {}: expected contiguous float32 {}, got {} {}", name, shape,
          name_of(t.dtype), t.shape);
}

Sizes check(const S4Params& p, const S4Options& o) {
  require(p.C.rank() == 4 && p.A_real.rank() == 2,
          "[s4_kernel] expected A_real (S, N) and C (channels, H, N, 2), got {} and {}",
          p.A_real.shape, p.C.shape);
  Sizes z;
  z.channels = p.C.size(0);
  z.H = p.C.size(1);
  z.N = p.C.size(2);
  z.S = p.A_real.size(0);
  z.dplr = p.P.numel() > 0 && p.P.rank() > 0;
  require(z.N >= 1 && z.N <= kMaxStates, "[s4_kernel] C: expected 1 to {} states, got {}",
          kMaxStates, z.N);
  require(z.channels == 1 || z.channels == 2,
          "[s4_kernel] C: expected 1 channel, or 2 for both directions, got {}", z.channels);
  require(z.S >= 1 && z.H % z.S == 0, "[s4_kernel] A_real: expected rows that divide H={}, got {}",
          z.H, z.S);
  check_tensor("C", p.C, {z.channels, z.H, z.N, 2});
  check_tensor("A_real", p.A_real, {z.S, z.N});
  check_tensor("A_imag", p.A_imag, {z.S, z.N});
  check_tensor("inv_dt", p.inv_dt, p.inv_dt.rank() == 1 ? Shape{z.H} : Shape{z.H, 1});
  if (z.dplr || p.B.rank() > 0) check_tensor("B", p.B, {1, z.S, z.N, 2});
  if (z.dplr) {
    check_tensor("P", p.P, {1, z.S, z.N, 2});
    require(!o.positive_imag, "[s4_kernel] P: A = -exp(A_real) + i A_imag is for diagonal ones");
  }
  return z;
}

Head head(const S4Params& p, const S4Options& o, const Sizes& z, int64_t h) {
  Head s;
  const double x = p.inv_dt.as<float>()[h];
  s.dt = o.softplus_dt ? (x > 20 ? x : std::log1p(std::exp(x))) : std::exp(x);
  s.dt_slope = o.softplus_dt ? 1 / (1 + std::exp(-x)) : s.dt;
  const int64_t row = h % z.S * z.N;
  for (int64_t n = 0; n < z.N; ++n) {
    const double im = p.A_imag.as<float>()[row + n];
    s.A[n] = {-std::exp(static_cast<double>(p.A_real.as<float>()[row + n])),
              o.positive_imag ? im : -im};
    const float* B = p.B ? p.B.as<float>() + (row + n) * 2 : nullptr;
    s.B[n] = B ? Complex(B[0], B[1]) : Complex(1);
    const float* P = z.dplr ? p.P.as<float>() + (row + n) * 2 : nullptr;
    s.P[n] = P ? Complex(P[0], P[1]) : Complex(0);
  }
  return s;
}

Discrete discretise(const S4Options& o, double dt, Complex A) {
  const Complex a = dt * A;
  if (o.bilinear) {
    const Complex m = 1.0 / (1.0 - 0.5 * a);
    return {(1.0 + 0.5 * a) * m, dt * m};
  }
  const Complex decay = std::exp(a);
  return {decay, (decay - 1.0) / A};
}

void add_discrete_gradients(const S4Options& o, const Head& s, int64_t n, const Discrete& step,
                            Complex g_log, Complex g_q, HeadGradients& g) {
  const Complex A = s.A[n], a = s.dt * A;
  Complex q_dt, q_A, log_a;  // dq/dΔ, dq/dA, d(log Ā)/d(ΔA)
  if (o.bilinear) {
    const Complex m = 1.0 / (1.0 - 0.5 * a);
    q_dt = m * m;
    q_A = 0.5 * s.dt * s.dt * m * m;
    log_a = 0.5 / (1.0 + 0.5 * a) + 0.5 * m;
  } else {
    q_dt = step.decay;
    q_A = (s.dt * step.decay - step.q) / A;
    log_a = 1;
  }
  const Complex g_a = g_log * std::conj(log_a);
  g.A[n] += g_a * s.dt + g_q * std::conj(q_A);
  g.dt += (g_a * std::conj(A) + g_q * std::conj(q_dt)).real();
}

}  // namespace krait::ops::s4
