// conv1d_causal: depthwise convolution along time that looks back only, with SiLU or without.
//
//   y[b,t,e] = act( bias[e] + Σ_{w<W} k[e,w] · x[b, t-(W-1-w), e] )
//
// before the first token of a sequence stand its initial state or zeros.
//
//   x (B, L, E)            float32 or bfloat16, rows at one distance (the x half of in_proj's output)
//   k (E, W), bias (E)     float32; W from 2 to 8; bias optional; tap W-1 multiplies the current sample
//   y (B, L, E)            dtype of x; float32 inside, rounded once
//   state_in (S, E, K)     float32 or, where nothing is recorded, the type of x, which holds them as exactly; optional:
//                          the last inputs *before* the convolution, oldest first; the newest at K-1; K >= W-1
//                          (published files keep K = W)
//   state_out (S, E, K)    likewise, of the same type, optional: written where given; sequences shorter than K keep
//                          the newer part of state_in in front. May be the same memory as state_in when not recorded;
//                          packed sequences then start from zero or from the row they write.
//
// `reverse`: time runs backwards, each sequence starts at its last token and looks ahead. The tokens stay
// where they are.
//
// Gradients for x, k, bias, state_in, from y and state_out. dk, dbias summed in a fixed order. Saved for
// backward: x (the activation is computed again).
// Gu and Dao 2023, section 3.4; layout of the state as in causal-conv1d.
#pragma once
#include "krait/ops/packing.h"
#include "krait/tensor/context.h"

namespace krait::ops {

struct ConvResult {
  Tensor y;
  Tensor state;  // state_out, as a variable where recorded
};

ConvResult conv1d_causal(Context& c, const Tensor& x, const Tensor& k, const Tensor& bias,
                         bool silu, const Packing* packing = nullptr, const Tensor& state_in = {},
                         const Tensor& state_out = {}, bool reverse = false);

// The convolution with SiLU and a product of its result, as conv1d_causal and linear one after the other, to the same
// rounding:
//
//   y = silu(conv(x)) as above      p = y wᵀ
//
//   w (J, E)        the matrix weight of a linear
//   p (B, L, J)     in the type of activations
//
// On a GPU of compute capability 9.0 backward in bfloat16 reads and writes each row once, and makes y again for w's
// gradient.
struct ConvProjection {
  Tensor y, p, state;
};

ConvProjection conv1d_projected(Context& c, const Tensor& x, const Tensor& k, const Tensor& bias,
                                const Tensor& w, const Packing* packing = nullptr,
                                const Tensor& state_in = {}, const Tensor& state_out = {},
                                bool reverse = false);

}  // namespace krait::ops
