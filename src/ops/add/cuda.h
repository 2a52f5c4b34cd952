// Private to this room: add on the GPU.
#pragma once
#include <cstdint>

namespace krait::cuda {

// y = factor (a + b), n elements.
void add(const void* a, const void* b, bool bf16, float factor, void* y, int64_t n, void* stream);

}  // namespace krait::cuda
