#include "krait/ops/conv1d_causal/conv1d_causal.h"
#include "krait/ops/linear/linear.h"
#include "krait/ops/mamba1_step/cuda.h"
#include "krait/ops/mamba1_step/mamba1_step.h"
#include "krait/ops/norm/norm.h"
#include "krait/ops/selective_scan/selective_scan.h"
#include "krait/ops/wide_state.h"
#include "krait/tensor/cuda/one_pass.h"

namespace krait::ops {

namespace {

struct Sizes {
  int64_t B, D, E, N, R, W;
};

Sizes check(const Mamba1Layer& l, const Tensor& stream, const Tensor& conv_state,
            const Tensor& ssm_state, DType activation) {
  const auto matrix = [](const char* name, const Tensor& t) {
    require(t.rank() == 2, "[mamba1_step] {}: expected a matrix, got {}", name, t.shape);
  };
  const auto of_shape = [](const char* name, const Tensor& t, const Shape& s) {
    require(t.shape == s && t.contiguous(), "[mamba1_step] {}: expected contiguous {}, got {}",
            name, s, t.shape);
  };
  const auto floats = [&](const char* name, const Tensor& t, const Shape& s) {
    of_shape(name, t, s);
    require(t.dtype == DType::f32, "[mamba1_step] {}: expected float32, got {}", name,
            name_of(t.dtype));
  };
  matrix("in_proj", l.in_proj);
  matrix("dt_proj", l.dt_proj);
  matrix("A_log", l.A_log);
  matrix("conv", l.conv);
  const Sizes z = {.B = stream.rank() > 0 ? stream.size(0) : 0,
                   .D = l.in_proj.size(1),
                   .E = l.dt_proj.size(0),
                   .N = l.A_log.size(1),
                   .R = l.dt_proj.size(1),
                   .W = l.conv.size(1)};
  floats("stream", stream, {z.B, 1, z.D});
  floats("norm", l.norm, {z.D});
  of_shape("in_proj", l.in_proj, {2 * z.E, z.D});
  floats("conv", l.conv, {z.E, z.W});
  if (l.conv_bias) floats("conv_bias", l.conv_bias, {z.E});
  of_shape("x_proj", l.x_proj, {z.R + 2 * z.N, z.E});
  of_shape("dt_proj", l.dt_proj, {z.E, z.R});
  floats("dt_bias", l.dt_bias, {z.E});
  floats("A_log", l.A_log, {z.E, z.N});
  floats("D", l.D, {z.E});
  of_shape("out_proj", l.out_proj, {z.D, z.E});
  of_shape("conv_state", conv_state, {z.B, z.E, z.W});
  require(conv_state.dtype == DType::f32 || conv_state.dtype == activation,
          "[mamba1_step] conv_state: expected float32 or the activations' {}, got {}",
          name_of(activation), name_of(conv_state.dtype));
  of_shape("ssm_state", ssm_state, {z.B, z.E, z.N});
  require(ssm_state.dtype == DType::f32 || ssm_state.dtype == DType::bf16,
          "[mamba1_step] ssm_state: expected float32 or bfloat16, got {}",
          name_of(ssm_state.dtype));
  return z;
}

Tensor composed(Context& c, const Mamba1Layer& l, const Sizes& s, const Tensor& stream,
                const Tensor& conv_state, const Tensor& ssm_state) {
  const Tensor x = norm(c, NormKind::rms, stream, l.norm, {}, l.eps, c.activation).y;
  const Tensor xz = linear(c, x, l.in_proj, {}, c.activation);
  const Tensor u = conv1d_causal(c, xz.slice(-1, 0, s.E), l.conv, l.conv_bias, true, nullptr,
                                 conv_state, conv_state)
                       .y;
  const Tensor dt_B_C = linear(c, u, l.x_proj, {}, DType::f32);
  ScanInputs in;
  in.u = u;
  in.dt = linear(c, dt_B_C.slice(-1, 0, s.R), l.dt_proj, {}, c.activation);
  in.A = l.A_log;
  in.a_is_log = true;
  in.B = dt_B_C.slice(-1, s.R, s.R + s.N);
  in.C = dt_B_C.slice(-1, s.R + s.N, s.R + 2 * s.N);
  in.D = l.D;
  in.z = xz.slice(-1, s.E, 2 * s.E);
  in.dt_bias = l.dt_bias;
  const Tensor y = with_wide_state(c, ssm_state, [&](const Tensor& state) {
    return selective_scan(c, in, nullptr, state, state).y;
  });
  return linear_add(c, y, l.out_proj, {}, stream);
}

// More rows than are normed on their way into a product.
bool many_rows(const Context& c, const Sizes& s) {
  return c.activation == DType::bf16 && s.B > cuda::kMostFewRows;
}

// in_proj reads x that is normed: with nine rows and more where it is large (H200, 16 rows, float32 states: a layer of
// mamba-1.4b takes 31 us, 33.5 the other way; of mamba-130m 17.2 and 14.8).
bool norms_first(const Context& c, const Sizes& s) {
  return many_rows(c, s) ||
         (c.activation == DType::bf16 && s.B > 8 && 2 * s.E * s.D >= int64_t{8} << 20);
}

// The sizes, types and addresses that the kernels are made for.
bool fits(const Context& c, const Mamba1Layer& l, const Sizes& s, const Tensor& stream,
          const Tensor& conv_state) {
  if (c.device.type == Device::cpu || conv_state.dtype != c.activation) return false;
  for (const Tensor* w : {&l.in_proj, &l.x_proj, &l.dt_proj, &l.out_proj})
    if (w->dtype != c.activation) return false;
  const bool bf16 = c.activation == DType::bf16;
  bool here = false;
  KRAIT_WITH_CUDA(here = norms_first(c, s) ? cuda::has_one_pass(c.device.index)
                                           : cuda::has_few_rows(c.device.index));
  return here && s.B > 0 && s.B <= (bf16 ? cuda::kMostOnePassRows : cuda::kMostFewRows) &&
         s.W == cuda::kStepTaps && s.N == cuda::kStepStates && s.R <= cuda::kStepMostRank &&
         s.R % 8 == 0 && cuda::in_few_rows_form(l.in_proj.data, stream.data, s.D, s.D) &&
         cuda::in_few_rows_form(l.x_proj.data, l.out_proj.data, s.E, s.E) &&
         cuda::in_few_rows_form(l.dt_proj.data, l.conv.data, s.R, s.R) &&
         cuda::in_few_rows_form(l.A_log.data, l.norm.data, s.N, s.N);
}

Tensor fused(Context& c, const Mamba1Layer& l, const Sizes& s, const Tensor& stream,
             const Tensor& conv_state, const Tensor& ssm_state) {
  const DType type = c.activation;
  const bool bf16 = type == DType::bf16;
  Scratch scratch(c);
  const Tensor u = c.scratch({s.B, s.E}, type), z = c.scratch({s.B, s.E}, type),
               dt_B_C = c.scratch({s.B, s.R + 2 * s.N}, DType::f32),
               y = c.scratch({s.B, s.E}, type);
  const bool many = many_rows(c, s), rows = bf16 && s.B > cuda::kMostStepScanRows;
  const bool norms = norms_first(c, s);
  const Tensor normed = norms ? c.scratch({s.B, s.D}, type) : Tensor();
  if (c.planning()) return stream;
  const auto product = [&](const Tensor& from, const Tensor& w) {
    return cuda::FewRows{.w = w.data,
                         .x = from.data,
                         .x_step = w.size(1),
                         .bf16 = bf16,
                         .M = s.B,
                         .N = w.size(0),
                         .K = w.size(1)};
  };
  const cuda::StepInProj in{.product = product(stream, l.in_proj),
                            .norm = l.norm.as<float>(),
                            .eps = l.eps,
                            .taps = l.conv.as<float>(),
                            .bias = l.conv_bias ? l.conv_bias.as<float>() : nullptr,
                            .state = conv_state.data,
                            .u = u.data,
                            .z = z.data};
  const cuda::StepScan scan{.M = s.B,
                            .E = s.E,
                            .R = s.R,
                            .bf16 = bf16,
                            .dt_proj = l.dt_proj.data,
                            .dt_B_C = dt_B_C.as<float>(),
                            .dt_bias = l.dt_bias.as<float>(),
                            .A_log = l.A_log.as<float>(),
                            .D = l.D.as<float>(),
                            .u = u.data,
                            .z = z.data,
                            .state = ssm_state.data,
                            .state_bf16 = ssm_state.dtype == DType::bf16,
                            .y = y.data};
  const cuda::StoreRows low_rank{.y = dt_B_C.data},
      add{.y = stream.data, .plus = stream.as<float>()};
  if (norms) {
    KRAIT_WITH_CUDA(cuda::step_in_proj_rows(in, normed.data, c.stream));
  } else {
    KRAIT_WITH_CUDA(cuda::step_in_proj(in, c.stream));
  }
  cuda::FewRows to_low_rank = product(u, l.x_proj);
  to_low_rank.holds_next = s.B > 8 && !many;  // a scan's states; those of many rows come bit by bit
  const bool joins = bf16 && cuda::step_joins(s.B, s.E, s.R);
  if (many) {
    KRAIT_WITH_CUDA(cuda::one_pass(cuda::rows_of(to_low_rank), low_rank, c.stream));
  } else if (!joins) {
    KRAIT_WITH_CUDA(cuda::few_rows(to_low_rank, low_rank, c.stream));
  }
  if (joins) {
    KRAIT_WITH_CUDA(cuda::step_low_rank_scan(l.x_proj.data, scan, c.stream));
  } else if (rows) {
    KRAIT_WITH_CUDA(cuda::step_scan_rows(scan, c.stream));
  } else {
    KRAIT_WITH_CUDA(cuda::step_scan(scan, c.stream));
  }
  if (many) {
    KRAIT_WITH_CUDA(cuda::one_pass(cuda::rows_of(product(y, l.out_proj)), add, c.stream));
  } else {
    KRAIT_WITH_CUDA(cuda::few_rows(product(y, l.out_proj), add, c.stream));
  }
  return stream;
}

// Weights and states once, and what the kernels hand to each other.
void add_cost(Context& c, const Mamba1Layer& l, const Sizes& s, const Tensor& conv_state,
              const Tensor& ssm_state) {
  double weights = 0, bytes = 0;
  for (const Tensor* w : {&l.in_proj, &l.x_proj, &l.dt_proj, &l.out_proj}) {
    weights += static_cast<double>(w->numel());
    bytes += static_cast<double>(w->bytes());
  }
  const auto B = static_cast<double>(s.B), E = static_cast<double>(s.E);
  const double states = B * E * static_cast<double>(s.N + s.W);
  c.cost("mamba1_step",
         bytes +
             static_cast<double>(l.A_log.bytes() + 2 * (conv_state.bytes() + ssm_state.bytes())) +
             12 * B * E + 8 * B * static_cast<double>(s.D),
         2 * B * weights + 7 * states);
}

// Whether the kernel of all layers is made for this one.
bool stacks(const Context& c, const Mamba1Layer& l, const StepStates& of, const Sizes& s) {
  const Tensor* const copied[] = {&l.in_proj,  &l.conv,    &l.conv_bias, &l.x_proj,
                                  &l.dt_proj,  &l.dt_bias, &l.A_log,     &l.D,
                                  &l.out_proj, &of.conv,   &of.ssm};
  for (const Tensor* t : copied)
    if (!*t || reinterpret_cast<uintptr_t>(t->data) % 16 != 0) return false;
  for (const Tensor* w : {&l.in_proj, &l.x_proj, &l.dt_proj, &l.out_proj})
    if (w->dtype != c.activation) return false;
  return c.activation == DType::bf16 && of.conv.dtype == c.activation && s.B > 0 &&
         s.E == 2 * s.D && s.R == s.D / 16 && s.W == cuda::kStepTaps && s.N == cuda::kStepStates;
}

}  // namespace

Tensor mamba1_step(Context& c, const Mamba1Layer& layer, const Tensor& stream,
                   const Tensor& conv_state, const Tensor& ssm_state) {
  require(!c.tape, "[mamba1_step] it cannot be recorded for backward");
  const Sizes s = check(layer, stream, conv_state, ssm_state, c.activation);
  if (!fits(c, layer, s, stream, conv_state))
    return composed(c, layer, s, stream, conv_state, ssm_state);
  add_cost(c, layer, s, conv_state, ssm_state);
  return fused(c, layer, s, stream, conv_state, ssm_state);
}

Tensor mamba1_stack(Context& c, const std::vector<Mamba1Layer>& layers,
                    const std::vector<StepStates>& states, const Tensor& stream) {
  require(!c.tape, "[mamba1_stack] it cannot be recorded for backward");
  require(layers.size() == states.size() && !layers.empty(),
          "[mamba1_stack] expected as many states as layers, got {} and {}", states.size(),
          layers.size());
  if (c.device.type == Device::cpu || layers.size() > cuda::kMostStackLayers) return {};
  const DType type = states[0].ssm.dtype;
  cuda::StepStack p{.layers = static_cast<int>(layers.size()),
                    .B = stream.size(0),
                    .D = layers[0].in_proj.size(1),
                    .state_bf16 = type == DType::bf16,
                    .stream = stream.as<float>()};
  for (size_t i = 0; i < layers.size(); ++i) {
    const Mamba1Layer& l = layers[i];
    const Sizes s = check(l, stream, states[i].conv, states[i].ssm, c.activation);
    if (!stacks(c, l, states[i], s) || states[i].ssm.dtype != type) return {};
    p.layer[i] = {.in_proj = l.in_proj.data,
                  .x_proj = l.x_proj.data,
                  .dt_proj = l.dt_proj.data,
                  .out_proj = l.out_proj.data,
                  .norm = l.norm.as<float>(),
                  .taps = l.conv.as<float>(),
                  .bias = l.conv_bias.as<float>(),
                  .dt_bias = l.dt_bias.as<float>(),
                  .A_log = l.A_log.as<float>(),
                  .D = l.D.as<float>(),
                  .eps = l.eps,
                  .conv_state = states[i].conv.data,
                  .state = states[i].ssm.data};
  }
  int64_t words = 0;
  KRAIT_WITH_CUDA(words = cuda::step_stack_words(p.D, p.B, p.state_bf16));
  if (words == 0) return {};
  for (size_t i = 0; i < layers.size(); ++i) {
    const auto& [conv, ssm] = states[i];
    add_cost(c, layers[i], check(layers[i], stream, conv, ssm, c.activation), conv, ssm);
  }
  Scratch scratch(c);
  p.messages = c.scratch({words}, DType::f32).data;
  if (!c.planning()) KRAIT_WITH_CUDA(cuda::step_stack(p, c.stream));
  return stream;
}

}  // namespace krait::ops
