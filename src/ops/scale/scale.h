// scale: columns times constants, one for each stretch of neighbouring columns (the multipliers of muP, Yang et
// al. 2022).
//
//   y[..., j] = factor_k · x[..., j],   j a column of stretch k
//
//   x (..., F)   float32 or bfloat16; rows at one distance
//   y (..., F)   dtype of x, contiguous; rounded once. Where every factor is 1 it is x itself
//
// The stretches cover the columns from left to right; Error where they do not. Saved for backward: nothing.
#pragma once
#include <vector>

#include "krait/tensor/context.h"

namespace krait::ops {

struct Stretch {
  int64_t columns = 0;
  float factor = 1;
};

Tensor scale(Context& c, const Tensor& x, const std::vector<Stretch>& stretches);
Tensor scale(Context& c, const Tensor& x, float factor);

}  // namespace krait::ops
