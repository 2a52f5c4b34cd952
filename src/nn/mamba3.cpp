#include "krait/nn/mamba3.h"

#include "krait/ops/linear/linear.h"
#include "krait/ops/mamba3_scan/mamba3_scan.h"

namespace krait::nn {

Mamba3::Mamba3(ParamSet& params, const std::string& name, const Mamba3Config& g) : config_(g) {
  const int64_t D = g.d_model, E = g.d_inner, N = g.d_state, P = g.headdim, R = g.rank;
  const int64_t H = g.heads();
  const std::string m = name + ".";
  const auto matrix = [&](const char* part, const Shape& s, Init init) {
    Param& p = params.add(m + part, s, std::move(init));
    p.decay = true;
    return &p;
  };
  const auto small = [&](const char* part, const Shape& s, Init init) {
    Param& p = params.add(m + part, s, std::move(init));
    p.keep_float32 = true;
    p.decay = s.rank > 1;
    return &p;
  };
  in_proj_ =
      matrix("in_proj.weight", {2 * E + 2 * R * g.ngroups * N + 3 * H + g.angles, D}, fan_in(D));
  dt_bias_ = small("dt_bias", {H}, inverse_softplus(g.dt_min, g.dt_max, g.dt_floor));
  B_bias_ = small("B_bias", {H, R, N}, constant(1.0f));
  C_bias_ = small("C_bias", {H, R, N}, constant(1.0f));
  B_norm_ = Norm::make(params, m + "B_norm", ops::NormKind::rms, N, g.norm_eps);
  C_norm_ = Norm::make(params, m + "C_norm", ops::NormKind::rms, N, g.norm_eps);
  if (g.mimo) {
    const float share = 1.0f / static_cast<float>(R);
    mimo_x_ = small("mimo_x", {H, R, P}, constant(share));
    mimo_z_ = small("mimo_z", {H, R, P}, constant(1.0f));
    mimo_o_ = small("mimo_o", {H, R, P}, constant(share));
  }
  D_ = small("D", {H}, constant(1.0f));
  if (g.outproj_norm) norm_ = small("norm.weight", {E}, constant(1.0f));
  out_proj_ = matrix("out_proj.weight", {D, E}, fan_in(E, g.out_rescale));
}

std::vector<StatePart> Mamba3::state_parts() const {
  const Mamba3Config& g = config_;
  const int64_t H = g.heads();
  return {{"angle", {H, g.angles}},
          {.name = "ssm", .shape = {H, g.headdim, g.d_state}, .scan = true},
          {"k", {g.rank, H, g.d_state}},
          {"v", {H, g.headdim}}};
}

Tensor Mamba3::forward(Context& c, const Tensor& x, const Tensor& stream, BlockCall& call) const {
  const Mamba3Config& g = config_;
  const int64_t E = g.d_inner, G = g.ngroups, R = g.rank, N = g.d_state, H = g.heads();
  const int64_t B = x.size(0), L = x.size(1);
  const auto value = [](const Param* p) { return p ? p->value : Tensor(); };
  // Consecutive rows of in_proj, as products of their own: each with the type and layout its reader wants.
  int64_t row = 0;
  const auto project = [&](int64_t rows, DType type) {
    row += rows;
    return ops::linear(c, x, in_proj_->value.slice(0, row - rows, row), {}, type);
  };
  const Shape per_rank{B, L, R, G, N};
  const Tensor zx = project(2 * E, c.activation);                          // (B, L, 2E)
  const Tensor rawB = project(R * G * N, c.activation).reshape(per_rank);  // (B, L, R, G, N)
  const Tensor rawC = project(R * G * N, c.activation).reshape(per_rank);  // (B, L, R, G, N)
  const Tensor rest = project(3 * H + g.angles, DType::f32);               // (B, L, 3H+angles)
  const ops::Mamba3Steps steps =
      ops::mamba3_steps(c, rest.slice(-1, 0, H), rest.slice(-1, H, 2 * H), dt_bias_->value,
                        static_cast<float>(g.A_floor), g.decay);  // (B, L, H) twice

  ops::Mamba3Inputs in;
  in.x = zx.slice(-1, E, 2 * E);
  in.z = zx.slice(-1, 0, E);
  in.B = B_norm_(c, rawB, c.activation);
  in.C = C_norm_(c, rawC, c.activation);
  in.B_bias = B_bias_->value;
  in.C_bias = C_bias_->value;
  in.dt = steps.dt;
  in.adt = steps.adt;
  in.trap = rest.slice(-1, 2 * H, 3 * H);
  in.angle = rest.slice(-1, 3 * H, 3 * H + g.angles);
  in.D = D_->value;
  in.norm = value(norm_);
  in.norm_eps = g.norm_eps;
  in.mimo_x = value(mimo_x_);
  in.mimo_z = value(mimo_z_);
  in.mimo_o = value(mimo_o_);
  in.halves = g.mimo;  // which dimensions turn together differs in the published code
  const auto states = [](const std::vector<Tensor>& parts) {
    return parts.empty() ? ops::Mamba3State()
                         : ops::Mamba3State{parts[0], parts[1], parts[2], parts[3]};
  };
  const ops::Mamba3Result scan =
      ops::mamba3_scan(c, in, call.packing, states(call.state.in), states(call.state.out));
  if (!call.state.out.empty())
    call.state.out = {scan.state.angle, scan.state.ssm, scan.state.k, scan.state.v};
  return project_and_add(c, scan.y, *out_proj_, nullptr, stream, call);  // (B, L, D)
}

}  // namespace krait::nn
