// y = x Wᵀ in bfloat16 for up to 128 rows of x in one pass over W, on tensor cores: bound by reading W once. For GPUs
// from sm_90 on.
#pragma once
#include "krait/tensor/cuda/few_rows.h"

namespace krait::cuda {

// Whether the device has these kernels, and as much shared memory as they take.
bool has_one_pass(int device);

// Whether the current device has compute capability 9.0.
bool on_hopper();

constexpr int64_t kMostOnePassRows = 128;
constexpr int kMostSplit = 8;                // blocks that share out K
constexpr int64_t kOnePassProcessors = 132;  // of an H100 or H200

struct OnePass {
  const void* w = nullptr;  // (N, K), dense; K a multiple of 8
  const void* x = nullptr;  // (M, K)
  int64_t x_step = 0;       // elements between rows
  int64_t M = 0, N = 0, K = 0;
};

inline OnePass rows_of(const FewRows& p) { return {p.w, p.x, p.x_step, p.M, p.N, p.K}; }

// y = x Wᵀ + bias + plus, summed in float32 in an order that follows from the shapes alone. Starts while the
// kernel before it in the stream still runs: that one must not write w or bias.
void one_pass(const OnePass& p, const StoreRows& end, void* stream);

}  // namespace krait::cuda
