// The hot loops of the sampler.
#pragma once
#include <cstdint>

#include "krait/base/isa.h"

namespace krait::ops {

struct SamplerKernels {
  // The largest of n > 0 elements; NaN where there is one.
  float (*largest)(const float* x, int64_t n);
  // Σ exp((x - m) · factor); the terms go to `terms` unless it is null.
  double (*sum_of_exp)(const float* x, int64_t n, float m, float factor, float* terms);
};

}  // namespace krait::ops

namespace krait {
KRAIT_DECLARE_ISA(ops::SamplerKernels, sampler_kernels)
}
