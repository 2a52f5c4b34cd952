#include "krait/cli/bench_op_cases.h"

#include <memory>
#include <optional>

#include "krait/cli/bench_op_inputs.h"
#include "krait/models/architecture.h"
#include "krait/nn/mamba1.h"
#include "krait/ops/adamw/adamw.h"
#include "krait/ops/attention/attention.h"
#include "krait/ops/conv1d_causal/conv1d_causal.h"
#include "krait/ops/cross_entropy/cross_entropy.h"
#include "krait/ops/embedding/embedding.h"
#include "krait/ops/gate/gate.h"
#include "krait/ops/gated_norm/gated_norm.h"
#include "krait/ops/linear/linear.h"
#include "krait/ops/long_conv/long_conv.h"
#include "krait/ops/mamba3_scan/mamba3_scan.h"
#include "krait/ops/moe/moe.h"
#include "krait/ops/norm/norm.h"
#include "krait/ops/rotary/rotary.h"
#include "krait/ops/s4_kernel/s4_kernel.h"
#include "krait/ops/selective_scan/selective_scan.h"
#include "krait/ops/ssd/ssd.h"

namespace krait::cli {

namespace {

OpCase linear_case(const OpSizes& s) {
  return {{rows(s, width(s)), matrix(s, {2 * inner(s), width(s)})},
          [dtype = s.dtype](Context& c, const Tensors& in) {
            return ops::linear(c, in[0], in[1], {}, dtype);
          },
          {{"out", 2 * inner(s)}}};
}

OpCase norm_case(const OpSizes& s) {
  return {{stream(s), floats({width(s)}, 0.1, 1)},
          [dtype = s.dtype](Context& c, const Tensors& in) {
            return ops::norm(c, ops::NormKind::rms, in[0], in[1], {}, 1e-5f, dtype).y;
          }};
}

OpCase gated_norm_case(const OpSizes& s) {
  const int64_t E = inner(s);
  return {{rows(s, E), rows(s, E), floats({E}, 0.1, 1)},
          [](Context& c, const Tensors& in) {
            return ops::gated_norm(c, {in[0], in[1], in[2], {}});
          },
          {{"E", E}}};
}

OpCase gate_case(const OpSizes& s) {
  const int64_t E = inner(s);
  return {{rows(s, E), rows(s, E)},
          [](Context& c, const Tensors& in) { return ops::gate(c, ops::Gate::silu, in[0], in[1]); },
          {{"E", E}}};
}

OpCase conv_case(const OpSizes& s) {
  const int64_t E = inner(s), W = 4;
  return {{rows(s, E), floats({E, W}, 0.5), floats({E}, 0.5)},
          [](Context& c, const Tensors& in) {
            return ops::conv1d_causal(c, in[0], in[1], in[2], true).y;
          },
          {{"E", E}, {"W", W}}};
}

OpCase scan_case(const OpSizes& s) {
  const int64_t E = inner(s), N = 16;
  const OpInput BC = rows(s, N);  // as models have them
  return {{rows(s, E), rows(s, E, 0.5, -3), floats({E, N}, 0.5, 1), BC, BC, floats({E}), rows(s, E),
           floats({E}, 0.5)},
          [](Context& c, const Tensors& in) {
            ops::ScanInputs x;
            x.u = in[0];
            x.dt = in[1];
            x.A = in[2];
            x.a_is_log = true;
            x.B = in[3];
            x.C = in[4];
            x.D = in[5];
            x.z = in[6];
            x.dt_bias = in[7];
            return ops::selective_scan(c, x).y;
          },
          {{"E", E}, {"N", N}}};
}

OpCase ssd_case(const OpSizes& s) {
  const int64_t H = heads(inner(s)), N = 128;
  return {{rows(s, H * kHead), rows(s, H, 0.5, -3), floats({H}, 1, 1), rows(s, N), rows(s, N),
           floats({H}), floats({H}, 0.5)},
          [](Context& c, const Tensors& in) {
            ops::SsdInputs x;
            x.x = in[0];
            x.dt = in[1];
            x.A = in[2];
            x.a_is_log = true;
            x.B = in[3];
            x.C = in[4];
            x.D = in[5];
            x.dt_bias = in[6];
            return ops::ssd(c, x).y;
          },
          {{"H", H}, {"P", kHead}, {"N", N}}};
}

OpCase mamba3_case(const OpSizes& s) {
  const int64_t H = heads(inner(s)), E = H * kHead, N = 128, angles = 32;
  const OpInput BC = {{s.B, s.L, 1, 1, N}, s.dtype}, step = {{s.B, s.L, H}, DType::f32, 0.02, 0.05},
                decay = {{s.B, s.L, H}, DType::f32, 0.02, -0.05};
  return {{rows(s, E), rows(s, E), BC, BC, floats({H, 1, N}, 0.1, 1), floats({H, 1, N}, 0.1, 1),
           step, decay, OpInput{{s.B, s.L, H}, DType::f32}, OpInput{{s.B, s.L, angles}, DType::f32},
           floats({H})},
          [](Context& c, const Tensors& in) {
            ops::Mamba3Inputs x;
            x.x = in[0];
            x.z = in[1];
            x.B = in[2];
            x.C = in[3];
            x.B_bias = in[4];
            x.C_bias = in[5];
            x.dt = in[6];
            x.adt = in[7];
            x.trap = in[8];
            x.angle = in[9];
            x.D = in[10];
            return ops::mamba3_scan(c, x).y;
          },
          {{"H", H}, {"P", kHead}, {"N", N}}};
}

OpCase attention_case(const OpSizes& s) {
  const int64_t H = heads(width(s));
  const OpInput qkv = {{s.B, s.L, H, kHead}, s.dtype};
  return {{qkv, qkv, qkv},
          [](Context& c, const Tensors& in) {
            return ops::attention(c, {in[0], in[1], in[2], 0.125f}).y;
          },
          {{"H", H}, {"P", kHead}}};
}

OpCase rotary_case(const OpSizes& s) {
  const int64_t H = heads(width(s));
  return {{{{s.B, s.L, H, kHead}, s.dtype}},
          [](Context& c, const Tensors& in) { return ops::rotary(c, in[0], {kHead}); },
          {{"H", H}, {"P", kHead}}};
}

OpCase long_conv_case(const OpSizes& s) {
  const int64_t H = width(s);
  return {{rows(s, H), floats({1, H, s.L}, 0.1), floats({1, H})},
          [](Context& c, const Tensors& in) { return ops::long_conv(c, in[0], in[1], in[2]); },
          {{"H", H}}};
}

OpCase s4_kernel_case(const OpSizes& s) {
  const int64_t H = width(s), N = 32;
  return {{floats({H}, 0.5, -4), floats({1, N}, 0.1, -0.7), floats({1, N}, 3, 3),
           floats({1, 1, N, 2}), floats({1, H, N, 2})},
          [L = s.L](Context& c, const Tensors& in) {
            ops::S4Params p;
            p.inv_dt = in[0];
            p.A_real = in[1];
            p.A_imag = in[2];
            p.B = in[3];
            p.C = in[4];
            return ops::s4_kernel(c, p, {}, L);
          },
          {{"H", H}, {"N", N}}};
}

OpCase moe_case(const OpSizes& s) {
  const int64_t D = width(s), F = 4 * D, n = 8;
  return {{rows(s, D), floats({n, D}, 0.03), matrix(s, {n, F, D}), matrix(s, {n, F, D}),
           matrix(s, {n, D, F}), stream(s)},
          [dtype = s.dtype](Context& c, const Tensors& in) {
            ops::RouteOptions o;
            o.k = 2;
            const ops::Routing r = ops::route(c, in[0], in[1], false, o);
            const Tensor x = ops::dispatch(c, in[0], r);
            const auto expert = [&](const Tensor& t, const Tensor& w) {
              return ops::expert_linear(c, t, w, r, false, dtype);
            };
            const Tensor gate = expert(x, in[2]), up = expert(x, in[3]);
            return ops::combine(c, expert(ops::gate(c, ops::Gate::silu, gate, up), in[4]), r,
                                in[5]);
          },
          {{"F", F}, {"experts", n}, {"k", 2}}};
}

OpCase embedding_case(const OpSizes& s) {
  const int64_t V = s.model.padded_vocab();
  return {{{{s.B, s.L}, DType::i32}, matrix(s, {V, width(s)})},
          [](Context& c, const Tensors& in) { return ops::embedding(c, in[0], in[1]); },
          {{"V", V}}};
}

OpCase cross_entropy_case(const OpSizes& s) {
  const int64_t V = s.model.padded_vocab();
  return {{{{s.B, s.L}, DType::i32}, rows(s, width(s)), matrix(s, {V, width(s)})},
          [](Context& c, const Tensors& in) {
            return ops::linear_cross_entropy(c, in[1], in[2], in[0], 1.0f).loss;
          },
          {{"V", V}},
          OpPasses::forward_with_grads};
}

OpCase adamw_case(const OpSizes& s) {
  const Shape shape = {s.model.padded_vocab(), width(s)};
  const OpInput numbers = matrix(s, shape);  // in two halves where that is bfloat16
  return {{numbers, floats(shape), floats(shape), floats(shape, 0.1, 1),
           floats({ops::kStepScalars}, 0.01, 0.5), numbers},
          [](Context& c, const Tensors& in) {
            ops::AdamwTensors t;
            t.value = in[0];
            if (in[0].dtype == DType::bf16) t.low = in[5];
            t.grad = in[1];
            t.m = in[2];
            t.v = in[3];
            t.decay = 0.1f;
            ops::adamw(c, {t}, {}, in[4]);
            return in[0];
          },
          {{"V", s.model.padded_vocab()}},
          OpPasses::forward};
}

// Mamba-1 from in_proj's result on: convolution, projections, scan with its gate, out_proj.
OpCase mixer_case(const OpSizes& s) {
  struct Mixer {
    nn::ParamSet params;
    std::optional<nn::SelectiveBranch> branch;
    nn::Param* out_proj = nullptr;
  };
  const int64_t D = width(s), E = inner(s), R = (D + 15) / 16;
  const auto mixer = std::make_shared<Mixer>();
  mixer->branch.emplace(mixer->params, "mixer",
                        nn::Mamba1Config{.d_model = D, .d_inner = E, .dt_rank = R});
  mixer->out_proj = &mixer->params.add("out_proj", {D, E}, nn::fan_in(E));
  mixer->params.allocate(nn::Purpose::training, s.dtype, false, s.device);
  mixer->params.initialize(1);
  return {{rows(s, 2 * E)},
          [mixer](Context& c, const Tensors& in) {
            mixer->params.forget_gradients();
            nn::BlockCall call;
            const Tensor y = mixer->branch->forward(c, in[0], call);
            return ops::linear(c, y, mixer->out_proj->value, {}, c.activation);
          },
          {{"E", E}}};
}

// The first layer of the preset: norm, mixer, and the sum with the stream.
OpCase layer_case(const OpSizes& s) {
  struct Layer {
    nn::ParamSet params;
    std::unique_ptr<nn::Block> block;
  };
  const auto layer = std::make_shared<Layer>();
  models::Config one = s.model;
  one.n_layer = 1;
  layer->block = std::move(one.body->layers(layer->params, one).front());
  layer->params.allocate(nn::Purpose::training, s.dtype, false, s.device);
  layer->params.initialize(1);
  return {{stream(s), OpInput{{2}, DType::f32}}, [layer](Context& c, const Tensors& in) {
            layer->params.forget_gradients();
            nn::BlockCall call;
            call.router = in[1].detach();
            call.embedded = in[0].detach();
            return layer->block->forward(c, in[0], call);
          }};
}

}  // namespace

const std::map<std::string, MakeOpCase>& op_cases() {
  static const std::map<std::string, MakeOpCase> cases = [] {
    std::map<std::string, MakeOpCase> all = {{"adamw", adamw_case},
                                             {"attention", attention_case},
                                             {"conv1d_causal", conv_case},
                                             {"cross_entropy", cross_entropy_case},
                                             {"embedding", embedding_case},
                                             {"gate", gate_case},
                                             {"gated_norm", gated_norm_case},
                                             {"layer", layer_case},
                                             {"linear", linear_case},
                                             {"long_conv", long_conv_case},
                                             {"mamba3_scan", mamba3_case},
                                             {"mixer", mixer_case},
                                             {"moe", moe_case},
                                             {"norm", norm_case},
                                             {"rotary", rotary_case},
                                             {"s4_kernel", s4_kernel_case},
                                             {"selective_scan", scan_case},
                                             {"ssd", ssd_case}};
    all.merge(stream_op_cases());
    all.merge(step_op_cases());
    return all;
  }();
  return cases;
}

std::vector<std::string> bench_op_names() {
  std::vector<std::string> names;
  for (const auto& [name, make] : op_cases()) names.push_back(name);
  return names;
}

}  // namespace krait::cli
