#include <math.h>

#include "krait/ops/cross_entropy/kernels.h"
#include "krait/ops/simd_softmax.h"

namespace krait::KRAIT_ISA {

using ops::LogitsGrad;

namespace {

double row(float* logits, int64_t V, int64_t target, float scale, LogitsGrad grad) {
  const float m = largest(logits, V), at_target = logits[target];
  const double sum = sum_of_exp(logits, V, m, 1.0f, grad == LogitsGrad::none ? nullptr : logits);
  if (grad != LogitsGrad::none) {
    const float factor = static_cast<float>(static_cast<double>(scale) / sum);
    const float p = logits[target];  // sum · softmax
    const float d_target =
        static_cast<float>(static_cast<double>(scale) * (static_cast<double>(p) / sum - 1.0));
    if (grad == LogitsGrad::f32) {
      for_lanes(0, V, [&](auto d, int64_t i) HWY_ATTR {
        hn::StoreU(hn::Mul(hn::LoadU(d, logits + i), hn::Set(d, factor)), d, logits + i);
      });
      logits[target] = d_target;
    } else {
      // In ascending order a result never overwrites what is still to be read.
      bf16* const out = reinterpret_cast<bf16*>(logits);
      for_lanes(0, V, [&](auto d, int64_t i) HWY_ATTR {
        store(d, hn::Mul(hn::LoadU(d, logits + i), hn::Set(d, factor)), out + i);
      });
      store(OneLane(), hn::Set(OneLane(), d_target), out + target);
    }
  }
  return static_cast<double>(m) - static_cast<double>(at_target) + log(sum);
}

}  // namespace

extern const ops::CrossEntropyKernels cross_entropy_kernels = {row};

}  // namespace krait::KRAIT_ISA
