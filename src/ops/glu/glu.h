// glu: y = a σ(b) where a is the first half of the last axis of x and b the second.
//
//   x (..., 2H)   float32 or bfloat16, contiguous
//   y (..., H)    dtype of x; float32 inside, rounded once
//
// Gradient for x. Saved for backward: x. CPU. Dauphin, Fan, Auli, Grangier 2016.
#pragma once
#include "krait/tensor/context.h"

namespace krait::ops {

Tensor glu(Context& c, const Tensor& x);

}  // namespace krait::ops
