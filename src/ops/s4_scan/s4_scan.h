// s4_scan: linear state-space models run as a recurrence, from a state to a state. One step for each of
// H heads, as s4_steps gives it (ops/s4_kernel: there are the formulas), and a skip:
//
//   h[b,t,h] = step(h[b,t-1,h], u[b,t,h])        y[b,t,h] = 2 Re Σ_n C[h,n] h[b,t,h,n] + D[h] u[b,t,h]
//
//   u (B, L, H)               float32 or bfloat16, rows at one distance
//   D (1, H) or (H)           float32
//   y (B, L, H)               dtype of u
//   state_in (S, H, N, 2)     float32, optional: zero where not given; (re, im)
//   state_out (S, H, N, 2)    float32, optional; may be state_in's memory
//
// S is B, or with a Packing any number of rows. Float64 inside, rounded once; a state is rounded where it
// is handed out. Same y as s4_kernel and long_conv, in O(L N).
// Gu, Goel, Ré 2021, sections 2.3 and C.2; Gu, Gupta, Goel, Ré 2022.
#pragma once
#include "krait/ops/packing.h"
#include "krait/ops/s4_kernel/s4_kernel.h"

namespace krait::ops {

struct S4ScanResult {
  Tensor y, state;
};

// What a recorded call needs: the parameters that the steps were made from, which get their gradients. The
// chain from the steps back to them runs on the host.
struct S4Learned {
  S4Params params;
  S4Options options;
  std::shared_ptr<const S4Steps> steps;  // null only while planning
};

// `steps` null only while planning. Error where it is recorded and `learned` is not given.
S4ScanResult s4_scan(Context& c, const Tensor& u, const S4Steps* steps, const Tensor& D,
                     const Packing* packing = nullptr, const Tensor& state_in = {},
                     const Tensor& state_out = {}, const S4Learned* learned = nullptr);

}  // namespace krait::ops
