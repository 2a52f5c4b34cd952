// ssd: the recurrence of Mamba-2, a matrix of state a head with one decay.
//
//   Δ[t,h]   = clamp(softplus(dt[t,h] + dt_bias[h]), dt_min, dt_max)   (softplus optional; x where x > 20)
//   S[t,h]   = exp(Δ[t,h] A[h]) S[t-1,h] + Δ[t,h] x[t,h] ⊗ B[t,g]                    g = h / (H/G)
//   y[t,h,p] = Σ_n S[t,h,p,n] C[t,g,n] + D[h] x[t,h,p]                               (D optional)
//
// Dao and Gu 2024, sections 6 and 7. The published inference code leaves the limits out of its one-token
// step; here all paths apply them.
//
//   x (B, L, H·P)          float32 or bfloat16, rows at one distance, as B, C and dt
//   dt (B, L, H)           likewise; A says how many heads there are
//   B, C (B, L, G·N)       likewise; any N
//   A (H)                  float32; with a_is_log it holds log(-A) (the published A_log) and so does dA
//   D (H) or (H, P), dt_bias (H)   float32, optional
//   y (B, L, H·P)          dtype of x; everything in between in float32, rounded once
//   state_in, state_out (S, H, P, N)  float32, optional; may be the same memory when not recorded, if
//                          then no sequence writes the row that another one starts from
//
// S is B, or with a Packing any number of rows; rows of state_out that no sequence ends in are left as
// they are. A row of state_in may start several sequences: its gradients add up.
//
// Sequences of up to 8 tokens are stepped. Longer ones run in chunks of 64 tokens of matrix products:
// inside a chunk (C Bᵀ ∘ decay) Δx, from the state before it C S. The decay between two tokens is the
// product of the steps between them, never a ratio, so that nothing overflows or cancels.
//
// Where x, B and C are bfloat16 and the CPU has AVX512_BF16, the products of the chunks multiply pairs of them: operands,
// decays and states included, are rounded to bfloat16, sums and the state from chunk to chunk stay float32.
//
// A GPU takes N up to 256, and a decay there is a power of the sum of the steps' logarithms. Where x, B and C are
// bfloat16, P and N multiples of 16, and its blocks have 110 KB of shared memory, the products run on its matrix units
// (on sm_90, N up to 128, by warpgroups that read their operands from shared memory): their operands, decays and states
// included, are rounded to bfloat16, their sums and the state from chunk to chunk stay float32. All else is float32
// as here, in chunks of 32.
//
// Gradients for every tensor above, state_in included, from y and state_out. Saved for backward: the inputs
// and the state at every 64th token of each sequence, B L H P N / 64 numbers in all (P rounded up to 16), of bfloat16
// where pairs are multiplied, else float32; backward recomputes the rest. A GPU keeps the inputs alone; where a segment
// keeps all (Context::keeps_all), nothing is packed, P and N are multiples of 64 and warpgroups multiply, also the steps
// and, in bfloat16, every 64th state. Sums over heads, time and sequences have an order that follows from the shapes
// alone: the same bits for any number of threads, and from run to run.
//
// Throws Error where shapes, types or the packing do not fit.
#pragma once
#include <limits>

#include "krait/ops/packing.h"
#include "krait/tensor/context.h"

namespace krait::ops {

struct SsdInputs {
  Tensor x, dt, A, B, C;
  Tensor D, dt_bias;  // optional
  int64_t groups = 1;
  bool softplus = true;
  bool a_is_log = false;
  float dt_min = 0, dt_max = std::numeric_limits<float>::infinity();
};

struct SsdResult {
  Tensor y;
  Tensor state;  // state_out, as a variable where recorded
};

SsdResult ssd(Context& c, const SsdInputs& in, const Packing* packing = nullptr,
              const Tensor& state_in = {}, const Tensor& state_out = {});

}  // namespace krait::ops
