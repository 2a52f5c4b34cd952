// batch_norm: each channel normed over all rows of a call, or by what was seen in training.
//
//   training (Context::training):   y = (x - mean) / sqrt(var + eps) * w + b,   mean and var of the channel over
//                                   the rows, biased
//   otherwise:                      the same with running_mean and running_var
//
//   x (..., D)    float32, contiguous; at least two rows in training
//   w, b, running_mean, running_var (D)    float32
//   y (..., D)    `out` dtype, computed in float32 and rounded once
//
// The backward of a training call moves what was seen: running += 0.1 (of this call - running), the variance
// there unbiased: once for each gradient, however often a layer is run again for it. Sums over rows in float64 and
// a fixed order. Gradients for x, w, b. Saved for backward: x, and two float32 a channel.
// Ioffe and Szegedy 2015, algorithms 1 and 2.
#pragma once
#include "krait/tensor/context.h"

namespace krait::ops {

Tensor batch_norm(Context& c, const Tensor& x, const Tensor& w, const Tensor& b,
                  const Tensor& running_mean, const Tensor& running_var, float eps, DType out);

}  // namespace krait::ops
