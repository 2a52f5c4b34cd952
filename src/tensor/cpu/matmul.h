// Matrix products on the CPU. The one place that knows oneDNN.
//
//   C (M, N) = A (M, K) · B (K, N)  [+ bias (N)]  [+ C | + plus (M, N)]
//
//   A, B   both float32 or both bfloat16; any layout with one dense axis
//   C      float32, or bfloat16 from bfloat16 factors; rows dense; rounded once
//   bias   float32
//   plus   float32, with a float32 C; same shape as C; must not overlap it
//
// The work is cut into pieces by the shape alone, each computed by one thread: the same bits for any
// number of threads. C must not overlap A or B. Safe to call from several threads.
#pragma once
#include "krait/tensor/context.h"

namespace krait::cpu {

// Element (i, j) stands at data[i * row_step + j * col_step]; one of the steps is 1.
struct Matrix {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t rows = 0, cols = 0;
  int64_t row_step = 0, col_step = 1;

  Matrix transposed() const { return {data, dtype, cols, rows, col_step, row_step}; }
};

// All leading axes of `t` as rows; the rows must stand at one distance.
Matrix matrix(const Tensor& t);

struct Epilogue {
  const float* bias = nullptr;
  bool add = false;              // C += instead of C =
  const Matrix* plus = nullptr;  // not together with `add`
};

void matmul(const Matrix& a, const Matrix& b, const Matrix& c, const Epilogue& e = {});

// The same for a result of any of the two types: a float32 product for a bfloat16 result goes through
// scratch. Needs an open Scratch; does nothing while planning.
void matmul_into(Context& c, const Matrix& a, const Matrix& b, const Tensor& result,
                 Epilogue e = {});

}  // namespace krait::cpu
