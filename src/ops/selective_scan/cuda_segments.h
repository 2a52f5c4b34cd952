// Private to selective_scan: sequences cut into segments that are walked through at the same time on a GPU; packed
// ones only where there is one.
//
// What enters a segment follows from all before it. It is found without walking: each token's part of the state at
// the end of its segment is weighted by its decay to there, exp(A Σ Δ), and summed; then a chain over the segments. The
// adjoint is the same backwards in time. Weights below 2^-36 are zero, all of which together are below the rounding of
// what enters: where all of a block's are, tokens are not read.
#pragma once
#include "krait/ops/selective_scan/cuda.h"

namespace krait::ops::scan {

struct CudaSegments {
  int64_t from = 0, tokens = 0;       // of every sequence: the stretch that is cut
  int64_t segments = 1, segment = 0;  // tokens of a segment
  // Scratch: (sequences, segments, E, N) and (sequences, segments, E).
  float *ends = nullptr, *deltas = nullptr;
  float* at = nullptr;  // out: (sequences, segments, E, N), what enters each segment

  int64_t floats(const CudaProblem& p) const {
    return p.sequences * segments * p.E * (2 * p.N + 1);
  }
  void place(const CudaProblem& p, float* scratch) {
    const int64_t states = p.sequences * segments * p.E * p.N;
    at = scratch, ends = at + states, deltas = ends + states;
  }
};

// As measured: time to find what enters a segment, of that to walk through it; of a block of 32 channels, in eighths of
// one of 64.
struct ScanCosts {
  double entering, few;
};
constexpr ScanCosts kForwardCosts{1.0, 4.8}, kBackwardCosts{0.6, 6.0};
// The best cut of `tokens` tokens of every sequence where one segment keeps `blocks` blocks busy, one a
// multiprocessor. Segments are whole tiles.
CudaSegments cuda_segments(const CudaProblem& p, int64_t tokens, int64_t blocks, int64_t tile,
                           const ScanCosts& costs);
// Channels of a block, 32, 64 or 96, that are done first.
int cuda_scan_channels(const CudaProblem& p, const ScanCosts& costs);
// States. N <= 16, bfloat16 rows.
void cuda_states_between(const CudaProblem& p, const CudaSegments& k, void* stream);
// Adjoints, from the gate z and the gradient dy. What enters the last segment is `last` (sequences, E, N), null:
// zero; by_row: a tensor of states, not of sequences in the order of their tokens.
void cuda_adjoints_between(const CudaProblem& p, const CudaRows& dy, const CudaSegments& k,
                           const float* last, bool by_row, void* stream);

}  // namespace krait::ops::scan
