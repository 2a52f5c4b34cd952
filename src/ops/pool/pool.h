// What stands for a sequence as a whole.
//
//   pool_last   y[s] = x[t], t the last token of sequence s
//   pool_mean   y[s] = mean of x[t] over the tokens t of sequence s
//   put_last    y = x, but for the last token of each sequence, which is `token`
//
//   x (B, L, D)   float32 or bfloat16, contiguous (put_last: float32)
//   token (D)     float32
//   y             pool: (S, D), the type of x, S sequences; put_last: as x
//
// Sequences are those of the packing, or the rows. Sums in float32, in a fixed order. Saved for backward:
// nothing. Error for a sequence without tokens; on a GPU, where the host does not know of it, pool gives NaN.
#pragma once
#include "krait/ops/packing.h"
#include "krait/tensor/context.h"

namespace krait::ops {

Tensor pool_last(Context& c, const Tensor& x, const Packing* packing);
Tensor pool_mean(Context& c, const Tensor& x, const Packing* packing);
Tensor put_last(Context& c, const Tensor& x, const Tensor& token, const Packing* packing);

}  // namespace krait::ops
