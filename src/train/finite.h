// Where a run went wrong, when its numbers stop being finite.
#pragma once
#include <cstdint>

#include "krait/nn/param.h"

namespace krait {

// Throws Error naming the layer and the first parameter with a value that is not finite.
void require_finite(const nn::ParamSet& params, int64_t step);

// Throws Error naming step, layer and tensor: the first parameter that is not finite, or else the gradient
// that backward, which goes from the last layer to the first, spoilt first.
[[noreturn]] void fail_not_finite(const nn::ParamSet& params, int64_t step, double loss,
                                  double grad_norm);

}  // namespace krait
