#include "krait/tensor/cuda/few_rows.cuh"

namespace krait::cuda {

namespace {

struct Store {
  StoreRows s;
  int64_t N;

  __device__ void operator()(int64_t n, int m, float value) const {
    const int64_t at = m * N + n;
    if (s.bias) value += s.bias[n];
    if (s.plus) value += __ldcg(s.plus + at);
    if (s.bf16) {
      static_cast<__nv_bfloat16*>(s.y)[at] = __float2bfloat16_rn(value);
    } else {
      static_cast<float*>(s.y)[at] = value;
    }
  }
};

}  // namespace

bool has_few_rows(int device) {
  int major = 0;
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major >= 9;
}

void few_rows(const FewRows& p, const StoreRows& end, void* stream) {
  const Store store{end, p.N};
  p.bf16 ? few_rows_into<__nv_bfloat16>(p, store, stream) : few_rows_into<float>(p, store, stream);
}

}  // namespace krait::cuda
