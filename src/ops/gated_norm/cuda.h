// Private to this room: gated_norm on the GPU.
#pragma once
#include <algorithm>

#include "krait/ops/gated_norm/kernels.h"

namespace krait::cuda {

void gated_norm_forward(const ops::GatedNormProblem& p, int64_t rows, void* stream);

// Rows that one block walks, leaving one partial sum of dw and db: no more pieces than sum_rows takes at once.
constexpr int64_t gated_norm_rows_of_a_piece(int64_t rows) {
  return std::max<int64_t>(1, (rows + 511) / 512);
}
// dw, db (pieces, E): written; or null.
void gated_norm_backward(const ops::GatedNormProblem& p, int64_t rows, float* dw, float* db,
                         void* stream);

}  // namespace krait::cuda
