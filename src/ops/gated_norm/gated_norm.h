// gated_norm: root-mean-square norm by groups of channels, with a gate before or after it.
//
//   gate first:  v = x · silu(z)     y = v * rsqrt(mean(v²) + eps) * w [+ b]
//   norm first:  v = x               y = (v * rsqrt(mean(v²) + eps) * w [+ b]) · silu(z)
//
// The mean is over each of `groups` equal parts of the last axis (Dao and Gu 2024, section 7.1: the norm
// that keeps tensor-parallel groups apart). Without z there is no gate.
//
//   x, z (..., E)   float32 or bfloat16, the same; rows at one distance; z optional
//   w, b (E)        float32; b optional
//   y (..., E)      dtype of x; float32 inside, rounded once
//
// Gradients for x, z, w, b; dw and db summed in a fixed order over fixed pieces of rows: the same bits for
// any number of threads. Saved for backward: x and z.
//
// `remake_y`: y need not last until backward, which writes it again (Tape::watch_remade); then y must go to
// products alone. Done on a GPU, in a segment that computes what is cheap again.
#pragma once
#include "krait/tensor/context.h"

namespace krait::ops {

enum class GateOrder { gate_first, norm_first };

struct GatedNormInputs {
  Tensor x, z, w, b;  // z, b optional
  int64_t groups = 1;
  GateOrder order = GateOrder::gate_first;
  float eps = 1e-5f;
  bool remake_y = false;
};

Tensor gated_norm(Context& c, const GatedNormInputs& in);

}  // namespace krait::ops
