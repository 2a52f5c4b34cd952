#include "krait/nn/hippo.h"

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <cmath>
#include <numbers>

#include "krait/base/error.h"

namespace krait::nn {

using Complex = std::complex<double>;

InitialSystem hippo_legs(int64_t N) {
  const int64_t d = 2 * N;
  // A_nk = -√(2n+1) √(2k+1) below the diagonal, -(n+1) on it; P_n = √(n+½), B_n = √(2n+1). Then
  // A + P Pᵀ = -½ + S with S skew, and -iS is Hermitian.
  Eigen::MatrixXcd hermitian(d, d);
  Eigen::VectorXcd P(d), B(d);
  for (int64_t n = 0; n < d; ++n) {
    P(n) = std::sqrt(static_cast<double>(n) + 0.5);
    B(n) = std::sqrt(static_cast<double>(2 * n + 1));
    for (int64_t k = 0; k < d; ++k) {
      const double half = 0.5 * std::sqrt(static_cast<double>((2 * n + 1) * (2 * k + 1)));
      const double skew = n == k ? 0 : n > k ? -half : half;
      hermitian(n, k) = Complex(0, -skew);
    }
  }
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXcd> solver(hermitian);
  InitialSystem s;
  for (int64_t n = 0; n < N; ++n) {  // ascending: the negative ones come first
    const Eigen::VectorXcd v = solver.eigenvectors().col(n);
    const Complex phase = std::conj(v(0)) / std::abs(v(0));
    const Complex b = std::conj(phase) * v.dot(B);
    s.A.emplace_back(-0.5, solver.eigenvalues()(n));
    s.P.push_back(std::conj(phase) * v.dot(P));
    s.B.emplace_back(b.real(), std::clamp(b.imag(), -2.0, 2.0));
  }
  return s;
}

// A = S - P Pᵀ with B = P = (1, 0, √2, 0, √2, ...) and S of blocks (0, -πk; πk, 0): its eigenvectors are (1, i)/√2.
InitialSystem hippo_fout(int64_t N) {
  InitialSystem s;
  for (int64_t k = N - 1; k >= 0; --k) {  // ascending, as legs
    const double b = k > 0 ? 1 : std::numbers::sqrt2 / 2;
    s.A.emplace_back(0, -std::numbers::pi * static_cast<double>(k));
    s.P.emplace_back(b, 0);
    s.B.emplace_back(b, 0);
  }
  return s;
}

InitialSystem s4d_initial(const std::string& kind, int64_t N) {
  if (kind == "legs") {
    InitialSystem s = hippo_legs(N);
    s.P.clear();
    return s;
  }
  InitialSystem s;
  const double d = 2 * static_cast<double>(N);
  for (int64_t i = 0; i < N; ++i) {
    const auto n = static_cast<double>(i);
    if (kind == "lin") {
      s.A.emplace_back(-0.5, -std::numbers::pi * n);
    } else if (kind == "inv") {
      s.A.emplace_back(-0.5, -d / std::numbers::pi * (d / (2 * n + 1) - 1));
    } else if (kind == "inv2") {
      s.A.emplace_back(-0.5, -d / std::numbers::pi * (d / (n + 1) - 1));
    } else if (kind == "quad") {
      s.A.emplace_back(-0.5, -(2 * n + 1) * (2 * n + 1) / std::numbers::pi);
    } else if (kind == "real") {
      s.A.emplace_back(-(n + 1), 0);
    } else {
      fail("no initial system of S4D is named \"{}\"", kind);
    }
    s.B.emplace_back(1, 0);
  }
  return s;
}

}  // namespace krait::nn
