// mamba3_steps: the step sizes of Mamba-3 and the exponents of its decay, from what in_proj gives.
//
//   dt[t,h]  = softplus(raw_dt[t,h] + dt_bias[h])            (x where x > 20)
//   adt[t,h] = min(-f(raw_A[t,h]), -floor) dt[t,h]
//   f(x) = 1 + x for x >= 0, 1 / (1 - x) below: positive, of heavy tails; or f = softplus
//
//   raw_dt, raw_A (B, L, H)   float32, rows at one distance
//   dt_bias (H)               float32
//   dt, adt (B, L, H)         float32
//
// arXiv 2603.15569, section 3; f as in the published code from commit c69aaab on, softplus in its first
// release. Gradients for all three inputs, recomputed from them; none through A where it is cut at -floor.
// ddt_bias is summed over fixed pieces: the same bits for any number of threads.
#pragma once
#include "krait/tensor/context.h"

namespace krait::ops {

struct Mamba3Steps {
  Tensor dt, adt;
};

enum class DecayKind { heavy_tailed, softplus };

Mamba3Steps mamba3_steps(Context& c, const Tensor& raw_dt, const Tensor& raw_A,
                         const Tensor& dt_bias, float floor, DecayKind kind);

}  // namespace krait::ops
