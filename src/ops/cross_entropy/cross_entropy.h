// linear_cross_entropy: the head and its loss, row block by row block, so that logits of all tokens
// never exist at once.
//
//   logits[i] = h[i] Wᵀ,  nll[i] = logsumexp(logits[i]) - logits[i, targets[i]],  loss = scale · Σ nll[i]
//
//   h (..., D)         float32 or bfloat16, contiguous
//   w (V, D)           float32 or bfloat16
//   targets (...)      int32; -1: the row is skipped and its nll is 0
//   loss (1)           float32, summed in float64 in a fixed order
//   nll (...)          float32
//
// The loss is the end of the graph: a recording call computes dh and dw at once, while a block's logits
// exist, into the gradient slots of h and w. So the upstream gradient is 1 by definition: `scale` is the
// place for means and weights, the loss is not a variable, and nothing is saved or left for backward.
// Deterministic; the same bits for any number of threads. Targets below -1 or from V on are
// refused on the CPU; on a GPU, where nobody looks at them, they make nll and loss NaN.
#pragma once
#include "krait/ops/cross_entropy/loss_scale.h"
#include "krait/tensor/context.h"

namespace krait::ops {

struct CrossEntropyResult {
  Tensor loss;
  Tensor nll;
};

CrossEntropyResult linear_cross_entropy(Context& c, const Tensor& h, const Tensor& w,
                                        const Tensor& targets, LossScale scale);

// The same of logits (..., V) float32 that exist already, for heads with a bias and few rows: dlogits is
// computed at once. With smoothing s the target's class has the probability 1 - s + s/V and the others s/V
// (Szegedy et al. 2016, section 7).
CrossEntropyResult cross_entropy(Context& c, const Tensor& logits, const Tensor& targets,
                                 LossScale scale, float smoothing = 0);

}  // namespace krait::ops
