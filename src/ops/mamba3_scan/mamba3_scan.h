// mamba3_scan: the recurrence of Mamba-3 (trapezoidal rule, rotated keys and queries, rank R) with its
// skip, gate and reduction over ranks, in one pass.
//
// For head h of group g = h / (H/G), rank r, everything in float32:
//
//   θ[t,i] = θ[t-1,i] + π tanh(angle[t,i]) dt[t]                         i < T; modulo 2π
//   k[t,r] = Rot(θ[t], B[t,r,g] + B_bias[h,r])     q[t,r] = Rot(θ[t], C[t,r,g] + C_bias[h,r])
//   v[t,r] = mimo_x[h,r] ⊙ x[t]
//   α = exp(adt[t])     γ = σ(trap[t]) dt[t]     β = (1 - σ(trap[t])) dt[t] α
//   S[t]   = α S[t-1] + β Σ_r v[t-1,r] k[t-1,r]ᵀ + γ Σ_r v[t,r] k[t,r]ᵀ          (P, N)
//   y[t,r] = S[t] q[t,r] + D[h] v[t,r]
//   y[t,r] = y[t,r] / sqrt(mean_P(y²) + eps) ⊙ norm[h]                   (norm optional)
//   y[t]   = Σ_r mimo_o[h,r] ⊙ y[t,r] ⊙ silu(mimo_z[h,r] ⊙ z[t])         (z optional)
//
// Lahoti et al. 2026 (arXiv 2603.15569), sections 3.1 to 3.3; the order of norm and gate, and that the
// angle is scaled by π tanh, as in the published code. Rot turns (a, b) to
// (a cos θ - b sin θ, a sin θ + b cos θ), where (a, b) are the dimensions (2i, 2i+1), or (i, i + N/2) with
// `halves`; dimensions in no pair stay as they are.
//
//   x, z (B, L, H P)            float32 or bfloat16 (each its own), rows at one distance
//   B, C (B, L, R, G, N)        float32 or bfloat16, contiguous; normed
//   B_bias, C_bias (H, R, N)    float32
//   dt, adt, trap (B, L, H)     float32, rows at one distance: step size, A times it, before the sigmoid
//   angle (B, L, T)             float32, rows at one distance, of all heads; or (B, L, H, T), contiguous
//   mimo_x, mimo_z, mimo_o (H, R, P)   float32; all or none (none: R is 1; mimo_z only with z)
//   D (H), norm (H P)           float32, optional
//   y (B, L, H P)               dtype of x, rounded once
//   states in and out           float32, optional as a whole: angle (Q, H, T) in [0, 2π), ssm (Q, H, P, N),
//                               k (Q, R, H, N) and v (Q, H, P), the last token's k and x
//
// Q is B, or with a Packing any number of rows; rows of the states out that no sequence ends in are left as
// they are. A row of the states in may start several sequences: its gradients add up. States out may be the
// memory of those in when not recorded.
//
// Gradients for every tensor above, states in included, from y and the states out. Saved for backward: the
// inputs, and the state at every 64th token of each sequence. Backward recomputes the rest chunk by chunk in
// two sweeps, forward and backward in time, each of which holds one (P, N) matrix a head; the gradient of adt
// is the running difference of what both read, anchored at each chunk's end by <dS, S>: its error is that of
// those terms, however small the decay has made it. Sums over heads,
// tokens and sequences run in an order that follows from the shapes alone: the same bits for any number of
// threads, and from run to run.
//
// θ is kept as a 32-bit fraction of a turn: its error does not grow with the position. One token or many take
// the same code. On a GPU what a packing holds is not checked.
//
// Throws Error where shapes, types or the packing do not fit.
#pragma once
#include "krait/ops/packing.h"
#include "krait/tensor/context.h"

namespace krait::ops {

struct Mamba3Inputs {
  Tensor x, B, C, B_bias, C_bias;
  Tensor dt, adt, trap, angle;
  Tensor z, D, norm;              // optional
  Tensor mimo_x, mimo_z, mimo_o;  // optional
  float norm_eps = 1e-5f;
  bool halves = false;  // which dimensions are turned together
};

struct Mamba3State {
  Tensor angle, ssm, k, v;
};

struct Mamba3Result {
  Tensor y;
  Mamba3State state;  // states out, as variables where recorded
};

Mamba3Result mamba3_scan(Context& c, const Mamba3Inputs& in, const Packing* packing = nullptr,
                         const Mamba3State& state_in = {}, const Mamba3State& state_out = {});

}  // namespace krait::ops
