#include "krait/ops/mamba1_step/cuda.h"

#include "krait/tensor/cuda/exponentials.cuh"
#include "krait/tensor/cuda/few_rows.cuh"

namespace krait::cuda {

namespace {

using bfloat16 = __nv_bfloat16;

// What becomes of an element of in_proj's output: z as it is, x through a step of the convolution.
template <class T>
struct ConvStep {
  const float *taps, *bias;
  float* state;
  T *u, *z;
  int64_t E;

  __device__ void operator()(int64_t n, int m, float value) const {
    const T rounded = static_cast<T>(value);
    if (n >= E) {
      z[m * E + n - E] = rounded;
      return;
    }
    const float x = static_cast<float>(rounded);
    float4* const inputs = reinterpret_cast<float4*>(state) + m * E + n;
    const float4 before = __ldcg(inputs), k = __ldg(reinterpret_cast<const float4*>(taps) + n);
    *inputs = {before.y, before.z, before.w, x};
    float y = bias ? bias[n] : 0.0f;
    y = fmaf(k.x, before.y, y);
    y = fmaf(k.y, before.z, y);
    y = fmaf(k.z, before.w, y);
    y = fmaf(k.w, x, y);
    u[m * E + n] = static_cast<T>(y * sigmoid<false>(y));
  }
};

template <class T>
void launch_in_proj(const StepInProj& p, void* stream) {
  const ConvStep<T> end{p.taps,         p.bias, p.state, static_cast<T*>(p.u), static_cast<T*>(p.z),
                        p.product.N / 2};
  if (p.norm) {
    normed_few_rows_into<T>(p.product, {p.norm, p.eps}, end, stream);
  } else {
    few_rows_into<T>(p.product, end, stream);
  }
}

// Eight lanes share a channel: each has two of its 16 states, and every eighth run of eight elements of its
// row of dt_proj.
constexpr int kLanes = 8, kScanThreads = 128, kChannels = kScanThreads / kLanes;
static_assert(kStepStates == 2 * kLanes);

template <class T>
__device__ float as_float(T x) {
  return static_cast<float>(x);
}

__device__ inline void as_floats(const Eight<bfloat16>& e, float (&to)[8]) {
  const unsigned words[4] = {e.v[0].x, e.v[0].y, e.v[0].z, e.v[0].w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = __uint_as_float(words[i] << 16);
    to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

// Two neighbouring states.
__device__ inline float2 load_states(const float* p) {
  return __ldcg(reinterpret_cast<const float2*>(p));
}
__device__ inline float2 load_states(const bfloat16* p) {
  const unsigned v = __ldcg(reinterpret_cast<const unsigned*>(p));
  return {__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u)};
}
__device__ inline void store_states(float* p, float2 v) { *reinterpret_cast<float2*>(p) = v; }
__device__ inline void store_states(bfloat16* p, float2 v) {
  *reinterpret_cast<__nv_bfloat162*>(p) = __floats2bfloat162_rn(v.x, v.y);
}

// A block has kChannels channels of kRows rows. kRuns: of a lane, in its row of dt_proj.
template <class T, class S, int kRuns, int kRows>
__global__ void __launch_bounds__(kScanThreads)
    step_scan_kernel(const __grid_constant__ StepScan p) {
  constexpr bool kFast = !std::is_same_v<T, float>;
  extern __shared__ __align__(16) float rows[];  // of dt_B_C
  const int lane = threadIdx.x % kLanes, R = static_cast<int>(p.R), width = R + 2 * kStepStates;
  const int64_t channel = int64_t{blockIdx.x} * kChannels + threadIdx.x / kLanes;
  const bool there = channel < p.E;
  const int64_t e = there ? channel : p.E - 1;
  const int64_t m0 = int64_t{blockIdx.y} * kRows;
  const int count = static_cast<int>(min(int64_t{kRows}, p.M - m0));

  Eight<T> w[kRuns];
#pragma unroll
  for (int i = 0; i < kRuns; ++i) {
    const int r = 8 * (lane + kLanes * i);
    w[i] = load_weights(static_cast<const T*>(p.dt_proj) + e * R + r, r < R);
  }
  const float2 a = __ldg(reinterpret_cast<const float2*>(p.A_log + e * kStepStates) + lane);
  const float A[2] = {scaled_A(a.x, true), scaled_A(a.y, true)};  // times log2(e)
  const float bias = __ldg(p.dt_bias + e), D = __ldg(p.D + e);
  let_next_start();
  wait_for_previous();

  S* const states = static_cast<S*>(p.state) + 2 * lane;
  float2 h[kRows];
  float u[kRows], z[kRows];
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    if (m >= count) break;
    const int64_t at = (m0 + m) * p.E + e;
    h[m] = load_states(states + at * kStepStates);
    u[m] = as_float(__ldcg(static_cast<const T*>(p.u) + at));
    z[m] = as_float(__ldcg(static_cast<const T*>(p.z) + at));
  }
  for (int i = threadIdx.x; i < count * width; i += kScanThreads)
    rows[i] = __ldcg(p.dt_B_C + m0 * width + i);
  __syncthreads();

#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    if (m >= count) break;
    const float* const row = rows + m * width;
    float delta = 0;
#pragma unroll
    for (int i = 0; i < kRuns; ++i) {
      const int r = 8 * (lane + kLanes * i);
      if (r >= R) continue;
      float of_w[8];
      as_floats(w[i], of_w);
      const float4 low = *reinterpret_cast<const float4*>(row + r),
                   high = *reinterpret_cast<const float4*>(row + r + 4);
      delta = fmaf(of_w[0], low.x, delta), delta = fmaf(of_w[1], low.y, delta);
      delta = fmaf(of_w[2], low.z, delta), delta = fmaf(of_w[3], low.w, delta);
      delta = fmaf(of_w[4], high.x, delta), delta = fmaf(of_w[5], high.y, delta);
      delta = fmaf(of_w[6], high.z, delta), delta = fmaf(of_w[7], high.w, delta);
    }
#pragma unroll
    for (int i = kLanes / 2; i > 0; i /= 2) delta += __shfl_xor_sync(~0u, delta, i);
    float slope;
    delta = softplus<kFast>(delta + bias, slope);
    const float2 B = *(reinterpret_cast<const float2*>(row + R) + lane),
                 C = *(reinterpret_cast<const float2*>(row + R + kStepStates) + lane);
    const float x = delta * u[m];
    const float2 next = {fmaf(exp2_of<kFast>(delta * A[0]), h[m].x, x * B.x),
                         fmaf(exp2_of<kFast>(delta * A[1]), h[m].y, x * B.y)};
    float y = fmaf(C.x, next.x, C.y * next.y);
#pragma unroll
    for (int i = kLanes / 2; i > 0; i /= 2) y += __shfl_xor_sync(~0u, y, i);
    if (!there) continue;
    const int64_t at = (m0 + m) * p.E + e;
    store_states(states + at * kStepStates, next);
    if (lane > 0) continue;
    y = fmaf(D, u[m], y);
    y *= z[m] * sigmoid<kFast>(z[m]);
    static_cast<T*>(p.y)[at] = static_cast<T>(y);
  }
}

template <class T, class S, int kRuns, int kRows>
void launch_scan(const StepScan& p, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(p.E, kChannels)),
                  static_cast<unsigned>(ceil_div(p.M, kRows)));
  const size_t bytes = sizeof(float) * kRows * static_cast<size_t>(p.R + 2 * kStepStates);
  launch_dependent("mamba1_step", step_scan_kernel<T, S, kRuns, kRows>, grid, kScanThreads, bytes,
                   1, stream, p);
}

template <class T, class S, int kRuns>
void launch_scan_rows(const StepScan& p, void* stream) {
  p.M == 1 ? launch_scan<T, S, kRuns, 1>(p, stream) : launch_scan<T, S, kRuns, 8>(p, stream);
}

template <class T, class S>
void launch_scan_of(const StepScan& p, void* stream) {
  if (p.R <= 64) return launch_scan_rows<T, S, 1>(p, stream);
  if (p.R <= 128) return launch_scan_rows<T, S, 2>(p, stream);
  launch_scan_rows<T, S, kStepMostRank / 64>(p, stream);
}

template <class T>
void launch_scan_type(const StepScan& p, void* stream) {
  p.state_bf16 ? launch_scan_of<T, bfloat16>(p, stream) : launch_scan_of<T, float>(p, stream);
}

}  // namespace

void step_in_proj(const StepInProj& p, void* stream) {
  p.product.bf16 ? launch_in_proj<bfloat16>(p, stream) : launch_in_proj<float>(p, stream);
}

void step_scan(const StepScan& p, void* stream) {
  p.bf16 ? launch_scan_type<bfloat16>(p, stream) : launch_scan_type<float>(p, stream);
}

}  // namespace krait::cuda
