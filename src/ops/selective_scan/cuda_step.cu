// selective_scan of one step on NVIDIA GPUs. kLanes threads share a channel; bound by the states, read and
// written once. Lanes and states are summed in the order of the kernel for few channels.
#include "krait/ops/selective_scan/cuda_device.cuh"
#include "krait/ops/selective_scan/cuda_value.cuh"

namespace krait::ops::scan {
namespace {

constexpr int kLanes = 8, kThreads = 128;

__device__ void load2(const float* from, float (&to)[2]) {
  const float2 v = *reinterpret_cast<const float2*>(from);
  to[0] = v.x, to[1] = v.y;
}

template <bool kFast>
__global__ void __launch_bounds__(kThreads) scan_step(const __grid_constant__ CudaForward w) {
  const CudaProblem& p = w.p;
  const int64_t i = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  const bool there = i < p.sequences * p.E;
  const int64_t s = there ? i / p.E : 0, e = there ? i % p.E : 0;
  const int lane = threadIdx.x % kLanes;
  const int64_t in_group = e / (p.E / p.G);
  const float u = value(p.u, s * p.u.stride + e);
  float delta = value(p.dt, s * p.dt.stride + e) + (p.dt_bias ? p.dt_bias[e] : 0.0f), slope;
  if (p.softplus) delta = softplus<kFast>(delta, slope);
  const float x = delta * u;
  const int64_t states = p.E * p.N;
  const float* const before = p.state_in ? p.state_in + p.row_of(s) * states + e * p.N : nullptr;
  float* const after = w.state_out ? w.state_out + p.row_of(s) * states + e * p.N : nullptr;
  const int64_t at_B = p.constant_B ? e * p.N : s * p.B.stride + in_group * p.B.group,
                at_C = p.constant_C ? e * p.N : s * p.C.stride + in_group * p.C.group;
  float y = 0;
  const bool pairs = p.N % 2 == 0;  // contiguous (E, N): then each two are at a multiple of 8 bytes
  for (int64_t n0 = lane * 2; n0 < p.N; n0 += kLanes * 2) {
    float A[2] = {}, h[2] = {};
    if (pairs) {
      load2(p.A + e * p.N + n0, A);
      if (before) load2(before + n0, h);
    } else {
#pragma unroll
      for (int k = 0; k < 2; ++k)
        if (n0 + k < p.N) A[k] = p.A[e * p.N + n0 + k], h[k] = before ? before[n0 + k] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (n0 + k >= p.N) break;
      const float a = exp2_of<kFast>(delta * scaled_A(A[k], p.a_is_log));
      h[k] = fmaf(a, h[k], x * value(p.B, at_B + n0 + k));
      y = fmaf(value(p.C, at_C + n0 + k), h[k], y);
    }
    if (!after || !there) continue;
    if (pairs) {
      *reinterpret_cast<float2*>(after + n0) = {h[0], h[1]};
    } else {
#pragma unroll
      for (int k = 0; k < 2; ++k)
        if (n0 + k < p.N) after[n0 + k] = h[k];
    }
  }
#pragma unroll
  for (int m = kLanes / 2; m > 0; m /= 2) y += __shfl_xor_sync(~0u, y, m);
  if (lane > 0 || !there) return;
  y = fmaf(p.D ? p.D[e] : 0.0f, u, y);
  if (p.z.data) {
    const float z = value(p.z, s * p.z.stride + e);
    y *= z * sigmoid<kFast>(z);
  }
  set_value(w.y, s * w.y.stride + e, y);
}

}  // namespace

void cuda_scan_step(const CudaForward& w, void* stream) {
  const auto blocks =
      static_cast<unsigned>(cuda::ceil_div(w.p.sequences * w.p.E, kThreads / kLanes));
  const auto queue = static_cast<cudaStream_t>(stream);
  if (w.p.u.bf16)
    scan_step<true><<<blocks, kThreads, 0, queue>>>(w);
  else
    scan_step<false><<<blocks, kThreads, 0, queue>>>(w);
  cuda::check_launch("selective_scan");
}

}  // namespace krait::ops::scan
