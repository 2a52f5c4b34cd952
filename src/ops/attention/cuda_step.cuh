// Private to this room: attention of one token a sequence, whose keys are cut into pieces.
#pragma once
#include "krait/ops/attention/cuda_device.cuh"

namespace krait::cuda::attention {

// What a piece says of a head: the largest score, Σ exp(score - largest), and the values weighted so (P).
struct Parts {
  float *largest, *sum, *y;  // (sequences, pieces, H) twice, (sequences, pieces, H, P)
  int64_t pieces;
};

// The pieces of each head together: y, and norm where it is asked for. And to a cache in place what the tokens append. It
// starts while the kernel before it runs.
void join_pieces(const AttentionCall& c, const Parts& parts, void* stream);

}  // namespace krait::cuda::attention
