#include <cuda_bf16.h>

#include "krait/tensor/cuda/check.h"
#include "krait/tensor/cuda/kernels.h"

namespace krait::cuda {

namespace {

constexpr int kThreads = 256;

// Enough blocks to fill any card; the kernels loop.
unsigned blocks_for(int64_t n) { return static_cast<unsigned>(std::min<int64_t>((n + kThreads - 1) / kThreads, 4096)); }

template <class T>
__global__ void fill_kernel(T* dst, int64_t n, float value) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step) dst[i] = T(value);
}

template <class From, class To>
__global__ void convert_kernel(const From* from, To* to, int64_t n) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step)
    to[i] = To(static_cast<float>(from[i]));
}

}  // namespace

void fill(const Tensor& dst, float value, Stream stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  const int64_t n = dst.numel();
  if (value == 0.0f) return zero_bytes(dst, stream);
  if (dst.dtype == DType::bf16) {
    fill_kernel<<<blocks_for(n), kThreads, 0, s>>>(static_cast<__nv_bfloat16*>(dst.data), n, value);
  } else {
    fill_kernel<<<blocks_for(n), kThreads, 0, s>>>(dst.as<float>(), n, value);
  }
  check_launch("fill");
}

void convert(const Tensor& from, const Tensor& to, Stream stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  const int64_t n = from.numel();
  if (from.dtype == to.dtype) return copy_bytes(from, to, stream);
  if (from.dtype == DType::f32 && to.dtype == DType::bf16) {
    convert_kernel<<<blocks_for(n), kThreads, 0, s>>>(from.as<float>(), static_cast<__nv_bfloat16*>(to.data), n);
  } else if (from.dtype == DType::bf16 && to.dtype == DType::f32) {
    convert_kernel<<<blocks_for(n), kThreads, 0, s>>>(static_cast<const __nv_bfloat16*>(from.data), to.as<float>(), n);
  } else {
    fail("copy: no conversion from {} to {} on this device", name_of(from.dtype), name_of(to.dtype));
  }
  check_launch("convert");
}

}  // namespace krait::cuda
