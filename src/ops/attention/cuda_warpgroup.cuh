// Private to this room: attention in bfloat16 on a GPU whose warpgroups take products from shared memory (sm_90a).
#pragma once
#include "krait/ops/attention/cuda_device.cuh"

namespace krait::cuda::attention {

// By device, type and sizes alone, and by all: as tensor cores in general (cuda_tensor.cuh), and a positive scale.
bool may_fit_warpgroups(const AttentionCall& c);
bool fits_warpgroups(const AttentionCall& c);

// A cache is in bfloat16. `scratch` has one float.
void warpgroup_forward(const AttentionCall& c, float* scratch, void* stream);

// As tensor_backward, without a cache handed in, and with dy. `scratch` has so many floats.
int64_t warpgroup_backward_floats(const AttentionCall& c);
void warpgroup_backward(const AttentionBackward& b, float* scratch, void* stream);

}  // namespace krait::cuda::attention
