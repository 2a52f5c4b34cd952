// Private to ssd: from chunk to chunk through a sequence, forwards with the state or backwards with its
// gradient.
#pragma once
#include <cuda_runtime_api.h>

#include "krait/ops/ssd/cuda.h"
#include "krait/ops/ssd/cuda_matrix_parts.cuh"

namespace krait::ops::ssd_gpu {

struct Walk {
  CudaProblem p;  // backwards: x is dy, and B is C
  bool backwards = false;
  CudaRows y;  // forwards: data null: not wanted
  // The state where the walk begins and ends: row row[s] of (S, H, P, N), or s without `row`; -1: none.
  const float* start = nullptr;
  const int32_t* start_row = nullptr;
  float* end = nullptr;
  const int32_t* end_row = nullptr;
  // What each chunk begins with, or null: (slots of chunks, H, P, N), float32 or bfloat16; by warpgroups bfloat16 tiles of
  // 64 by 64 as products take them, (slots of chunks, H, tiles of P, tiles of N).
  void* states = nullptr;
  bool skip_short = false;
  // Where sequences are walked in pieces: (slots of pieces, H, P, N), first what a piece leaves that begins with
  // zero, then, where a kernel of its own joins them, what it begins with; and (slots of pieces, H), the decay over it, of
  // walks that join pieces themselves (slots of pieces, H, tiles of P).
  float *pieces = nullptr, *kept = nullptr;
  // On matrix units: see cuda_matrix_parts.cuh; pairs with y alone.
  const float2* steps = nullptr;
  const float* pairs = nullptr;
};

// One or two walks over the same sequences, at once.
struct Walks {
  Walk walk[2];
  int count = 0;
  bool first =
      false;  // launched before anything else of the call: not while the kernel before runs
};

// Floats of pieces and kept: `scratch` of walk.
int64_t walk_scratch(const CudaProblem& p, int walks);
// Those of the first walk in its scratch, which are to be none before a walk with y.
Decays decays_of_pieces(const CudaProblem& p, float* scratch);
void walk(Walks w, float* scratch, void* stream);

// One pass of a walk on matrix units.
void matrix_walk(const Walks& w, int64_t span, bool first_pass, cudaStream_t stream);
// The same by warpgroups where the device and N let it; whether it did, and whether it does the first pass in the same
// launch.
bool warpgroup_walk(const Walks& w, int64_t span, bool first_pass, cudaStream_t stream);
bool warpgroups_join(const Walks& w);
// Whether the walk with y can leave its states to the gradients.
bool warpgroups_leave_states(const CudaProblem& p);
// Of those, the pass with y and the first pass.
void warpgroup_walk_y(const Walks& w, int64_t span, bool first_pass, cudaStream_t stream);

}  // namespace krait::ops::ssd_gpu
