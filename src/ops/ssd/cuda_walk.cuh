// Private to ssd: from chunk to chunk through a sequence, forwards with the state or backwards with its
// gradient.
#pragma once
#include "krait/ops/ssd/cuda_device.cuh"

namespace krait::ops::ssd_gpu {

struct Walk {
  CudaProblem p;  // backwards: x is dy, and B is C
  CudaRows y;     // forwards: data null: not wanted
  // The state where the walk begins and ends: row row[s] of (S, H, P, N), or s without `row`; -1: none.
  const float* start = nullptr;
  const int32_t* start_row = nullptr;
  float* end = nullptr;
  const int32_t* end_row = nullptr;
  void* states =
      nullptr;  // (slots of chunks, H, P, N), float32 or bfloat16: what each chunk begins with
  // Where sequences are walked in pieces: (slots of pieces, H, P, N), first what a piece leaves that begins with
  // zero, then what it begins with; and (slots of pieces, H), the decay over it.
  float *pieces = nullptr, *kept = nullptr;
  bool skip_short = false;
};

// Floats of pieces and kept: `scratch` of walk. 0 where sequences are walked in one.
int64_t walk_scratch(const CudaProblem& p);
void walk(Walk w, bool backwards, float* scratch, void* stream);

}  // namespace krait::ops::ssd_gpu
