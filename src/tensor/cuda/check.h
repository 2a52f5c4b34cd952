// CUDA calls that throw krait::Error where they fail.
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

// After a launch.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

}  // namespace krait::cuda
