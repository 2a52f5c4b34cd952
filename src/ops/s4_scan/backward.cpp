// Backward of s4_scan: the adjoint recurrence of each head gives the gradients of its steps, a chain on the host
// those of the parameters.
#include "krait/ops/s4_scan/backward.h"

#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/s4_scan/kernels.h"

namespace krait::ops {
namespace {

struct Targets {
  GradTarget u, D, state_in, inv_dt, A_real, A_imag, B, C, P;
};

// What system and C are given, summed over the sequences, in the layout of S4Steps.
struct StepSums {
  std::vector<double> system, C;
};

double element(const Tensor& t, int64_t i) {
  return t.dtype == DType::bf16 ? static_cast<double>(static_cast<float>(t.as<bf16>()[i]))
                                : static_cast<double>(t.as<float>()[i]);
}

void put(const GradTarget& to, int64_t i, double value) {
  if (to.grad.dtype == DType::bf16) {
    bf16& x = to.grad.as<bf16>()[i];
    x = bf16(static_cast<float>(value) + (to.add ? static_cast<float>(x) : 0.0f));
  } else {
    float& x = to.grad.as<float>()[i];
    x = static_cast<float>(value) + (to.add ? x : 0.0f);
  }
}

// One head of all sequences, in their order.
class Head {
 public:
  Head(const S4ScanBackward& q, const Targets& to, const Tensor& dy, const Tensor& dstate,
       StepSums& sums, int64_t h)
      : q_(q), to_(to), dy_(dy), dstate_(dstate), h_(h), H_(q.u.size(2)) {
    const S4Steps& steps = *q.learned.steps;
    N_ = steps.N;
    run_.dplr = steps.dplr;
    run_.row = steps.row;
    run_.system = steps.system.data() + h * steps.rows() * 2 * steps.row;
    run_.C = steps.C.data() + h * 2 * steps.row;
    run_.D = static_cast<double>(q.D.as<float>()[h]);
    run_.dsystem = sums.system.data() + h * steps.rows() * 2 * steps.row;
    run_.dC = sums.C.data() + h * 2 * steps.row;
    run_.dD = &dD_;
  }

  void sequence(int64_t begin, int64_t end, int64_t in, int64_t out) {
    const int64_t L = end - begin;
    for (std::vector<double>* v : {&u_, &dy_now_, &du_}) v->resize(static_cast<size_t>(L));
    work_.resize(static_cast<size_t>(s4_adjoint_work(L, run_.row)));
    for (int64_t t = 0; t < L; ++t) {
      const auto i = static_cast<size_t>(t);
      u_[i] = element(q_.u, (begin + t) * q_.u.row_stride() + h_);
      if (dy_) dy_now_[i] = element(dy_, (begin + t) * H_ + h_);
    }
    double h[2 * kS4MaxRow], g[2 * kS4MaxRow];
    s4_load_state(row_of(q_.state_in, in), N_, run_.row, h);
    s4_load_state(row_of(dstate_, out), N_, run_.row, g);
    run_.L = L;
    run_.u = u_.data();
    run_.dy = dy_ ? dy_now_.data() : nullptr;
    run_.du = to_.u.grad ? du_.data() : nullptr;
    run_.h = h;
    run_.g = g;
    run_.work = work_.data();
    KRAIT_PICK_ISA(s4_scan_kernels).adjoint(run_);
    for (int64_t t = 0; t < L && to_.u.grad; ++t)
      put(to_.u, (begin + t) * to_.u.grad.row_stride() + h_, du_[static_cast<size_t>(t)]);
    float* const dstate = row_of(to_.state_in.grad, in);
    for (int64_t n = 0; n < N_ && dstate; ++n) {  // zeros, or what is there, before
      dstate[2 * n] += static_cast<float>(g[n]);
      dstate[2 * n + 1] += static_cast<float>(g[run_.row + n]);
    }
  }

  void finish() const {
    if (to_.D.grad) put(to_.D, h_, dD_);
  }

 private:
  float* row_of(const Tensor& states, int64_t r) const {
    return states && r >= 0 ? states.as<float>() + (r * H_ + h_) * N_ * 2 : nullptr;
  }

