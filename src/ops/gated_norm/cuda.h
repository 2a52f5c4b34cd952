// Private to this room: gated_norm on the GPU.
#pragma once
#include <algorithm>

#include "krait/ops/gated_norm/kernels.h"

namespace krait::cuda {

void gated_norm_forward(const ops::GatedNormProblem& p, int64_t rows, void* stream);

// Rows that one block walks, leaving one partial sum of dw and db: blocks for some rounds of the card, while the
// sums stay below 8 MB.
constexpr int64_t gated_norm_rows_of_a_piece(int64_t rows, int64_t E) {
  const int64_t pieces = std::clamp<int64_t>((int64_t{1} << 21) / E, 256, 2048);
  return std::max<int64_t>(1, (rows + pieces - 1) / pieces);
}
// dw, db (pieces, E): written; or null.
void gated_norm_backward(const ops::GatedNormProblem& p, int64_t rows, float* dw, float* db,
                         void* stream);

}  // namespace krait::cuda
