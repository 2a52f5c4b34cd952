#include "krait/ops/add/cuda.h"

#include <cuda_bf16.h>

#include <algorithm>

#include "krait/tensor/cuda/launch.h"

namespace krait::cuda {

namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void add_kernel(const T* a, const T* b, float factor, T* y, int64_t n) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step)
    y[i] = static_cast<T>(factor * (static_cast<float>(a[i]) + static_cast<float>(b[i])));
}

}  // namespace

void add(const void* a, const void* b, bool bf16, float factor, void* y, int64_t n, void* stream) {
  if (n == 0) return;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(ceil_div(n, kThreads), 4096));
  const auto run = [&](auto type) {
    using T = decltype(type);
    add_kernel<T><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        static_cast<const T*>(a), static_cast<const T*>(b), factor, static_cast<T*>(y), n);
  };
  bf16 ? run(__nv_bfloat16()) : run(0.0f);
  check_launch("add");
}

}  // namespace krait::cuda
