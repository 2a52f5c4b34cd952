#include "krait/nn/moe.h"

#include <cmath>

#include "krait/ops/dropout/dropout.h"
#include "krait/ops/gate/gate.h"
#include "krait/tensor/memory.h"

namespace krait::nn {

Moe::Moe(ParamSet& params, const std::string& name, const MoeConfig& g) : config_(g) {
  const int64_t D = g.d_model, F = g.d_inner, n = g.n_experts;
  const bool relu = g.expert == MoeConfig::Expert::relu;
  const auto matrix = [&](const std::string& part, const Shape& s, const Init& init) {
    Param& p = params.add(name + "." + part, s, init);
    p.decay = true;
    return &p;
  };
  // One tensor an expert in files.
  const auto experts = [&](const std::string& part, const Shape& s) {
    Param* p = matrix("experts." + part, s, g.init);
    for (int64_t e = 0; e < n; ++e)
      p->parts.push_back(fmt::format("{}.experts.{}.{}", name, e, part));
    return p;
  };
  // llm-random: variance 0.1 / fan in; that of lin2 counts every expert.
  const auto drawn = [](int64_t fan_in) {
    return truncated_normal(std::sqrt(0.1 / static_cast<double>(fan_in)));
  };
  if (relu) {
    router_ = matrix("gate", {D, n}, drawn(D));
    up_ = matrix("lin1", {n, D, F}, drawn(D));
    down_ = matrix("lin2", {n, F, D}, drawn(n * F));
  } else {
    router_ = matrix("router.weight", {n, D}, g.init);
    gate_ = experts("gate_proj.weight", {n, F, D});
    up_ = experts("up_proj.weight", {n, F, D});
    down_ = experts("down_proj.weight", {n, D, F});
  }
  router_->keep_float32 = true;
}

Tensor Moe::forward(Context& c, const Tensor& x, const Tensor& stream, BlockCall& call) const {
  const bool relu = config_.expert == MoeConfig::Expert::relu;
  ops::RouteOptions o;
  o.k = config_.k;
  o.capacity_factor = c.training ? config_.capacity_factor : 0;
  o.balance = config_.balance;
  o.balance_gradient = call.balance_gradient;
  const ops::Routing r = ops::route(c, x, router_->value, relu, o, call.router);
  const Tensor rows = ops::dispatch(c, x, r);  // (T k, D)
  const Tensor up = ops::expert_linear(c, rows, up_->value, r, relu, c.activation);
  const Tensor h =
      relu ? ops::gate(c, ops::Gate::relu, up)
           : ops::gate(c, ops::Gate::silu,
                       ops::expert_linear(c, rows, gate_->value, r, false, c.activation), up);
  const Tensor y = ops::expert_linear(c, h, down_->value, r, relu, c.activation);  // (T k, D)
  if (call.dropout == 0.0f || !c.training) return ops::combine(c, y, r, stream);
  const Tensor zero = c.alloc(stream.shape, DType::f32);
  fill(c, zero, 0.0f);
  return ops::dropout_add(c, ops::combine(c, y, r, zero), stream, call.dropout);
}

}  // namespace krait::nn
