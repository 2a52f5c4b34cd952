// Rows of float32 and bfloat16, converted on the CPU.
#pragma once
#include "krait/tensor/tensor.h"

namespace krait::cpu {

// to[r, i] = from[r, i], rounded to nearest even where `to` is bfloat16; with `add`, to += from, rounded
// once. Shapes equal, rows of each at one distance. The memory must not overlap.
void convert_rows(const Tensor& from, const Tensor& to, bool add = false);

}  // namespace krait::cpu
