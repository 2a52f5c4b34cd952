#include "krait/nn/block.h"

#include "krait/ops/dropout/dropout.h"
#include "krait/ops/linear/linear.h"

namespace krait::nn {

Norm Norm::make(ParamSet& params, const std::string& name, ops::NormKind kind, int64_t D,
                float eps) {
  Norm n;
  n.kind = kind;
  n.eps = eps;
  Param& w = params.add(name + ".weight", {D}, constant(1.0f));
  w.keep_float32 = true;
  n.weight = &w;
  if (kind == ops::NormKind::layer) {
    Param& b = params.add(name + ".bias", {D}, constant(0.0f));
    b.keep_float32 = true;
    n.bias = &b;
  }
  return n;
}

Tensor Norm::operator()(Context& c, const Tensor& x, DType out) const {
  return ops::norm(c, kind, x, weight->value, bias ? bias->value : Tensor(), eps, out).y;
}

Tensor project_and_add(Context& c, const Tensor& y, const Param& w, const Param* bias,
                       const Tensor& stream, float dropout) {
  const Tensor b = bias ? bias->value : Tensor();
  if (dropout == 0.0f || !c.training) return ops::linear_add(c, y, w.value, b, stream);
  return ops::dropout_add(c, ops::linear(c, y, w.value, b, c.activation), stream, dropout);
}

}  // namespace krait::nn
