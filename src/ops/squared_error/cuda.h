// Private to this room: squared_error on the GPU.
#pragma once
#include <cstdint>

#include "krait/ops/cross_entropy/loss_scale.h"

namespace krait::cuda {

// each[i] = (y[i] - targets[i])², loss = scale · Σ each; dy (+)= its gradient, unless null.
void squared_error(const float* y, const float* targets, int64_t n, ops::LossScale scale,
                   float* each, float* loss, float* dy, bool add, void* stream);

}  // namespace krait::cuda
