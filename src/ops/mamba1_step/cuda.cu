#include "krait/ops/mamba1_step/cuda.h"

#include "krait/ops/mamba1_step/cuda_channel.cuh"
#include "krait/ops/step_parts.cuh"

namespace krait::cuda {

namespace {

using bfloat16 = __nv_bfloat16;

// What becomes of an element of in_proj's output: z as it is, x through a step of the convolution.
template <class T>
struct ConvStep {
  static constexpr bool kFactors = false, kHoldsEarly = true;
  using Inputs = ConvInputs<T>;
  const float *taps, *bias;
  typename Inputs::Stored* state;
  T *u, *z;
  int64_t E;

  struct Held {  // not used where z is
    Inputs before;
    float4 k;
    float bias;
  };
  __device__ Held hold(int64_t n, int m) const {
    if (n >= E) return {};
    return {{__ldcg(state + m * E + n)},
            __ldg(reinterpret_cast<const float4*>(taps) + n),
            bias ? __ldg(bias + n) : 0.0f};
  }
  __device__ void operator()(int64_t n, int m, float value, const Held& held) const {
    const T rounded = static_cast<T>(value);
    if (n >= E) {
      z[m * E + n - E] = rounded;
      return;
    }
    const auto& [before, k, b] = held;
    const Inputs inputs = before.then(rounded);
    state[m * E + n] = inputs.v;
    const float y = convolve(inputs.floats(), k, b);
    u[m * E + n] = static_cast<T>(y * sigmoid<!std::is_same_v<T, float>>(y));
  }
};

template <class T>
void launch_in_proj(const StepInProj& p, void* stream) {
  const ConvStep<T> end{p.taps,
                        p.bias,
                        static_cast<typename ConvInputs<T>::Stored*>(p.state),
                        static_cast<T*>(p.u),
                        static_cast<T*>(p.z),
                        p.product.N / 2};
  if (p.norm) {
    normed_few_rows_into<T>(p.product, {p.norm, p.eps}, end, stream);
  } else {
    few_rows_into<T>(p.product, end, stream);
  }
}

constexpr int kScanThreads = 128, kChannels = kScanThreads / kStepLanes;

// A block has kChannels channels of kRows rows. kRuns: of a lane, in its row of dt_proj.
template <class T, class S, int kRuns, int kRows>
__global__ void __launch_bounds__(kScanThreads)
    step_scan_kernel(const __grid_constant__ StepScan p) {
  extern __shared__ __align__(16) float rows[];  // of dt_B_C
  const int width = static_cast<int>(p.R) + 2 * kStepStates;
  const int64_t channel = int64_t{blockIdx.x} * kChannels + threadIdx.x / kStepLanes;
  const bool there = channel < p.E;
  const int64_t e = there ? channel : p.E - 1;
  const int64_t m0 = int64_t{blockIdx.y} * kRows;
  const int count = static_cast<int>(min(int64_t{kRows}, p.M - m0));

  const StepChannel<T, kRuns> of_channel(p, e);
  S* const states = static_cast<S*>(p.state) + 2 * of_channel.lane;
  float2 h[kRows];
#pragma unroll
  for (int m = 0; m < kRows; ++m)
    if (m < count) h[m] = load_states(states + ((m0 + m) * p.E + e) * kStepStates);
  let_next_start();
  wait_for_previous();

  float u[kRows], z[kRows];
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    if (m >= count) break;
    const int64_t at = (m0 + m) * p.E + e;
    u[m] = static_cast<float>(__ldcg(static_cast<const T*>(p.u) + at));
    z[m] = static_cast<float>(__ldcg(static_cast<const T*>(p.z) + at));
  }
  for (int i = threadIdx.x; i < count * width; i += kScanThreads)
    rows[i] = __ldcg(p.dt_B_C + m0 * width + i);
  __syncthreads();

#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    if (m >= count) break;
    const float y = of_channel.step(rows + m * width, u[m], z[m], h[m]);
    if (!there) continue;
    const int64_t at = (m0 + m) * p.E + e;
    store_states(states + at * kStepStates, h[m]);
    if (of_channel.lane == 0) static_cast<T*>(p.y)[at] = static_cast<T>(y);
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
