// The hot loop of linear_cross_entropy: one row of logits.
#pragma once
#include <cstdint>

#include "krait/base/isa.h"

namespace krait::ops {

enum class LogitsGrad { none, f32, bf16 };

struct CrossEntropyKernels {
  // Returns logsumexp(logits) - logits[target] and, unless `none`, overwrites the row with
  // scale · (softmax - onehot(target)): V float32, or V bfloat16 in the first half of the row's memory.
  double (*row)(float* logits, int64_t V, int64_t target, float scale, LogitsGrad grad);
};

}  // namespace krait::ops

namespace krait {
KRAIT_DECLARE_ISA(ops::CrossEntropyKernels, cross_entropy_kernels)
}
