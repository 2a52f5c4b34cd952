#include "krait/ops/mamba3_scan/gpu.h"

#include "krait/ops/mamba3_scan/cuda.h"

namespace krait::ops::mamba3 {

static float* floats_of(const Tensor& t) { return t ? t.as<float>() : nullptr; }

static GradRows rows_of(const Tensor& t, bool add = false) {
  const Rows r = rows_at(t, 0, 0);
  return {const_cast<void*>(r.data), r.stride, r.bf16, add};
}

static StateOf<float> state_of(const Mamba3State& s) {
  return {floats_of(s.angle), floats_of(s.ssm), floats_of(s.k), floats_of(s.v)};
}

static CudaBackward::Sum sum_of(const GradTarget& g) { return {floats_of(g.grad), g.add}; }

static CudaCall call_of(const Problem& p, const Tensor& saved) {
  const Mamba3Inputs& in = p.in;
  CudaCall c;
  c.size = p.size;
  c.H = p.H, c.G = p.G, c.tokens = p.tokens, c.L = p.L;
  c.longest = p.packed ? p.packing.longest : p.L;
  c.sequences = p.sequences.size();
  if (p.packed) {
    c.begin = p.packing.begin.as<int64_t>();
    c.row_in = p.packing.state_in.as<int32_t>();
    c.row_out = p.packing.state_out.as<int32_t>();
  }
  c.halves = in.halves;
  c.shared_angle = p.shared_angle();
  c.x = rows_at(in.x, 0, 0), c.z = rows_at(in.z, 0, 0);
  c.B = rows_at(in.B, 0, 0), c.C = rows_at(in.C, 0, 0);
  c.dt = rows_at(in.dt, 0, 0), c.adt = rows_at(in.adt, 0, 0), c.trap = rows_at(in.trap, 0, 0);
  c.angle = rows_at(in.angle, 0, 0);
  c.B_bias = floats_of(in.B_bias), c.C_bias = floats_of(in.C_bias);
  c.D = floats_of(in.D), c.norm = floats_of(in.norm), c.norm_eps = in.norm_eps;
  c.mimo_x = floats_of(in.mimo_x), c.mimo_z = floats_of(in.mimo_z);
  c.mimo_o = floats_of(in.mimo_o);
  c.from = state_of(p.from), c.to = state_of(p.to);
  c.saved = floats_of(saved);
  return c;
}

void forward_on_gpu(Context& c, const Problem& p, const Tensor& y, const Tensor& saved) {
  CudaCall call = call_of(p, saved);
  int64_t floats = 0;
  KRAIT_WITH_CUDA(floats = cuda_forward_scratch(call));
  Scratch scratch(c);
  call.scratch = floats_of(c.scratch({floats}, DType::f32));
  if (!c.planning()) KRAIT_WITH_CUDA(cuda_forward(call, rows_of(y), c.stream));
}

void backward_on_gpu(Context& c, const Problem& p, const Tensor& dy, const Mamba3State& dto,
                     const Tensor& saved, const Gradients& g) {
  CudaBackward b;
  b.c = call_of(p, saved);
  b.dy = rows_at(dy, 0, 0);
  b.dto = state_of(dto);
  const auto rows = [](const GradTarget& t) { return rows_of(t.grad, t.add); };
  b.dx = rows(g.x), b.dz = rows(g.z), b.dB = rows(g.B), b.dC = rows(g.C);
  b.ddt = rows(g.dt), b.dadt = rows(g.adt), b.dtrap = rows(g.trap), b.dangle = rows(g.angle);
  b.dB_bias = sum_of(g.B_bias), b.dC_bias = sum_of(g.C_bias);
  b.dD = sum_of(g.D), b.dnorm = sum_of(g.norm);
  b.dmimo_x = sum_of(g.mimo_x), b.dmimo_z = sum_of(g.mimo_z), b.dmimo_o = sum_of(g.mimo_o);
  b.dfrom_angle = sum_of(g.from_angle), b.dfrom_ssm = sum_of(g.from_ssm);
  b.dfrom_k = sum_of(g.from_k), b.dfrom_v = sum_of(g.from_v);
  b.from_rows = p.from.ssm ? p.from.ssm.size(0) : 0;
  int64_t floats = 0;
  KRAIT_WITH_CUDA(floats = cuda_backward_scratch(b));
  Scratch scratch(c);
  b.c.scratch = floats_of(c.scratch({floats}, DType::f32));
  if (!c.planning()) KRAIT_WITH_CUDA(cuda_backward(b, c.stream));
}

}  // namespace krait::ops::mamba3
