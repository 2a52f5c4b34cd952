#include <algorithm>
#include <cmath>

#include "krait/autograd/segment.h"
#include "krait/base/threads.h"
#include "krait/ops/s4_kernel/cuda.h"
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

const float* floats_of(const Tensor& t) { return t ? t.as<float>() : nullptr; }

cuda::S4Call gpu_call(const S4Params& p, const S4Options& o, const s4::Sizes& z, int64_t L) {
  cuda::S4Call c;
  c.H = z.H;
  c.S = z.S;
  c.N = z.N;
  c.channels = z.channels;
  c.L = L;
  c.T = o.length;
  c.dplr = z.dplr;
  c.softplus_dt = o.softplus_dt;
  c.positive_imag = o.positive_imag;
  c.bilinear = o.bilinear;
  c.inv_dt = floats_of(p.inv_dt);
  c.A_real = floats_of(p.A_real);
  c.A_imag = floats_of(p.A_imag);
  c.B = floats_of(p.B);
  c.C = floats_of(p.C);
  c.P = floats_of(p.P);
  return c;
}

void take_gpu_work(Context& c, cuda::S4Call& call, bool backward) {
  int64_t doubles = 0;
  KRAIT_WITH_CUDA(doubles = cuda::s4_kernel_scratch(call, backward));
  call.scratch = c.scratch({doubles}, DType::f64).as<double>();
}

struct Gradients {
  GradTarget inv_dt, A_real, A_imag, B, C, P;
};

void backward_on_gpu(Context& b, const S4Params& p, const S4Options& o, const s4::Sizes& z,
                     const Tensor& dK, const Gradients& to) {
  cuda::S4Backward g;
  g.c = gpu_call(p, o, z, dK.size(2));
  take_gpu_work(b, g.c, true);
  g.heads = b.scratch({z.H, 3, z.N, 2}, DType::f64).as<double>();
  if (b.planning()) return;
  const auto sum = [](const GradTarget& t) {
    return cuda::S4Sum{t.grad ? t.grad.as<float>() : nullptr, t.add};
  };
  g.dK = floats_of(dK);
  g.inv_dt = sum(to.inv_dt);
  g.A_real = sum(to.A_real);
  g.A_imag = sum(to.A_imag);
  g.B = sum(to.B);
  g.C = sum(to.C);
  g.P = sum(to.P);
  KRAIT_WITH_CUDA(cuda::s4_kernel_backward(g, b.stream));
}

// Gradients of head h: A, B and P into `heads` (3, N, 2), which are summed over heads later, C and inv_dt at once.
void backward_of_head(const S4Params& p, const S4Options& o, const s4::Sizes& z, const Tensor& dK,
                      const Gradients& to, int64_t h, double* own, double* heads) {
  const int64_t L = dK.size(2), N = z.N;
  s4::Complex C[2 * s4::kMaxStates];
  s4::HeadGradients g;
  g.C = C;
  const s4::Rows rows{dK.as<float>() + h * L, z.H * L};
  (z.dplr ? s4::dplr_backward : s4::diagonal_backward)(p, o, z, h, L, rows, own, g);
  const s4::Complex* const parts[] = {g.A, g.B, g.P};
  for (int64_t part = 0; part < 3; ++part)
    for (int64_t n = 0; n < N; ++n) {
      heads[(part * N + n) * 2] = parts[part][n].real();
      heads[(part * N + n) * 2 + 1] = parts[part][n].imag();
    }
  for (int64_t c = 0; c < z.channels && to.C.grad; ++c)
    for (int64_t n = 0; n < N; ++n) {
      float* const dC = to.C.grad.as<float>() + ((c * z.H + h) * N + n) * 2;
      dC[0] = (to.C.add ? dC[0] : 0.0f) + static_cast<float>(C[c * N + n].real());
      dC[1] = (to.C.add ? dC[1] : 0.0f) + static_cast<float>(C[c * N + n].imag());
    }
  if (to.inv_dt.grad) {
    float& d_dt = to.inv_dt.grad.as<float>()[h];
    d_dt = (to.inv_dt.add ? d_dt : 0.0f) + static_cast<float>(g.dt * s4::head(p, o, z, h).dt_slope);
  }
}

void backward(Context& b, const S4Params& p, const S4Options& o, const s4::Sizes& z,
              const Tensor& K) {
  const Tensor dK = b.tape->grad(K);
  if (!dK) return;
  const auto into = [&](const Tensor& t) { return b.tape->grad_into(b, t); };
  const Gradients to = {into(p.inv_dt), into(p.A_real), into(p.A_imag),
                        into(p.B),      into(p.C),      into(p.P)};
  const int64_t L = K.size(2), N = z.N;
  b.cost("s4_kernel.backward", static_cast<double>(K.bytes()), 3 * flops_of(z, o, L));
  Scratch scratch(b);
  if (b.device.type == Device::cuda) return backward_on_gpu(b, p, o, z, dK, to);
  const Tensor work = work_of(b, z, o, L);
  const Tensor heads = b.scratch({z.H, 3, N, 2}, DType::f64);  // A, B, P of each head
  if (b.planning()) return;
  for_heads(z.H, work, [&](int64_t h, double* own) {
    backward_of_head(p, o, z, dK, to, h, own, heads.as<double>() + h * 6 * N);
  });
  const double* const g = heads.as<double>();
  const double sign = o.positive_imag ? 1 : -1;
  sum_over_heads(to.A_real, z, 1, [&](int64_t h, int64_t n) {
    const double A = -std::exp(static_cast<double>(p.A_real.as<float>()[h % z.S * N + n]));
    return g[(h * 3 * N + n) * 2] * A;
  });
  sum_over_heads(to.A_imag, z, 1,
                 [&](int64_t h, int64_t n) { return sign * g[(h * 3 * N + n) * 2 + 1]; });
  sum_over_heads(to.B, z, 2, [&](int64_t h, int64_t i) { return g[(h * 3 + 1) * N * 2 + i]; });
  sum_over_heads(to.P, z, 2, [&](int64_t h, int64_t i) { return g[(h * 3 + 2) * N * 2 + i]; });
}

}  // namespace

Tensor s4_kernel(Context& c, const S4Params& p, const S4Options& o, int64_t L) {
  const s4::Sizes z = s4::check(p, o);
  require(!z.dplr || o.length >= std::max<int64_t>(L, 1),
          "[s4_kernel] C is attuned to sequences of {} steps, these have {}; attune it first "
          "(s4_attune)",
          o.length, L);
  const Kept kept(c);
  const Tensor K = c.alloc({z.channels, z.H, L}, DType::f32);
  Tensor result = K;
  c.cost("s4_kernel", static_cast<double>(K.bytes()), flops_of(z, o, L));
  {
    Scratch scratch(c);
    const bool gpu = c.device.type == Device::cuda;
    if (gpu) {
      cuda::S4Call call = gpu_call(p, o, z, L);
      take_gpu_work(c, call, false);
      if (!c.planning()) KRAIT_WITH_CUDA(cuda::s4_kernel(call, K.as<float>(), c.stream));
    }
    const Tensor work = gpu ? Tensor() : work_of(c, z, o, L);
    if (!gpu && !c.planning())
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
