// The generating function of the kernel at the roots of unity. There z = 2i tan(πk/T) is imaginary and
// 2/(1+ω) = 1 + i tan(πk/T); pairs of conjugate poles are taken together:
//   v/(z-a) + v̄/(z-ā) = (2 Re v z - 2 Re(v ā)) / (z² - 2 Re a z + |a|²)
// At k = T/2 the tangent is infinite: there k̂ = Σ Re v of r_BC.
#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "krait/ops/fft.h"
#include "krait/ops/s4_kernel/kernels.h"
#include "krait/ops/s4_kernel/system.h"

namespace krait::ops::s4 {
namespace {

int64_t padded(int64_t k) { return (k + kS4Points - 1) / kS4Points * kS4Points; }

// One head's sums. The pairs are PP̄, BP̄, then for each channel BC, PC.
struct Sums {
  int64_t T, points;  // k = 0 .. T/2, padded
  int pairs;
  Head s;
  Complex v[kS4MaxPairs][kMaxStates];
  double p[kMaxStates], q[kMaxStates];
  double *alpha, *beta, *y, *re, *im, *g_re, *g_im;
  Complex *time, *spectrum;

  Sums(const S4Params& params, const S4Options& o, const Sizes& z, int64_t h, double* work)
      : T(o.length),
        points(padded(T / 2 + 1)),
        pairs(static_cast<int>(2 + 2 * z.channels)),
        s(head(params, o, z, h)) {
    const auto take = [&](int64_t n) { return std::exchange(work, work + n); };
    alpha = take(pairs * z.N);
    beta = take(pairs * z.N);
    y = take(points);
    re = take(pairs * points);
    im = take(pairs * points);
    g_re = take(pairs * points);
    g_im = take(pairs * points);
    time = reinterpret_cast<Complex*>(take(2 * T));
    spectrum = reinterpret_cast<Complex*>(take(2 * T));
    for (int64_t n = 0; n < z.N; ++n) {
      const Complex a = s.dt * s.A[n];
      p[n] = std::norm(a);
      q[n] = a.real();
      v[0][n] = s.dt * std::norm(s.P[n]);
      v[1][n] = s.dt * s.B[n] * std::conj(s.P[n]);
      for (int64_t c = 0; c < z.channels; ++c) {
        v[2 + 2 * c][n] = s.dt * s.B[n] * c_of(params, z, c, h, n);
        v[3 + 2 * c][n] = s.dt * s.P[n] * c_of(params, z, c, h, n);
      }
      for (int m = 0; m < pairs; ++m) {
        alpha[m * z.N + n] = -2 * (v[m][n] * std::conj(a)).real();
        beta[m * z.N + n] = 2 * v[m][n].real();
      }
    }
    for (int64_t k = 0; k < points; ++k) y[k] = is_finite(k) ? 2 * tangent(k) : 0;
    KRAIT_PICK_ISA(s4_kernels).cauchy(problem(z.N), re, im);
  }
  bool is_finite(int64_t k) const { return 2 * k < T; }
  double tangent(int64_t k) const {
    return std::tan(std::numbers::pi * static_cast<double>(k) / static_cast<double>(T));
  }
  CauchyProblem problem(int64_t N) const { return {N, pairs, p, q, alpha, beta, points, y}; }
  Complex r(int pair, int64_t k) const { return {re[pair * points + k], im[pair * points + k]}; }
};

}  // namespace

int64_t dplr_work(const Sizes& z, int64_t T) {
  const int64_t pairs = 2 + 2 * z.channels, points = padded(T / 2 + 1);
  return 2 * pairs * z.N + points + 4 * pairs * points + 4 * T;
}

void dplr_forward(const S4Params& p, const S4Options& o, const Sizes& z, int64_t h, int64_t L,
                  Rows K, double* work) {
  const Sums t(p, o, z, h, work);
  const int64_t T = t.T;
  for (int64_t c = 0; c < z.channels; ++c) {
    const int BC = static_cast<int>(2 + 2 * c);
    for (int64_t k = 0; 2 * k <= T; ++k) {
      Complex value = 0;
      if (t.is_finite(k)) {
        value = t.r(BC, k) - t.r(1, k) * t.r(BC + 1, k) / (1.0 + t.r(0, k));
        value *= Complex(1, 0.5 * t.y[k]);
      } else {
        for (int64_t n = 0; n < z.N; ++n) value += t.v[BC][n].real();
      }
      if (k == 0) value = value.real();
      t.spectrum[k] = value;
      if (k > 0) t.spectrum[T - k] = std::conj(value);
    }
    fft_back(T, t.spectrum, t.time);
    for (int64_t l = 0; l < L; ++l)
      K.data[c * K.stride + l] = static_cast<float>(t.time[l].real() / static_cast<double>(T));
  }
}

void dplr_backward(const S4Params& p, const S4Options& o, const Sizes& z, int64_t h, int64_t L,
                   Rows dK, double* work, HeadGradients& g) {
  const Sums t(p, o, z, h, work);
  const int64_t T = t.T, N = z.N;
  std::fill_n(t.g_re, t.pairs * t.points, 0.0);
  std::fill_n(t.g_im, t.pairs * t.points, 0.0);
  const auto add = [&](int pair, int64_t k, Complex value) {
    t.g_re[pair * t.points + k] += value.real();
    t.g_im[pair * t.points + k] += value.imag();
  };
  double at_infinity[2] = {0, 0};  // gradient of Σ Re v_BC
  for (int64_t c = 0; c < z.channels; ++c) {
    const int BC = static_cast<int>(2 + 2 * c);
    for (int64_t l = 0; l < T; ++l) t.time[l] = l < L ? dK.data[c * dK.stride + l] : 0.0f;
    fft(T, t.time, t.spectrum);
    for (int64_t k = 0; 2 * k <= T; ++k) {
      const bool alone = k == 0 || 2 * k == T;
      const Complex dk = t.spectrum[k] * ((alone ? 1.0 : 2.0) / static_cast<double>(T));
      if (!t.is_finite(k)) {
        at_infinity[c] = dk.real();
        continue;
      }
      const Complex u = dk * Complex(1, -0.5 * t.y[k]);
      const Complex w = 1.0 / (1.0 + t.r(0, k)), BP = t.r(1, k), PC = t.r(BC + 1, k);
      add(BC, k, u);
      add(1, k, -u * std::conj(PC * w));
      add(BC + 1, k, -u * std::conj(BP * w));
      add(0, k, u * std::conj(BP * PC * w * w));
    }
  }
  double dp[kMaxStates] = {}, dq[kMaxStates] = {};
  double dalpha[kS4MaxPairs * kMaxStates] = {}, dbeta[kS4MaxPairs * kMaxStates] = {};
  KRAIT_PICK_ISA(s4_kernels).cauchy_adjoint(t.problem(N), t.g_re, t.g_im, {dp, dq, dalpha, dbeta});

  for (int64_t n = 0; n < N; ++n) {
    const Complex A = t.s.A[n], a = t.s.dt * A, B = t.s.B[n], P = t.s.P[n];
    const double dt = t.s.dt;
    Complex g_a = 2 * dp[n] * a + dq[n];
    Complex g_v[kS4MaxPairs];
    for (int m = 0; m < t.pairs; ++m) {
      const double da = dalpha[m * N + n], db = dbeta[m * N + n];
      g_v[m] = -2 * da * a + 2 * db;
      g_a += -2 * da * t.v[m][n];
    }
    // v = Δ|P|², Δ B P̄, then Δ B C, Δ P C
    g.P[n] += 2 * dt * g_v[0].real() * P + dt * B * std::conj(g_v[1]);
    g.B[n] += dt * g_v[1] * P;
    g.dt += g_v[0].real() * std::norm(P) + (g_v[1] * std::conj(B) * P).real();
    for (int64_t c = 0; c < z.channels; ++c) {
      const Complex C = c_of(p, z, c, h, n);
      const Complex g_BC = g_v[2 + 2 * c] + at_infinity[c], g_PC = g_v[3 + 2 * c];
      g.B[n] += dt * g_BC * std::conj(C);
      g.P[n] += dt * g_PC * std::conj(C);
      g.C[c * N + n] = dt * (g_BC * std::conj(B) + g_PC * std::conj(P));
      g.dt += (g_BC * std::conj(B * C) + g_PC * std::conj(P * C)).real();
    }
    g.A[n] += dt * g_a;
    g.dt += (g_a * std::conj(A)).real();
  }
}

}  // namespace krait::ops::s4
