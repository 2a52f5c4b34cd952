// Private to this room: norm on the GPU.
#pragma once
#include <algorithm>

#include "krait/ops/norm/kernels.h"

namespace krait::cuda {

void norm_forward(const NormProblem& p, int64_t rows, void* stream);

// Rows that one block walks, leaving one partial sum of dw and db: blocks for some rounds of the card, while the
// sums stay below 8 MB.
constexpr int64_t norm_rows_of_a_piece(int64_t rows, int64_t D) {
  const int64_t pieces = std::clamp<int64_t>((int64_t{1} << 21) / D, 256, 2048);
  return std::max<int64_t>(1, (rows + pieces - 1) / pieces);
}
// dw, db (pieces, D): written; or null.
void norm_backward(const NormProblem& p, int64_t rows, float* dw, float* db, void* stream);

}  // namespace krait::cuda
