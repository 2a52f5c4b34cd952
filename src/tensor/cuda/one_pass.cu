#include "krait/tensor/cuda/one_pass.cuh"
#include "krait/tensor/cuda/store_sums.cuh"

namespace krait::cuda {

bool has_one_pass(int device) {
  int bytes = 0;
  return has_few_rows(device) &&
         cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
             cudaSuccess &&
         bytes >= 112 << 10;
}

bool on_hopper() {
  int device = 0, major = 0, minor = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
         major == 9 && minor == 0;
}

void one_pass(const OnePass& p, const StoreRows& end, void* stream) {
  one_pass_into(p, StoreSums{end, p.N}, stream);
}

}  // namespace krait::cuda
