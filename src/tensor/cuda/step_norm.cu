#include "krait/tensor/cuda/step_norm.h"

#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

namespace {

constexpr int kThreads = 256, kHeld = 4;  // runs of four that a thread holds

__global__ void __launch_bounds__(kThreads) step_norm_kernel(const __grid_constant__ StepNorm p) {
  const int runs = static_cast<int>(p.D / 4), thread = static_cast<int>(threadIdx.x);
  const auto* const w = reinterpret_cast<const float4*>(p.w);
  const auto* const x = reinterpret_cast<const float4*>(p.x + int64_t{blockIdx.x} * p.D);
  float4 of_w[kHeld], of_x[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
    if (const int at = thread + i * kThreads; at < runs) of_w[i] = __ldg(w + at);
  let_next_start();
  wait_for_previous();
  const auto square = [](float4 v) {
    return fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, v.w * v.w)));
  };
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
    if (const int at = thread + i * kThreads; at < runs) of_x[i] = __ldcg(x + at);
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
    if (thread + i * kThreads < runs) sum += square(of_x[i]);
  for (int at = thread + kHeld * kThreads; at < runs; at += kThreads) sum += square(__ldcg(x + at));
  const float factor = 1.0f / sqrtf(block_sum(sum) / static_cast<float>(p.D) + p.eps);
  auto* const y = static_cast<__nv_bfloat16*>(p.y) + int64_t{blockIdx.x} * p.D;
  const auto put = [&](int at, float4 v, float4 k) {
    store<4>(y + 4 * at,
             {v.x * factor * k.x, v.y * factor * k.y, v.z * factor * k.z, v.w * factor * k.w});
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i)
    if (const int at = thread + i * kThreads; at < runs) put(at, of_x[i], of_w[i]);
  for (int at = thread + kHeld * kThreads; at < runs; at += kThreads)
    put(at, __ldcg(x + at), __ldg(w + at));
}

}  // namespace

void step_norm(const StepNorm& p, void* stream) {
  launch_dependent("step_norm", step_norm_kernel, dim3(static_cast<unsigned>(p.M)), kThreads, 0, 1,
                   stream, p);
}

}  // namespace krait::cuda
