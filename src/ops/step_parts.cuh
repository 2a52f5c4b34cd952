// What the one-token steps of Mamba-1 and Mamba-2 share on a GPU.
#pragma once
#include "krait/tensor/cuda/exponentials.cuh"
#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

__device__ inline uint2 four_bf16(float4 v) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y),
                       high = __floats2bfloat162_rn(v.z, v.w);
  return {*reinterpret_cast<const unsigned*>(&low), *reinterpret_cast<const unsigned*>(&high)};
}

// Four neighbouring states.
__device__ inline float4 four_states(const float* p) { return *reinterpret_cast<const float4*>(p); }
__device__ inline float4 four_states(const __nv_bfloat16* p) {
  const uint2 v = *reinterpret_cast<const uint2*>(p);
  return {low_bf16(v.x), high_bf16(v.x), low_bf16(v.y), high_bf16(v.y)};
}
__device__ inline void store_four(float* p, float4 v) { *reinterpret_cast<float4*>(p) = v; }
__device__ inline void store_four(__nv_bfloat16* p, float4 v) {
  *reinterpret_cast<uint2*>(p) = four_bf16(v);
}

// The state of a channel's convolution: its last four inputs, oldest first, in the type T of activations.
template <class T>
struct ConvInputs {
  using Stored = float4;
  Stored v;

  // What they become with the input `now`.
  __device__ ConvInputs then(T now) const { return {{v.y, v.z, v.w, now}}; }
  __device__ float4 floats() const { return v; }
};

template <>
struct ConvInputs<__nv_bfloat16> {
  using Stored = uint2;
  Stored v;

  __device__ ConvInputs then(__nv_bfloat16 now) const {
    return {{__byte_perm(v.x, v.y, 0x5432), __byte_perm(v.y, __bfloat16_as_ushort(now), 0x5432)}};
  }
  __device__ float4 floats() const {
    return {low_bf16(v.x), high_bf16(v.x), low_bf16(v.y), high_bf16(v.y)};
  }
};

__device__ inline float convolve(float4 inputs, float4 k, float bias) {
  float y = fmaf(k.x, inputs.x, bias);
  y = fmaf(k.y, inputs.y, y);
  y = fmaf(k.z, inputs.z, y);
  return fmaf(k.w, inputs.w, y);
}

// One token through the causal convolution of width 4 and silu.
struct ConvOfStep {
  using Held = ConvInputs<__nv_bfloat16>;
  const float *taps = nullptr, *bias = nullptr;  // (channels, 4), (channels) or null
  Held::Stored* state = nullptr;                 // (M, channels) moves on
  int64_t channels = 0;

  __device__ Held hold(int64_t e, int m) const { return {__ldcg(state + m * channels + e)}; }
  struct OfRow {
    float4 k;
    float bias;
  };
  __device__ OfRow of_row(int64_t e) const {
    return {__ldg(reinterpret_cast<const float4*>(taps) + e), bias ? __ldg(bias + e) : 0.0f};
  }

  // x: the input of channel e of row m; before: its state.
  __device__ __nv_bfloat16 operator()(int64_t e, int m, __nv_bfloat16 x, const Held& before,
                                      const OfRow& of) const {
    const Held inputs = before.then(x);
    state[m * channels + e] = inputs.v;
    const float y = convolve(inputs.floats(), of.k, of.bias);
    return static_cast<__nv_bfloat16>(y * sigmoid<true>(y));
  }
};

// The same with its weights held too.
struct HeldConvOfStep : ConvOfStep {
  struct Held {
    ConvOfStep::Held before;
    ConvOfStep::OfRow of;
  };
  struct OfRow {};
  __device__ Held hold(int64_t e, int m) const {
    return {ConvOfStep::hold(e, m), ConvOfStep::of_row(e)};
  }
  __device__ __nv_bfloat16 operator()(int64_t e, int m, __nv_bfloat16 x, const Held& held,
                                      OfRow) const {
    return ConvOfStep::operator()(e, m, x, held.before, held.of);
  }
};

// Neighbouring elements of a scan's state in 16 bytes.
template <class S>
struct StateRun {
  static constexpr int kCount = 16 / sizeof(S);
  uint4 v;

  __device__ void load(const S* p) { v = __ldcg(reinterpret_cast<const uint4*>(p)); }
  __device__ void get(float (&to)[kCount]) const {
    const unsigned words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if constexpr (sizeof(S) == 4) {
        to[i] = __uint_as_float(words[i]);
      } else {
        to[i] = i % 2 ? high_bf16(words[i / 2]) : low_bf16(words[i / 2]);
      }
    }
  }
  static __device__ uint4 of(const float (&from)[kCount]) {
    if constexpr (sizeof(S) == 4) {
      return {__float_as_uint(from[0]), __float_as_uint(from[1]), __float_as_uint(from[2]),
              __float_as_uint(from[3])};
    } else {
      const uint2 low = four_bf16({from[0], from[1], from[2], from[3]}),
                  high = four_bf16({from[4], from[5], from[6], from[7]});
      return {low.x, low.y, high.x, high.y};
    }
  }
  // The compiler would store word by word where it did not see that the others are next to it.
  static __device__ void put(S* p, const float (&from)[kCount]) {
    __stcg(reinterpret_cast<uint4*>(p), of(from));
  }
};

}  // namespace krait::cuda
