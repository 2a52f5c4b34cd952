// mamba2_step: one token of every sequence through a Mamba-2 layer, its norm and the residual stream included.
//
//   z, xBC, dt  = in_proj rms_norm(stream)                       (E, E + 2N, H)
//   x, B, C     = silu(conv(xBC))                                the state holds the last four xBC
//   Δ           = clamp(softplus(dt + dt_bias), dt_min, dt_max)
//   S           = exp(Δ A) S + Δ x ⊗ B                           A = -exp(A_log), one a head
//   stream     += out_proj (gate_norm rms_norm((S C + D x) silu(z)))
//
// Dao and Gu 2024, section 7, with one group: what norm, linear, conv1d_causal, ssd, gated_norm and linear_add compute
// for L = 1, and on the CPU, or where the kernels below do not fit, just these. On GPUs from sm_90 on in bfloat16 four
// kernels a layer, each of which starts while the one before it still runs. There out_proj multiplies what is not
// normed yet, and its sums are.
//
//   stream (B, 1, D)         float32; on a GPU the result is written into its memory: it must not be used again
//   in_proj (2E + 2N + H, D), out_proj (D, E)                    float32 or bfloat16
//   norm (D), conv (E + 2N, W), conv_bias (E + 2N), dt_bias (H), A_log (H), D (H) or (H, P), gate_norm (E)
//                            float32; conv_bias optional
//   conv_state (B, E + 2N, W)    float32 or Context::activation, for which the kernels are; read and overwritten
//   ssm_state (B, H, P, N)   float32 or bfloat16, likewise; y is of the next one before it is rounded
//
// Activations z, x, B, C and what out_proj reads are rounded to Context::activation, all else is float32: on a GPU also
// dt, which the composition rounds. Deterministic. Nothing is recorded.
#pragma once
#include <limits>
#include <vector>

#include "krait/ops/step_states.h"
#include "krait/tensor/context.h"

namespace krait::ops {

struct Mamba2Layer {
  Tensor norm, in_proj, conv, conv_bias, dt_bias, A_log, D, gate_norm, out_proj;
  float eps = 1e-5f, gate_eps = 1e-5f;                                // of the two norms
  float dt_min = 0, dt_max = std::numeric_limits<float>::infinity();  // limits of Δ
};

// Returns the next stream (B, 1, D).
Tensor mamba2_step(Context& c, const Mamba2Layer& layer, const Tensor& stream,
                   const Tensor& conv_state, const Tensor& ssm_state);

// The same for a sequence through layers one behind the other, by one kernel: in bfloat16 on compute capability 9.0, B = 1,
// E = 2 D, P = 64 and N = 128 as the published models have them, D 1,024, 1,536, 2,048 or 2,560. Elsewhere empty,
// with nothing done.
Tensor mamba2_stack(Context& c, const std::vector<Mamba2Layer>& layers,
                    const std::vector<StepStates>& states, const Tensor& stream);

}  // namespace krait::ops
