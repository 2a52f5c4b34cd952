// Private to this room: what both kernels of all layers read of a layer.
#pragma once
#include "krait/ops/mamba2_step/cuda.h"
#include "krait/ops/step_parts.cuh"

namespace krait::cuda {

__device__ inline ConvOfStep conv_of(const Step2StackLayer& l) {
  return {l.taps, l.bias, static_cast<ConvOfStep::Held::Stored*>(l.conv_state)};
}

// Neighbouring states, in shared memory or not.
constexpr int kRun = 4;
__device__ inline float4 four_states(const float* p) { return *reinterpret_cast<const float4*>(p); }
__device__ inline float4 four_states(const __nv_bfloat16* p) {
  const uint2 v = *reinterpret_cast<const uint2*>(p);
  return {low_bf16(v.x), high_bf16(v.x), low_bf16(v.y), high_bf16(v.y)};
}
__device__ inline void store_four(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }
__device__ inline void store_four(__nv_bfloat16* p, float4 v) {
  *reinterpret_cast<uint2*>(p) = four_bf16(v);
}

}  // namespace krait::cuda
