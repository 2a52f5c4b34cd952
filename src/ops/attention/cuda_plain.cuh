// Private to this room: attention in float32 arithmetic.
#pragma once
#include <type_traits>

#include "krait/ops/attention/cuda_device.cuh"

namespace krait::cuda::attention {

constexpr int kPlainThreads = 256;

void plain_forward(const AttentionCall& c, void* stream);
void add_up_dy_y(const AttentionBackward& b, void* stream);
// Gradients of q, and of the keys and values of the call.
void plain_backward(const AttentionBackward& b, void* stream);
// Gradients of the keys and values of the cache, on top of what is there.
void cache_backward(const AttentionBackward& b, void* stream);

}  // namespace krait::cuda::attention
