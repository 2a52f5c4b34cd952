// Private to selective_scan: what the forward kernels for bfloat16 rows walk through.
#pragma once
#include "krait/ops/selective_scan/cuda_bf16.cuh"

namespace krait::ops::scan {
namespace {

// Which fourth of a channel's states a scanning lane has, and of which of its warp's eight channels. Lanes i and i ^ 1
// have the same states, i and i ^ 2 the same channel: shared memory gives either their 16 bytes in two passes, not in
// four.
__device__ inline int states_of(int lane) { return lane / 2 % 2 + lane / 16 * 2; }
__device__ inline int channel_of(int lane) { return lane % 2 + lane / 4 % 4 * 2; }

struct Work {
  CudaForward w;
  int64_t segments, segment;
  const float* states;  // before each segment; null: there is one, from state_in
};

struct Unit {
  Span s;
  int64_t segment, from, tokens;  // its first token in the sequence
  __device__ Unit(const Work& k, int64_t index)
      : s(sequence(k.w.p, index / k.segments)), segment(index % k.segments) {
    from = segment * k.segment;
    const int64_t left = s.tokens - from;
    tokens = left < 0 ? 0 : left < k.segment ? left : k.segment;
  }
};

}  // namespace
}  // namespace krait::ops::scan
