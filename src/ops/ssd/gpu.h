// Private to ssd: the op on a GPU. Without CUDA in the build these throw.
#pragma once
#include "krait/ops/ssd/problem.h"

namespace krait::ops::ssd_call {

void forward_on_gpu(Context& c, const Problem& p, const Tensor& y);
// dy and dstate may be empty: zero.
void backward_on_gpu(Context& c, const Problem& p, const Tensor& dy, const Tensor& dstate,
                     const Gradients& g);

}  // namespace krait::ops::ssd_call
