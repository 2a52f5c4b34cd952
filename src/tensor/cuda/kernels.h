// Kernels behind krait/tensor/memory.h, on n contiguous elements.
#pragma once
#include <cstdint>

namespace krait::cuda {

void fill_float32(float* dst, int64_t n, float value, void* stream);
void fill_bfloat16(void* dst, int64_t n, float value, void* stream);
void float32_to_bfloat16(const float* from, void* to, int64_t n, void* stream);
void bfloat16_to_float32(const void* from, float* to, int64_t n, void* stream);

}  // namespace krait::cuda
