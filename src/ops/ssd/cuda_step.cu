#include "krait/ops/ssd/cuda_step.cuh"

#include "krait/ops/ssd/cuda_device.cuh"

namespace krait::ops::ssd_gpu {

namespace {

constexpr int kWarps = 8, kRows = 2;  // channels of a warp

// A lane has NS neighbouring states of each of its warp's channels.
template <int NS>
__global__ void __launch_bounds__(32 * kWarps) step_kernel(const CudaForward w) {
  const CudaProblem& p = w.p;
  const int64_t s = blockIdx.x, h = blockIdx.y, begin = begin_of(p, s), end = begin_of(p, s + 1);
  if (end - begin > kShort) return;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int64_t first = (int64_t{blockIdx.z} * kWarps + threadIdx.x / 32) * kRows, n0 = lane * NS;
  if (first >= p.P) return;
  const int rows = static_cast<int>(min(int64_t{kRows}, p.P - first));
  const int64_t row_in = p.row_in ? p.row_in[s] : s, row_out = p.row_out ? p.row_out[s] : s;
  const bool whole =
      p.N == 32 * NS;  // the lanes' states; then they stand at multiples of their size

  float S[kRows][NS] = {};
  if (p.state_in && row_in >= 0)
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      const float* const from = p.state_in + ((row_in * p.H + h) * p.P + first + r) * p.N + n0;
      constexpr int V = NS < 4 ? NS : 4;
#pragma unroll
      for (int j = 0; j < NS; j += V) {
        float run[V];
        if (whole) {
          cuda::load<V>(from + j, run);
        } else {
          for (int v = 0; v < V; ++v) run[v] = n0 + j + v < p.N ? from[j + v] : 0.0f;
        }
#pragma unroll
        for (int v = 0; v < V; ++v) S[r][j + v] = run[v];
      }
    }
  const float A = scaled_rate(p, h);
  const int64_t column = h / (p.H / p.G) * p.N + n0;
  for (int64_t t = begin; t < end; ++t) {
    float slope, B[NS], C[NS];
    const float delta = step_size(p, h, get(p.dt, t, h), slope),
                decay = cuda::exp2_exact(delta * A);
#pragma unroll
    for (int j = 0; j < NS; ++j) {
      const bool there = n0 + j < p.N;
      B[j] = there ? get(p.B, t, column + j) : 0.0f;
      C[j] = there ? get(p.C, t, column + j) : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      const int64_t channel = first + r;
      const float x = get(p.x, t, h * p.P + channel);
      float y = 0;
#pragma unroll
      for (int j = 0; j < NS; ++j) {
        S[r][j] = fmaf(decay, S[r][j], delta * x * B[j]);
        y = fmaf(S[r][j], C[j], y);
      }
#pragma unroll
      for (int step = 16; step > 0; step /= 2) y += __shfl_xor_sync(~0u, y, step);
      if (p.D) y = fmaf(p.D[p.D_per_channel ? h * p.P + channel : h], x, y);
      if (lane == 0) put(w.y, t, h * p.P + channel, y);
    }
  }
  if (!w.state_out || row_out < 0) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    float* const to = w.state_out + ((row_out * p.H + h) * p.P + first + r) * p.N + n0;
    constexpr int V = NS < 4 ? NS : 4;
#pragma unroll
    for (int j = 0; j < NS; j += V) {
      float run[V];
#pragma unroll
      for (int v = 0; v < V; ++v) run[v] = S[r][j + v];
      if (whole) {
        cuda::store<V>(to + j, run);
      } else {
        for (int v = 0; v < V; ++v)
          if (n0 + j + v < p.N) to[j + v] = run[v];
      }
    }
  }
}

}  // namespace

void step(const CudaForward& w, void* stream) {
  const CudaProblem& p = w.p;
  if (p.sequences == 0 || p.H == 0) return;
  const dim3 grid(static_cast<unsigned>(p.sequences), static_cast<unsigned>(p.H),
                  static_cast<unsigned>(ceil_div(p.P, kWarps * kRows)));
  const auto launch = [&](auto kernel) {
    kernel<<<grid, 32 * kWarps, 0, static_cast<cudaStream_t>(stream)>>>(w);
  };
  if (p.N <= 32) {
    launch(step_kernel<1>);
  } else if (p.N <= 64) {
    launch(step_kernel<2>);
  } else if (p.N <= 128) {
    launch(step_kernel<4>);
  } else {
    launch(step_kernel<8>);
  }
  cuda::check_launch("ssd step");
}

}  // namespace krait::ops::ssd_gpu
