#include "krait/nn/mamba1.h"

#include <cmath>
#include <tuple>

#include "krait/ops/add/add.h"
#include "krait/ops/conv1d_causal/conv1d_causal.h"
#include "krait/ops/drop_path/drop_path.h"
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

Param* matrix(ParamSet& params, const std::string& name, const Shape& s, Init init) {
  Param& p = params.add(name, s, std::move(init));
  p.decay = true;
  return &p;
}

Param* vector(ParamSet& params, const std::string& name, const Shape& s, Init init) {
  Param& p = params.add(name, s, std::move(init));
  p.keep_float32 = true;
  return &p;
}

Param* in_proj(ParamSet& params, const std::string& name, const Mamba1Config& g) {
  return matrix(params, name + ".in_proj.weight", {2 * g.d_inner, g.d_model}, fan_in(g.d_model));
}

Param* out_proj(ParamSet& params, const std::string& name, const Mamba1Config& g) {
  return matrix(params, name + ".out_proj.weight", {g.d_model, g.d_inner},
                fan_in(g.d_inner, g.out_rescale));
}

Param* proj_bias(ParamSet& params, const std::string& name, const Mamba1Config& g, int64_t n) {
  return g.proj_bias ? vector(params, name, {n}, constant(0.0f)) : nullptr;
}

Tensor value(const Param* p) { return p ? p->value : Tensor(); }

}  // namespace

SelectiveBranch::SelectiveBranch(ParamSet& params, const std::string& name, const Mamba1Config& g,
                                 bool backward)
    : config_(g), backward_(backward) {
  const int64_t E = g.d_inner, N = g.d_state, R = g.dt_rank, W = g.d_conv;
  const std::string m = name + ".", b = backward ? "_b" : "";
  A_log_ = vector(params, m + "A" + b + "_log", {E, N}, log_of_one_to_N);
  D_ = vector(params, m + "D" + b, {E}, constant(1.0f));
  conv_ = vector(params, m + "conv1d" + b + ".weight", {E, 1, W}, fan_in(W));
  conv_->decay = true;
  if (g.conv_bias) conv_bias_ = vector(params, m + "conv1d" + b + ".bias", {E}, fan_in(W));
  x_proj_ = matrix(params, m + "x_proj" + b + ".weight", {R + 2 * N, E}, fan_in(E));
  const double a = g.dt_scale / std::sqrt(static_cast<double>(R));
  dt_proj_ = matrix(params, m + "dt_proj" + b + ".weight", {E, R},
                    g.dt_constant ? constant(static_cast<float>(a)) : uniform(-a, a));
  // The published code starts the backward direction without a bias.
  dt_bias_ = vector(params, m + "dt_proj" + b + ".bias", {E},
                    backward ? constant(0.0f) : inverse_softplus(g.dt_min, g.dt_max, g.dt_floor));
  for (const auto& [norm, part, n] :
       {std::tuple{&dt_norm_, "dt", R}, {&B_norm_, "b", N}, {&C_norm_, "c", N}}) {
    if (g.inner_norm == InnerNorm::learned)
      *norm = Norm::make(params, fmt::format("{}{}{}_layernorm", m, part, b), ops::NormKind::rms, n,
                         g.inner_eps);
    norm->eps = g.inner_eps;
  }
}

std::vector<StatePart> SelectiveBranch::state_parts() const {
  return {{.name = "conv", .shape = {config_.d_inner, config_.d_conv}, .activations = true},
          {.name = "ssm", .shape = {config_.d_inner, config_.d_state}, .scan = true}};
}

static Tensor part(const std::vector<Tensor>& v, size_t i) {
  return i < v.size() ? v[i] : Tensor();
}

SelectiveBranch::Inputs SelectiveBranch::inputs(Context& c, const Tensor& xz,
                                                const BlockCall& call) const {
  const int64_t E = config_.d_inner, N = config_.d_state, R = config_.dt_rank, W = config_.d_conv;
  const ops::ConvProjection conv = ops::conv1d_projected(
      c, xz.slice(-1, 0, E), conv_->value.reshape({E, W}), value(conv_bias_), x_proj_->value,
      call.packing, part(call.state.in, 0), part(call.state.out, 0), backward_);
  const Tensor u = conv.y, dt_B_C = conv.p;  // (B, L, E), (B, L, R+2N)
  const auto inner = [&](const Norm& norm, int64_t begin, int64_t end) {
    const Tensor t = dt_B_C.slice(-1, begin, end);
    return config_.inner_norm == InnerNorm::none ? t : norm(c, t, DType::f32);
  };
  const Tensor dt =
      ops::linear(c, inner(dt_norm_, 0, R), dt_proj_->value, {}, c.activation);  // (B, L, E)

  Inputs result{{}, conv.state};
  ops::ScanInputs& in = result.scan;
  in.u = u;
  in.dt = dt;
  in.A = A_log_->value;
  in.a_is_log = true;
  in.B = inner(B_norm_, R, R + N);
  in.C = inner(C_norm_, R + N, R + 2 * N);
  in.D = D_->value;
  in.z = xz.slice(-1, E, 2 * E);
  in.dt_bias = dt_bias_->value;
  in.reverse = backward_;
  return result;
}

