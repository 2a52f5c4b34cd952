#include <algorithm>

#include "krait/autograd/segment.h"
#include "krait/base/threads.h"
#include "krait/ops/norm/cuda.h"
#include "krait/ops/norm/kernels.h"
#include "krait/ops/norm/norm.h"
#include "krait/tensor/cuda/rows.h"

namespace krait::ops {
namespace {

constexpr int64_t kForwardRows = 16;
constexpr int64_t kBackwardRows = 64;  // of one partial sum of dw and db

// The tensors of one call; scale and mean (rows) are there where backward will read them.
struct Call {
  NormKind kind;
  float eps;
  bool remakes;
  Tensor x, w, b, residual, y, sum, scale, mean;

  NormProblem problem() const {
    NormProblem p;
    p.D = x.size(-1);
    p.layer = kind == NormKind::layer;
    p.eps = eps;
    p.x = x.data;
    p.x_stride = x.row_stride();
    p.x_bf16 = x.dtype == DType::bf16;
    p.w = w ? w.as<float>() : nullptr;
    p.b = b ? b.as<float>() : nullptr;
    p.y_bf16 = y.dtype == DType::bf16;
    p.sum = sum ? sum.as<float>() : nullptr;
    p.scale = scale ? scale.as<float>() : nullptr;
    p.mean = mean ? mean.as<float>() : nullptr;
    return p;
  }
};

void check(const Tensor& x, const Tensor& w, const Tensor& b, DType out, const Tensor& residual) {
  require(x.rank() >= 1 && x.row_strided() && (x.dtype == DType::f32 || x.dtype == DType::bf16),
          "[norm] x: expected float32 or bfloat16 (..., D) with rows at one distance, got {} {}",
          name_of(x.dtype), x.shape);
  const Shape per_channel{x.size(-1)};
  require(!w || (w.dtype == DType::f32 && w.contiguous() && w.shape == per_channel),
          "[norm] w: expected contiguous float32 {}, got {} {}", per_channel, name_of(w.dtype),
          w.shape);
  require(!b || (b.dtype == DType::f32 && b.contiguous() && b.shape == per_channel),
          "[norm] b: expected contiguous float32 {}, got {} {}", per_channel, name_of(b.dtype),
          b.shape);
  require(out == DType::f32 || out == DType::bf16,
          "[norm] out: expected float32 or bfloat16, got {}", name_of(out));
  require(!residual ||
              (residual.dtype == DType::f32 && residual.row_strided() && residual.shape == x.shape),
          "[norm] residual: expected float32 {} with rows at one distance, got {} {}", x.shape,
          name_of(residual.dtype), residual.shape);
}

// target (D) = the partial sums (pieces, D) in their order
void add_up(const Tensor& sums, int64_t pieces, const GradTarget& target) {
  const int64_t D = target.grad.numel();
  parallel_ranges(D, 256, [&](int64_t begin, int64_t end) {
    float* out = target.grad.as<float>();
    if (!target.add) std::fill(out + begin, out + end, 0.0f);
    for (int64_t i = 0; i < pieces; ++i)
      for (int64_t e = begin; e < end; ++e) out[e] += sums.as<float>()[i * D + e];
  });
}

void run_backward_on_gpu(Context& c, const NormProblem& p, int64_t rows, const Tensor& dw_sums,
                         const Tensor& db_sums, const GradTarget& dw, const GradTarget& db) {
  const auto floats = [](const Tensor& t) { return t ? t.as<float>() : nullptr; };
  KRAIT_WITH_CUDA(cuda::norm_backward(p, rows, floats(dw_sums), floats(db_sums), c.stream));
  const auto add_up_part = [&](const Tensor& sums, const GradTarget& to) {
    KRAIT_WITH_CUDA(cuda::sum_rows(sums.data, false, p.D, sums.size(0), p.D, to.grad.as<float>(),
                                   to.add, nullptr, c.stream));
  };
  if (dw.grad) add_up_part(dw_sums, dw);
  if (db.grad) add_up_part(db_sums, db);
}

void backward(Context& c, const Call& q) {
  const Tensor dy = c.tape->grad(q.y);
  const Tensor dsum = q.sum ? c.tape->grad(q.sum) : Tensor();
  if (q.sum) c.tape->uncover(q.sum);
  if (!dy && !dsum) return;
  // From here on the storage of d(sum) is that of d(residual): the total is written over it.
  const GradTarget dresidual = c.tape->grad_into(c, q.residual);
  const GradTarget dx = c.tape->grad_into(c, q.x);
  const bool gpu = c.device.type == Device::cuda;
  // Of a stream whose products are of bfloat16: the one below reads the gradient so.
  const Tensor rounded = gpu && q.y.dtype == DType::bf16 && q.x.dtype == DType::f32
                             ? c.tape->round_into(c, q.x)
                             : Tensor();
  const GradTarget dw = c.tape->grad_into(c, q.w);
  const GradTarget db = c.tape->grad_into(c, q.b);

  const int64_t D = q.x.size(-1), rows = q.x.shape.rows();
  const int64_t grain = gpu ? cuda::rows_of_a_partial_sum(rows) : kBackwardRows;
  const int64_t pieces = (rows + grain - 1) / grain;
  Scratch scratch(c);
  const Tensor dw_sums = dw.grad ? c.scratch({pieces, D}, DType::f32) : Tensor();
  const Tensor db_sums = db.grad ? c.scratch({pieces, D}, DType::f32) : Tensor();
  const double n = static_cast<double>(q.x.numel());
  const double s_bytes = static_cast<double>(size_of(q.sum ? DType::f32 : q.x.dtype));
  c.cost("norm.backward",
         n * (s_bytes + static_cast<double>(size_of(q.y.dtype)) + (dsum ? 4 : 0) +
              (dresidual.grad ? 4 : 0) +
              (dx.grad ? static_cast<double>(size_of(q.x.dtype)) * (dx.add ? 2 : 1) : 0) +
              (rounded ? 2 : 0)),
         11 * n);
  if (c.planning()) return;

  NormProblem p = q.problem();
  p.dy = dy.data;
  p.dsum = dsum ? dsum.as<float>() : nullptr;
  p.dresidual = dresidual.grad ? dresidual.grad.as<float>() : nullptr;
  p.dresidual_stride = dresidual.grad ? dresidual.grad.row_stride() : 0;
  p.dx = dx.grad.data;
  p.dx_stride = dx.grad ? dx.grad.row_stride() : 0;
  p.dx_add = dx.add;
  p.dx_bf16 = rounded.data;
  if (q.remakes) p.y = q.y.data;
  if (gpu) return run_backward_on_gpu(c, p, rows, dw_sums, db_sums, dw, db);
  const NormKernels& kernels = KRAIT_PICK_ISA(norm_kernels);
  parallel_for(pieces, [&](int64_t i) {
    const auto part = [&](const Tensor& sums) {
      float* row = sums ? sums.as<float>() + i * D : nullptr;
      if (row) std::fill(row, row + D, 0.0f);
      return row;
    };
    kernels.backward(p, i * kBackwardRows, std::min(rows, (i + 1) * kBackwardRows), part(dw_sums),
                     part(db_sums));
  });
  if (dw.grad) add_up(dw_sums, pieces, dw);
  if (db.grad) add_up(db_sums, pieces, db);
}

}  // namespace

NormResult norm(Context& c, NormKind kind, const Tensor& x, const Tensor& w, const Tensor& b,
                float eps, DType out, const Tensor& residual, bool remake_y) {
  require(kind != NormKind::batch, "[norm] a norm over the batch is another op");
  check(x, w, b, out, residual);
  const bool recorded = c.tape && needs_grad({x, w, b, residual});
  const int64_t rows = x.shape.rows();
  NormResult result;
  const bool remakes = remake_y && recorded && kind == NormKind::rms && !b && !residual &&
                       c.device.type == Device::cuda && c.computes_cheap_again();
  const Kept kept(c, remakes);  // the second run only makes room for y
  result.y = c.alloc(x.shape, out, !remakes);
  if (residual) result.sum = c.alloc(x.shape, DType::f32);
  Call q{kind, eps, remakes, x, w, b, residual, result.y, result.sum};
  if (recorded) q.scale = c.alloc({rows}, DType::f32);
  if (recorded && kind == NormKind::layer) q.mean = c.alloc({rows}, DType::f32);
  const double n = static_cast<double>(x.numel());
  c.cost("norm", n * static_cast<double>(size_of(x.dtype) + size_of(out) + (residual ? 8 : 0)),
         5 * n);
  if (!c.planning()) {
    NormProblem p = q.problem();
    p.y = result.y.data;
    p.residual = residual ? residual.as<float>() : nullptr;
    p.residual_stride = residual ? residual.row_stride() : 0;
    if (c.device.type == Device::cuda) {
      KRAIT_WITH_CUDA(cuda::norm_forward(p, rows, c.stream));
    } else {
      const NormKernels& kernels = KRAIT_PICK_ISA(norm_kernels);
      parallel_ranges(rows, kForwardRows,
                      [&](int64_t row, int64_t end) { kernels.forward(p, row, end); });
    }
  }
  if (recorded) {
    remakes ? c.tape->watch_remade(result.y) : c.tape->watch(result.y);
    if (residual) c.tape->watch_sum(result.sum, residual);
    q.y = result.y;
    q.sum = result.sum;
    c.tape->record([q](Context& later) {
      backward(later, q);
      if (q.remakes) later.tape->remade(later, q.y);
    });
  }
  return result;
}

}  // namespace krait::ops
