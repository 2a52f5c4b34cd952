// What kernels share: runs of neighbouring elements as float32, and sums over a block.
#pragma once
#include <cuda_bf16.h>

#include <type_traits>

#include "krait/tensor/cuda/launch.h"

namespace krait::cuda {

template <int V, class T>
struct alignas(sizeof(T) * V) Run {
  T v[V];
};

// The first and the second of a pair of bfloat16.
__device__ inline float low_bf16(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ inline float high_bf16(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

// Asks for the line of the second-level cache that p is in.
__device__ inline void prefetch(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

// V elements at p, an address that is a multiple of their size: one access of at most 16 bytes.
template <int V, class T>
__device__ inline void load(const T* p, float (&to)[V]) {
  const Run<V, T> r = *reinterpret_cast<const Run<V, T>*>(p);
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = static_cast<float>(r.v[i]);
}

// One access past the first-level cache: of what a kernel before this one wrote where this one started while that still
// ran (launch_dependent.cuh).
template <class R>
__device__ inline R load_past(const R* p) {
  using Word = std::conditional_t<
      sizeof(R) == 16, uint4,
      std::conditional_t<sizeof(R) == 8, uint2,
                         std::conditional_t<sizeof(R) == 4, unsigned, unsigned short>>>;
  static_assert(sizeof(Word) == sizeof(R));
  const Word word = __ldcg(reinterpret_cast<const Word*>(p));
  return *reinterpret_cast<const R*>(&word);
}
template <int V, class T>
__device__ inline void load_past(const T* p, float (&to)[V]) {
  const Run<V, T> r = load_past(reinterpret_cast<const Run<V, T>*>(p));
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = static_cast<float>(r.v[i]);
}

// N floats at p, whose address is a multiple of 16, in accesses of four.
template <int N>
__device__ inline void load_fours(const float* p, float (&to)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    float run[4];
    load<4>(p + i, run);
#pragma unroll
    for (int j = 0; j < 4; ++j) to[i + j] = run[j];
  }
}

template <int V>
__device__ inline void store(float* p, const float (&from)[V]) {
  Run<V, float> r;
#pragma unroll
  for (int i = 0; i < V; ++i) r.v[i] = from[i];
  *reinterpret_cast<Run<V, float>*>(p) = r;
}

// A pair is rounded by one instruction; as words, since a run of __nv_bfloat16 may be stored one by one.
template <int V>
__device__ inline void store(__nv_bfloat16* p, const float (&from)[V]) {
  if constexpr (V == 1) {
    *p = __float2bfloat16(from[0]);
  } else {
    Run<V / 2, unsigned> r;
#pragma unroll
    for (int i = 0; i < V / 2; ++i) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
      r.v[i] = *reinterpret_cast<const unsigned*>(&pair);
    }
    *reinterpret_cast<Run<V / 2, unsigned>*>(p) = r;
  }
}

// The values, added to what is there where `add`: a gradient.
template <int V, class T>
__device__ inline void store_or_add(T* to, float (&value)[V], bool add) {
  if (add) {
    float old[V];
    load<V>(to, old);
#pragma unroll
    for (int v = 0; v < V; ++v) value[v] += old[v];
  }
  store<V>(to, value);
}

// Whether rows of `bytes` an element, `step` elements apart, can be walked in runs of V.
inline bool in_runs(const void* p, int64_t step, int64_t bytes, int64_t V) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(V * bytes) == 0 && step % V == 0;
}

// Σ x over the block (whole warps), the same in every thread, in a fixed order. All threads call it.
template <class T>
__device__ inline T block_sum(T x) {
  __shared__ T of_warps[32];
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
  __syncthreads();  // an earlier call may still be reading
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
  __syncthreads();
  T sum = 0;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) sum += of_warps[w];
  return sum;
}

// The largest x of the block, in every thread.
__device__ inline float block_max(float x) {
  __shared__ float of_warps[32];
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lane));
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = x;
  __syncthreads();
  float most = of_warps[0];
  for (unsigned w = 1; w < blockDim.x / 32; ++w) most = fmaxf(most, of_warps[w]);
  return most;
}

}  // namespace krait::cuda
