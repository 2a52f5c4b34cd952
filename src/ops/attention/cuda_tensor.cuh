// Private to this room: attention in bfloat16 on tensor cores.
#pragma once
#include "krait/ops/attention/cuda_device.cuh"

namespace krait::cuda::attention {

// Whether rows can be walked 16 bytes at a time.
inline bool in_chunks(const HeadRows& r) { return in_runs(r.data, r.row, 2, 8) && r.head % 8 == 0; }

// bfloat16, heads of at most 128 elements, rows that can be copied 16 bytes at a time.
bool fits_tensor_cores(const AttentionCall& c);

void tensor_forward(const AttentionCall& c, void* stream);
// Gradients of q, and of the keys and values of the call.
void tensor_backward(const AttentionBackward& b, void* stream);

}  // namespace krait::cuda::attention
