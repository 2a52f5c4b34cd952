// Private to ssd: the gradients of one chunk of tokens, from the states at its two ends.
#pragma once
#include "krait/ops/ssd/cuda.h"

namespace krait::ops::ssd_gpu {

// Heads of a group that a block takes one after the other, with one sum of dB and dC.
constexpr int64_t heads_of_set(const CudaProblem& p) { return p.H / p.G < 8 ? p.H / p.G : 8; }
constexpr int64_t sets_of_group(const CudaProblem& p) {
  return (p.H / p.G + heads_of_set(p) - 1) / heads_of_set(p);
}
constexpr int64_t sums_size(const CudaProblem& p) { return 2 + p.P; }

struct Gradient {
  CudaProblem p;
  CudaRows dy, dx, ddt;
  // (slots of chunks, H, P, N), float32 or bfloat16: the state before each chunk, its gradient behind it
  const void *states = nullptr, *dstates = nullptr;
  // (sets of all groups, tokens, N), or null
  float *dB = nullptr, *dC = nullptr;
  // (slots of chunks, H, sums_size): of dA (of A itself), ddt_bias, dD (of each channel), or null
  float* sums = nullptr;
};

void gradient(const Gradient& w, void* stream);

}  // namespace krait::ops::ssd_gpu
