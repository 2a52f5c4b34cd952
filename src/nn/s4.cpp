#include "krait/nn/s4.h"

#include <algorithm>
#include <cmath>

#include "krait/nn/hippo.h"
#include "krait/ops/dropout/dropout.h"
#include "krait/ops/gate/gate.h"
#include "krait/ops/linear/linear.h"
#include "krait/ops/long_conv/long_conv.h"
#include "krait/ops/s4_scan/s4_scan.h"
#include "krait/tensor/graph.h"

namespace krait::nn {

namespace {

// The same values for each of the S systems.
Init repeated(std::vector<float> row) {
  return [row = std::move(row)](const Tensor& t, const Philox&) {
    for (size_t i = 0; i < static_cast<size_t>(t.numel()); ++i)
      t.as<float>()[i] = row[i % row.size()];
  };
}

Init log_uniform(double low, double high) { return uniform(std::log(low), std::log(high)); }

// The published C of a DPLR kernel of `length`: drawn for the state, then attuned as the first forward pass there
// does. By the step sizes drawn before it, and the system that all have at first.
Init attuned(Init drawn, const Param& inv_dt, std::vector<const Param*> of_system, int64_t length) {
  return [drawn = std::move(drawn), &inv_dt, of_system = std::move(of_system), length](
             const Tensor& C, const Philox& rng) {
    drawn(C, rng);
    ops::S4Params p;
    p.C = C;
    Tensor* const tensors[] = {&p.A_real, &p.A_imag, &p.B, &p.P};
    std::vector<float> values[4];
    for (size_t i = 0; i < 4; ++i) {
      const Param& from = *of_system[i];
      values[i].resize(static_cast<size_t>(from.shape.numel()));
      *tensors[i] = Tensor(values[i].data(), DType::f32, from.shape);
      from.init(*tensors[i], rng);
    }
    std::vector<std::byte> buffer;
    p.inv_dt = read_numbers(inv_dt, buffer);
    ops::s4_attune(p, {}, length);
  };
}

std::vector<float> pairs(const std::vector<std::complex<double>>& values) {
  std::vector<float> flat;
  for (const std::complex<double>& v : values) {
    flat.push_back(static_cast<float>(v.real()));
    flat.push_back(static_cast<float>(v.imag()));
  }
  return flat;
}

}  // namespace

S4::S4(ParamSet& params, const std::string& name, const S4Config& g) : config_(g) {
  const int64_t H = g.d_model, N = g.d_state / 2, S = g.n_ssm, channels = g.bidirectional ? 2 : 1;
  options_.bilinear = g.bilinear;
  options_.length = g.length;
  const InitialSystem system = !g.dplr            ? s4d_initial(g.init, N)
                               : g.init == "fout" ? hippo_fout(N)
                                                  : hippo_legs(N);
  std::vector<float> A_real, A_imag;
  for (const std::complex<double>& a : system.A) {  // the published code keeps both above 1e-4
    A_real.push_back(static_cast<float>(std::log(std::max(-a.real(), 1e-4))));
    A_imag.push_back(static_cast<float>(std::max(-a.imag(), 1e-4)));
  }
  const auto add = [&](const char* part, const Shape& s, Init init, const char* meaning) {
    Param& p = params.add(name + part, s, std::move(init));
    p.keep_float32 = true;
    p.meaning = meaning;
    return &p;
  };
  const auto of_system = [&](const char* part, const Shape& s, Init init, const char* meaning) {
    Param* const p = add(part, s, std::move(init), meaning);
    p->lr = g.lr;
    return p;
  };
  const double a = 1.0 / std::sqrt(static_cast<double>(H));
  inv_dt_ = of_system(".layer.kernel.inv_dt", {H, 1}, log_uniform(g.dt_min, g.dt_max),
                      "logarithm of the step size");
  A_real_ = of_system(".layer.kernel.A_real", {S, N}, repeated(A_real), "log(-Re A)");
  A_imag_ = of_system(".layer.kernel.A_imag", {S, N}, repeated(A_imag), "-Im A");
  B_ = of_system(".layer.kernel.B", {1, S, N, 2}, repeated(pairs(system.B)), "input to state");
  C_ = add(".layer.kernel.C", {channels, H, N, 2}, normal(std::sqrt(0.5)), "state to output");
  C_->decay = true;
  if (g.dplr) {
    P_ =
        of_system(".layer.kernel.P", {1, S, N, 2}, repeated(pairs(system.P)), "low-rank part of A");
    C_->init = attuned(C_->init, *inv_dt_, {A_real_, A_imag_, B_, P_}, g.length);
  }
  D_ = add(".layer.D", {1, H}, normal(1.0), "skip");
  D_->decay = true;
  weight_ = &params.add(name + ".output_linear.0.weight", {2 * H, H}, uniform(-a, a));
  weight_->decay = true;
  bias_ = add(".output_linear.0.bias", {2 * H}, uniform(-a, a), "");
}

std::vector<StatePart> S4::state_parts() const {
  if (config_.bidirectional) return {};
  return {{.name = "ssm", .shape = {config_.d_model, config_.d_state / 2, 2}, .scan = true}};
}

ops::S4Params S4::parameters() const {
  return {inv_dt_->value, A_real_->value, A_imag_->value,
          B_->value,      C_->value,      P_ ? P_->value : Tensor()};
}

std::shared_ptr<const ops::S4Steps> S4::steps(const Context& c) const {
  const ops::S4Params p = parameters();
  const std::lock_guard lock(mutex_);
  // Nothing can be read while a graph is recorded; the step before it has seen these parameters.
  if (steps_ && is_recording(c.device, c.stream)) return steps_;
  std::vector<float> now;
  std::vector<std::byte> buffer;
  for (const Tensor& t : {p.inv_dt, p.A_real, p.A_imag, p.B, p.C, p.P}) {
    if (!t) continue;
    const Tensor here = on_host(t, buffer);
    now.insert(now.end(), here.as<float>(), here.as<float>() + here.numel());
  }
  if (!steps_ || now != stepped_) {
    steps_ = std::make_shared<ops::S4Steps>(ops::s4_steps(p, options_, steps_.get()));
    stepped_ = std::move(now);
  }
  return steps_;
}

Tensor S4::forward(Context& c, const Tensor& x, const Tensor& stream, BlockCall& call) const {
  const bool states = !call.state.in.empty() || !call.state.out.empty();
  const int64_t longest = call.packing ? call.packing->longest : x.size(1);  // of the sequences
  const bool too_long = config_.dplr && longest > options_.length && !c.tape;
  Tensor y;  // (B, L, H)
  if (!config_.bidirectional && (states || too_long)) {
    const auto part = [](const std::vector<Tensor>& v) { return v.empty() ? Tensor() : v[0]; };
    // Backward needs the steps where what the scan left was kept and nothing is computed, too.
    const ops::S4Learned learned{parameters(), options_,
                                 c.arena->is_planning() ? nullptr : steps(c)};
    const ops::S4ScanResult scan =
        ops::s4_scan(c, x, learned.steps.get(), D_->value, call.packing, part(call.state.in),
                     part(call.state.out), &learned);
    if (!call.state.out.empty()) call.state.out = {scan.state};
    y = scan.y;
  } else {
    const Tensor K = ops::s4_kernel(c, parameters(), options_, longest);  // (1 or 2, H, L)
    y = ops::long_conv(c, x, K, D_->value, call.packing);
  }
  const int64_t H = config_.d_model;
  const Tensor halves = ops::linear(c, ops::gate(c, ops::Gate::gelu, y), weight_->value,
                                    bias_->value, c.activation);  // (B, L, 2H)
  const Tensor out = ops::gate(c, ops::Gate::sigmoid, halves.slice(-1, H, 2 * H),
                               halves.slice(-1, 0, H));  // (B, L, H)
  return ops::dropout_add(c, out, stream, call.dropout);
}

}  // namespace krait::nn
