// positions: a learned table added to the embeddings of tokens by where they stand in their sequence.
//
//   y[b, t] = x[b, t] + w[count + t]        count: the tokens that the sequence has read before
//
//   x, y (B, L, D)     float32, contiguous; y is a sum over x (Tape::watch_sum)
//   w (T, D)           float32 or bfloat16; a sequence may hold T tokens in all
//   state_in, state_out (S, 1)   float32, optional: the count; may be the same memory
//
// Gradients for x and w. dw is summed in the order of the tokens. Throws Error for a sequence longer than T;
// a GPU, where the host does not know the count, gives NaN for what stands beyond T.
#pragma once
#include "krait/ops/packing.h"
#include "krait/tensor/context.h"

namespace krait::ops {

Tensor add_positions(Context& c, const Tensor& x, const Tensor& w, const Packing* packing = nullptr,
                     const Tensor& state_in = {}, const Tensor& state_out = {});

}  // namespace krait::ops
