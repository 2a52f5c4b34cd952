#include "krait/ops/ssd/gpu.h"

#include "krait/ops/ssd/cuda.h"
#include "krait/tensor/device.h"

namespace krait::ops::ssd_call {

using ssd_gpu::CudaBackward;
using ssd_gpu::CudaForward;
using ssd_gpu::CudaProblem;
using ssd_gpu::CudaRows;
using ssd_gpu::CudaSum;

static CudaRows gpu_rows(const Tensor& t, bool add = false) {
  CudaRows r;
  if (!t) return r;
  r.data = t.data;
  r.stride = t.row_stride();
  r.bf16 = t.dtype == DType::bf16;
  r.add = add;
  const int64_t run = 16 / static_cast<int64_t>(size_of(t.dtype));
  r.runs = reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && r.stride % run == 0;
  return r;
}

static CudaSum gradient_sum(const GradTarget& g) { return {floats_at(g.grad, 0), g.add}; }

static CudaProblem gpu_problem(const Problem& p) {
  require(p.N <= 256, "[ssd] {} states a channel: a GPU takes up to 256", p.N);
  CudaProblem q;
  q.tokens = p.tokens, q.L = p.in.x.size(1), q.H = p.H, q.P = p.P, q.N = p.N, q.G = p.G;
  q.sequences = p.sequences.size();
  q.longest = p.packed ? p.packing.longest : q.L;
  if (p.packed) {
    q.begin = p.packing.begin.as<int64_t>();
    q.row_in = p.packing.state_in.as<int32_t>();
    q.row_out = p.packing.state_out.as<int32_t>();
  }
  q.softplus = p.in.softplus, q.a_is_log = p.in.a_is_log;
  q.D_per_channel = p.in.D && p.in.D.rank() == 2;
  q.dt_min = p.in.dt_min, q.dt_max = p.in.dt_max;
  q.x = gpu_rows(p.in.x), q.dt = gpu_rows(p.in.dt);
  q.B = gpu_rows(p.in.B), q.C = gpu_rows(p.in.C);
  q.matrix_units = q.x.bf16 && q.B.bf16 && q.C.bf16 && p.P % 16 == 0 && p.N % 16 == 0;
  if (q.matrix_units) KRAIT_WITH_CUDA(q.matrix_units = ssd_gpu::matrix_units_fit(p.N));
  q.A = floats_at(p.in.A, 0), q.D = floats_at(p.in.D, 0), q.dt_bias = floats_at(p.in.dt_bias, 0);
  q.state_in = floats_at(p.state_in, 0);
  return q;
}

int64_t kept_on_gpu(const Problem& p) {
  int64_t n = 0;
  KRAIT_WITH_CUDA(n = ssd_gpu::kept_size(gpu_problem(p)));
  return n;
}

void forward_on_gpu(Context& c, const Problem& p, const Tensor& y, const Tensor& saved) {
  CudaForward w;
  w.p = gpu_problem(p);
  w.y = gpu_rows(y);
  w.kept = floats_at(saved, 0);
  w.state_out = floats_at(p.state_out, 0);
  int64_t floats = 0;
  KRAIT_WITH_CUDA(floats = ssd_gpu::forward_scratch(w.p));
  Scratch scratch(c);
  w.scratch = floats_at(c.scratch({floats}, DType::f32), 0);
  if (c.planning()) return;
  KRAIT_WITH_CUDA(ssd_gpu::ssd_forward(w, c.stream));
}

void backward_on_gpu(Context& c, const Problem& p, const Tensor& dy, const Tensor& dstate,
                     const Tensor& saved, const Gradients& g) {
  CudaBackward w;
  w.p = gpu_problem(p);
  w.dy = gpu_rows(dy);
  w.dstate_out = floats_at(dstate, 0);
  w.kept = floats_at(saved, 0);
  const auto rows = [](const GradTarget& to) { return gpu_rows(to.grad, to.add); };
  w.dx = rows(g.x), w.ddt = rows(g.dt), w.dB = rows(g.B), w.dC = rows(g.C);
  w.dA = gradient_sum(g.A), w.dD = gradient_sum(g.D), w.ddt_bias = gradient_sum(g.dt_bias);
  w.dstate_in = gradient_sum(g.state_in);
  w.state_rows = p.state_in ? p.state_in.size(0) : 0;
  int64_t floats = 0;
  KRAIT_WITH_CUDA(floats = ssd_gpu::backward_scratch(w));
  Scratch scratch(c);
  w.scratch = floats_at(c.scratch({floats}, DType::f32), 0);
  if (c.planning()) return;
  KRAIT_WITH_CUDA(ssd_gpu::ssd_backward(w, c.stream));
}

}  // namespace krait::ops::ssd_call
