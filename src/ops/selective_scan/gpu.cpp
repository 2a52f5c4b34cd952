#include "krait/ops/selective_scan/gpu.h"

#include "krait/ops/selective_scan/cuda_complex.h"

namespace krait::ops::scan {

static CudaRows gpu_rows(const Tensor& t) {
  CudaRows r;
  if (!t) return r;
  r.data = t.data;
  r.stride = t.row_stride();
  r.bf16 = t.dtype == DType::bf16;
  return r;
}

// B or C: (B, L, N) or (B, L, G, N), or constant.
static CudaRows gpu_grouped_rows(const Tensor& t, bool constant) {
  if (!t || constant) return gpu_rows(t);
  CudaRows r;
  r.data = t.data;
  r.stride = t.size(1) > 1 ? t.stride[1] : t.stride[0];  // (B, 1, ...): rows are steps
  r.group = t.rank() == 4 ? t.stride[2] : 0;
  r.bf16 = t.dtype == DType::bf16;
  return r;
}

// The rows of all tokens from the last one on.
static void turn(CudaRows& r, int64_t tokens) {
  if (r.data) r.data = static_cast<std::byte*>(r.data) + (tokens - 1) * r.stride * (r.bf16 ? 2 : 4);
  r.stride = -r.stride;
}

static CudaRows gradient_rows(CudaRows r, const GradTarget& g) {
  r.add = g.add;
  return r;
}

static CudaSum gradient_sum(const GradTarget& g) { return {floats_at(g.grad, 0), g.add}; }

static CudaProblem gpu_problem(const Problem& p) {
  CudaProblem q;
  q.tokens = p.tokens, q.L = p.L, q.E = p.E, q.N = p.N, q.G = p.G;
  q.sequences = p.sequences.size();
  if (p.packed) {
    q.begin = p.packing.begin.as<int64_t>();
    q.row_in = p.packing.state_in.as<int32_t>();
    q.row_out = p.packing.state_out.as<int32_t>();
  }
  q.softplus = p.in.softplus, q.a_is_log = p.in.a_is_log;
  q.constant_B = p.constant_B, q.constant_C = p.constant_C;
  q.u = gpu_rows(p.in.u), q.dt = gpu_rows(p.in.dt), q.z = gpu_rows(p.in.z);
  q.B = gpu_grouped_rows(p.in.B, p.constant_B), q.C = gpu_grouped_rows(p.in.C, p.constant_C);
  q.A = floats_at(p.in.A, 0), q.D = floats_at(p.in.D, 0), q.dt_bias = floats_at(p.in.dt_bias, 0);
  q.state_in = floats_at(p.state_in, 0);
  q.reverse = p.in.reverse && p.tokens > 0;
  if (q.reverse) {
    for (CudaRows* r : {&q.u, &q.dt, &q.z}) turn(*r, p.tokens);
    if (!p.constant_B) turn(q.B, p.tokens);
    if (!p.constant_C) turn(q.C, p.tokens);
  }
  return q;
}

void forward_on_gpu(Context& c, const Problem& p, const Tensor& y, const Tensor& saved) {
  CudaForward w;
  w.p = gpu_problem(p);
  int64_t floats = 0;
  if (!p.in.complex) KRAIT_WITH_CUDA(floats = cuda_forward_scratch(w.p));
  Scratch scratch(c);
  w.scratch = floats_at(c.scratch({floats}, DType::f32), 0);
  if (c.planning()) return;
  w.y = gpu_rows(y);
  if (w.p.reverse) turn(w.y, p.tokens);
  w.state_out = floats_at(p.state_out, 0);
  w.saved = floats_at(saved, 0);
  KRAIT_WITH_CUDA((p.in.complex ? cuda_complex_forward : cuda_scan_forward)(w, c.stream));
}

bool remakes_y_on_gpu(const Problem& p) {
  bool can = false;
  if (!p.in.complex) KRAIT_WITH_CUDA(can = cuda_remakes_y(gpu_problem(p)));
  return can;
}

void backward_on_gpu(Context& c, const Problem& p, const Tensor& dy, const Tensor& dstate,
                     const Tensor& saved, const Tensor& y, const Gradients& g) {
  CudaBackward w;
  w.p = gpu_problem(p);
  w.saved = floats_at(saved, 0);
  w.dy = gpu_rows(dy);
  w.dstate_out = floats_at(dstate, 0);
  if (dy) w.y = gpu_rows(y);
  w.du = gradient_rows(gpu_rows(g.u.grad), g.u);
  w.ddt = gradient_rows(gpu_rows(g.dt.grad), g.dt);
  w.dz = gradient_rows(gpu_rows(g.z.grad), g.z);
  if (p.constant_B)
    w.dB_constant = gradient_sum(g.B);
  else
    w.dB = gradient_rows(gpu_grouped_rows(g.B.grad, false), g.B);
  if (p.constant_C)
    w.dC_constant = gradient_sum(g.C);
  else
    w.dC = gradient_rows(gpu_grouped_rows(g.C.grad, false), g.C);
  if (w.p.reverse)
    for (CudaRows* r : {&w.dy, &w.du, &w.ddt, &w.dz, &w.dB, &w.dC, &w.y}) turn(*r, p.tokens);
  w.dA = gradient_sum(g.A), w.dD = gradient_sum(g.D), w.ddt_bias = gradient_sum(g.dt_bias);
  w.dstate_in = gradient_sum(g.state_in);
  w.state_rows = p.state_in ? p.state_in.size(0) : 0;

  int64_t floats = 0;
  KRAIT_WITH_CUDA(floats = (p.in.complex ? cuda_complex_scratch : cuda_backward_scratch)(w.p));
  Scratch scratch(c);
  w.scratch = floats_at(c.scratch({floats}, DType::f32), 0);
  if (c.planning()) return;
  KRAIT_WITH_CUDA((p.in.complex ? cuda_complex_backward : cuda_scan_backward)(w, c.stream));
}

}  // namespace krait::ops::scan
