#include <algorithm>

#include "krait/autograd/segment.h"
#include "krait/autograd/tape.h"
#include "krait/base/threads.h"
#include "krait/ops/gated_norm/cuda.h"
#include "krait/ops/gated_norm/gated_norm.h"
#include "krait/ops/gated_norm/kernels.h"
#include "krait/tensor/cuda/rows.h"
#include "krait/tensor/device.h"

namespace krait::ops {
namespace {

constexpr int64_t kForwardRows = 16;
constexpr int64_t kBackwardRows = 64;  // of one partial sum of dw and db

void check(const GatedNormInputs& in) {
  const Tensor& x = in.x;
  require(x.rank() >= 1 && x.row_strided() && (x.dtype == DType::f32 || x.dtype == DType::bf16),
          "[gated_norm] x: expected float32 or bfloat16 (..., E) with rows at one distance, got {} "
          "{}",
          name_of(x.dtype), x.shape);
  require(!in.z || (in.z.shape == x.shape && in.z.dtype == x.dtype && in.z.row_strided()),
          "[gated_norm] z: expected {} {} with rows at one distance, got {} {}", name_of(x.dtype),
          x.shape, name_of(in.z.dtype), in.z.shape);
  const Shape per_channel{x.size(-1)};
  const auto check_row = [&](const char* name, const Tensor& t) {
    require(t.dtype == DType::f32 && t.contiguous() && t.shape == per_channel,
            "[gated_norm] {}: expected contiguous float32 {}, got {} {}", name, per_channel,
            name_of(t.dtype), t.shape);
  };
  check_row("w", in.w);
  if (in.b) check_row("b", in.b);
  require(in.groups >= 1 && x.size(-1) % in.groups == 0,
          "[gated_norm] {} channels cannot be cut into {} groups", x.size(-1), in.groups);
}

GatedNormProblem problem_of(const GatedNormInputs& in) {
  GatedNormProblem p;
  p.E = in.x.size(-1), p.groups = in.groups;
  p.gate_first = in.order == GateOrder::gate_first;
  p.eps = in.eps;
  p.bf16 = in.x.dtype == DType::bf16;
  p.x = in.x.data, p.x_stride = in.x.row_stride();
  if (in.z) p.z = in.z.data, p.z_stride = in.z.row_stride();
  p.w = in.w.as<float>();
  p.b = in.b ? in.b.as<float>() : nullptr;
  return p;
}

// target (E) = the partial sums (pieces, E) in their order
void add_up(const Tensor& sums, const GradTarget& target) {
  const int64_t E = target.grad.numel();
  parallel_ranges(E, 256, [&](int64_t begin, int64_t end) {
    float* const out = target.grad.as<float>();
    if (!target.add) std::fill(out + begin, out + end, 0.0f);
    for (int64_t i = 0; i < sums.size(0); ++i)
      for (int64_t e = begin; e < end; ++e) out[e] += sums.as<float>()[i * E + e];
  });
}

void run_backward_on_gpu(const Context& c, const GatedNormProblem& p, int64_t rows,
                         const Tensor& dw_sums, const Tensor& db_sums, const GradTarget& dw,
                         const GradTarget& db) {
  const auto floats = [](const Tensor& t) { return t ? t.as<float>() : nullptr; };
  KRAIT_WITH_CUDA(cuda::gated_norm_backward(p, rows, floats(dw_sums), floats(db_sums), c.stream));
  const auto add_up_part = [&](const Tensor& sums, const GradTarget& to) {
    KRAIT_WITH_CUDA(cuda::sum_rows(sums.data, false, p.E, sums.size(0), p.E, to.grad.as<float>(),
                                   to.add, nullptr, c.stream));
  };
  if (dw.grad) add_up_part(dw_sums, dw);
  if (db.grad) add_up_part(db_sums, db);
}

void backward(Context& c, const GatedNormInputs& in, const Tensor& y, bool remakes) {
  const Tensor dy = c.tape->grad(y);
  if (!dy) return;
  const GradTarget dx = c.tape->grad_into(c, in.x), dz = c.tape->grad_into(c, in.z);
  const GradTarget dw = c.tape->grad_into(c, in.w), db = c.tape->grad_into(c, in.b);
  const int64_t E = in.x.size(-1), rows = in.x.shape.rows();
  const bool gpu = c.device.type == Device::cuda;
  const int64_t grain = gpu ? cuda::rows_of_a_partial_sum(rows) : kBackwardRows;
  const int64_t pieces = (rows + grain - 1) / grain;
  Scratch scratch(c);
  const Tensor dw_sums = dw.grad ? c.scratch({pieces, E}, DType::f32) : Tensor();
  const Tensor db_sums = db.grad ? c.scratch({pieces, E}, DType::f32) : Tensor();
  const auto n = static_cast<double>(in.x.numel());
  const auto size = static_cast<double>(size_of(in.x.dtype));
  c.cost("gated_norm backward",
         n * size * ((in.z ? 3 : 2) + (dx.grad ? 1 : 0) + (dz.grad ? 1 : 0) + (remakes ? 1 : 0)),
         40 * n);
  if (c.planning()) return;

  GatedNormProblem p = problem_of(in);
  p.dy = dy.data;
  if (remakes) p.y = y.data;
  if (dx.grad) p.dx = dx.grad.data, p.dx_stride = dx.grad.row_stride(), p.dx_add = dx.add;
  if (dz.grad) p.dz = dz.grad.data, p.dz_stride = dz.grad.row_stride(), p.dz_add = dz.add;
  if (gpu) return run_backward_on_gpu(c, p, rows, dw_sums, db_sums, dw, db);
  parallel_for(pieces, [&](int64_t i) {
    const auto part = [&](const Tensor& sums) {
      float* const row = sums ? sums.as<float>() + i * E : nullptr;
      if (row) std::fill(row, row + E, 0.0f);
      return row;
    };
    KRAIT_PICK_ISA(gated_norm_kernels)
        .backward(p, i * kBackwardRows, std::min(rows, (i + 1) * kBackwardRows), part(dw_sums),
                  part(db_sums));
  });
  if (dw.grad) add_up(dw_sums, dw);
  if (db.grad) add_up(db_sums, db);
}

}  // namespace

Tensor gated_norm(Context& c, const GatedNormInputs& in) {
  check(in);
  const bool recorded = c.tape && needs_grad({in.x, in.z, in.w, in.b}),
             remakes = in.remake_y && recorded && c.device.type == Device::cuda &&
                       c.computes_cheap_again();
  const Kept kept(c, remakes);  // the second run only makes room for y
  Tensor y = c.alloc(in.x.shape, in.x.dtype, !remakes);
  const auto n = static_cast<double>(in.x.numel());
  c.cost("gated_norm", n * static_cast<double>(size_of(in.x.dtype)) * (in.z ? 3 : 2), 20 * n);
  if (!c.planning()) {
    GatedNormProblem p = problem_of(in);
    p.y = y.data;
    if (c.device.type == Device::cuda) {
      KRAIT_WITH_CUDA(cuda::gated_norm_forward(p, in.x.shape.rows(), c.stream));
    } else {
      parallel_ranges(in.x.shape.rows(), kForwardRows, [&](int64_t row, int64_t end) {
        KRAIT_PICK_ISA(gated_norm_kernels).forward(p, row, end);
      });
    }
  }
  if (recorded) {
    remakes ? c.tape->watch_remade(y) : c.tape->watch(y);
    c.tape->record([in, y, remakes](Context& later) {
      backward(later, in, y, remakes);
      if (remakes) later.tape->remade(later, y);
    });
  }
  return y;
}

}  // namespace krait::ops
