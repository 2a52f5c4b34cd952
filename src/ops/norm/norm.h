// norm: root-mean-square norm, or layer norm, over the last axis, with the residual add fused.
//
//   s = x + residual            (residual optional; then s = x)
//   rms:    y = s * rsqrt(mean(s²) + eps) * w [+ b]
//   layer:  y = (s - mean(s)) * rsqrt(var(s) + eps) * w [+ b]      (variance biased: divided by D)
//
//   x, residual (..., D)  float32 (x may be bfloat16); rows at one distance
//   w, b (D)              float32; w empty: no weight (all ones); b empty: none
//   y (..., D)            `out` dtype, computed in float32 and rounded once
//   sum (..., D)          float32, only with a residual: s; as a variable a sum over it (Tape::watch_sum)
//
// Zhang and Sennrich 2019 (RMSNorm); Ba et al. 2016. Gradients for x, residual, w, b; dw and db summed in
// a fixed order over fixed pieces of rows: the same bits for any number of threads.
// Saved for backward: s and one (layer: two) float32 a row.
// `remake_y`: y need not last until backward, which writes it again (Tape::watch_remade). Done on a GPU, for an
// rms norm without b and residual, in a segment that computes what is cheap again. y then is what
// forward made, but for the sign of zeros and, once in some 33 million, the last bit (docs/numerics.md).
#pragma once
#include "krait/tensor/context.h"

namespace krait::ops {

enum class NormKind { rms, layer, batch };  // batch: not of this op, see ops/batch_norm

struct NormResult {
  Tensor y;
  Tensor sum;  // empty without a residual
};

NormResult norm(Context& c, NormKind kind, const Tensor& x, const Tensor& w, const Tensor& b,
                float eps, DType out, const Tensor& residual = {}, bool remake_y = false);

}  // namespace krait::ops
