// A channel of one token through the scan, by eight lanes: each has two of its 16 states, and every eighth run of eight
// elements of its row of dt_proj.
#pragma once
#include "krait/ops/mamba1_step/cuda.h"
#include "krait/ops/step_parts.cuh"
#include "krait/tensor/cuda/exponentials.cuh"
#include "krait/tensor/cuda/few_rows.cuh"

namespace krait::cuda {

constexpr int kStepLanes = 8;
static_assert(kStepStates == 2 * kStepLanes);

// Two neighbouring states.
__device__ inline float2 load_states(const float* p) {
  return __ldcg(reinterpret_cast<const float2*>(p));
}
__device__ inline float2 load_states(const __nv_bfloat16* p) {
  const unsigned v = __ldcg(reinterpret_cast<const unsigned*>(p));
  return {low_bf16(v), high_bf16(v)};
}
// The same in shared memory.
__device__ inline float2 states_at(const float* p) { return *reinterpret_cast<const float2*>(p); }
__device__ inline float2 states_at(const __nv_bfloat16* p) {
  const unsigned v = *reinterpret_cast<const unsigned*>(p);
  return {low_bf16(v), high_bf16(v)};
}
__device__ inline void store_states(float* p, float2 v) { *reinterpret_cast<float2*>(p) = v; }
__device__ inline void store_states(__nv_bfloat16* p, float2 v) {
  *reinterpret_cast<__nv_bfloat162*>(p) = __floats2bfloat162_rn(v.x, v.y);
}

// What a block's channels have beside products, in kernels that take a token through all layers. Z: their sizes; S: the type
// of the states.
template <class Z, class S>
struct StackChannels {
  float A_log[Z::kChannels * kStepStates];
  S state[Z::kChannels * kStepStates];
  float4 taps[Z::kChannels];
  ConvInputs<__nv_bfloat16>::Stored before[Z::kChannels];
  float bias[Z::kChannels], dt_bias[Z::kChannels], D[Z::kChannels];
  __nv_bfloat16 dt_proj[Z::kChannels * Z::R];
};

// kRuns: of a lane, in its row of dt_proj.
template <class T, int kRuns>
struct StepChannel {
  int lane, R;
  Eight<T> w[kRuns];
  float A[2], bias, D;  // A times log2(e)

  StepChannel() = default;
  // Of rows in shared memory, in bfloat16.
  __device__ StepChannel(const T* of_dt_proj, int rank, const float* of_A_log, float of_bias,
                         float of_D)
      : lane(static_cast<int>(threadIdx.x) % kStepLanes), R(rank), bias(of_bias), D(of_D) {
#pragma unroll
    for (int i = 0; i < kRuns; ++i)
      if (const int r = 8 * (lane + kStepLanes * i); r < R)
        w[i].v[0] = *reinterpret_cast<const uint4*>(of_dt_proj + r);
    const float2 a = reinterpret_cast<const float2*>(of_A_log)[lane];
    A[0] = scaled_A(a.x, true), A[1] = scaled_A(a.y, true);
  }
  // What no kernel writes.
  __device__ StepChannel(const StepScan& p, int64_t e)
      : lane(static_cast<int>(threadIdx.x) % kStepLanes), R(static_cast<int>(p.R)) {
#pragma unroll
    for (int i = 0; i < kRuns; ++i) {
      const int r = 8 * (lane + kStepLanes * i);
      w[i] = load_weights(static_cast<const T*>(p.dt_proj) + e * R + r, r < R);
    }
    const float2 a = __ldg(reinterpret_cast<const float2*>(p.A_log + e * kStepStates) + lane);
    A[0] = scaled_A(a.x, true), A[1] = scaled_A(a.y, true);
    bias = __ldg(p.dt_bias + e), D = __ldg(p.D + e);
  }

  // row: δ, B and C in shared memory. h moves on; y is in every lane.
  __device__ float step(const float* row, float u, float z, float2& h) const {
    constexpr bool kFast = !std::is_same_v<T, float>;
    float delta = 0;
#pragma unroll
    for (int i = 0; i < kRuns; ++i) {
      const int r = 8 * (lane + kStepLanes * i);
      if (r >= R) continue;
      float of_w[8];
      as_floats(w[i], of_w);
      const float4 low = *reinterpret_cast<const float4*>(row + r),
                   high = *reinterpret_cast<const float4*>(row + r + 4);
      delta = fmaf(of_w[0], low.x, delta), delta = fmaf(of_w[1], low.y, delta);
      delta = fmaf(of_w[2], low.z, delta), delta = fmaf(of_w[3], low.w, delta);
      delta = fmaf(of_w[4], high.x, delta), delta = fmaf(of_w[5], high.y, delta);
      delta = fmaf(of_w[6], high.z, delta), delta = fmaf(of_w[7], high.w, delta);
    }
#pragma unroll
    for (int i = kStepLanes / 2; i > 0; i /= 2) delta += __shfl_xor_sync(~0u, delta, i);
    float slope;
    delta = softplus<kFast>(delta + bias, slope);
    const float2 B = *(reinterpret_cast<const float2*>(row + R) + lane),
                 C = *(reinterpret_cast<const float2*>(row + R + kStepStates) + lane);
    const float x = delta * u;
    h = {fmaf(exp2_of<kFast>(delta * A[0]), h.x, x * B.x),
         fmaf(exp2_of<kFast>(delta * A[1]), h.y, x * B.y)};
    float y = fmaf(C.x, h.x, C.y * h.y);
#pragma unroll
    for (int i = kStepLanes / 2; i > 0; i /= 2) y += __shfl_xor_sync(~0u, y, i);
    return fmaf(D, u, y) * (z * sigmoid<kFast>(z));
  }
};

}  // namespace krait::cuda
