// concat: two tensors side by side along the last axis.
//
//   a (..., M), b (..., N)   float32 or bfloat16, the same; rows at one distance
//   y (..., M + N)           a copy: y = [a | b]
//
// Gradients are added to those of a and b. Nothing is saved for backward.
#pragma once
#include "krait/tensor/context.h"

namespace krait::ops {

Tensor concat(Context& c, const Tensor& a, const Tensor& b);

}  // namespace krait::ops
