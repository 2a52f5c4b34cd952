// Private to ssd: what walks and gradients on matrix units begin with.
#pragma once
#include <cuda_runtime_api.h>

#include "krait/ops/ssd/cuda.h"

namespace krait::ops::ssd_gpu {

// Of every chunk and head, (slots, H, 64): Δ of a token, and log2 of the decay from the chunk's begin through it;
// the slope of Δ, if wanted. A step that leaves nothing counts as 2^-150, tokens behind the end have Δ = 0.
struct MatrixSteps {
  float2* steps = nullptr;
  float* slopes = nullptr;
};
int64_t matrix_steps_size(const CudaProblem& p);

// The products C[t]·B[s] of every chunk and group, s <= t, as matrix units take them as right operand: tiles of
// 16 s and 8 t, those of one 16 s next to each other, a lane's four numbers (s, s+1, s+8, s+9) in a row.
constexpr int kPairTiles = 20;
constexpr int kPairsSize = kPairTiles * 32 * 4;
constexpr int pair_tile(int s16, int t8) { return 8 * s16 - s16 * (s16 - 1) + t8 - 2 * s16; }
constexpr int64_t matrix_pairs_size(const CudaProblem& p) {
  return slots(p, chunk_of(true)) * p.G * kPairsSize;
}

// The decays over pieces of sequences, where a walk's blocks wait for each other's: none yet.
constexpr float kNoDecay = -1;
struct Decays {
  float* data = nullptr;
  int64_t count = 0;
};

// All in one launch; `pairs` null: not wanted.
void matrix_parts(const CudaProblem& p, const MatrixSteps& steps, float* pairs,
                  const Decays& decays, cudaStream_t stream);

}  // namespace krait::ops::ssd_gpu
