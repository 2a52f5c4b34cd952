// Exponentials and what state-space models make of them, to about the last place of float32.
#pragma once
#include <cuda_runtime_api.h>

namespace krait::cuda {

__device__ inline float exp2_fast(float x) {  // 2 units in the last place, 0 below 2^-126
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 2^x to 0.7 units in the last place, 0 below 2^-126: a polynomial on [-1/2, 1/2], shifted by the whole part.
__device__ inline float exp2_exact(float x) {
  const bool nothing = x < -126.0f;
  x = fminf(fmaxf(x, -126.0f), 128.0f);
  constexpr float kWhole = 0x1.8p+23f;  // added, the low bits hold the whole part
  const float shifted = x + kWhole, f = x - (shifted - kWhole);
  float p = fmaf(0x1.444p-13f, f, 0x1.5f48cp-10f);
  p = fmaf(p, f, 0x1.3b2a1cp-7f);
  p = fmaf(p, f, 0x1.c6aeccp-5f);
  p = fmaf(p, f, 0x1.ebfbep-3f);
  p = fmaf(p, f, 0x1.62e43p-1f);
  p = fmaf(p, f, 1.0f);
  return nothing ? 0.0f : __int_as_float(__float_as_int(p) + (__float_as_int(shifted) << 23));
}

// What bfloat16 rows (kFast) need of the functions below is far from their last places: they get them to 2^-19;
// others to about one.
template <bool kFast>
__device__ inline float exp2_of(float x) {
  return kFast ? exp2_fast(x) : exp2_exact(x);
}

template <bool kFast>
__device__ inline float reciprocal(float x) {
  if (!kFast) return __frcp_rn(x);
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

constexpr float kLog2e = 0x1.715476p+0f, kLog2eLow = 0x1.4ae0cp-26f, kLn2 = 0x1.62e430p-1f;

// e^x for x <= 0, the product with log2(e) carried to twice the precision unless kFast.
template <bool kFast>
__device__ inline float exp_of_negative(float x) {
  const float high = x * kLog2e;
  if (kFast) return exp2_fast(high);
  const float low = fmaf(x, kLog2eLow, fmaf(x, kLog2e, -high));
  const float e = exp2_of<kFast>(high);
  return fmaf(e, low * kLn2, e);
}

// log(1 + e^x) = max(x, 0) + log(1 + e), e = e^-|x| in [0, 1]; the logarithm by a polynomial through the
// Chebyshev nodes of that interval, relative error 5e-9, 2e-7 where kFast. `e` is handed out for the slope.
template <bool kFast>
__device__ inline float softplus(float x, float& e) {
  e = exp_of_negative<kFast>(-fabsf(x));
  if (kFast) {
    float p = fmaf(-0.00837115255f, e, 0.04349389982f);
    p = fmaf(p, e, -0.1068500286f);
    p = fmaf(p, e, 0.176874767f);
    p = fmaf(p, e, -0.2447477418f);
    p = fmaf(p, e, 0.3327192838f);
    p = fmaf(p, e, -0.4999717452f);
    p = fmaf(p, e, 0.9999997808f);
    return fmaf(p, e, fmaxf(x, 0.0f));
  }
  float p = fmaf(-0.003256378466f, e, 0.01990716088f);
  p = fmaf(p, e, -0.05706420066f);
  p = fmaf(p, e, 0.1061426467f);
  p = fmaf(p, e, -0.1531186309f);
  p = fmaf(p, e, 0.1967811725f);
  p = fmaf(p, e, -0.2495455887f);
  p = fmaf(p, e, 0.3333000404f);
  p = fmaf(p, e, -0.4999990399f);
  p = fmaf(p, e, 0.9999999954f);
  return fmaf(p, e, fmaxf(x, 0.0f));
}

template <bool kFast>
__device__ inline float sigmoid(float x) {
  if (kFast) return reciprocal<kFast>(1.0f + exp2_fast(-x * kLog2e));
  const float e = exp_of_negative<kFast>(-fabsf(x));
  return (x >= 0 ? 1.0f : e) / (1.0f + e);
}

// A log2(e), or -exp(A) log2(e) where A holds log(-A): to half a unit in the last place, or nearly, since an
// error of A acts in the same direction at every step. e^a = 2^m (1 + s). What is not a number becomes a state that
// grows beyond all: clamped, it would be one that is forgotten.
__device__ inline float scaled_A(float a, bool is_log) {
  if (isnan(a)) return 0x1p+100f;
  if (!is_log) return fmaf(a, kLog2e, a * kLog2eLow);
  a = fminf(fmaxf(a, -87.0f), 87.0f);
  const float m = rintf(a * kLog2e);
  float r = fmaf(-m, 0x1.62ep-1f, a);
  r = fmaf(-m, 0x1.0bfbe8p-15f, r);
  float p = fmaf(r, 0.001384364790f, 0.008374162949f);
  p = fmaf(p, r, 0.041668001562f);
  p = fmaf(p, r, 0.166664317250f);
  p = fmaf(p, r, 0.499999940395f);
  const float s = fmaf(r * r, p, r);
  return -ldexpf(kLog2e + fmaf(s, kLog2e, kLog2eLow), static_cast<int>(m));
}

}  // namespace krait::cuda