Tensor SelectiveBranch::forward(Context& c, const Tensor& xz, BlockCall& call,
                                bool remake_y) const {
  Inputs in = inputs(c, xz, call);
  in.scan.remake_y = remake_y;
  const ops::ScanResult scan = ops::selective_scan(c, in.scan, call.packing, part(call.state.in, 1),
                                                   part(call.state.out, 1));
  if (!call.state.out.empty()) call.state.out = {in.conv_state, scan.state};
  return scan.y;
}

void SelectiveBranch::describe(ops::Mamba1Layer& layer) const {
  layer.conv = conv_->value.reshape({config_.d_inner, config_.d_conv});
  layer.conv_bias = value(conv_bias_);
  layer.x_proj = x_proj_->value;
  layer.dt_proj = dt_proj_->value;
  layer.dt_bias = dt_bias_->value;
  layer.A_log = A_log_->value;
  layer.D = D_->value;
}

Mamba1::Mamba1(ParamSet& params, const std::string& name, const Mamba1Config& g)
    : steps_(g.inner_norm == InnerNorm::none && !g.proj_bias),
      in_proj_(in_proj(params, name, g)),
      in_bias_(proj_bias(params, name + ".in_proj.bias", g, 2 * g.d_inner)),
      branch_(params, name, g),
      out_proj_(out_proj(params, name, g)),
      out_bias_(proj_bias(params, name + ".out_proj.bias", g, g.d_model)) {}

Tensor Mamba1::forward(Context& c, const Tensor& x, const Tensor& stream, BlockCall& call) const {
  const Tensor xz =
      ops::linear(c, x, in_proj_->value, value(in_bias_), c.activation);  // (B, L, 2E)
  const Tensor y = branch_.forward(c, xz, call, true);                    // (B, L, E), not kept
  return project_and_add(c, y, *out_proj_, out_bias_, stream, call);      // (B, L, D)
}

StepLayer Mamba1::step_layer(const Norm& norm) const {
  if (!steps_ || norm.kind != ops::NormKind::rms || !norm.weight || norm.bias) return {};
  ops::Mamba1Layer layer;
  layer.norm = norm.weight->value;
  layer.eps = norm.eps;
  layer.in_proj = in_proj_->value;
  layer.out_proj = out_proj_->value;
  branch_.describe(layer);
  return layer;
}

BiMamba::BiMamba(ParamSet& params, const std::string& name, const Mamba1Config& g, bool shared)
    : in_proj_(in_proj(params, name, g)), forward_(params, name, g) {
  if (shared) {
    A_b_log_ = vector(params, name + ".A_b_log", {g.d_inner, g.d_state}, log_of_one_to_N);
  } else {
    backward_.emplace(params, name, g, true);
  }
  out_proj_ = out_proj(params, name, g);
}

Tensor BiMamba::forward(Context& c, const Tensor& x, const Tensor& stream, BlockCall& call) const {
  const Tensor xz = ops::linear(c, x, in_proj_->value, {}, c.activation);  // (B, L, 2E)
  Tensor y;                                                                // (B, L, E)
  if (backward_) {
    y = ops::add(c, forward_.forward(c, xz, call), backward_->forward(c, xz, call), 0.5f);
  } else {
    ops::ScanInputs in = forward_.inputs(c, xz, call).scan;
    const Tensor ahead = ops::selective_scan(c, in, call.packing).y;
    in.A = A_b_log_->value;
    in.reverse = true;
    y = ops::add(c, ahead, ops::selective_scan(c, in, call.packing).y);
  }
  if (call.drop_path > 0 && c.training)
    return ops::drop_path_add(c, ops::linear(c, y, out_proj_->value, {}, c.activation), stream,
                              call.drop_path);
  return project_and_add(c, y, *out_proj_, nullptr, stream, call);  // (B, L, D)
}

}  // namespace krait::nn
