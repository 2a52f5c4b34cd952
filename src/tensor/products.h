// Matrix products and conversions on the context's device: see cpu/matmul.h and cpu/convert.h for what
// they compute. All need an open Scratch and do nothing while planning.
#pragma once
#include "krait/tensor/cpu/matmul.h"

namespace krait {

using cpu::Matrix;
using cpu::matrix;

void multiply(Context& c, const Matrix& a, const Matrix& b, const Tensor& result,
              const cpu::Epilogue& e = {});

// `t` in type `type`: itself, or a contiguous copy in scratch.
Tensor in_type(Context& c, const Tensor& t, DType type);

}  // namespace krait
