#include <algorithm>

#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/gate/cuda.h"
#include "krait/ops/gate/gate.h"
#include "krait/ops/gate/kernels.h"
#include "krait/tensor/device.h"

namespace krait::ops {

static constexpr int64_t kPiece = 1 << 14;  // elements

static void check(const Tensor& g, const Tensor& u) {
  require((g.dtype == DType::f32 || g.dtype == DType::bf16) && g.rank() >= 1 && g.row_strided(),
          "[gate] g: expected float32 or bfloat16 (..., F) with rows at one distance, got {} {}",
          name_of(g.dtype), g.shape);
  require(!u || (u.dtype == g.dtype && u.shape == g.shape && u.row_strided()),
          "[gate] u: expected {} {} with rows at one distance, got {} {}", name_of(g.dtype),
          g.shape, name_of(u.dtype), u.shape);
}

static void forward(const Context& c, const GateProblem& p, int64_t rows, int64_t grain) {
  if (c.device.type == Device::cuda) {
    KRAIT_WITH_CUDA(cuda::gate_forward(p, rows, c.stream));
    return;
  }
  parallel_ranges(rows, grain, [&](int64_t begin, int64_t end) {
    KRAIT_PICK_ISA(gate_kernels).forward(p, begin, end);
  });
}

static void backward(const Context& c, const GateProblem& p, int64_t rows, int64_t grain) {
  if (c.device.type == Device::cuda) {
    KRAIT_WITH_CUDA(cuda::gate_backward(p, rows, c.stream));
    return;
  }
  parallel_ranges(rows, grain, [&](int64_t begin, int64_t end) {
    KRAIT_PICK_ISA(gate_kernels).backward(p, begin, end);
  });
}

Tensor gate(Context& c, Gate kind, const Tensor& g, const Tensor& u) {
  check(g, u);
  GateProblem p;
  p.kind = static_cast<int>(kind);
  p.bf16 = g.dtype == DType::bf16;
  p.F = g.size(-1);
  p.g = g.data;
  p.u = u.data;
  p.g_row = g.row_stride();
  p.u_row = u ? u.row_stride() : 0;
  Tensor y = c.alloc(g.shape, g.dtype);
  p.y = y.data;
  const int64_t rows = g.shape.rows(),
                grain = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, p.F));
  const auto n = static_cast<double>(g.numel());
  const auto element = static_cast<double>(size_of(g.dtype));
  c.cost("gate", n * element * (u ? 3 : 2), 10 * n);
  if (!c.planning()) forward(c, p, rows, grain);
  if (c.tape && needs_grad({g, u})) {
    c.tape->watch(y);
    c.tape->record([=](Context& b) {
      const Tensor dy = b.tape->grad(y);
      if (!dy) return;
      const GradTarget dg = b.tape->grad_into(b, g), du = b.tape->grad_into(b, u);
      b.cost("gate.backward", n * element * (u ? 5 : 3), 20 * n);
      if (b.planning()) return;
      GateProblem back = p;
      back.dy = dy.data;
      back.dg = dg.grad.data;
      back.add_g = dg.add;
      back.du = du.grad.data;
      back.add_u = du.add;
      backward(b, back, rows, grain);
    });
  }
  return y;
}

}  // namespace krait::ops
