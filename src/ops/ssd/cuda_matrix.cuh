// Private to ssd: what its kernels on matrix units share. Operands of products are bfloat16, sums float32. Eight
// warps work on chunks of 64 tokens, a warp on 16 rows of a tile, laid out as tensor/cuda/mma.h says.
#pragma once
#include "krait/ops/ssd/cuda_device.cuh"
#include "krait/tensor/cuda/math.h"
#include "krait/tensor/cuda/mma.h"

namespace krait::ops::ssd_gpu {
namespace {

using bf16 = __nv_bfloat16;

constexpr int kQ = static_cast<int>(chunk_of(true));
constexpr int kPad =
    8;  // elements behind a row in shared memory: eight rows then lie in different banks
constexpr int kLdP = kP + kPad, kLdQ = kQ + kPad;
template <int NT>
constexpr int kLdN = 64 * NT + kPad;

__device__ inline int lane_of() { return static_cast<int>(threadIdx.x % 32); }

using cuda::low_bf16, cuda::high_bf16;

// To `to` (kRows, kColumns), rows ld apart: rows [row, row + valid) of r, columns [column, column + columns), and
// zeros beyond. By kThreads threads, of which this is number `thread`; on its way when the call returns.
template <int kRows, int kColumns, int kThreads>
__device__ inline void bring_async(bf16* to, int ld, const CudaRows& r, int64_t row, int valid,
                                   int column, int columns, int thread) {
  if (r.runs) {
    constexpr int kRuns = kColumns / 8, kStep = kThreads / kRuns;
    static_assert(kThreads % kRuns == 0 && kRows % kStep == 0);
    const int first = thread / kRuns, c = thread % kRuns * 8;
    const int left = c < columns ? valid - first : 0, step = kStep * static_cast<int>(r.stride);
    const bf16* from = static_cast<const bf16*>(r.data) + (row + first) * r.stride + column + c;
    to += first * ld + c;
#pragma unroll
    for (int t = 0; t < kRows; t += kStep, from += step)
      cuda::copy_async(to + t * ld, from, t < left);
    return;
  }
#pragma unroll 1
  for (int i = thread; i < kRows * kColumns; i += kThreads) {
    const int t = i / kColumns, c = i % kColumns;
    const bool there = r.data && t < valid && c < columns;
    to[t * ld + c] = static_cast<bf16>(there ? get(r, row + t, column + c) : 0.0f);
  }
}

// Two lanes next to each other have each a pair of neighbouring columns of two tiles of 8 columns, left and
// right; afterwards the even lane has four of the left tile, the odd one four of the right: columns
// four_of_lane() and on.
template <class Pair>
struct Four {
  Pair low, high;
};
__device__ inline int four_of_lane() { return lane_of() % 2 * 8 + lane_of() % 4 / 2 * 4; }
__device__ inline Four<uint32_t> exchange_pairs(uint32_t left, uint32_t right) {
  const bool odd = lane_of() % 2 != 0;
  const uint32_t other = __shfl_xor_sync(~0u, odd ? left : right, 1);
  return odd ? Four<uint32_t>{other, right} : Four<uint32_t>{left, other};
}
__device__ inline Four<float2> exchange_pairs(float2 left, float2 right) {
  const bool odd = lane_of() % 2 != 0;
  const float2 sent = odd ? left : right;
  const float2 other = {__shfl_xor_sync(~0u, sent.x, 1), __shfl_xor_sync(~0u, sent.y, 1)};
  return odd ? Four<float2>{other, right} : Four<float2>{left, other};
}

// Four neighbouring columns from `column` on, a multiple of 4.
__device__ inline void put_four(const CudaRows& r, int64_t row, int column, Four<uint32_t> v) {
  if (r.runs) {
    *reinterpret_cast<uint2*>(static_cast<bf16*>(r.data) + row * r.stride + column) =
        make_uint2(v.low, v.high);
    return;
  }
  put(r, row, column, low_bf16(v.low));
  put(r, row, column + 1, high_bf16(v.low));
  put(r, row, column + 2, low_bf16(v.high));
  put(r, row, column + 3, high_bf16(v.high));
}
__device__ inline void put_four(const CudaRows& r, int64_t row, int column, Four<float2> v) {
  if (r.runs && r.bf16 && !r.add) {
    *reinterpret_cast<uint2*>(static_cast<bf16*>(r.data) + row * r.stride + column) =
        make_uint2(cuda::pack_bf16(v.low.x, v.low.y), cuda::pack_bf16(v.high.x, v.high.y));
    return;
  }
  if (r.runs && !r.bf16 && !r.add) {
    *reinterpret_cast<float4*>(static_cast<float*>(r.data) + row * r.stride + column) =
        make_float4(v.low.x, v.low.y, v.high.x, v.high.y);
    return;
  }
  put(r, row, column, v.low.x);
  put(r, row, column + 1, v.low.y);
  put(r, row, column + 2, v.high.x);
  put(r, row, column + 3, v.high.y);
}

// Bytes that a block can have.
inline size_t shared_memory_of_block() {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return static_cast<size_t>(bytes);
}

}  // namespace
}  // namespace krait::ops::ssd_gpu
