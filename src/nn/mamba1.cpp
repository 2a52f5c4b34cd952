#include "krait/nn/mamba1.h"

#include <cmath>
#include <tuple>

#include "krait/ops/conv1d_causal/conv1d_causal.h"
#include "krait/ops/linear/linear.h"
#include "krait/ops/selective_scan/selective_scan.h"

namespace krait::nn {

namespace {

// S4D-Real: A[e, n] = -(n + 1), kept as its logarithm.
void log_of_one_to_N(const Tensor& t, const Philox&) {
  const int64_t N = t.size(1);
  for (int64_t i = 0; i < t.numel(); ++i)
    t.as<float>()[i] = static_cast<float>(std::log(static_cast<double>(i % N + 1)));
}

}  // namespace

Mamba1::Mamba1(ParamSet& params, const std::string& name, const Mamba1Config& g) : config_(g) {
  const int64_t D = g.d_model, E = g.d_inner, N = g.d_state, R = g.dt_rank, W = g.d_conv;
  const std::string m = name + ".";
  const auto matrix = [&](const char* part, const Shape& s, Init init) {
    Param& p = params.add(m + part, s, std::move(init));
    p.decay = true;
    return &p;
  };
  const auto vector = [&](const char* part, const Shape& s, Init init) {
    Param& p = params.add(m + part, s, std::move(init));
    p.keep_float32 = true;
    return &p;
  };
  A_log_ = vector("A_log", {E, N}, log_of_one_to_N);
  D_ = vector("D", {E}, constant(1.0f));
  in_proj_ = matrix("in_proj.weight", {2 * E, D}, fan_in(D));
  if (g.proj_bias) in_bias_ = vector("in_proj.bias", {2 * E}, constant(0.0f));
  conv_ = vector("conv1d.weight", {E, 1, W}, fan_in(W));
  conv_->decay = true;
  if (g.conv_bias) conv_bias_ = vector("conv1d.bias", {E}, fan_in(W));
  x_proj_ = matrix("x_proj.weight", {R + 2 * N, E}, fan_in(E));
  const double a = g.dt_scale / std::sqrt(static_cast<double>(R));
  dt_proj_ = matrix("dt_proj.weight", {E, R},
                    g.dt_constant ? constant(static_cast<float>(a)) : uniform(-a, a));
  dt_bias_ = vector("dt_proj.bias", {E}, inverse_softplus(g.dt_min, g.dt_max, g.dt_floor));
  for (const auto& [norm, part, n] :
       {std::tuple{&dt_norm_, "dt", R}, {&B_norm_, "b", N}, {&C_norm_, "c", N}}) {
    if (g.inner_norm == InnerNorm::learned)
      *norm = Norm::make(params, m + part + "_layernorm", ops::NormKind::rms, n, g.inner_eps);
    norm->eps = g.inner_eps;
  }
  out_proj_ = matrix("out_proj.weight", {D, E}, fan_in(E, g.out_rescale));
  if (g.proj_bias) out_bias_ = vector("out_proj.bias", {D}, constant(0.0f));
}

std::vector<StatePart> Mamba1::state_parts() const {
  return {{"conv", {config_.d_inner, config_.d_conv}}, {"ssm", {config_.d_inner, config_.d_state}}};
}

Tensor Mamba1::forward(Context& c, const Tensor& x, const Tensor& stream, BlockCall& call) const {
  const int64_t E = config_.d_inner, N = config_.d_state, R = config_.dt_rank, W = config_.d_conv;
  const auto value = [](const Param* p) { return p ? p->value : Tensor(); };
  const auto part = [](const std::vector<Tensor>& v, size_t i) {
    return i < v.size() ? v[i] : Tensor();
  };

  const Tensor xz =
      ops::linear(c, x, in_proj_->value, value(in_bias_), c.activation);  // (B, L, 2E)
  const ops::ConvResult conv =
      ops::conv1d_causal(c, xz.slice(-1, 0, E), conv_->value.reshape({E, W}), value(conv_bias_),
                         true, call.packing, part(call.state.in, 0), part(call.state.out, 0));
  const Tensor u = conv.y;                                                  // (B, L, E)
  const Tensor dt_B_C = ops::linear(c, u, x_proj_->value, {}, DType::f32);  // (B, L, R+2N)
  const auto inner = [&](const Norm& norm, int64_t begin, int64_t end) {
    const Tensor t = dt_B_C.slice(-1, begin, end);
    return config_.inner_norm == InnerNorm::none ? t : norm(c, t, DType::f32);
  };
  const Tensor dt =
      ops::linear(c, inner(dt_norm_, 0, R), dt_proj_->value, {}, c.activation);  // (B, L, E)

  ops::ScanInputs in;
  in.u = u;
  in.dt = dt;
  in.A = A_log_->value;
  in.a_is_log = true;
  in.B = inner(B_norm_, R, R + N);
  in.C = inner(C_norm_, R + N, R + 2 * N);
  in.D = D_->value;
  in.z = xz.slice(-1, E, 2 * E);
  in.dt_bias = dt_bias_->value;
  const ops::ScanResult scan =
      ops::selective_scan(c, in, call.packing, part(call.state.in, 1), part(call.state.out, 1));
  if (!call.state.out.empty()) call.state.out = {conv.state, scan.state};
  return project_and_add(c, scan.y, *out_proj_, out_bias_, stream, call.dropout);  // (B, L, D)
}

}  // namespace krait::nn
