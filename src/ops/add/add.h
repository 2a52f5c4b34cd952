// add: y = factor (a + b).
//
//   a, b, y (...)   float32 or bfloat16, the same type and shape, contiguous; float32 inside, rounded once
//
// Gradients for a and b, each its own (compare Tape::watch_sum). Saved for backward: nothing.
#pragma once
#include "krait/tensor/context.h"

namespace krait::ops {

Tensor add(Context& c, const Tensor& a, const Tensor& b, float factor = 1);

}  // namespace krait::ops
