// Private to this room: the op on a GPU. Without CUDA in the build these throw.
#pragma once
#include "krait/autograd/tape.h"
#include "krait/ops/attention/cache.h"

namespace krait::ops {

struct GpuAttention {
  AttentionInputs in;
  CacheCall cache;
  Tensor y, norm;  // norm (tokens, H, 2), or empty
};

// y, norm where there is one, and the cache handed out.
void forward_on_gpu(Context& c, const GpuAttention& q);

struct GpuAttentionGradients {
  Tensor dy, dk_out, dv_out;  // of the results; empty: zero
  Tensor dk_in, dv_in;        // of the cache handed in: added to
  GradTarget dq, dk, dv;
};
void backward_on_gpu(Context& c, const GpuAttention& q, const GpuAttentionGradients& g);

}  // namespace krait::ops
