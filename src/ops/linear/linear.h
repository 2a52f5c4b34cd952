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
// Saved for backward: x; where backward makes that again (Tape::watch_remade) dw is taken then, of a linear_add before
// anything is added to the stream's gradient. Deterministic; the same bits for any number of threads.
// On the CPU few rows (decode: up to 16 for bfloat16 weights, 32 for float32) take a kernel that streams the weights
// once, in which a row's result does not depend on the other rows; more take the library's product. A GPU has such
// kernels for up to 64 rows in bfloat16 (32 where N is 3,072 or more) and 16 in float32, where K and the steps are
// multiples of eight; which of its sums is taken follows from the number of rows.
#pragma once
#include "krait/tensor/context.h"

namespace krait::ops {

Tensor linear(Context& c, const Tensor& x, const Tensor& w, const Tensor& bias, DType out);

// The same without bias into memory that outlives the step: y, contiguous. Without a tape.
void linear_into(Context& c, const Tensor& x, const Tensor& w, const Tensor& y);

// stream + x Wᵀ + b: the projection that ends a block, added to the residual stream (..., N) float32 in
// the product's own pass. The result is a separate tensor; as a variable it is a sum over the stream
// (see Tape::watch_sum), so the stream must not be used again. in_place, without a tape: it takes the stream's
// memory.
Tensor linear_add(Context& c, const Tensor& x, const Tensor& w, const Tensor& bias,
                  const Tensor& stream, bool in_place = false);

}  // namespace krait::ops
