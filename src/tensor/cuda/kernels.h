// Kernels behind krait/tensor/memory.h.
#pragma once
#include "krait/tensor/device.h"

namespace krait::cuda {

void fill(const Tensor& dst, float value, Stream stream);
void convert(const Tensor& from, const Tensor& to, Stream stream);  // float32 and bfloat16, any pair

}  // namespace krait::cuda
