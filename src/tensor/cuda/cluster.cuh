// Blocks of a cluster, which read each other's shared memory (sm_90 on; elsewhere a block is
// alone).
#pragma once
#include <cstdint>
#include <cstring>

namespace krait::cuda {

__device__ inline unsigned rank_in_cluster() {
#if __CUDA_ARCH__ >= 900
  unsigned r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
#else
  return 0;
#endif
}

// What the blocks wrote into their shared memory can be seen by the others after it.
__device__ inline void synchronize_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// No block goes on from wait_in_cluster() before all have come to arrive_in_cluster().
__device__ inline void arrive_in_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ inline void wait_in_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
#endif
}

// No block leaves before all have come here.
__device__ inline void leave_cluster() {
  arrive_in_cluster();
  wait_in_cluster();
}

// The address of `p`, in this block's shared memory, in that of the cluster's block `rank`.
__device__ inline unsigned address_in_block(const void* p, unsigned rank) {
  unsigned at = 0;
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(at)
      : "r"(static_cast<unsigned>(__cvta_generic_to_shared(p))), "r"(rank));
#endif
  return at;
}

// The value of 4 or 8 bytes at `p`, an address in this block's shared memory, of the cluster's block `rank`.
template <class T>
__device__ inline T of_block(const T* p, unsigned rank) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  T x{};
#if __CUDA_ARCH__ >= 900
  if constexpr (sizeof(T) == 4) {
    unsigned bits;
    asm volatile("ld.shared::cluster.b32 %0, [%1];"
                 : "=r"(bits)
                 : "r"(address_in_block(p, rank))
                 : "memory");
    memcpy(&x, &bits, sizeof(T));
  } else {
    unsigned long long bits;
    asm volatile("ld.shared::cluster.b64 %0, [%1];"
                 : "=l"(bits)
                 : "r"(address_in_block(p, rank))
                 : "memory");
    memcpy(&x, &bits, sizeof(T));
  }
#endif
  return x;
}

// The same of four floats, 16 bytes aligned.
__device__ inline float4 four_of_block(const float* p, unsigned rank) {
  float4 x{};
#if __CUDA_ARCH__ >= 900
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(address_in_block(p, rank))
               : "memory");
#endif
  return x;
}

// Whether the kernel, as it was loaded, was compiled with what is above.
inline bool has_clusters(const void* kernel) {
  cudaFuncAttributes of{};
  return cudaFuncGetAttributes(&of, kernel) == cudaSuccess && of.ptxVersion >= 90;
}

}  // namespace krait::cuda
