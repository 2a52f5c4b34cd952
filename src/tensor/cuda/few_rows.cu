#include "krait/tensor/cuda/few_rows.cuh"
#include "krait/tensor/cuda/store_sums.cuh"

namespace krait::cuda {

bool has_few_rows(int device) {
  int major = 0;
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major >= 9;
}

void few_rows(const FewRows& p, const StoreRows& end, void* stream) {
  const StoreSums store{end, p.N};
  p.bf16 ? few_rows_into<__nv_bfloat16>(p, store, stream) : few_rows_into<float>(p, store, stream);
}

}  // namespace krait::cuda
