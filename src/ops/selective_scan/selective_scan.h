// selective_scan: the recurrence of Mamba-1 with its discretisation, skip and gate in one pass.
//
//   Δ[t,e]   = softplus(dt[t,e] + dt_bias[e])          (softplus optional; x where x > 20)
//   h[t,e,n] = exp(Δ[t,e] A[e,n]) h[t-1,e,n] + Δ[t,e] B[t,g,n] u[t,e]        g = e / (E/G)
//   y[t,e]   = ( Σ_n C[t,g,n] h[t,e,n] + D[e] u[t,e] ) · silu(z[t,e])         (D, z optional)
//
// Gu and Dao 2023, algorithm 2 and section 3.3; B is discretised as Δ·B, as in every published weight.
//
//   u, dt, z (B, L, E)     float32 or bfloat16 (each its own), rows at one distance
//   A (E, N)               float32; with a_is_log it holds log(-A) (the published A_log) and so does dA
//   B, C (B, L, G, N) or (B, L, N), rows at one distance; or constant (E, N) float32
//   D, dt_bias (E)         float32, optional
//   y (B, L, E)            dtype of u; Δ, exp, h, y, gate in float32, rounded once
//   state_in (S, E, N)     float32, optional
//   state_out (S, E, N)    float32, optional; may be the same memory as state_in when not recorded, if
//                          then no sequence writes the row that another one starts from
//
// `reverse`: time runs backwards, t-1 above is the token after t, each sequence starts at its last token.
// The tokens stay where they are.
//
// `complex`: the last axis of A, B, C and the states holds N/2 complex numbers as pairs (re, im), and
// y = 2 Re(Σ_n C h) + D u, as with S4's conjugate pairs (section 3.6). A has no logarithm then. A gradient is
// dL/dre + i dL/dim. On a GPU the kernels are plain ones, N is at most 256, and backward needs 2 N numbers
// for each 32 channels of a token besides.
//
// S is B, or with a Packing any number of rows; rows of state_out that no sequence ends in are left as
// they are. A row of state_in may start several sequences: its gradients add up.
//
// Gradients for every tensor above, state_in included, from y and state_out. Saved for backward: the
// inputs and h at every 64th step of each sequence, B L E N / 64 floats in all: a quarter of u in float32
// for N = 16. Backward recomputes the rest chunk by chunk. dB and dC are summed over channels, dA, dD and
// ddt_bias over time and sequences, in an order that follows from the shapes alone: the same bits for any
// number of threads, and from run to run.
//
// Sequences of up to 8 tokens run vectorised over n, longer and complex ones over channels; the two differ by the
// order of the sum over n. exp(Δ A) is 0 below 2^-126. Errors are those of a plain float32 loop: Δ, the
// decay and the gate are within 2 units in the last place.
//
// On a GPU states are kept at every 32nd step, 16th where N > 128; the decay is within 2 units in the last
// place; what a packing holds is not checked. For bfloat16 rows Δ, the decay and the gate are within 2^-19; where
// B and C are bfloat16, too, and N <= 16, the factors of the products that dB and dC are sums of have 11 bits. A
// long sequence of such rows is walked through in segments; what enters one is without the tokens whose weight in it
// is below 2^-36.
//
// `remake_y`: y is not kept for backward where the op can write it again there (Tape::watch_remade): in a segment that
// does not keep all, on a GPU, of rows for which there is a kernel in bfloat16, with all of u, dt and z differentiated.
// It has the bits of forward.
//
// Throws Error where shapes, types or the packing do not fit.
#pragma once
#include "krait/ops/packing.h"
#include "krait/tensor/context.h"

namespace krait::ops {

struct ScanInputs {
  Tensor u, dt, A, B, C;
  Tensor D, z, dt_bias;  // optional
  bool softplus = true;
  bool a_is_log = false;
  bool reverse = false;
  bool complex = false;
  bool remake_y = false;
};

struct ScanResult {
  Tensor y;
  Tensor state;  // state_out, as a variable where recorded
};

ScanResult selective_scan(Context& c, const ScanInputs& in, const Packing* packing = nullptr,
                          const Tensor& state_in = {}, const Tensor& state_out = {});

}  // namespace krait::ops
