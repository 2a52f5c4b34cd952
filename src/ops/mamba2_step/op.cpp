#include "krait/ops/conv1d_causal/conv1d_causal.h"
#include "krait/ops/gated_norm/gated_norm.h"
#include "krait/ops/linear/linear.h"
#include "krait/ops/mamba2_step/cuda.h"
#include "krait/ops/mamba2_step/mamba2_step.h"
#include "krait/ops/norm/norm.h"
#include "krait/ops/ssd/ssd.h"
#include "krait/ops/wide_state.h"
#include "krait/tensor/cuda/step_norm.h"

namespace krait::ops {

namespace {

struct Sizes {
  int64_t B, D, E, H, N, W;
  int64_t P() const { return E / H; }
  int64_t convolved() const { return E + 2 * N; }
};

Sizes check(const Mamba2Layer& l, const Tensor& stream, const Tensor& conv_state,
            const Tensor& ssm_state, DType activation) {
  const auto of_shape = [](const char* name, const Tensor& t, const Shape& s) {
    require(t.shape == s && t.contiguous(), "[mamba2_step] {}: expected contiguous {}, got {}",
            name, s, t.shape);
  };
  const auto floats = [&](const char* name, const Tensor& t, const Shape& s) {
    of_shape(name, t, s);
    require(t.dtype == DType::f32, "[mamba2_step] {}: expected float32, got {}", name,
            name_of(t.dtype));
  };
  require(ssm_state.rank() == 4 && ssm_state.size(1) > 0,
          "[mamba2_step] ssm_state: expected (B, H, P, N), got {}", ssm_state.shape);
  require(l.conv.rank() == 2, "[mamba2_step] conv: expected a matrix, got {}", l.conv.shape);
  const int64_t H = ssm_state.size(1);
  const Sizes z = {.B = ssm_state.size(0),
                   .D = l.norm.numel(),
                   .E = H * ssm_state.size(2),
                   .H = H,
                   .N = ssm_state.size(3),
                   .W = l.conv.size(1)};
  floats("stream", stream, {z.B, 1, z.D});
  floats("norm", l.norm, {z.D});
  of_shape("in_proj", l.in_proj, {z.E + z.convolved() + z.H, z.D});
  floats("conv", l.conv, {z.convolved(), z.W});
  if (l.conv_bias) floats("conv_bias", l.conv_bias, {z.convolved()});
  floats("dt_bias", l.dt_bias, {z.H});
  floats("A_log", l.A_log, {z.H});
  floats("D", l.D, l.D.rank() == 2 ? Shape{z.H, z.P()} : Shape{z.H});
  floats("gate_norm", l.gate_norm, {z.E});
  of_shape("out_proj", l.out_proj, {z.D, z.E});
  of_shape("conv_state", conv_state, {z.B, z.convolved(), z.W});
  require(conv_state.dtype == DType::f32 || conv_state.dtype == activation,
          "[mamba2_step] conv_state: expected float32 or the activations' {}, got {}",
          name_of(activation), name_of(conv_state.dtype));
  of_shape("ssm_state", ssm_state, ssm_state.shape);
  require(ssm_state.dtype == DType::f32 || ssm_state.dtype == DType::bf16,
          "[mamba2_step] ssm_state: expected float32 or bfloat16, got {}",
          name_of(ssm_state.dtype));
  return z;
}

Tensor composed(Context& c, const Mamba2Layer& l, const Sizes& s, const Tensor& stream,
                const Tensor& conv_state, const Tensor& ssm_state) {
  const Tensor x = norm(c, NormKind::rms, stream, l.norm, {}, l.eps, c.activation).y;
  const Tensor all = linear(c, x, l.in_proj, {}, c.activation);
  const int64_t dt = s.E + s.convolved();
  const Tensor xBC = conv1d_causal(c, all.slice(-1, s.E, dt), l.conv, l.conv_bias, true, nullptr,
                                   conv_state, conv_state)
                         .y;
  SsdInputs in;
  in.x = xBC.slice(-1, 0, s.E);
  in.B = xBC.slice(-1, s.E, s.E + s.N);
  in.C = xBC.slice(-1, s.E + s.N, s.convolved());
  in.dt = all.slice(-1, dt, dt + s.H);
  in.A = l.A_log;
  in.a_is_log = true;
  in.D = l.D;
  in.dt_bias = l.dt_bias;
  in.dt_min = l.dt_min, in.dt_max = l.dt_max;
  const Tensor y = with_wide_state(
      c, ssm_state, [&](const Tensor& state) { return ssd(c, in, nullptr, state, state).y; });
  const Tensor gated = gated_norm(
      c, {y, all.slice(-1, 0, s.E), l.gate_norm, {}, 1, GateOrder::gate_first, l.gate_eps});
  return linear_add(c, gated, l.out_proj, {}, stream);
}

// The sizes, types and addresses that the kernels are made for.
bool fits(const Context& c, const Mamba2Layer& l, const Sizes& s, const Tensor& stream,
          const Tensor& conv_state, const Tensor& ssm_state) {
  if (c.device.type == Device::cpu) return false;
  for (const Tensor* t : {&l.in_proj, &l.out_proj, &conv_state})
    if (t->dtype != DType::bf16 || c.activation != DType::bf16) return false;
  bool here = false;
  KRAIT_WITH_CUDA(here = cuda::has_few_rows(c.device.index));
  return here && s.B > 0 && s.B <= cuda::kMostOnePassRows && s.W == 4 &&
         s.P() == cuda::kStep2Channels && cuda::step2_takes(s.N, ssm_state.dtype == DType::bf16) &&
         cuda::in_few_rows_form(l.in_proj.data, stream.data, s.D, s.D) &&
         cuda::in_few_rows_form(l.out_proj.data, l.conv.data, s.E, s.E) &&
         cuda::in_few_rows_form(l.norm.data, l.gate_norm.data, s.E, s.E);
}

Tensor fused(Context& c, const Mamba2Layer& l, const Sizes& s, const Tensor& stream,
             const Tensor& conv_state, const Tensor& ssm_state) {
  const bool state_bf16 = ssm_state.dtype == DType::bf16;
  int64_t squares_of_row = 0;
  KRAIT_WITH_CUDA(squares_of_row = cuda::step2_squares(s.B, s.H, s.N, state_bf16));
  Scratch scratch(c);
  const Tensor x = c.scratch({s.B, s.D}, DType::bf16), z = c.scratch({s.B, s.E}, DType::bf16),
               xBC = c.scratch({s.B, s.convolved()}, DType::bf16),
               dt = c.scratch({s.B, s.H}, DType::f32), y = c.scratch({s.B, s.E}, DType::bf16),
               squares = c.scratch({s.B, squares_of_row}, DType::f32);
  if (c.planning()) return stream;
  const auto product = [&](const Tensor& from, const Tensor& w) {
    return cuda::FewRows{.w = w.data,
                         .x = from.data,
                         .x_step = w.size(1),
                         .bf16 = true,
                         .M = s.B,
                         .N = w.size(0),
                         .K = w.size(1)};
  };
  bool norms = false;
  KRAIT_WITH_CUDA(norms = !cuda::step2_norms(s.B, l.in_proj.size(0), s.D));
  if (norms)
    KRAIT_WITH_CUDA(cuda::step_norm({.x = stream.as<float>(),
                                     .w = l.norm.as<float>(),
                                     .y = x.data,
                                     .M = s.B,
                                     .D = s.D,
                                     .eps = l.eps},
                                    c.stream));
  KRAIT_WITH_CUDA(cuda::step2_in_proj({.product = product(norms ? x : stream, l.in_proj),
                                       .norm = norms ? nullptr : l.norm.as<float>(),
                                       .eps = l.eps,
                                       .E = s.E,
                                       .N = s.N,
                                       .taps = l.conv.as<float>(),
                                       .bias = l.conv_bias ? l.conv_bias.as<float>() : nullptr,
                                       .state = conv_state.data,
                                       .z = z.data,
                                       .xBC = xBC.data,
                                       .dt = dt.as<float>()},
                                      c.stream));
  KRAIT_WITH_CUDA(cuda::step2_state({.M = s.B,
                                     .H = s.H,
                                     .N = s.N,
                                     .xBC = xBC.data,
                                     .z = z.data,
                                     .dt = dt.as<float>(),
                                     .dt_bias = l.dt_bias.as<float>(),
                                     .A_log = l.A_log.as<float>(),
                                     .D = l.D.as<float>(),
                                     .w = l.gate_norm.as<float>(),
                                     .D_per_channel = l.D.rank() == 2,
                                     .dt_low = l.dt_min,
                                     .dt_high = l.dt_max,
                                     .state = ssm_state.data,
                                     .state_bf16 = state_bf16,
                                     .y = y.data,
                                     .squares = squares.as<float>()},
                                    c.stream));
  KRAIT_WITH_CUDA(cuda::step2_out_proj({.product = product(y, l.out_proj),
                                        .squares = squares.as<float>(),
                                        .squares_of_row = squares_of_row,
                                        .eps = l.gate_eps,
                                        .stream = stream.as<float>()},
                                       c.stream));
  return stream;
}

// Weights and states once, and what the kernels hand to each other.
void add_cost(Context& c, const Mamba2Layer& l, const Sizes& s, const Tensor& conv_state,
              const Tensor& ssm_state) {
  const auto B = static_cast<double>(s.B), E = static_cast<double>(s.E);
  const auto weights = static_cast<double>(l.in_proj.numel() + l.out_proj.numel());
  const auto states = static_cast<double>(ssm_state.numel());
  c.cost("mamba2_step",
         static_cast<double>(l.in_proj.bytes() + l.out_proj.bytes() +
                             2 * (conv_state.bytes() + ssm_state.bytes())) +
             16 * B * E + 12 * B * static_cast<double>(s.D),
         2 * B * weights + 5 * states);
}

// Whether the kernel of all layers is made for this one.
bool stacks(const Context& c, const Mamba2Layer& l, const StepStates& of, const Sizes& s) {
  const Tensor* const in_sixteens[] = {&l.in_proj, &l.conv, &l.out_proj, &of.conv, &of.ssm};
  for (const Tensor* t : in_sixteens)
    if (reinterpret_cast<uintptr_t>(t->data) % 16 != 0) return false;
  return c.activation == DType::bf16 && of.conv.dtype == c.activation &&
         l.in_proj.dtype == DType::bf16 && l.out_proj.dtype == DType::bf16 && s.B == 1 &&
         s.E == 2 * s.D && s.W == 4 && s.P() == cuda::kStep2Channels && s.N == cuda::kStack2States;
}

}  // namespace

Tensor mamba2_step(Context& c, const Mamba2Layer& layer, const Tensor& stream,
                   const Tensor& conv_state, const Tensor& ssm_state) {
  require(!c.tape, "[mamba2_step] it cannot be recorded for backward");
  const Sizes s = check(layer, stream, conv_state, ssm_state, c.activation);
  if (!fits(c, layer, s, stream, conv_state, ssm_state))
    return composed(c, layer, s, stream, conv_state, ssm_state);
  add_cost(c, layer, s, conv_state, ssm_state);
  return fused(c, layer, s, stream, conv_state, ssm_state);
}

Tensor mamba2_stack(Context& c, const std::vector<Mamba2Layer>& layers,
                    const std::vector<StepStates>& states, const Tensor& stream) {
  require(!c.tape, "[mamba2_stack] it cannot be recorded for backward");
  require(layers.size() == states.size() && !layers.empty(),
          "[mamba2_stack] expected as many states as layers, got {} and {}", states.size(),
          layers.size());
  if (c.device.type == Device::cpu || layers.size() > cuda::kMostStackLayers) return {};
  const DType type = states[0].ssm.dtype;
  cuda::Step2Stack p{.layers = static_cast<int>(layers.size()),
                     .D = layers[0].norm.numel(),
                     .state_bf16 = type == DType::bf16,
                     .stream = stream.as<float>()};
  for (size_t i = 0; i < layers.size(); ++i) {
    const Mamba2Layer& l = layers[i];
    const Sizes s = check(l, stream, states[i].conv, states[i].ssm, c.activation);
    if (!stacks(c, l, states[i], s) || states[i].ssm.dtype != type) return {};
    p.layer[i] = {.in_proj = l.in_proj.data,
                  .out_proj = l.out_proj.data,
                  .norm = l.norm.as<float>(),
                  .taps = l.conv.as<float>(),
                  .bias = l.conv_bias ? l.conv_bias.as<float>() : nullptr,
                  .dt_bias = l.dt_bias.as<float>(),
                  .A_log = l.A_log.as<float>(),
                  .D = l.D.as<float>(),
                  .gate_norm = l.gate_norm.as<float>(),
                  .D_per_channel = l.D.rank() == 2,
                  .eps = l.eps,
                  .gate_eps = l.gate_eps,
                  .dt_low = l.dt_min,
                  .dt_high = l.dt_max,
                  .conv_state = states[i].conv.data,
                  .state = states[i].ssm.data};
  }
  bool here = false;
  KRAIT_WITH_CUDA(here = cuda::has_step2_stack(p.D, p.state_bf16));
  if (!here) return {};
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto& [conv, ssm] = states[i];
    add_cost(c, layers[i], check(layers[i], stream, conv, ssm, c.activation), conv, ssm);
  }
  Scratch scratch(c);
  p.messages = c.scratch({2 * cuda::step2_stack_messages(p.D)}, DType::f32).data;
  if (!c.planning()) KRAIT_WITH_CUDA(cuda::step2_stack(p, c.stream));
  return stream;
}

}  // namespace krait::ops
