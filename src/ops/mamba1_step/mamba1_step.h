// mamba1_step: one token of every sequence through a Mamba-1 layer, its norm and the residual stream included.
//
//   x, z     = in_proj rms_norm(stream)                 (E each)
//   u        = silu(conv(x))                            the state holds the last four x
//   δ, B, C  = x_proj u                                 (R, N, N)
//   Δ        = softplus(dt_proj δ + dt_bias)
//   h        = exp(Δ A) h + Δ B u                       A = -exp(A_log)
//   stream  += out_proj ((C h + D u) silu(z))
//
// Gu and Dao 2023, section 3.4: what norm, linear, conv1d_causal, selective_scan and linear_add compute for
// L = 1, and on the CPU, or where the kernels below do not fit, just these. On GPUs from sm_90 on four
// kernels a layer, each of which starts while the one before it still runs and brings its weights along; A
// is computed from A_log in that time.
//
//   stream (B, 1, D)         float32; on a GPU the result is written into its memory: it must not be used again
//   in_proj (2E, D), x_proj (R+2N, E), dt_proj (E, R), out_proj (D, E)
//                            float32 or bfloat16
//   norm (D), conv (E, W), conv_bias (E), dt_bias (E), A_log (E, N), D (E)      float32; conv_bias optional
//   conv_state (B, E, W)     float32 or Context::activation, for which the kernels are; read and overwritten
//   ssm_state (B, E, N)      float32 or bfloat16, likewise; y is of the next one before it is rounded
//
// Activations x, z, u and what out_proj reads are rounded to Context::activation, all else is float32: on a GPU
// also δ and dt_proj δ, which the composition rounds. Deterministic. Nothing is recorded.
#pragma once
#include <vector>

#include "krait/ops/step_states.h"
#include "krait/tensor/context.h"

namespace krait::ops {

struct Mamba1Layer {
  Tensor norm, in_proj, conv, conv_bias, x_proj, dt_proj, dt_bias, A_log, D, out_proj;
  float eps = 1e-5f;  // of the norm
};

// Returns the next stream (B, 1, D).
Tensor mamba1_step(Context& c, const Mamba1Layer& layer, const Tensor& stream,
                   const Tensor& conv_state, const Tensor& ssm_state);

// The same through layers one behind the other, by one kernel: in bfloat16 on compute capability 9.0, E = 2 D and R = D / 16
// as the published models have them, one sequence where D is 1,024, 1,536, 2,048 or 2,560, up to sixteen where it is
// 2,048. Elsewhere empty, with nothing done.
Tensor mamba1_stack(Context& c, const std::vector<Mamba1Layer>& layers,
                    const std::vector<StepStates>& states, const Tensor& stream);

}  // namespace krait::ops
