// gelu: y = x Φ(x) with Φ(x) = (1 + erf(x/√2)) / 2. Not the tanh approximation.
//
//   x, y (...)   float32 or bfloat16, contiguous; float32 inside, rounded once
//
// Gradient for x. Saved for backward: x. CPU. Hendrycks and Gimpel 2016.
#pragma once
#include "krait/tensor/context.h"

namespace krait::ops {

Tensor gelu(Context& c, const Tensor& x);

}  // namespace krait::ops
