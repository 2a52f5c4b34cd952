#include "krait/ops/cross_entropy/cuda.h"

#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

namespace {

using ops::LogitsGrad, ops::LossScale;

constexpr int kThreads = 512;
constexpr int kThreadsOfLong = 1024;
constexpr int64_t kLong = 1 << 14;  // logits of a row that memory should be asked for once only
constexpr int kAtOnce = 4;          // loads of a thread that are on their way at once

// A block a row. One pass for the largest logit and the sum (each thread its own, then brought together),
// one for the gradient; between them a long row is kept in shared memory.
template <int V, bool kKeep>
__global__ void __launch_bounds__(kKeep ? kThreadsOfLong : kThreads)
    rows_kernel(float* all, int64_t n, const int32_t* targets, const LossScale loss_scale,
                LogitsGrad grad, float* nll) {
  extern __shared__ float4 shared[];
  float* const kept = reinterpret_cast<float*>(shared);
  float* const row = all + blockIdx.x * n;
  const int32_t target = targets[blockIdx.x];
  constexpr int64_t kStep = int64_t{kKeep ? kThreadsOfLong : kThreads} * V;
  const int64_t first = int64_t{threadIdx.x} * V;
  if (target < 0 || target >= n) {
    const float zero[V] = {};
    for (int64_t i = first; i < n; i += kStep) store<V>(row + i, zero);
    if (threadIdx.x == 0) nll[blockIdx.x] = target == -1 ? 0.0f : nanf("");
    return;
  }
  float most = -INFINITY, sum = 0;
  for (int64_t base = first; base < n; base += kAtOnce * kStep) {
    float x[kAtOnce][V];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (base + k * kStep < n) load<V>(row + base + k * kStep, x[k]);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (base + k * kStep >= n) break;
      if (kKeep) store<V>(kept + base + k * kStep, x[k]);
      float m = most;
      for (int v = 0; v < V; ++v) m = fmaxf(m, x[k][v]);
      if (m > most) {
        sum *= expf(most - m);
        most = m;
      }
      for (int v = 0; v < V; ++v) sum += expf(x[k][v] - most);
    }
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
      load<V>((kKeep ? kept : row) + i, x);
      for (int v = 0; v < V; ++v) x[v] = i + v == target ? d_target : expf(x[v] - m) * factor;
    }
    if (grad == LogitsGrad::f32) {
      if (i < n) store<V>(row + i, x);
      continue;
    }
    // bfloat16 fills the first half of the row: what it overwrites has been read, by this step at the latest.
    if (!kKeep) __syncthreads();
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
  const bool fours = V % 4 == 0 && in_runs(logits, V, 4, 4);
  const auto kernel = fours ? rows_kernel<4, false> : rows_kernel<1, false>,
             keeping = fours ? rows_kernel<4, true> : rows_kernel<1, true>;
  const size_t bytes = static_cast<size_t>(V) * sizeof(float);
  bool keep = V >= kLong;
  if (keep && cudaFuncSetAttribute(keeping, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(bytes)) != cudaSuccess) {
    cudaGetLastError();  // there is not that much
    keep = false;
  }
  (keep ? keeping : kernel)<<<static_cast<unsigned>(rows), keep ? kThreadsOfLong : kThreads,
                              keep ? bytes : 0, static_cast<cudaStream_t>(stream)>>>(
      logits, V, targets, scale, grad, nll);
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
