#include "krait/tensor/cuda/kernels.h"

#include <cuda_bf16.h>

#include <algorithm>

#include "krait/tensor/cuda/launch.h"

namespace krait::cuda {

namespace {

constexpr int kThreads = 256;

// Enough blocks to fill any card; the kernels loop.
unsigned blocks_for(int64_t n) {
  return static_cast<unsigned>(std::min<int64_t>(ceil_div(n, kThreads), 4096));
}

template <class T>
__global__ void fill_kernel(T* dst, int64_t n, float value) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step)
    dst[i] = T(value);
}

template <class From, class To>
__global__ void convert_kernel(const From* from, To* to, int64_t n) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step)
    to[i] = To(static_cast<float>(from[i]));
}

template <class T>
void launch_fill(T* dst, int64_t n, float value, void* stream) {
  fill_kernel<<<blocks_for(n), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(dst, n, value);
  check_launch("fill");
}

template <class From, class To>
void launch_convert(const From* from, To* to, int64_t n, void* stream) {
  convert_kernel<<<blocks_for(n), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(from, to, n);
  check_launch("convert");
}

}  // namespace

void fill_float32(float* dst, int64_t n, float value, void* stream) {
  launch_fill(dst, n, value, stream);
}

void fill_bfloat16(void* dst, int64_t n, float value, void* stream) {
  launch_fill(static_cast<__nv_bfloat16*>(dst), n, value, stream);
}

void float32_to_bfloat16(const float* from, void* to, int64_t n, void* stream) {
  launch_convert(from, static_cast<__nv_bfloat16*>(to), n, stream);
}

void bfloat16_to_float32(const void* from, float* to, int64_t n, void* stream) {
  launch_convert(static_cast<const __nv_bfloat16*>(from), to, n, stream);
}

}  // namespace krait::cuda
