// dropout_add: y = stream + x · keep / (1-p), keep drawn anew at each call; outside of training (or p = 0)
// y = stream + x.
//
//   x (..., D) float32 or bfloat16;  stream, y (..., D) float32. y is a sum over the stream
//   (Tape::watch_sum): the stream must not be used again.
//
// Element i of a call is kept where Philox(seed, stream)(i) >= p: nothing is saved, backward draws the same
// numbers again. Each call advances Context::rng.stream.
#pragma once
#include "krait/tensor/context.h"

namespace krait::ops {

Tensor dropout_add(Context& c, const Tensor& x, const Tensor& stream, float p);

}  // namespace krait::ops
