#include "krait/nn/mamba2.h"

#include <cmath>

#include "krait/base/error.h"
#include "krait/ops/concat/concat.h"
#include "krait/ops/conv1d_causal/conv1d_causal.h"
#include "krait/ops/gate/gate.h"
#include "krait/ops/gated_norm/gated_norm.h"
#include "krait/ops/linear/linear.h"
#include "krait/ops/mamba2_step/mamba2_step.h"
#include "krait/ops/scale/scale.h"
#include "krait/ops/ssd/ssd.h"

namespace krait::nn {

namespace {

// A = -uniform [A_min, A_max], kept as its logarithm.
Init log_of_uniform(double low, double high) {
  return [low, high](const Tensor& t, const Philox& rng) {
    for (int64_t i = 0; i < t.numel(); ++i) {
      const double u = rng.uniform_double(static_cast<uint64_t>(i));
      t.as<float>()[i] = static_cast<float>(std::log(low + u * (high - low)));
    }
  };
}

}  // namespace

void check(const Mamba2Config& g) {
  const auto size = [](const char* what, int64_t value, int64_t least, int64_t most) {
    require(value >= least && value <= most, "config: {}: expected a number from {} to {}, got {}",
            what, least, most, value);
  };
  size("d_ssm", g.d_ssm, 1, 1 << 22);
  size("width of the MLP beside the SSM", g.d_mlp, 0, 1 << 22);
  size("head dimension", g.headdim, 1, g.d_ssm);
  size("d_state", g.d_state, 1, 256);
  size("d_conv", g.d_conv, 2, 8);
  require(g.d_ssm % g.headdim == 0, "config: {} channels cannot be cut into heads of {}", g.d_ssm,
          g.headdim);
  size("groups", g.groups, 1, g.heads());
  require(g.heads() % g.groups == 0, "config: {} heads cannot be cut into {} groups", g.heads(),
          g.groups);
  require(g.dt_low <= g.dt_high, "config: the limits of Δ are {} to {}", g.dt_low, g.dt_high);
}

Mamba2::Mamba2(ParamSet& params, const std::string& name, const Mamba2Config& g) : config_(g) {
  const int64_t D = g.d_model, E = g.d_ssm, H = g.heads(), W = g.d_conv, M = g.d_mlp;
  const auto matrix = [&](const char* part, const Shape& s, Init init) {
    Param& p = params.add(name + "." + part, s, std::move(init));
    p.decay = true;
    return &p;
  };
  const auto vector = [&](const char* part, const Shape& s, Init init) {
    Param& p = params.add(name + "." + part, s, std::move(init));
    p.keep_float32 = true;
    return &p;
  };
  dt_bias_ = vector("dt_bias", {H}, inverse_softplus(g.dt_min, g.dt_max, g.dt_floor));
  A_log_ = vector("A_log", {H}, log_of_uniform(g.A_min, g.A_max));
  D_ = vector("D", {g.D_per_channel ? E : H}, constant(1.0f));
  in_proj_ = matrix("in_proj.weight", {g.d_in_proj(), D}, fan_in(D));
  if (g.in_bias) in_bias_ = vector("in_proj.bias", {g.d_in_proj()}, constant(0.0f));
  conv_ = vector("conv1d.weight", {g.d_xBC(), 1, W}, fan_in(W));
  conv_->decay = true;
  if (g.conv_bias) conv_bias_ = vector("conv1d.bias", {g.d_xBC()}, fan_in(W));
  if (g.norm) norm_ = vector("norm.weight", {E}, constant(1.0f));
  out_proj_ = matrix("out_proj.weight", {D, M + E}, fan_in(M + E, g.out_rescale));
  if (g.out_bias) out_bias_ = vector("out_proj.bias", {D}, constant(0.0f));
}

std::vector<StatePart> Mamba2::state_parts() const {
  return {
      {.name = "conv", .shape = {config_.d_xBC(), config_.d_conv}, .activations = true},
      {.name = "ssm", .shape = {config_.heads(), config_.headdim, config_.d_state}, .scan = true}};
}

Tensor Mamba2::forward(Context& c, const Tensor& x, const Tensor& stream, BlockCall& call) const {
  const Mamba2Config& g = config_;
  const int64_t E = g.d_ssm, GN = g.groups * g.d_state, M = g.d_mlp;
  const auto value = [](const Param* p) { return p ? p->value : Tensor(); };
  const auto part = [](const std::vector<Tensor>& v, size_t i) {
    return i < v.size() ? v[i] : Tensor();
  };

  // (B, L, 2M + 2E + 2GN + H): z and x of the MLP, then z, xBC, dt
  const auto& f = g.zxBCdt_factors;
  const Tensor all = ops::scale(
      c,
      ops::linear(c, ops::scale(c, x, g.in_factor), in_proj_->value, value(in_bias_), c.activation),
      {{2 * M, 1}, {E, f[0]}, {E, f[1]}, {GN, f[2]}, {GN, f[3]}, {g.heads(), f[4]}});
  const int64_t xBC = 2 * M + E, dt = xBC + g.d_xBC();
  const ops::ConvResult conv = ops::conv1d_causal(
      c, all.slice(-1, xBC, dt), conv_->value.reshape({g.d_xBC(), g.d_conv}), value(conv_bias_),
      true, call.packing, part(call.state.in, 0), part(call.state.out, 0));  // (B, L, E + 2GN)

  ops::SsdInputs in;
  in.x = conv.y.slice(-1, 0, E);
  in.B = conv.y.slice(-1, E, E + GN);
  in.C = conv.y.slice(-1, E + GN, E + 2 * GN);
  in.dt = all.slice(-1, dt, dt + g.heads());
  in.groups = g.groups;
  in.A = A_log_->value;
  in.a_is_log = true;
  in.D = g.D_per_channel ? D_->value.reshape({g.heads(), g.headdim}) : D_->value;
  in.dt_bias = dt_bias_->value;
  in.dt_min = g.dt_low, in.dt_max = g.dt_high;
  const ops::SsdResult ssm =
      ops::ssd(c, in, call.packing, part(call.state.in, 1), part(call.state.out, 1));  // (B, L, E)
  if (!call.state.out.empty()) call.state.out = {conv.state, ssm.state};

  const Tensor z = all.slice(-1, 2 * M, xBC);
  const auto order = g.norm_before_gate ? ops::GateOrder::norm_first : ops::GateOrder::gate_first;
  const bool straight = M == 0 && g.out_factor == 1;  // into out_proj
  Tensor y = g.norm ? ops::gated_norm(
                          c, {ssm.y, z, norm_->value, {}, g.groups, order, g.norm_eps, straight})
                    : ops::gate(c, ops::Gate::silu, z, ssm.y);
  if (M > 0)
    y = ops::concat(c, ops::gate(c, ops::Gate::silu, all.slice(-1, 0, M), all.slice(-1, M, 2 * M)),
                    y);
  return project_and_add(c, y, *out_proj_, out_bias_, stream, call,
                         g.out_factor);  // (B, L, D)
}

bool Mamba2::steps() const {
  const Mamba2Config& g = config_;
  return g.d_mlp == 0 && g.groups == 1 && !g.in_bias && !g.out_bias && g.norm &&
         !g.norm_before_gate && g.in_factor == 1 && g.out_factor == 1 &&
         g.zxBCdt_factors == std::array<float, 5>{1, 1, 1, 1, 1};
}

StepLayer Mamba2::step_layer(const Norm& norm) const {
  if (!steps() || norm.kind != ops::NormKind::rms || !norm.weight || norm.bias) return {};
  const Mamba2Config& g = config_;
  ops::Mamba2Layer layer;
  layer.norm = norm.weight->value;
  layer.eps = norm.eps;
  layer.in_proj = in_proj_->value;
  layer.conv = conv_->value.reshape({g.d_xBC(), g.d_conv});
  if (conv_bias_) layer.conv_bias = conv_bias_->value;
  layer.dt_bias = dt_bias_->value;
  layer.A_log = A_log_->value;
  layer.D = g.D_per_channel ? D_->value.reshape({g.heads(), g.headdim}) : D_->value;
  layer.gate_norm = norm_->value;
  layer.gate_eps = g.norm_eps;
  layer.dt_min = g.dt_low, layer.dt_max = g.dt_high;
  layer.out_proj = out_proj_->value;
  return layer;
}

}  // namespace krait::nn
