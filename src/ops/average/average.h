// average: y = (a + b) / 2.
//
//   a, b, y (...)   float32 or bfloat16, the same type and shape, contiguous; float32 inside, rounded once
//
// Gradients for a and b. Saved for backward: nothing. CPU.
#pragma once
#include "krait/tensor/context.h"

namespace krait::ops {

Tensor average(Context& c, const Tensor& a, const Tensor& b);

}  // namespace krait::ops
