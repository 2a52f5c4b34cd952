// Private to this room: AdamW on the GPU, many tensors a launch.
#pragma once
#include <cstdint>
#include <vector>

#include "krait/ops/adamw/kernels.h"

namespace krait::cuda {

struct AdamwTensor {
  void* value;    // float32, or bfloat16 with `low`
  uint16_t* low;  // or null
  const float* grad;
  float *m, *v;
  int64_t n;
  float decay, rate;
};

// `scalars`: StepScalar values, read when the kernels run.
void adamw(const std::vector<AdamwTensor>& tensors, float beta1, float beta2, float eps,
           const float* scalars, void* stream);

void split(const float* p, void* value, uint16_t* low, float* v, int64_t n, void* stream);

struct Floats {
  const float* data;
  int64_t n;
};

// Elements of one partial sum; `sums`: one float64 for each piece of each tensor.
constexpr int64_t kGradPiece = 1 << 16;
// Of gradients and losses (any number).
void clip_grad_norm(const std::vector<Floats>& grads, const Floats& losses, float limit,
                    double* sums, float* scalars, void* stream);

}  // namespace krait::cuda
