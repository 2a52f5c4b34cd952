#include "krait/nn/adapter.h"

#include "krait/ops/add/add.h"
#include "krait/ops/linear/linear.h"

namespace krait::nn {

Adapter Adapter::make(ParamSet& params, const std::string& name, int64_t rank, int64_t K, int64_t N,
                      double deviation) {
  const auto matrix = [&](const char* part, const Shape& shape) {
    Param& p = params.add(name + part, shape, normal(deviation));
    p.decay = true;
    return &p;
  };
  Adapter a;
  a.down = matrix(".0.weight", {rank, K});
  a.up = matrix(".1.weight", {N, rank});
  return a;
}

Tensor adapted_linear(Context& c, const Tensor& x, const Param& w, const Param* bias,
                      const Adapter& adapter) {
  const Tensor y =
      ops::linear(c, x, w.value, bias ? bias->value : Tensor(), c.activation);  // (..., N)
  if (!adapter.down) return y;
  const Tensor low = ops::linear(c, x, adapter.down->value, {}, c.activation);  // (..., rank)
  return ops::add(c, y, ops::linear(c, low, adapter.up->value, {}, c.activation));
}

}  // namespace krait::nn
