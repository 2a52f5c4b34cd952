#include "krait/ops/pool/cuda.h"

#include <cuda_bf16.h>

#include "krait/tensor/cuda/launch.h"

namespace krait::cuda {

namespace {

constexpr int kColumns = 32, kSlices = 16;  // of a block that sums over time
constexpr int kThreads = 256;
constexpr unsigned kBlocks = 32;  // of a sequence, where its elements are walked

struct Range {
  int64_t begin, end;
};

__device__ inline Range tokens_of(const PooledRows& r, int64_t s) {
  if (!r.begin) return {s * r.L, (s + 1) * r.L};
  return {r.begin[s], r.begin[s + 1]};
}

// The tokens of sequence s that count for y[s] = weight · Σ x[t].
__device__ inline Range counted(const PooledRows& r, int64_t s, bool mean, float& weight) {
  const Range all = tokens_of(r, s);
  weight = all.end == all.begin ? nanf("") : mean ? 1 / static_cast<float>(all.end - all.begin) : 1;
  return mean || all.end == all.begin ? all : Range{all.end - 1, all.end};
}

// A warp has a slice of the tokens and 32 columns; the slices are added in their order.
template <class T>
__global__ void forward_kernel(const PooledRows r, bool mean, const T* x, T* y) {
  __shared__ float of_slice[kSlices][kColumns];
  const int64_t s = blockIdx.x, d = int64_t{blockIdx.y} * kColumns + threadIdx.x;
  float weight;
  const Range p = counted(r, s, mean, weight);
  const int64_t slice = (p.end - p.begin + kSlices - 1) / kSlices;
  const int64_t begin = p.begin + threadIdx.y * slice, end = min(p.end, begin + slice);
  float sum = 0;
  if (d < r.D) {
#pragma unroll 8
    for (int64_t t = begin; t < end; ++t) sum += static_cast<float>(x[t * r.D + d]);
  }
  of_slice[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || d >= r.D) return;
  float total = 0;
  for (int i = 0; i < kSlices; ++i) total += of_slice[i][threadIdx.x];
  y[s * r.D + d] = static_cast<T>(weight * total);
}

template <class T>
__global__ void backward_kernel(const PooledRows r, bool mean, const T* dy, T* dx) {
  const int64_t s = blockIdx.x, step = int64_t{gridDim.y} * blockDim.x;
  float weight;
  const Range p = counted(r, s, mean, weight);
  const int64_t n = (p.end - p.begin) * r.D;
  for (int64_t i = int64_t{blockIdx.y} * blockDim.x + threadIdx.x; i < n; i += step) {
    T& to = dx[p.begin * r.D + i];
    to =
        static_cast<T>(static_cast<float>(to) + weight * static_cast<float>(dy[s * r.D + i % r.D]));
  }
}

__global__ void put_kernel(const PooledRows r, const float* token, float* y) {
  const Range p = tokens_of(r, blockIdx.x);
  if (p.begin == p.end) return;
  for (int64_t d = threadIdx.x; d < r.D; d += blockDim.x) y[(p.end - 1) * r.D + d] = token[d];
}

__global__ void put_backward_kernel(const PooledRows r, const float* dy, float* dx, bool add) {
  const Range p = tokens_of(r, blockIdx.x);
  const int64_t step = int64_t{gridDim.y} * blockDim.x, end = p.end * r.D, last = end - r.D;
  for (int64_t i = p.begin * r.D + int64_t{blockIdx.y} * blockDim.x + threadIdx.x; i < end;
       i += step) {
    const float g = i < last ? dy[i] : 0.0f;
    dx[i] = add ? dx[i] + g : g;
  }
}

// A thread a column, through the sequences in their order.
__global__ void token_kernel(const PooledRows r, const float* dy, float* dtoken, bool add) {
  const int64_t d = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (d >= r.D) return;
  float sum = 0;
  for (int64_t s = 0; s < r.n; ++s) {
    const Range p = tokens_of(r, s);
    if (p.begin < p.end) sum += dy[(p.end - 1) * r.D + d];
  }
  dtoken[d] = add ? dtoken[d] + sum : sum;
}

unsigned blocks(int64_t n) { return static_cast<unsigned>(n); }

}  // namespace

void pool_forward(const PooledRows& r, bool mean, const void* x, bool bf16, void* y, void* stream) {
  if (r.n * r.D == 0) return;
  const auto run = [&](auto type) {
    using T = decltype(type);
    const dim3 grid(blocks(r.n), blocks(ceil_div(r.D, kColumns)));
    forward_kernel<<<grid, dim3(kColumns, kSlices), 0, static_cast<cudaStream_t>(stream)>>>(
        r, mean, static_cast<const T*>(x), static_cast<T*>(y));
  };
  bf16 ? run(__nv_bfloat16()) : run(0.0f);
  check_launch("pool");
}

void pool_backward(const PooledRows& r, bool mean, const void* dy, bool bf16, void* dx,
                   void* stream) {
  if (r.n * r.D == 0) return;
  const auto run = [&](auto type) {
    using T = decltype(type);
    const dim3 grid(blocks(r.n), mean ? kBlocks : 1);
    backward_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        r, mean, static_cast<const T*>(dy), static_cast<T*>(dx));
  };
  bf16 ? run(__nv_bfloat16()) : run(0.0f);
  check_launch("pool backward");
}

void put_last_forward(const PooledRows& r, const float* token, float* y, void* stream) {
  if (r.n * r.D == 0) return;
  put_kernel<<<blocks(r.n), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(r, token, y);
  check_launch("put_last");
}

void put_last_backward(const PooledRows& r, const float* dy, float* dx, bool add_x, float* dtoken,
                       bool add_token, void* stream) {
  if (r.D == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  if (dx && r.n > 0)
    put_backward_kernel<<<dim3(blocks(r.n), kBlocks), kThreads, 0, s>>>(r, dy, dx, add_x);
  if (dtoken)
    token_kernel<<<blocks(ceil_div(r.D, kThreads)), kThreads, 0, s>>>(r, dy, dtoken, add_token);
  check_launch("put_last backward");
}

}  // namespace krait::cuda
