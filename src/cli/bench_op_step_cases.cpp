// `krait bench op`: what one decoded token calls. Weights and states are one layer's, which caches may hold.
#include <memory>

#include "krait/cli/bench_op_inputs.h"
#include "krait/nn/param.h"
#include "krait/ops/mamba1_step/mamba1_step.h"
#include "krait/ops/mamba2_step/mamba2_step.h"
#include "krait/ops/mamba3_steps/mamba3_steps.h"
#include "krait/ops/s4_scan/s4_scan.h"
#include "krait/ops/sampler/sampler.h"

namespace krait::cli {

namespace {

constexpr int64_t kTaps = 4;  // W

OpInput token(const OpSizes& s) { return {{s.B, 1, width(s)}, DType::f32}; }
OpInput state(const Shape& shape) { return {shape, DType::f32}; }

OpCase mamba1_step_case(const OpSizes& s) {
  const int64_t D = width(s), E = inner(s), N = 16, R = (D + 15) / 16;
  return {{token(s), floats({D}, 0.1, 1), matrix(s, {2 * E, D}), floats({E, kTaps}, 0.5),
           floats({E}, 0.5), matrix(s, {R + 2 * N, E}), matrix(s, {E, R}), floats({E}, 0.5, -3),
           floats({E, N}, 0.5, 1), floats({E}), matrix(s, {D, E}), state({s.B, E, kTaps}),
           state({s.B, E, N})},
          [](Context& c, const Tensors& in) {
            ops::Mamba1Layer l;
            l.norm = in[1];
            l.in_proj = in[2];
            l.conv = in[3];
            l.conv_bias = in[4];
            l.x_proj = in[5];
            l.dt_proj = in[6];
            l.dt_bias = in[7];
            l.A_log = in[8];
            l.D = in[9];
            l.out_proj = in[10];
            return ops::mamba1_step(c, l, in[0], in[11], in[12]);
          },
          {{"L", 1}, {"E", E}, {"N", N}},
          OpPasses::forward};
}

OpCase mamba2_step_case(const OpSizes& s) {
  const int64_t D = width(s), H = heads(inner(s)), E = H * kHead, N = 128, convolved = E + 2 * N;
  return {{token(s), floats({D}, 0.1, 1), matrix(s, {E + convolved + H, D}),
           floats({convolved, kTaps}, 0.5), floats({convolved}, 0.5), floats({H}, 0.5, -3),
           floats({H}, 1, 1), floats({H}), floats({E}, 0.1, 1), matrix(s, {D, E}),
           state({s.B, convolved, kTaps}), state({s.B, H, kHead, N})},
          [](Context& c, const Tensors& in) {
            ops::Mamba2Layer l;
            l.norm = in[1];
            l.in_proj = in[2];
            l.conv = in[3];
            l.conv_bias = in[4];
            l.dt_bias = in[5];
            l.A_log = in[6];
            l.D = in[7];
            l.gate_norm = in[8];
            l.out_proj = in[9];
            return ops::mamba2_step(c, l, in[0], in[10], in[11]);
          },
          {{"L", 1}, {"H", H}, {"P", kHead}, {"N", N}},
          OpPasses::forward};
}

OpCase mamba3_steps_case(const OpSizes& s) {
  const int64_t H = heads(inner(s));
  const OpInput raw = {{s.B, s.L, H}, DType::f32};
  return {
      {raw, raw, floats({H}, 0.5, -3)},
      [](Context& c, const Tensors& in) {
        return ops::mamba3_steps(c, in[0], in[1], in[2], 1e-4f, ops::DecayKind::heavy_tailed).adt;
      },
      {{"H", H}}};
}

// The recurrence of S4D from a state to a state.
OpCase s4_scan_case(const OpSizes& s) {
  struct System {
    nn::ParamSet params;
    ops::S4Steps steps;
  };
  const int64_t H = width(s), N = 32;
  const auto system = std::make_shared<System>();
  const auto add = [&](const char* name, const Shape& shape, nn::Init init) {
    return &system->params.add(name, shape, std::move(init));
  };
  nn::Param *const inv_dt = add("inv_dt", {H}, nn::constant(-4)),
                   *const real = add("A_real", {1, N}, nn::constant(-0.7f)),
                   *const imag = add("A_imag", {1, N}, nn::uniform(0, 6)),
                   *const C = add("C", {1, H, N, 2}, nn::normal(1));
  system->params.allocate(nn::Purpose::inference, DType::f32, false, s.device);
  system->params.initialize(1);
  ops::S4Params p;
  p.inv_dt = inv_dt->value;
  p.A_real = real->value;
  p.A_imag = imag->value;
  p.C = C->value;
  system->steps = ops::s4_steps(p, {});
  return {{rows(s, H), floats({H}), state({s.B, H, N, 2})},
          [system](Context& c, const Tensors& in) {
            return ops::s4_scan(c, in[0], &system->steps, in[1], nullptr, in[2], in[2]).y;
          },
          {{"H", H}, {"N", N}},
          OpPasses::forward};
}

OpCase sampler_case(const OpSizes& s) {
  const int64_t V = s.model.padded_vocab();
  return {{OpInput{{s.B, V}, DType::f32, 3}},
          [valid = s.model.vocab_size](Context& c, const Tensors& in) {
            std::vector<ops::SampleRow> draws(static_cast<size_t>(in[0].size(0)));
            for (size_t b = 0; b < draws.size(); ++b) draws[b].stream = b;
            ops::SamplerOptions o;
            o.top_p = 0.95f;
            ops::sample(c, in[0], valid, o, draws);
            return in[0];
          },
          {{"L", 1}, {"V", V}},
          OpPasses::forward};
}

}  // namespace

std::map<std::string, MakeOpCase> step_op_cases() {
  return {{"mamba1_step", mamba1_step_case},
          {"mamba2_step", mamba2_step_case},
          {"mamba3_steps", mamba3_steps_case},
          {"s4_scan", s4_scan_case},
          {"sampler", sampler_case}};
}

}  // namespace krait::cli
