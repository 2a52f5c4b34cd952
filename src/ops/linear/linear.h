// linear: y = x Wᵀ + b, for any leading axes.
//
//   x (..., K)  float32 or bfloat16, rows at one distance (a slice of the last axis is fine)
//   w (N, K)    float32 or bfloat16, contiguous; on a GPU a parameter, not what a kernel just
//               computes: it is read while those queued before may still run
//   bias (N)    float32, optional
//   y (..., N)  `out` dtype; accumulated in float32
//
// Types may mix: where x and w differ, x is converted to w's type first (a float32 product is only
// computed for float32 weights). dx has the dtype of x, dw and dbias are float32.
// Saved for backward: x. Where backward makes x again (Tape::watch_remade), dw is taken then; dw of a
// linear_add still before anything is added to the stream's gradient. Deterministic; the same bits for any
// number of threads.
//
// Few rows take kernels that stream the weights once: on the CPU up to 16 for bfloat16 weights and 32 for
// float32, where a row's result does not depend on the other rows; on a GPU up to 64 in bfloat16 (32 where N
// is 3,072 or more) and 16 in float32, where K and the steps are multiples of eight. There the number of rows
// decides which of the kernels' sums is taken. More rows take the library's product.
#pragma once
#include "krait/tensor/context.h"

namespace krait::ops {

Tensor linear(Context& c, const Tensor& x, const Tensor& w, const Tensor& bias, DType out);

// The same without bias into memory that outlives the step: y, contiguous. Without a tape.
void linear_into(Context& c, const Tensor& x, const Tensor& w, const Tensor& y);

// stream + x Wᵀ + b: the projection that ends a block, added to the residual stream (..., N)
// float32 in the product's own pass. As a variable the result is a sum over the stream
// (Tape::watch_sum): the stream must not be used again. in_place, without a tape: the result takes
// the stream's memory; else it is a separate tensor.
Tensor linear_add(Context& c, const Tensor& x, const Tensor& w, const Tensor& bias,
                  const Tensor& stream, bool in_place = false);

}  // namespace krait::ops
