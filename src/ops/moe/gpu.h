// Private to this room: the steps on a GPU. Without CUDA in the build these throw.
#pragma once
#include "krait/autograd/tape.h"
#include "krait/ops/moe/cuda.h"
#include "krait/ops/moe/moe.h"

namespace krait::ops {

cuda::MoeRouting gpu_routing(const Routing& r);

void dispatch_on_gpu(Context& c, const Routing& r, const Tensor& x, const Tensor& y);
void undo_dispatch_on_gpu(Context& c, const Routing& r, const Tensor& dy, const GradTarget& dx);
void combine_on_gpu(Context& c, const Routing& r, const Tensor& y, const Tensor& stream,
                    const Tensor& out);
void undo_combine_on_gpu(Context& c, const Routing& r, const Tensor& y, const Tensor& dout,
                         const GradTarget& dy, const GradTarget& dweight);

// y[r] (+)= x[r] Wᵀ of the row's expert, or, in_first, x[r] W; x and w of one type.
void product_on_gpu(Context& c, const Routing& r, const Tensor& x, const Tensor& w, bool in_first,
                    const Tensor& y, bool add);
// dw (n, N, K) (+)= aᵀ b over the rows of each expert; a (M, N), b (M, K).
void weight_gradient_on_gpu(Context& c, const Routing& r, const Tensor& a, const Tensor& b,
                            const GradTarget& dw);

}  // namespace krait::ops
