// Blocks of a cluster, which read each other's shared memory (sm_90 on; elsewhere a block is
// alone).
#pragma once
#include <cstdint>
#include <cstring>

#include "krait/tensor/cuda/hopper.cuh"

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

// What a block has of `count` things that the blocks of its cluster share out; count · blocks is below 2^32. In divisions of
// 32 bits: kernels ask for their first weights behind this, and those of 64 bits took longer than all else before.
struct ClusterShare {
  int first, end;
  unsigned cluster;  // of the grid

  __device__ ClusterShare(int64_t count, unsigned rank, int blocks) {
    const auto things = static_cast<unsigned>(count), all = static_cast<unsigned>(blocks);
    first = static_cast<int>(things * rank / all);
    end = static_cast<int>(things * (rank + 1) / all);
    cluster = blockIdx.x / all;
  }
};

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

// Values that blocks of a cluster send straight into the shared memory of one of them, where a barrier counts them:
// synchronize_cluster() waits for all that a block has on its way to any memory. One thread of a block tells how many
// bytes come; behind arrive_in_cluster() and wait_in_cluster() others may send.
__device__ inline void expect_in_block([[maybe_unused]] uint64_t* barrier,
                                       [[maybe_unused]] unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  start_barrier(barrier, 1);
  fence_barriers();
  arrive_expecting(barrier, bytes);
#endif
}

// 4, 8 or 16 bytes. `p` and `barrier` are addresses in this block's shared memory; they are meant in that of the block
// `rank`.
template <class T>
__device__ inline void send_to_block([[maybe_unused]] T* p, [[maybe_unused]] T x,
                                     [[maybe_unused]] uint64_t* barrier,
                                     [[maybe_unused]] unsigned rank) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
#if __CUDA_ARCH__ >= 900
  if constexpr (sizeof(T) == 16) {
    uint32_t bits[4];
    memcpy(bits, &x, sizeof(T));
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
        "[%5];" ::"r"(address_in_block(p, rank)),
        "r"(bits[0]), "r"(bits[1]), "r"(bits[2]), "r"(bits[3]), "r"(address_in_block(barrier, rank))
        : "memory");
  } else if constexpr (sizeof(T) == 4) {
    unsigned bits;
    memcpy(&bits, &x, sizeof(T));
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
            address_in_block(p, rank)),
        "r"(bits), "r"(address_in_block(barrier, rank))
        : "memory");
  } else {
    unsigned long long bits;
    memcpy(&bits, &x, sizeof(T));
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(
            address_in_block(p, rank)),
        "l"(bits), "r"(address_in_block(barrier, rank))
        : "memory");
  }
#endif
}

// Until all that this block expects in the phase of this parity has come: each thread that reads it.
__device__ inline void wait_for_sent([[maybe_unused]] uint64_t* barrier,
                                     [[maybe_unused]] unsigned parity = 0) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
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
