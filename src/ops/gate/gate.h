// gate: an activation function, and the product with a second tensor, element by element.
//
//   y = f(g) · u        (u optional; then y = f(g))
//
//   silu       g / (1 + e^-g)                  Elfwing et al. 2017; with u: SwiGLU, Shazeer 2020
//   gelu       g Φ(g), Φ the normal distribution      Hendrycks and Gimpel 2016
//   gelu_tanh  g/2 (1 + tanh(sqrt(2/π) (g + 0.044715 g³)))      its approximation there
//   sigmoid    1 / (1 + e^-g)                  with u: GLU, Dauphin et al. 2016
//   relu       max(g, 0)
//   relu2      max(g, 0)²                      So et al. 2021
//
//   g, u (..., F)   float32 or bfloat16, the same; rows at one distance (halves of one product's output)
//   y (..., F)      dtype of g; float32 inside, rounded once
//
// Gradients for g and u. Saved for backward: g and u. At 0 the slopes of relu and relu2 are 0.
#pragma once
#include "krait/ops/gate/kind.h"
#include "krait/tensor/context.h"

namespace krait::ops {

Tensor gate(Context& c, Gate kind, const Tensor& g, const Tensor& u = {});

}  // namespace krait::ops