  const S4ScanBackward& q_;
  const Targets& to_;
  const Tensor &dy_, &dstate_;
  int64_t h_, H_, N_ = 0;
  S4Adjoint run_;
  double dD_ = 0;
  std::vector<double> u_, dy_now_, du_, work_;
};

StepSums run_on_cpu(const S4ScanBackward& q, const Targets& to, const Tensor& dy,
                    const Tensor& dstate) {
  const S4Steps& steps = *q.learned.steps;
  StepSums sums{std::vector<double>(steps.system.size()), std::vector<double>(steps.C.size())};
  if (to.state_in.grad && !to.state_in.add)
    std::fill_n(to.state_in.grad.as<float>(), to.state_in.grad.numel(), 0.0f);
  const int64_t sequences = q.packed ? q.packing.n : q.u.size(0), L = q.u.size(1);
  parallel_for(steps.H, [&](int64_t h) {
    Head head(q, to, dy, dstate, sums, h);
    for (int64_t s = 0; s < sequences; ++s) {
      if (q.packed) {
        const auto* const begin = q.packing.begin.as<int64_t>();
        head.sequence(begin[s], begin[s + 1], q.packing.state_in.as<int32_t>()[s],
                      q.packing.state_out.as<int32_t>()[s]);
      } else {
        head.sequence(s * L, (s + 1) * L, s, s);
      }
    }
    head.finish();
  });
  return sums;
}

StepSums run_on_gpu(Context& c, const S4ScanBackward& q, const Targets& to, const Tensor& dy,
                    const Tensor& dstate) {
  const Tensor& C = q.learned.params.C;
  const int64_t H = C.size(1), N = C.size(2), row = (N + 7) / 8 * 8, size = 2 * row;
  cuda::S4ScanAdjoint a;
  if (!c.planning())
    a.c = s4_scan_call(q.u, *q.learned.steps, q.D, q.packed ? &q.packing : nullptr, q.state_in,
                       q.result.state);
  a.c.dplr = q.learned.params.P.rank() > 0;
  a.c.H = H;
  a.c.N = N;
  a.c.row = row;
  a.c.sequences = q.packed ? q.packing.n : q.u.size(0);
  a.tokens = q.u.size(0) * q.u.size(1);
  const int64_t vectors = a.c.dplr ? 6 : 3;
  int64_t doubles = 0;
  KRAIT_WITH_CUDA(doubles = cuda::s4_scan_adjoint_work(a));
  a.work = c.scratch({doubles}, DType::f64).as<double>();
  const Tensor all = c.scratch({H, vectors * size}, DType::f64);
  StepSums sums;
  if (c.planning()) return sums;
  const auto floats = [](const Tensor& t) { return t ? t.as<float>() : nullptr; };
  a.sums = all.as<double>();
  a.dy = dy.data;
  a.dstate_out = floats(dstate);
  a.du = to.u.grad.data;
  a.du_stride = to.u.grad ? to.u.grad.row_stride() : 0;
  a.du_add = to.u.add;
  a.dstate_in = floats(to.state_in.grad);
  a.state_rows = q.state_in ? q.state_in.size(0) : 0;
  a.dstate_add = to.state_in.add;
  a.dD = floats(to.D.grad);
  a.dD_add = to.D.add;
  KRAIT_WITH_CUDA(cuda::s4_scan_adjoint(a, c.stream));
  std::vector<double> here(static_cast<size_t>(all.numel()));
  download(all, here.data(), c.stream);
  for (int64_t h = 0; h < H; ++h) {
    const auto first = here.begin() + h * vectors * size, last = first + (vectors - 1) * size;
    sums.system.insert(sums.system.end(), first, last);
    sums.C.insert(sums.C.end(), last, last + size);
  }
  return sums;
}

// The part of C's gradient that goes through the power in what it is attuned to: that of Re(C Ā^T h), h the
// conjugate of `attuned`.
void add_attuning(const S4Steps& steps, int64_t T, const std::vector<double>& attuned,
                  std::vector<double>& dsystem) {
  const int64_t row = steps.row, size = 2 * row;
  parallel_for(steps.H, [&](int64_t head) {
    std::vector<double> work(static_cast<size_t>(s4_adjoint_work(T, row)));
    double h[2 * kS4MaxRow], g[2 * kS4MaxRow], unused[2 * kS4MaxRow] = {};
    const double *from = attuned.data() + head * size, *C = steps.C.data() + head * size;
    for (int64_t n = 0; n < row; ++n) {
      h[n] = from[n];
      h[row + n] = -from[row + n];
      g[n] = C[n];
      g[row + n] = -C[row + n];
    }
    S4Adjoint run;
    run.dplr = true;
    run.row = row;
    run.system = steps.system.data() + head * steps.rows() * size;
    run.C = C;
    run.L = T;
    run.h = h;
    run.g = g;
    run.dsystem = dsystem.data() + head * steps.rows() * size;
    run.dC = unused;
    run.work = work.data();
    KRAIT_PICK_ISA(s4_scan_kernels).adjoint(run);
  });
}

// Makes `values`, of the host, the gradient, or adds them to it.
void give(const GradTarget& to, std::vector<float> values) {
  if (!to.grad) return;
  if (to.add) {
    std::vector<std::byte> buffer;
    const Tensor before = on_host(to.grad, buffer);
    for (size_t i = 0; i < values.size(); ++i) values[i] += before.as<float>()[i];
  }
  store(Tensor(values.data(), DType::f32, to.grad.shape), to.grad);
}

}  // namespace

void s4_scan_backward(Context& c, const S4ScanBackward& q) {
  const Tensor dy = c.tape->grad(q.result.y);
  const Tensor dstate = q.result.state ? c.tape->grad(q.result.state) : Tensor();
  if (!dy && !dstate) return;
  const S4Params& p = q.learned.params;
  const S4Options& o = q.learned.options;
  const auto into = [&](const Tensor& t) { return c.tape->grad_into(c, t); };
  const Targets to = {into(q.u),      into(q.D), into(q.state_in), into(p.inv_dt), into(p.A_real),
                      into(p.A_imag), into(p.B), into(p.C),        into(p.P)};
  c.cost("s4_scan.backward", 4.0 * static_cast<double>(q.u.bytes()), 0);
  Scratch scratch(c);
  const bool gpu = c.device.type == Device::cuda;
  if (c.planning() && !gpu) return;
  StepSums sums = gpu ? run_on_gpu(c, q, to, dy, dstate) : run_on_cpu(q, to, dy, dstate);
  if (c.planning()) return;
  if (p.P.rank() > 0 && o.length > 0) {
    sums.C = s4_attuned_gradient(p, o, sums.C);
    add_attuning(*q.learned.steps, o.length, sums.C, sums.system);
  }
  S4Gradients g = s4_steps_gradients(p, o, sums.system, sums.C);
  give(to.inv_dt, std::move(g.inv_dt));
  give(to.A_real, std::move(g.A_real));
  give(to.A_imag, std::move(g.A_imag));
  give(to.B, std::move(g.B));
  give(to.C, std::move(g.C));
  give(to.P, std::move(g.P));
}

}  // namespace krait::ops
