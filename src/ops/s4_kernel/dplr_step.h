// Private to this room: a DPLR head's step in float64, off the hot path. It is linear in the state, so it is a
// real matrix M over (Re h, Im h); a row of C acts as (Re C, -Im C).
#pragma once
#include <Eigen/LU>

#include "krait/ops/s4_kernel/system.h"

namespace krait::ops::s4 {

using Matrix = Eigen::MatrixXd;
using Row = Eigen::RowVectorXd;

// 2/Δ as the bilinear rule has it: M = (2/Δ - A)^-1 (2/Δ + A) with A = diag(A) - P Pᴴ over 2N entries,
// inverted by the rule of Woodbury.
struct DplrStep {
  int64_t N;
  Complex E[kMaxStates], P[kMaxStates], F[kMaxStates], G[kMaxStates], R[kMaxStates];

  DplrStep(const Head& s, int64_t states) : N(states) {
    const double two = 2 / s.dt;
    double inner = 0;
    for (int64_t n = 0; n < N; ++n) {
      P[n] = s.P[n];
      E[n] = two + s.A[n];
      G[n] = 1.0 / (two - s.A[n]);
      F[n] = 2.0 * s.B[n];
      R[n] = std::conj(P[n]) * G[n];
      inner += 2 * (R[n] * P[n]).real();
    }
    for (int64_t n = 0; n < N; ++n) R[n] /= 1 + inner;
  }
  void operator()(Complex* h) const {
    double Qh = 0, Rw = 0;
    for (int64_t n = 0; n < N; ++n) Qh += 2 * (std::conj(P[n]) * h[n]).real();
    for (int64_t n = 0; n < N; ++n) {
      h[n] = E[n] * h[n] - P[n] * Qh;
      Rw += 2 * (R[n] * h[n]).real();
    }
    for (int64_t n = 0; n < N; ++n) h[n] = G[n] * (h[n] - P[n] * Rw);
  }
  Matrix matrix() const {
    Matrix M(2 * N, 2 * N);
    for (int64_t i = 0; i < 2 * N; ++i) {
      Complex h[kMaxStates] = {};
      h[i % N] = i < N ? Complex(1, 0) : Complex(0, 1);
      (*this)(h);
      for (int64_t n = 0; n < N; ++n) {
        M(n, i) = h[n].real();
        M(N + n, i) = h[n].imag();
      }
    }
    return M;
  }
};

// I - M^length
inline Matrix one_minus_power(const Matrix& M, int64_t length) {
  const Matrix one = Matrix::Identity(M.rows(), M.cols());
  Matrix result = one, power = M;
  for (int64_t bits = length; bits > 0; bits /= 2) {
    if (bits % 2 == 1) result = result * power;
    if (bits > 1) power = power * power;
  }
  return one - result;
}

inline Row row_of(const S4Params& p, const Sizes& z, int64_t channel, int64_t h) {
  Row c(2 * z.N);
  for (int64_t n = 0; n < z.N; ++n) {
    const Complex C = c_of(p, z, channel, h, n);
    c(n) = C.real();
    c(z.N + n) = -C.imag();
  }
  return c;
}

// The parameters in the host's memory, wherever they are.
class OnHost {
 public:
  explicit OnHost(const S4Params& p) {
    const Tensor* from[] = {&p.inv_dt, &p.A_real, &p.A_imag, &p.B, &p.C, &p.P};
    Tensor* to[] = {&params.inv_dt, &params.A_real, &params.A_imag,
                    &params.B,      &params.C,      &params.P};
    for (size_t i = 0; i < std::size(from); ++i)
      if (*from[i]) *to[i] = on_host(*from[i], buffers_[i]);
  }
  S4Params params;

 private:
  std::vector<std::byte> buffers_[6];
};

}  // namespace krait::ops::s4
