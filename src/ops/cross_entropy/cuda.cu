#include "krait/ops/cross_entropy/cuda.h"

#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

namespace {

using ops::LogitsGrad, ops::LossScale;

constexpr int kThreads = 512;

// A block a row. One pass for the largest logit and the sum (each thread its own, then brought together),
// one for the gradient.
template <int V>
__global__ void __launch_bounds__(kThreads)
    rows_kernel(float* all, int64_t n, const int32_t* targets, const LossScale loss_scale,
                LogitsGrad grad, float* nll) {
  float* const row = all + blockIdx.x * n;
  const int32_t target = targets[blockIdx.x];
  constexpr int64_t kStep = int64_t{kThreads} * V;
  const int64_t first = int64_t{threadIdx.x} * V;
  if (target < 0 || target >= n) {
    const float zero[V] = {};
    for (int64_t i = first; i < n; i += kStep) store<V>(row + i, zero);
    if (threadIdx.x == 0) nll[blockIdx.x] = target == -1 ? 0.0f : nanf("");
    return;
  }
  float most = -INFINITY, sum = 0;
  for (int64_t i = first; i < n; i += kStep) {
    float x[V];
    load<V>(row + i, x);
    float m = most;
    for (int v = 0; v < V; ++v) m = fmaxf(m, x[v]);
    if (m > most) {
      sum *= expf(most - m);
      most = m;
    }
    for (int v = 0; v < V; ++v) sum += expf(x[v] - most);
  }
  const float m = block_max(most);
  sum = block_sum(most == -INFINITY ? sum : sum * expf(most - m));
  const float at_target = row[target];
  if (threadIdx.x == 0)
    nll[blockIdx.x] = static_cast<float>(static_cast<double>(m) - static_cast<double>(at_target) +
                                         log(static_cast<double>(sum)));
  if (grad == LogitsGrad::none) return;
  const auto scale = static_cast<double>(loss_scale.value());
  const float factor = static_cast<float>(scale / static_cast<double>(sum));
  const float p_target = expf(at_target - m);
  const auto d_target =
      static_cast<float>(scale * (static_cast<double>(p_target) / static_cast<double>(sum) - 1.0));
  __syncthreads();  // all have read the target's logit
  for (int64_t base = 0; base < n; base += kStep) {
    const int64_t i = base + first;
    float x[V];
    if (i < n) {
      load<V>(row + i, x);
      for (int v = 0; v < V; ++v) x[v] = i + v == target ? d_target : expf(x[v] - m) * factor;
    }
    if (grad == LogitsGrad::f32) {
      if (i < n) store<V>(row + i, x);
      continue;
    }
    // bfloat16 fills the first half of the row: what it overwrites has been read, by this step at the latest.
    __syncthreads();
    if (i < n) store<V>(reinterpret_cast<__nv_bfloat16*>(row) + i, x);
  }
}

// A block a row.
__global__ void smooth_kernel(const float* logits, int64_t n, const int32_t* targets,
                              const LossScale scale, float s, float* drows, float* nll) {
  const float* const row = logits + blockIdx.x * n;
  const int32_t target = targets[blockIdx.x];
  if (target < 0 || target >= n) return;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += static_cast<double>(row[i]);
  const double mean = block_sum(sum) / static_cast<double>(n);
  if (threadIdx.x == 0)
    nll[blockIdx.x] += s * static_cast<float>(static_cast<double>(row[target]) - mean);
  for (int64_t i = threadIdx.x; i < n && drows; i += kThreads)
    drows[blockIdx.x * n + i] += scale.value() * s * ((i == target) - 1 / static_cast<float>(n));
}

__global__ void loss_kernel(const float* nll, int64_t n, const LossScale scale, float* loss) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += static_cast<double>(nll[i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) *loss = static_cast<float>(static_cast<double>(scale.value()) * sum);
}

}  // namespace

void cross_entropy_rows(float* logits, int64_t rows, int64_t V, const int32_t* targets,
                        LossScale scale, LogitsGrad grad, float* nll, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  const auto blocks = static_cast<unsigned>(rows);
  if (V % 4 == 0 && in_runs(logits, V, 4, 4)) {
    rows_kernel<4><<<blocks, kThreads, 0, s>>>(logits, V, targets, scale, grad, nll);
  } else {
    rows_kernel<1><<<blocks, kThreads, 0, s>>>(logits, V, targets, scale, grad, nll);
  }
  check_launch("cross_entropy");
}

void cross_entropy_smooth(const float* logits, int64_t rows, int64_t V, const int32_t* targets,
                          LossScale scale, float s, float* drows, float* nll, void* stream) {
  if (rows == 0) return;
  smooth_kernel<<<static_cast<unsigned>(rows), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      logits, V, targets, scale, s, drows, nll);
  check_launch("cross_entropy smooth");
}

void cross_entropy_loss(const float* nll, int64_t n, LossScale scale, float* loss, void* stream) {
  loss_kernel<<<1, 1024, 0, static_cast<cudaStream_t>(stream)>>>(nll, n, scale, loss);
  check_launch("cross_entropy loss");
}

}  // namespace krait::cuda
