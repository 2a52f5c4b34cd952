// long_conv: a convolution along time as long as the sequence, one kernel a channel, with a skip.
//
//   y[b,t,h] = Σ_{s<=t} K[0,h,t-s] u[b,s,h] + Σ_{s>t} K[1,h,s-t-1] u[b,s,h] + D[h] u[b,t,h]
//
// The second sum only with two kernels: the other direction of time, from the next sample on.
//
//   u (B, L, H)            float32 or bfloat16, rows at one distance
//   K (1 or 2, H, Lk)      float32; samples from L on are not used, those from Lk on are zero
//   D (1, H) or (H)        float32
//   y (B, L, H)            dtype of u, rounded once
//
// With a Packing each sequence is convolved alone; its states are not used.
//
// By FFT in float64, two sequences in one complex transform; O(L log L). Gradients for u, K, D from y;
// those of K and D are summed over sequences in a fixed order. Saved for backward: u, K.
// Gu, Goel, Ré 2021, section 2.4.
#pragma once
#include "krait/ops/packing.h"
#include "krait/tensor/context.h"

namespace krait::ops {

Tensor long_conv(Context& c, const Tensor& u, const Tensor& K, const Tensor& D,
                 const Packing* packing = nullptr);

}  // namespace krait::ops
