// The chain from the steps of each head back to the parameters: off the hot path, in float64.
#include <cmath>

#include "krait/base/threads.h"
#include "krait/ops/s4_kernel/dplr_step.h"

namespace krait::ops {
namespace {

using s4::Complex;

// A vector of one head in the layout of S4Steps.
struct Planes {
  const double* at;
  int64_t row;
  Complex operator[](int64_t n) const { return {at[n], at[row + n]}; }
};

int64_t row_length(const s4::Sizes& z) { return (z.N + 7) / 8 * 8; }

// d holds Ā and B̄.
void diagonal_gradients(const S4Options& o, const s4::Head& s, int64_t N, const double* d,
                        int64_t row, s4::HeadGradients& g) {
  const Planes decay{d, row}, drive{d + 2 * row, row};
  for (int64_t n = 0; n < N; ++n) {
    const s4::Discrete step = s4::discretise(o, s.dt, s.A[n]);
    g.B[n] += drive[n] * std::conj(step.q);
    s4::add_discrete_gradients(o, s, n, step, decay[n] * std::conj(step.decay),
                               drive[n] * std::conj(s.B[n]), g);
  }
}

// d holds E = 2/Δ + A, P, F = 2B, G = 1 / (2/Δ - A), R = P̄ G / (1 + Σ 2 |P|² Re G).
void dplr_gradients(const s4::Head& s, int64_t N, const double* d, int64_t row,
                    s4::HeadGradients& g) {
  const auto part = [&](int64_t i) { return Planes{d + i * 2 * row, row}; };
  const Planes dE = part(0), dP = part(1), dF = part(2), dG = part(3), dR = part(4);
  const s4::DplrStep step(s, N);
  double inner = 1, d_inner = 0, d_two = 0;
  for (int64_t n = 0; n < N; ++n) inner += 2 * std::norm(s.P[n]) * step.G[n].real();
  for (int64_t n = 0; n < N; ++n) d_inner -= (std::conj(step.R[n]) * dR[n]).real() / inner;
  for (int64_t n = 0; n < N; ++n) {
    const Complex P = s.P[n], G = step.G[n], of_R = dR[n] / inner;
    g.P[n] += dP[n] + std::conj(of_R) * G + 4 * d_inner * G.real() * P;
    const Complex of_G = dG[n] + of_R * P + 2 * d_inner * std::norm(P);
    const Complex of_difference = -std::conj(G * G) * of_G;  // of 2/Δ - A
    g.A[n] += dE[n] - of_difference;
    g.B[n] += 2.0 * dF[n];
    d_two += (dE[n] + of_difference).real();
  }
  g.dt -= d_two * 2 / (s.dt * s.dt);
}

}  // namespace

S4Gradients s4_steps_gradients(const S4Params& given, const S4Options& o,
                               const std::vector<double>& dsystem, const std::vector<double>& dC) {
  const s4::Sizes z = s4::check(given, o);
  const s4::OnHost here(given);
  const S4Params& p = here.params;
  const int64_t N = z.N, row = row_length(z), rows = z.dplr ? 5 : 2;
  std::vector<s4::HeadGradients> heads(static_cast<size_t>(z.H));
  S4Gradients r;
  r.inv_dt.resize(static_cast<size_t>(z.H));
  r.C.resize(static_cast<size_t>(z.channels * z.H * N * 2));
  parallel_for(z.H, [&](int64_t h) {
    const s4::Head s = s4::head(p, o, z, h);
    s4::HeadGradients& g = heads[static_cast<size_t>(h)];
    const double* const d = dsystem.data() + h * rows * 2 * row;
    z.dplr ? dplr_gradients(s, N, d, row, g) : diagonal_gradients(o, s, N, d, row, g);
    r.inv_dt[static_cast<size_t>(h)] = static_cast<float>(g.dt * s.dt_slope);
    for (int64_t c = 0; c < z.channels; ++c) {
      const Planes of_C{dC.data() + (c * z.H + h) * 2 * row, row};
      float* const to = r.C.data() + (c * z.H + h) * N * 2;
      for (int64_t n = 0; n < N; ++n) {
        to[2 * n] = static_cast<float>(of_C[n].real());
        to[2 * n + 1] = static_cast<float>(of_C[n].imag());
      }
    }
  });
  // The heads of a system, in their order.
  const auto sums = [&](int64_t parts, const auto& value) {
    std::vector<float> all;
    for (int64_t i = 0; i < z.S * N * parts; ++i) {
      double sum = 0;
      for (int64_t h = i / (N * parts); h < z.H; h += z.S)
        sum += value(h, i / parts % N, i % parts);
      all.push_back(static_cast<float>(sum));
    }
    return all;
  };
  const auto of = [&](int64_t h) -> const s4::HeadGradients& {
    return heads[static_cast<size_t>(h)];
  };
  const auto of_pair = [](Complex v, int64_t part) { return part == 0 ? v.real() : v.imag(); };
  r.A_real = sums(1, [&](int64_t h, int64_t n, int64_t) {
    return -std::exp(static_cast<double>(p.A_real.as<float>()[h % z.S * N + n])) *
           of(h).A[n].real();
  });
  const double sign = o.positive_imag ? 1 : -1;
  r.A_imag = sums(1, [&](int64_t h, int64_t n, int64_t) { return sign * of(h).A[n].imag(); });
  if (p.B.rank() > 0)
    r.B = sums(2, [&](int64_t h, int64_t n, int64_t i) { return of_pair(of(h).B[n], i); });
  if (z.dplr)
    r.P = sums(2, [&](int64_t h, int64_t n, int64_t i) { return of_pair(of(h).P[n], i); });
  return r;
}

std::vector<double> s4_attuned_gradient(const S4Params& given, const S4Options& o,
                                        const std::vector<double>& dC) {
  const s4::Sizes z = s4::check(given, o);
  const s4::OnHost here(given);
  const int64_t N = z.N, row = row_length(z);
  std::vector<double> r(dC.size());
  parallel_for(z.H, [&](int64_t h) {
    const Eigen::PartialPivLU<s4::Matrix> lu(
        s4::one_minus_power(s4::DplrStep(s4::head(here.params, o, z, h), N).matrix(), o.length));
    for (int64_t c = 0; c < z.channels; ++c) {
      const int64_t at = (c * z.H + h) * 2 * row;
      Eigen::VectorXd of_row(2 * N);
      for (int64_t n = 0; n < N; ++n) {
        of_row(n) = dC[static_cast<size_t>(at + n)];
        of_row(N + n) = -dC[static_cast<size_t>(at + row + n)];
      }
      of_row = lu.solve(of_row).eval();
      for (int64_t n = 0; n < N; ++n) {
        r[static_cast<size_t>(at + n)] = of_row(n);
        r[static_cast<size_t>(at + row + n)] = -of_row(N + n);
      }
    }
  });
  return r;
}

}  // namespace krait::ops
