#include <algorithm>
#include <cmath>

#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/s4_kernel/s4_kernel.h"
#include "krait/ops/s4_kernel/system.h"

namespace krait::ops {
namespace {

constexpr int64_t kJobs = 16;

// Heads [h, end) of a job, and its memory.
template <class F>
void for_heads(int64_t H, const Tensor& work, const F& fn) {
  const int64_t jobs = work.size(0);
  parallel_for(jobs, [&](int64_t j) {
    double* const own = work.as<double>() + j * work.size(1);
    for (int64_t h = j * H / jobs; h < (j + 1) * H / jobs; ++h) fn(h, own);
  });
}

Tensor work_of(Context& c, const s4::Sizes& z, const S4Options& o, int64_t L) {
  const int64_t each = z.dplr ? s4::dplr_work(z, o.length) : s4::diagonal_work(z, L);
  return c.scratch({std::min(kJobs, z.H), (each + 7) / 8 * 8}, DType::f64);
}

double flops_of(const s4::Sizes& z, const S4Options& o, int64_t L) {
  const double each = z.dplr ? static_cast<double>(o.length / 2 * z.N * 8 * (2 + 2 * z.channels))
                             : static_cast<double>(L * z.N * 4 * z.channels);
  return static_cast<double>(z.H) * each;
}

// A gradient (S, N) or (S, N, 2) from one of each head, in the order of the heads.
template <class Value>
void sum_over_heads(const GradTarget& to, const s4::Sizes& z, int64_t parts, const Value& value) {
  if (!to.grad) return;
  parallel_for(z.S, [&](int64_t s) {
    for (int64_t i = 0; i < z.N * parts; ++i) {
      float& out = to.grad.as<float>()[s * z.N * parts + i];
      double sum = to.add ? out : 0.0f;
      for (int64_t h = s; h < z.H; h += z.S) sum += value(h, i);
      out = static_cast<float>(sum);
    }
  });
}

void backward(Context& b, const S4Params& p, const S4Options& o, const s4::Sizes& z,
              const Tensor& K) {
  const Tensor dK = b.tape->grad(K);
  if (!dK) return;
  const GradTarget d_dt = b.tape->grad_into(b, p.inv_dt);
  const GradTarget dA_real = b.tape->grad_into(b, p.A_real);
  const GradTarget dA_imag = b.tape->grad_into(b, p.A_imag);
  const GradTarget dB = b.tape->grad_into(b, p.B);
  const GradTarget dC = b.tape->grad_into(b, p.C);
  const GradTarget dP = b.tape->grad_into(b, p.P);
  const int64_t L = K.size(2), N = z.N, H = z.H;
  Scratch scratch(b);
  const Tensor work = work_of(b, z, o, L);
  const Tensor heads = b.scratch({H, 3, N, 2}, DType::f64);  // A, B, P of each head
  b.cost("s4_kernel.backward", static_cast<double>(K.bytes()), 3 * flops_of(z, o, L));
  if (b.planning()) return;
  for_heads(H, work, [&](int64_t h, double* own) {
    s4::Complex C[2 * s4::kMaxStates];
    s4::HeadGradients g;
    g.C = C;
    const s4::Rows rows{dK.as<float>() + h * L, H * L};
    (z.dplr ? s4::dplr_backward : s4::diagonal_backward)(p, o, z, h, L, rows, own, g);
    double* const out = heads.as<double>() + h * 6 * N;
    const s4::Complex* const parts[] = {g.A, g.B, g.P};
    for (int64_t part = 0; part < 3; ++part)
      for (int64_t n = 0; n < N; ++n) {
        out[(part * N + n) * 2] = parts[part][n].real();
        out[(part * N + n) * 2 + 1] = parts[part][n].imag();
      }
    for (int64_t c = 0; c < z.channels && dC.grad; ++c)
      for (int64_t n = 0; n < N; ++n) {
        float* const to = dC.grad.as<float>() + ((c * H + h) * N + n) * 2;
        to[0] = (dC.add ? to[0] : 0.0f) + static_cast<float>(C[c * N + n].real());
        to[1] = (dC.add ? to[1] : 0.0f) + static_cast<float>(C[c * N + n].imag());
      }
    if (d_dt.grad) {
      float& to = d_dt.grad.as<float>()[h];
      to = (d_dt.add ? to : 0.0f) + static_cast<float>(g.dt * s4::head(p, o, z, h).dt_slope);
    }
  });
  const double* const g = heads.as<double>();
  const double sign = o.positive_imag ? 1 : -1;
  sum_over_heads(dA_real, z, 1, [&](int64_t h, int64_t n) {
    const double A = -std::exp(static_cast<double>(p.A_real.as<float>()[h % z.S * N + n]));
    return g[(h * 3 * N + n) * 2] * A;
  });
  sum_over_heads(dA_imag, z, 1,
                 [&](int64_t h, int64_t n) { return sign * g[(h * 3 * N + n) * 2 + 1]; });
  sum_over_heads(dB, z, 2, [&](int64_t h, int64_t i) { return g[(h * 3 + 1) * N * 2 + i]; });
  sum_over_heads(dP, z, 2, [&](int64_t h, int64_t i) { return g[(h * 3 + 2) * N * 2 + i]; });
}

}  // namespace

Tensor s4_kernel(Context& c, const S4Params& p, const S4Options& o, int64_t L) {
  const s4::Sizes z = s4::check(p, o);
  require(c.device.type == Device::cpu, "[s4_kernel] runs on the CPU only");
  require(!z.dplr || o.length >= std::max<int64_t>(L, 1),
          "[s4_kernel] C is attuned to sequences of {} steps, these have {}; attune it first "
          "(s4_attune)",
          o.length, L);
  const Tensor K = c.alloc({z.channels, z.H, L}, DType::f32);
  Tensor result = K;
  c.cost("s4_kernel", static_cast<double>(K.bytes()), flops_of(z, o, L));
  {
    Scratch scratch(c);
    const Tensor work = work_of(c, z, o, L);
    if (!c.planning())
      for_heads(z.H, work, [&](int64_t h, double* own) {
        const s4::Rows rows{K.as<float>() + h * L, z.H * L};
        (z.dplr ? s4::dplr_forward : s4::diagonal_forward)(p, o, z, h, L, rows, own);
      });
  }
  if (c.tape && needs_grad({p.inv_dt, p.A_real, p.A_imag, p.B, p.C, p.P})) {
    c.tape->watch(result);
    c.tape->record([=](Context& b) { backward(b, p, o, z, result); });
  }
  return result;
}

}  // namespace krait::ops
