#include "krait/nn/mlp.h"

#include "krait/ops/scale/scale.h"

namespace krait::nn {

Mlp::Mlp(ParamSet& params, const std::string& name, const MlpConfig& g) : config_(g) {
  const auto linear = [&](const std::string& part, int64_t rows, int64_t columns, double divide) {
    const std::string full = name + "." + part;
    Linear l;
    Param& w = params.add(full + ".weight", {rows, columns},
                          g.deviation > 0 ? normal(g.deviation) : fan_in(columns, divide));
    w.decay = true;
    l.weight = &w;
    if (g.bias) {
      Param& b = params.add(full + ".bias", {rows}, constant(0.0f));
      b.keep_float32 = true;
      l.bias = &b;
    }
    return l;
  };
  const bool halves = g.layout == MlpLayout::gate_last || g.layout == MlpLayout::gate_first;
  if (g.layout == MlpLayout::separate) gate_ = linear(g.gate, g.d_inner, g.d_model, 1);
  up_ = linear(g.up, halves ? 2 * g.d_inner : g.d_inner, g.d_model, 1);
  down_ = linear(g.down, g.d_model, g.d_inner, g.out_rescale);
}

Tensor Mlp::forward(Context& c, const Tensor& x, const Tensor& stream, BlockCall& call) const {
  const int64_t F = config_.d_inner;
  Tensor gate,
      up = adapted_linear(c, x, *up_.weight, up_.bias, adapter_);  // (B, L, F), or both halves
  switch (config_.layout) {
    case MlpLayout::plain: gate = up, up = Tensor(); break;
    case MlpLayout::separate: gate = adapted_linear(c, x, *gate_.weight, gate_.bias, {}); break;
    case MlpLayout::gate_last: gate = up.slice(-1, F, 2 * F), up = up.slice(-1, 0, F); break;
    case MlpLayout::gate_first: gate = up.slice(-1, 0, F), up = up.slice(-1, F, 2 * F); break;
  }
  const Tensor y = ops::gate(c, config_.gate_kind, ops::scale(c, gate, config_.gate_factor),
                             up);  // (B, L, F)
  return project_and_add(c, y, *down_.weight, down_.bias, stream, call, config_.out_factor);
}

}  // namespace krait::nn
