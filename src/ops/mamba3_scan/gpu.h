// Private to mamba3_scan: the op on a GPU. Without CUDA in the build these throw.
#pragma once
#include "krait/autograd/tape.h"
#include "krait/ops/mamba3_scan/problem.h"

namespace krait::ops::mamba3 {

struct Gradients {
  GradTarget x, z, B, C, B_bias, C_bias, dt, adt, trap, angle, D, norm, mimo_x, mimo_z, mimo_o;
  GradTarget from_angle, from_ssm, from_k, from_v;
};

// `saved` (tokens / kChunk, H, saved_size), or empty where nothing is kept.
void forward_on_gpu(Context& c, const Problem& p, const Tensor& y, const Tensor& saved);
// dy and what is in dto may be empty: zero.
void backward_on_gpu(Context& c, const Problem& p, const Tensor& dy, const Mamba3State& dto,
                     const Tensor& saved, const Gradients& g);

}  // namespace krait::ops::mamba3
