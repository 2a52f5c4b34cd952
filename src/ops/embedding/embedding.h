// embedding: y[i] = w[tokens[i]].
//
//   tokens (...)   int32, 0 <= id < V: checked by whoever made them (krait/data, krait/infer), not here
//   w (V, D)       float32 or bfloat16
//   y (..., D)     float32: the start of the residual stream
//
// dw is float32, summed in a fixed order. Saved for backward: tokens.
#pragma once
#include "krait/tensor/context.h"

namespace krait::ops {

Tensor embedding(Context& c, const Tensor& tokens, const Tensor& w);

}  // namespace krait::ops
