#include "krait/tensor/cuda/math.h"
#include "krait/tensor/cuda/one_pass.cuh"
#include "krait/tensor/cuda/rows_sum.cuh"

namespace krait::cuda {

namespace {

// Stores four neighbouring elements at once.
struct StoreFours {
  static constexpr bool kFactors = false;
  static constexpr bool kFours = true;
  StoreRows s;
  int64_t N;
  bool aligned;  // fours of y, bias and plus

  using Held = float4;  // bias + plus
  __device__ Held hold(int64_t n, int m) const {
    float v[4] = {}, more[4] = {};
    if (s.bias) get(s.bias + n, v, n, [](const auto* p) { return __ldg(p); });
    if (s.plus) get(s.plus + m * N + n, more, n, [](const auto* p) { return __ldcg(p); });
    return {v[0] + more[0], v[1] + more[1], v[2] + more[2], v[3] + more[3]};
  }
  __device__ void operator()(int64_t n, int m, float4 sums, const Held& held) const {
    const int64_t at = m * N + n;
    const float v[4] = {sums.x + held.x, sums.y + held.y, sums.z + held.z, sums.w + held.w};
    if (s.bf16) {
      put(static_cast<__nv_bfloat16*>(s.y) + at, v, n);
    } else {
      put(static_cast<float*>(s.y) + at, v, n);
    }
  }

 private:
  template <class Read>
  __device__ void get(const float* p, float (&v)[4], int64_t n, const Read& read) const {
    if (aligned) {
      const float4 four = read(reinterpret_cast<const float4*>(p));
      v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (n + i < N) v[i] = read(p + i);
  }
  template <class T>
  __device__ void put(T* y, const float (&v)[4], int64_t n) const {
    if (aligned) return store<4>(y, v);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (n + i < N) y[i] = static_cast<T>(v[i]);
  }
};

}  // namespace

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
  const FewRows few{
      .w = p.w, .x = p.x, .x_step = p.x_step, .bf16 = true, .M = p.M, .N = p.N, .K = p.K};
  if (few_of_wide(few, end, stream)) return;
  const bool aligned = in_runs(end.y, p.N, end.bf16 ? 2 : 4, 4) && in_runs(end.bias, p.N, 4, 4) &&
                       in_runs(end.plus, p.N, 4, 4);
  if (aligned && !end.bias && !end.bf16 && p.M > kMostFewRows && on_hopper()) {
    const RowsSum sum{p, static_cast<float*>(end.y)};
    if (end.plus ? end.plus == end.y && rows_added(sum, NoFactors{}, stream)
                 : narrow_rows(sum, stream))
      return;
  }
  one_pass_into(p, StoreFours{end, p.N, aligned}, stream);
}

}  // namespace krait::cuda
