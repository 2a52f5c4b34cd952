// The recurrent form, and attuning C: off the hot path, in float64. A head's step is linear in its state,
// so it is a real matrix M over (Re h, Im h); a row of C acts as (Re C, -Im C).
#include <Eigen/LU>
#include <algorithm>

#include "krait/base/threads.h"
#include "krait/ops/s4_kernel/system.h"

namespace krait::ops {
namespace {

using s4::Complex;
using Matrix = Eigen::MatrixXd;
using Row = Eigen::RowVectorXd;

// 2/Δ as the bilinear rule has it: M = (2/Δ - A)^-1 (2/Δ + A) with A = diag(A) - P Pᴴ over 2N entries,
// inverted by the rule of Woodbury.
struct DplrStep {
  int64_t N;
  Complex E[s4::kMaxStates], P[s4::kMaxStates], F[s4::kMaxStates], G[s4::kMaxStates],
      R[s4::kMaxStates];

  DplrStep(const s4::Head& s, int64_t states) : N(states) {
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
      Complex h[s4::kMaxStates] = {};
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
Matrix one_minus_power(const Matrix& M, int64_t length) {
  const Matrix one = Matrix::Identity(M.rows(), M.cols());
  Matrix result = one, power = M;
  for (int64_t bits = length; bits > 0; bits /= 2) {
    if (bits % 2 == 1) result = result * power;
    if (bits > 1) power = power * power;
  }
  return one - result;
}

Row solve_right(const Row& c, const Matrix& X) {  // c X^-1
  return X.transpose().partialPivLu().solve(c.transpose()).transpose();
}

Row row_of(const S4Params& p, const s4::Sizes& z, int64_t channel, int64_t h) {
  Row c(2 * z.N);
  for (int64_t n = 0; n < z.N; ++n) {
    const Complex C = s4::c_of(p, z, channel, h, n);
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

void store_vector(const Complex* from, const S4Steps& r, double*& to) {
  for (int64_t n = 0; n < r.N; ++n) {
    to[n] = from[n].real();
    to[r.row + n] = from[n].imag();
  }
  to += 2 * r.row;
}

// Into the memory of the steps before these, where there is room: graphs may have its address.
void put_on_device(S4Steps& r, Device device, const S4Steps* before) {
  const size_t bytes = (r.system.size() + r.C.size()) * sizeof(double);
  if (before && before->memory && before->memory->bytes() == bytes) {
    r.memory = before->memory;
  } else {
    r.memory = std::make_shared<DeviceMemory>(device, bytes);
  }
  auto* at = reinterpret_cast<double*>(r.memory->data());
  for (const std::vector<double>* part : {&r.system, &r.C}) {
    upload(part->data(), Tensor(at, DType::f64, {static_cast<int64_t>(part->size())}, device));
    at += part->size();
  }
}

}  // namespace

void s4_attune(const S4Params& given, const S4Options& o, int64_t to) {
  const s4::Sizes z = s4::check(given, o);
  const OnHost here(given);
  const S4Params& p = here.params;
  require(z.dplr, "[s4_attune] only kernels with P are attuned to a length");
  require(to >= 1 && to <= (int64_t{1} << 30) && o.length >= 0,
          "[s4_attune] expected a length from 1 to 2^30, got {}", to);
  if (to == o.length) return;
  parallel_for(z.H, [&](int64_t h) {
    const Matrix M = DplrStep(s4::head(p, o, z, h), z.N).matrix();
    const Matrix target = one_minus_power(M, to);
    for (int64_t c = 0; c < z.channels; ++c) {
      Row row = row_of(p, z, c, h);
      if (o.length > 0) row = solve_right(row, one_minus_power(M, o.length));
      row *= target;
      float* const C = p.C.as<float>() + (c * z.H + h) * z.N * 2;
      for (int64_t n = 0; n < z.N; ++n) {
        C[2 * n] = static_cast<float>(row(n));
        C[2 * n + 1] = static_cast<float>(-row(z.N + n));
      }
    }
  });
  if (p.C.data != given.C.data) store(p.C, given.C.detach());
}

S4Steps s4_steps(const S4Params& given, const S4Options& o, const S4Steps* before) {
  const s4::Sizes z = s4::check(given, o);
  const OnHost here(given);
  const S4Params& p = here.params;
  S4Steps r;
  r.dplr = z.dplr;
  r.H = z.H;
  r.N = z.N;
  r.channels = z.channels;
  r.row = (z.N + 7) / 8 * 8;
  r.system.resize(static_cast<size_t>(z.H * r.rows() * 2 * r.row));
  r.C.resize(static_cast<size_t>(z.channels * z.H * 2 * r.row));
  parallel_for(z.H, [&](int64_t h) {
    const s4::Head s = s4::head(p, o, z, h);
    double* to = r.system.data() + h * r.rows() * 2 * r.row;
    const auto c_row = [&](int64_t c) { return r.C.data() + (c * z.H + h) * 2 * r.row; };
    if (!z.dplr) {
      Complex decay[s4::kMaxStates], drive[s4::kMaxStates];
      for (int64_t n = 0; n < z.N; ++n) {
        const s4::Discrete d = s4::discretise(o, s.dt, s.A[n]);
        decay[n] = d.decay;
        drive[n] = d.q * s.B[n];
      }
      store_vector(decay, r, to);
      store_vector(drive, r, to);
    } else {
      const DplrStep step(s, z.N);
      for (const Complex* part : {step.E, step.P, step.F, step.G, step.R})
        store_vector(part, r, to);
    }
    Eigen::PartialPivLU<Matrix> lu;
    if (z.dplr && o.length > 0)
      lu.compute(one_minus_power(DplrStep(s, z.N).matrix(), o.length).transpose());
    for (int64_t c = 0; c < z.channels; ++c) {
      Row row = row_of(p, z, c, h);
      if (z.dplr && o.length > 0) row = lu.solve(row.transpose()).transpose();
      for (int64_t n = 0; n < z.N; ++n) {
        c_row(c)[n] = row(n);
        c_row(c)[r.row + n] = -row(z.N + n);
      }
    }
  });
  if (given.C.device.type == Device::cuda) put_on_device(r, given.C.device, before);
  return r;
}

}  // namespace krait::ops
