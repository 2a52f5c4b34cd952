// Private to selective_scan: the op on a GPU. Without CUDA in the build these throw.
#pragma once
#include "krait/autograd/tape.h"
#include "krait/ops/selective_scan/cuda.h"
#include "krait/ops/selective_scan/problem.h"

namespace krait::ops::scan {

struct Gradients {
  GradTarget u, dt, z, A, B, C, D, dt_bias, state_in;
};

// `saved` (tokens / cuda_saved_interval(N), E, N), or empty where nothing is kept.
void forward_on_gpu(Context& c, const Problem& p, const Tensor& y, const Tensor& saved);
// Whether backward can write y again, where u, dt and z have gradients.
bool remakes_y_on_gpu(const Problem& p);
// dy and dstate may be empty: zero. y: where it is to be written again, or empty.
void backward_on_gpu(Context& c, const Problem& p, const Tensor& dy, const Tensor& dstate,
                     const Tensor& saved, const Tensor& y, const Gradients& g);

}  // namespace krait::ops::scan
