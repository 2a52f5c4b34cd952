// Private to this room: squared_error on the GPU.
#pragma once
#include <cstdint>

namespace krait::cuda {

// each[i] = (y[i] - targets[i])², loss = scale · Σ each; dy (+)= its gradient, unless null.
void squared_error(const float* y, const float* targets, int64_t n, float scale, float* each,
                   float* loss, float* dy, bool add, void* stream);

}  // namespace krait::cuda
