// Kernels that start while the one before them in the stream still runs (sm_90 on; elsewhere one after the
// other). What such a kernel reads before wait_for_previous() must be nothing that was written since the stream's
// last ordinary launch or copy, which starts when all before it is complete: weights, and the states that the token
// before left, as each token begins with an ordinary launch (its embedding). After it, all kernels queued before are
// complete and what they wrote can be seen; it is read past the first-level cache (__ldcg), and nothing is written
// before.
#pragma once
#include "krait/tensor/cuda/launch.h"

namespace krait::cuda {

// The next kernel may start as soon as every block of this one has come here.
__device__ inline void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// `cluster` blocks along x share their memory (1: none do); grid.x is a multiple of it.
template <class... Parameters, class... Arguments>
void launch(const char* name, bool dependent, void (*kernel)(Parameters...), dim3 grid,
            dim3 threads, size_t shared_bytes, unsigned cluster, void* stream,
            const Arguments&... arguments) {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  if (dependent) {
    cudaLaunchAttribute& early = attributes[config.numAttrs++];
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 1) {
    cudaLaunchAttribute& together = attributes[config.numAttrs++];
    together.id = cudaLaunchAttributeClusterDimension;
    together.val.clusterDim.x = cluster;
    together.val.clusterDim.y = together.val.clusterDim.z = 1;
  }
  cudaLaunchKernelEx(&config, kernel, arguments...);
  check_launch(name);
}

// One that may start early, and one that starts when those before it are complete.
template <class Kernel, class... Rest>
void launch_dependent(const char* name, Kernel kernel, const Rest&... rest) {
  launch(name, true, kernel, rest...);
}
template <class Kernel, class... Rest>
void launch_in_order(const char* name, Kernel kernel, const Rest&... rest) {
  launch(name, false, kernel, rest...);
}

}  // namespace krait::cuda
