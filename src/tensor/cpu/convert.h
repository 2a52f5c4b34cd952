// Rows of float32 and bfloat16, converted on the CPU.
#pragma once
#include "krait/tensor/context.h"

namespace krait::cpu {

// to[r, i] = from[r, i], rounded to nearest even where `to` is bfloat16; with `add`, to += from, rounded
// once. Shapes equal, rows of each at one distance. The memory must not overlap.
void convert_rows(const Tensor& from, const Tensor& to, bool add = false);

// `t` in type `type`: itself, or a contiguous copy in scratch. Needs an open Scratch.
Tensor in_type(Context& c, const Tensor& t, DType type);

}  // namespace krait::cpu
