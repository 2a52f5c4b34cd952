#include <cuda_bf16.h>

#include "krait/tensor/cuda/few_rows_stream.cuh"

namespace krait::cuda {

namespace {

struct StoreSums {
  static constexpr bool kFactors = false, kHoldsEarly = false;
  StoreRows s;
  int64_t N;

  using Held = float;  // bias + plus
  __device__ Held hold(int64_t n, int m) const {
    const float bias = s.bias ? __ldg(s.bias + n) : 0.0f;
    return s.plus ? bias + __ldcg(s.plus + m * N + n) : bias;
  }
  __device__ void operator()(int64_t n, int m, float value, Held held) const {
    const int64_t at = m * N + n;
    value += held;
    if (s.bf16) {
      static_cast<__nv_bfloat16*>(s.y)[at] = static_cast<__nv_bfloat16>(value);
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

bool few_of_wide(const FewRows& p, const StoreRows& end, void* stream) {
  if (!p.bf16 || p.N < kWideRows || p.M > kMostFewRows || !on_hopper()) return false;
  const auto streams = [&]<class Tile>(std::type_identity<Tile>) {
    const bool fits = Tile(p.K, false).fits();
    if (fits) stream_rows<Tile>(p, Normed{}, StoreSums{end, p.N}, stream);
    return fits;
  };
  return p.M <= 8 ? streams(std::type_identity<StreamTile<128, 1, 1, 1, 10>>())
                  : streams(std::type_identity<StreamTile<128, 1, 1, 2, 7>>());
}

void few_rows(const FewRows& p, const StoreRows& end, void* stream) {
  if (few_of_wide(p, end, stream)) return;
  const StoreSums store{end, p.N};
  p.bf16 ? few_rows_into<__nv_bfloat16>(p, store, stream) : few_rows_into<float>(p, store, stream);
}

}  // namespace krait::cuda
