// Private to ssd: the gradients of one chunk of tokens, from the states at its two ends.
#pragma once
#include <cuda_runtime_api.h>

#include "krait/ops/ssd/cuda.h"

namespace krait::ops::ssd_gpu {

// The heads of a group in sets of about one size: a block takes those of a set one after the other, with one sum
// of dB and dC. As few sets as give a large card work for some blocks each of its multiprocessors.
constexpr int64_t sets_of_group(const CudaProblem& p) {
  constexpr int64_t kBlocks = 256;
  const int64_t heads = p.H / p.G, blocks = slots(p, chunk_of(p.matrix_units)) * p.G;
  const int64_t most = blocks > 0 ? (kBlocks + blocks - 1) / blocks : 1;
  const int64_t of_set = most < heads ? (heads + most - 1) / most : 1;
  return (heads + of_set - 1) / of_set;
}
constexpr int64_t heads_of_set(const CudaProblem& p) {
  return (p.H / p.G + sets_of_group(p) - 1) / sets_of_group(p);
}
// Sums of a head and chunk: dA, ddt_bias and dD, which matrix units have of a head at once where D is one.
constexpr int64_t sums_size(const CudaProblem& p) {
  return 2 + (p.matrix_units && !p.D_per_channel ? 1 : p.P);
}

struct Gradient {
  CudaProblem p;
  CudaRows dy, dx, ddt;
  // As of Walk: the state before each chunk, its gradient behind it
  const void *states = nullptr, *dstates = nullptr;
  const float2* steps = nullptr;  // on matrix units, as the next: see cuda_matrix_parts.cuh
  const float* slopes = nullptr;
  int64_t sets = 1, heads = 0;  // sets_of_group and heads_of_set, divided once
  // (tokens, G, N) where a group is one set; else parts of float32 (sets of all groups, tokens, N). Data null: not wanted.
  CudaRows dB, dC;
  // (slots of chunks, H, sums_size), of A itself, or null
  float* sums = nullptr;
};

// Where a set leaves dB and dC of a token, as a row and its first column.
constexpr int64_t row_of_set(const Gradient& w, int64_t set, int64_t token) {
  return w.sets == 1 ? token : set * w.p.tokens + token;
}
constexpr int64_t column_of_set(const Gradient& w, int64_t set) {
  return w.sets == 1 ? set * w.p.N : 0;
}

void gradient(const Gradient& w, void* stream);
void matrix_gradient(const Gradient& w, cudaStream_t stream);
// The same by warpgroups where the device and N let it; whether it did.
bool warpgroup_gradient(const Gradient& w, cudaStream_t stream);

}  // namespace krait::ops::ssd_gpu
