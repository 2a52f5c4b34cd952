// The hot loops of adamw.
#pragma once
#include <cstdint>

#include "krait/base/isa.h"

namespace krait::ops {

struct AdamwPiece {
  void* value;  // float32, or bfloat16 with `low`
  uint16_t* low;
  const float* grad;
  float *m, *v;
  int64_t n;
};

// What a step multiplies with, the same for all elements of a tensor.
struct AdamwFactors {
  float clip, beta1, beta2;
  float keep;       // 1 - lr · decay
  float step;       // lr / (1 - β1^k)
  float inv_bias2;  // 1 / (1 - β2^k)
  float eps;
};

struct AdamwKernels {
  void (*update)(const AdamwPiece&, const AdamwFactors&);
  double (*sum_of_squares)(const float* x, int64_t n);
};

}  // namespace krait::ops

namespace krait {
KRAIT_DECLARE_ISA(ops::AdamwKernels, adamw_kernels)
}
