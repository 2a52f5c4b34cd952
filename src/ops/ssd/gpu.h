// Private to ssd: the op on a GPU. Without CUDA in the build these throw.
#pragma once
#include "krait/ops/ssd/problem.h"

namespace krait::ops::ssd_call {

// Floats that forward can leave to backward, so that it computes them no more; may be 0.
int64_t kept_on_gpu(const Problem& p);
// saved: those floats, or empty.
void forward_on_gpu(Context& c, const Problem& p, const Tensor& y, const Tensor& saved);
// dy and dstate may be empty: zero.
void backward_on_gpu(Context& c, const Problem& p, const Tensor& dy, const Tensor& dstate,
                     const Tensor& saved, const Gradients& g);

}  // namespace krait::ops::ssd_call
