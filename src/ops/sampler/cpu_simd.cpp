#include "krait/ops/sampler/kernels.h"
#include "krait/ops/simd_softmax.h"

namespace krait::KRAIT_ISA {

static float largest_of(const float* x, int64_t n) { return largest(x, n); }

static double sum_of_exp_of(const float* x, int64_t n, float m, float factor, float* terms) {
  return sum_of_exp(x, n, m, factor, terms);
}

extern const ops::SamplerKernels sampler_kernels = {largest_of, sum_of_exp_of};

}  // namespace krait::KRAIT_ISA
