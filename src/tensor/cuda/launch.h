// What a cuda.cu may include besides CUDA's headers: no fmt (nvcc cannot compile it as C++20), no tensors.
// Kernels take raw pointers and sizes, as those of cpu_simd.cpp do.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace krait::cuda {

// After a launch: throws krait::Error with the kernel's name where it failed.
void check_launch(const char* kernel);

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace krait::cuda
