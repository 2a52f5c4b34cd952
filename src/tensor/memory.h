// Moving and setting memory on the context's device. None of these does anything while planning.
#pragma once
#include "krait/tensor/context.h"

namespace krait {

// dst = value in every element of a contiguous float32 or bfloat16 tensor.
void fill(Context& c, const Tensor& dst, float value);

// Zero in every element of rows (rows, columns) at one distance.
void zero_rows(Context& c, const Tensor& rows);

// to = from, both contiguous, on the context's device, same shape; converts between float32 and bfloat16.
void copy(Context& c, const Tensor& from, const Tensor& to);

}  // namespace krait
