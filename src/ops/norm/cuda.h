// Private to this room: norm on the GPU.
#pragma once
#include "krait/ops/norm/kernels.h"

namespace krait::cuda {

void norm_forward(const NormProblem& p, int64_t rows, void* stream);

// A block walks rows_of_a_partial_sum(rows) rows. dw, db (pieces, D): written; or null.
void norm_backward(const NormProblem& p, int64_t rows, float* dw, float* db, void* stream);

}  // namespace krait::cuda
