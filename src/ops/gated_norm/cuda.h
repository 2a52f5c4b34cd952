// Private to this room: gated_norm on the GPU.
#pragma once
#include "krait/ops/gated_norm/kernels.h"

namespace krait::cuda {

void gated_norm_forward(const ops::GatedNormProblem& p, int64_t rows, void* stream);

// A block walks rows_of_a_partial_sum(rows) rows. dw, db (pieces, E): written; or null.
void gated_norm_backward(const ops::GatedNormProblem& p, int64_t rows, float* dw, float* db,
                         void* stream);

}  // namespace krait::cuda
