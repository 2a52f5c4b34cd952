// A thread a head: it walks a piece of the rows, so that ddt_bias leaves it as one partial sum. Step sizes are
// made in float64 and rounded once: few numbers, and an error of one turns all keys and queries that come after.
#include "krait/ops/mamba3_steps/cuda.h"

#include <cmath>

#include "krait/tensor/cuda/launch.h"

namespace krait::cuda {

namespace {

constexpr int kThreads = 64;

__device__ double softplus(double x) { return x > 20 ? x : log1p(exp(x)); }
__device__ float softplus_slope(float x) { return x > 20 ? 1.0f : 1.0f / (1.0f + expf(-x)); }

__device__ double decay_rate(const StepsCall& c, double x) {
  const double f = !c.heavy_tailed ? softplus(x) : x >= 0 ? 1 + x : 1 / (1 - x);
  return f > c.floor ? -f : -static_cast<double>(c.floor);
}

// dA / d raw_A
__device__ float decay_slope(const StepsCall& c, float x, float A) {
  if (A >= -c.floor) return 0;
  if (!c.heavy_tailed) return -softplus_slope(x);
  return x >= 0 ? -1.0f : -A * A;
}

__device__ float& at(const StepRows& r, int64_t t, int64_t h) { return r.data[t * r.stride + h]; }

__device__ void put(const StepRows& r, int64_t t, int64_t h, float value) {
  if (r.data) at(r, t, h) = r.add ? at(r, t, h) + value : value;
}

__global__ void forward_kernel(const StepsCall c) {
  const int64_t h = int64_t{blockIdx.y} * kThreads + threadIdx.x, from = blockIdx.x * kStepsRows;
  if (h >= c.H) return;
  for (int64_t t = from; t < c.rows && t < from + kStepsRows; ++t) {
    const double dt =
        softplus(static_cast<double>(at(c.raw_dt, t, h)) + static_cast<double>(c.dt_bias[h]));
    at(c.dt, t, h) = static_cast<float>(dt);
    at(c.adt, t, h) = static_cast<float>(decay_rate(c, at(c.raw_A, t, h)) * dt);
  }
}

__global__ void backward_kernel(const StepsBackward b) {
  const StepsCall& c = b.c;
  const int64_t h = int64_t{blockIdx.y} * kThreads + threadIdx.x, from = blockIdx.x * kStepsRows;
  if (h >= c.H) return;
  float sum = 0;
  for (int64_t t = from; t < c.rows && t < from + kStepsRows; ++t) {
    const float x = at(c.raw_dt, t, h) + c.dt_bias[h], raw_A = at(c.raw_A, t, h);
    const auto A = static_cast<float>(decay_rate(c, raw_A));
    const float of_adt = b.dadt.data ? at(b.dadt, t, h) : 0.0f;
    const float of_dt = (b.ddt.data ? at(b.ddt, t, h) : 0.0f) + of_adt * A;
    const float of_raw = of_dt * softplus_slope(x);
    put(b.draw_dt, t, h, of_raw);
    put(b.draw_A, t, h, of_adt * at(c.dt, t, h) * decay_slope(c, raw_A, A));
    sum += of_raw;
  }
  b.sums[blockIdx.x * c.H + h] = sum;
}

dim3 grid_of(const StepsCall& c) {
  return dim3(static_cast<unsigned>(ceil_div(c.rows, kStepsRows)),
              static_cast<unsigned>(ceil_div(c.H, kThreads)));
}

}  // namespace

void mamba3_steps(const StepsCall& c, void* stream) {
  if (c.rows == 0 || c.H == 0) return;
  forward_kernel<<<grid_of(c), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(c);
  check_launch("mamba3_steps");
}

void mamba3_steps_backward(const StepsBackward& b, void* stream) {
  if (b.c.rows == 0 || b.c.H == 0) return;
  backward_kernel<<<grid_of(b.c), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(b);
  check_launch("mamba3_steps backward");
}

}  // namespace krait::cuda
