// squared_error: the loss of a head that predicts numbers.
//
//   e[i] = (y[i] - t[i])²,  loss = scale · Σ e[i]
//
//   y, t, e (...)   float32, contiguous
//   loss (1)        float32, summed in float64 in a fixed order
//
// The end of the graph, as cross_entropy is: a recording call computes dy = 2 scale (y - t) at once, the
// upstream gradient is 1 by definition, and nothing is saved. `nll` of the result is e.
#pragma once
#include "krait/ops/cross_entropy/cross_entropy.h"

namespace krait::ops {

CrossEntropyResult squared_error(Context& c, const Tensor& y, const Tensor& targets,
                                 LossScale scale);

}  // namespace krait::ops
