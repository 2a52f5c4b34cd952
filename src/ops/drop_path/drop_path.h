// drop_path_add: stochastic depth (Huang et al. 2016). y = stream + x · keep / (1-p), keep drawn anew for each
// row of the batch; outside of training (or p = 0) y = stream + x.
//
//   x (B, ...) float32 or bfloat16;  stream, y (B, ...) float32; all contiguous. y is a sum over the stream
//   (Tape::watch_sum): the stream must not be used again.
//
// Row b of a call is kept where Philox(seed, stream).uniform(b) >= p: nothing is saved, backward draws the same
// numbers again. Each call advances Context::rng.stream.
#pragma once
#include "krait/tensor/context.h"

namespace krait::ops {

Tensor drop_path_add(Context& c, const Tensor& x, const Tensor& stream, float p);

}  // namespace krait::ops
