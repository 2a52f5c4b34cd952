// CUDA calls that throw krait::Error where they fail. Not for .cu files: see launch.h.
#pragma once
#include <cuda_runtime_api.h>

#include "krait/base/error.h"

namespace krait::cuda {

inline void check(cudaError_t e, const char* what) {
  if (e != cudaSuccess) [[unlikely]] {
    cudaGetLastError();  // a failed call must not be reported again by the next one
    fail("CUDA: {}: {}", what, cudaGetErrorString(e));
  }
}

}  // namespace krait::cuda
