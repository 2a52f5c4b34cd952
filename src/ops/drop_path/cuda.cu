#include "krait/ops/drop_path/cuda.h"

#include <cuda_bf16.h>

#include <algorithm>

#include "krait/tensor/cuda/launch.h"
#include "krait/tensor/cuda/philox.cuh"

namespace krait::cuda {

namespace {

constexpr int kThreads = 256;

// As Philox::uniform of the row's number says.
__device__ float scale_of(const DropPathRows& rows, uint64_t b) {
  if (rows.p == 0) return 1;
  const uint32_t word =
      philox(rows.seed, rows.stream + (rows.offset ? *rows.offset : 0), b / 4).v[b % 4];
  return static_cast<float>(word >> 8) * 0x1p-24f >= rows.p ? 1 / (1 - rows.p) : 0.0f;
}

template <class T>
__global__ void forward_kernel(const DropPathRows rows, const T* x, const float* stream, float* y) {
  const int64_t n = rows.n;
  const float scale = scale_of(rows, blockIdx.x);
  x += blockIdx.x * n, stream += blockIdx.x * n, y += blockIdx.x * n;
  const int64_t step = int64_t{gridDim.y} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.y} * blockDim.x + threadIdx.x; i < n; i += step)
    y[i] = stream[i] + scale * static_cast<float>(x[i]);
}

template <class T>
__global__ void backward_kernel(const DropPathRows rows, const float* dy, T* dx, bool add) {
  const int64_t n = rows.n;
  const float scale = scale_of(rows, blockIdx.x);
  dy += blockIdx.x * n, dx += blockIdx.x * n;
  const int64_t step = int64_t{gridDim.y} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.y} * blockDim.x + threadIdx.x; i < n; i += step)
    dx[i] = static_cast<T>((add ? static_cast<float>(dx[i]) : 0.0f) + scale * dy[i]);
}

// Blocks of a row in a column of the grid.
dim3 grid_of(const DropPathRows& rows) {
  return {static_cast<unsigned>(rows.B),
          static_cast<unsigned>(std::min<int64_t>(ceil_div(rows.n, 4 * kThreads), 1024))};
}

}  // namespace

void drop_path_forward(const DropPathRows& rows, const void* x, bool bf16, const float* stream_in,
                       float* y, void* stream) {
  if (rows.B * rows.n == 0) return;
  const auto run = [&](auto type) {
    using T = decltype(type);
    forward_kernel<<<grid_of(rows), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        rows, static_cast<const T*>(x), stream_in, y);
  };
  bf16 ? run(__nv_bfloat16()) : run(0.0f);
  check_launch("drop_path_add");
}

void drop_path_backward(const DropPathRows& rows, const float* dy, void* dx, bool bf16, bool add,
                        void* stream) {
  if (rows.B * rows.n == 0) return;
  const auto run = [&](auto type) {
    using T = decltype(type);
    backward_kernel<<<grid_of(rows), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        rows, dy, static_cast<T*>(dx), add);
  };
  bf16 ? run(__nv_bfloat16()) : run(0.0f);
  check_launch("drop_path_add backward");
}

}  // namespace krait::cuda
