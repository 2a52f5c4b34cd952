// rotary: rotates pairs of elements of each head by angles that grow with the position.
//
//   (a, b) -> (a cos θ - b sin θ, a sin θ + b cos θ)      θ = (start + t) · s · base^(-2i/R)
//
// pair i of R/2 is (i, i + R/2) of the first R elements of a head, or, interleaved, (2i, 2i+1); elements
// from R on are copied; s is 1, or as RotaryScaling says. Su et al. 2021 (RoPE); halves as in GPT-NeoX and Llama, R < P as in GPT-NeoX.
//
//   x (B, L, H, P)    float32 or bfloat16, tokens at one distance, heads at one distance
//   start (S, 1)      float32, optional: tokens that the sequence of that row has read before, the "length"
//                     of a key cache; row b, or state_in of the packing; -1 or no tensor: 0
//   y (B, L, H, P)    dtype of x; float32 inside, rounded once
//
// Angles are formed in float64: exact to float32 at any position. Nothing is saved for backward, which turns
// the other way.
#pragma once
#include "krait/ops/packing.h"
#include "krait/tensor/context.h"

namespace krait::ops {

// Slower turns, for texts longer than those of a first training: s = 1/factor. Where `high` is above 0 only of pairs
// with few turns in a text of `original` tokens, as Llama 3.1: with n turns s is 1 for n > high, 1/factor for n < low,
// and a straight line between them.
struct RotaryScaling {
  double factor = 1;
  double low = 0, high = 0, original = 0;

  bool operator==(const RotaryScaling&) const = default;
};

struct Rotation {
  int64_t R = 0;  // even; 0: nothing is rotated
  double base = 10000;
  bool interleaved = false;
  RotaryScaling scaling;
};

Tensor rotary(Context& c, const Tensor& x, const Rotation& rotation,
              const Packing* packing = nullptr, const Tensor& start = {});

}  // namespace krait::ops
