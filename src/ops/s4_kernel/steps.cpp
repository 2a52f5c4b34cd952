// The recurrent form, and attuning C: off the hot path, in float64.

#include "krait/base/threads.h"
#include "krait/ops/s4_kernel/dplr_step.h"

namespace krait::ops {
namespace {

using s4::Complex;
using s4::DplrStep;
using s4::Matrix;
using s4::one_minus_power;
using s4::OnHost;
using s4::Row;
using s4::row_of;

Row solve_right(const Row& c, const Matrix& X) {  // c X^-1
  return X.transpose().partialPivLu().solve(c.transpose()).transpose();
}

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
