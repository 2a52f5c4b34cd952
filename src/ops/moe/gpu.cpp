#include "krait/ops/moe/gpu.h"

namespace krait::ops {
namespace {

cuda::MoeRows rows_of(const Tensor& t, bool add = false) {
  if (!t) return {};
  return {t.data, t.dtype == DType::bf16, t.row_stride(), add};
}

}  // namespace

cuda::MoeRouting gpu_routing(const Routing& r) {
  cuda::MoeRouting g;
  g.T = r.row.size(0);
  g.k = r.row.size(1);
  g.n = r.begin.numel() - 1;
  g.weight = r.weight.as<float>();
  g.expert = r.expert.as<int32_t>();
  g.row = r.row.as<int32_t>();
  g.token = r.token.as<int32_t>();
  g.begin = r.begin.as<int64_t>();
  return g;
}

void dispatch_on_gpu([[maybe_unused]] Context& c, const Routing& r, const Tensor& x,
                     const Tensor& y) {
  KRAIT_WITH_CUDA(cuda::moe_dispatch(gpu_routing(r), rows_of(x), rows_of(y), y.size(1), c.stream));
}

void undo_dispatch_on_gpu([[maybe_unused]] Context& c, const Routing& r, const Tensor& dy,
                          const GradTarget& dx) {
  if (!dx.grad) return;
  KRAIT_WITH_CUDA(cuda::moe_dispatch_backward(gpu_routing(r), rows_of(dy), rows_of(dx.grad, dx.add),
                                              dy.size(1), c.stream));
}

void combine_on_gpu([[maybe_unused]] Context& c, const Routing& r, const Tensor& y,
                    const Tensor& stream, const Tensor& out) {
  KRAIT_WITH_CUDA(cuda::moe_combine(gpu_routing(r), rows_of(y), stream.as<float>(), out.as<float>(),
                                    y.size(1), c.stream));
}

void undo_combine_on_gpu([[maybe_unused]] Context& c, const Routing& r, const Tensor& y,
                         const Tensor& dout, const GradTarget& dy, const GradTarget& dweight) {
  KRAIT_WITH_CUDA(cuda::moe_combine_backward(
      gpu_routing(r), rows_of(y), dout.as<float>(), rows_of(dy.grad, dy.add),
      dweight.grad ? dweight.grad.as<float>() : nullptr, dweight.add, y.size(1), c.stream));
}

void product_on_gpu(Context& c, const Routing& r, const Tensor& x, const Tensor& w, bool in_first,
                    const Tensor& y, bool add) {
  if (c.planning()) return;
  cuda::MoeProduct p;
  p.begin = r.begin.as<int64_t>();
  p.n = r.begin.numel() - 1;
  p.M = x.size(0);
  p.N = y.size(1);
  p.K = x.size(1);
  p.a = x.data;
  p.b = w.data;
  p.bf16 = w.dtype == DType::bf16;
  p.a_row = x.row_stride();
  p.b_expert = w.size(1) * w.size(2);
  p.b_row = in_first ? w.size(2) : 1;
  p.b_col = in_first ? 1 : w.size(2);
  p.c = rows_of(y, add);
  KRAIT_WITH_CUDA(cuda::moe_product(p, c.stream));
}

void weight_gradient_on_gpu(Context& c, const Routing& r, const Tensor& a, const Tensor& b,
                            const GradTarget& dw) {
  if (c.planning()) return;
  cuda::MoeWeightGradient p;
  p.begin = r.begin.as<int64_t>();
  p.n = r.begin.numel() - 1;
  p.N = a.size(1);
  p.K = b.size(1);
  p.a = a.data;
  p.b = b.data;
  p.bf16 = a.dtype == DType::bf16;
  p.a_row = a.row_stride();
  p.b_row = b.row_stride();
  p.c = rows_of(dw.grad, dw.add);
  KRAIT_WITH_CUDA(cuda::moe_weight_gradient(p, c.stream));
}

}  // namespace krait::ops
