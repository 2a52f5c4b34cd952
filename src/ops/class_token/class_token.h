// class_token: a learned token put among those of a sequence, and learned positions added to all.
//
//   y[b, t] = (x[b, t] before `at`, cls at `at`, x[b, t-1] behind) + positions[t]
//
//   x (B, M, D)            float32, contiguous
//   cls (..., D)           float32, D elements
//   positions (..., M+1, D)   float32
//   y (B, M+1, D)          float32: the start of the residual stream
//
// Gradients for x, cls, positions; sums over b in a fixed order. Saved for backward: nothing.
// Zhu et al. 2024 (Vision Mamba), section 3.2: the token stands in the middle.
#pragma once
#include "krait/tensor/context.h"

namespace krait::ops {

Tensor class_token(Context& c, const Tensor& x, const Tensor& cls, const Tensor& positions,
                   int64_t at);

}  // namespace krait::ops
