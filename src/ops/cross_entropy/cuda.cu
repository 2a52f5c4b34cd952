#include "krait/ops/cross_entropy/cuda.h"

#include <algorithm>

#include "krait/tensor/cuda/cluster.cuh"
#include "krait/tensor/cuda/exponentials.cuh"
#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

namespace {

using ops::LogitsGrad, ops::LossScale;

constexpr int kThreads = 256;
constexpr int kAtOnce = 4;  // loads of a thread that are on their way at once
// Bytes of a row that a block keeps in shared memory: four blocks share a multiprocessor, and some read or write
// while others compute.
constexpr int64_t kKeptBytes = 52 << 10;
constexpr unsigned kMostBlocks = 8;  // of one row; no more can be counted on

// The largest of some logits, and the sum of exp(logit - base()).
struct Sum {
  float most, sum;

  __device__ float base() const { return most == -INFINITY ? 0.0f : most; }
};

// Of a row, from those of its blocks, in their order.
__device__ inline Sum sum_of_row(const Sum& own, unsigned blocks) {
  if (blocks == 1) return own;
  __shared__ Sum mine;
  if (threadIdx.x == 0) mine = own;
  synchronize_cluster();
  Sum all{-INFINITY, 0};
  for (unsigned rank = 0; rank < blocks; ++rank) {
    const Sum next{of_block(&mine.most, rank), of_block(&mine.sum, rank)};
    const Sum both{fmaxf(all.most, next.most), 0};
    all = {both.most,
           all.sum * expf(all.most - both.base()) + next.sum * expf(next.most - both.base())};
  }
  return all;
}

template <bool kFast>
__device__ inline float exponential(float x) {
  return kFast ? exp2_fast(kLog2e * x) : expf(x);
}

// A cluster of blocks has a row, each a part of it: one pass for the largest logit, one for the sum of the
// exponentials, one for the gradient. Memory is read once where the part is kept; a thread meets again what it read.
template <int V, bool kKeep, bool kFast>
__global__ void __launch_bounds__(kThreads, 4)
    rows_kernel(float* all, int64_t n, const int32_t* targets, const LossScale loss_scale,
                LogitsGrad grad, float* nll, unsigned blocks, int64_t part) {
  extern __shared__ float4 shared[];
  const unsigned rank = blocks == 1 ? 0 : rank_in_cluster();
  const int64_t r = blockIdx.x / blocks;
  float* const row = all + r * n;
  const int64_t begin = rank * part, end = min(n, begin + part);
  float* const kept = reinterpret_cast<float*>(shared) - begin;
  const int32_t target = targets[r];
  const int64_t kStep = int64_t{blockDim.x} * V;
  const int64_t first = begin + int64_t{threadIdx.x} * V;
  if (target < 0 || target >= n) {
    const float zero[V] = {};
    for (int64_t i = first; i < end; i += kStep) store<V>(row + i, zero);
    if (rank == 0 && threadIdx.x == 0) nll[r] = target == -1 ? 0.0f : nanf("");
    return;
  }
  Sum own{-INFINITY, 0};
  for (int64_t base = first; base < end; base += kAtOnce * kStep) {
    float x[kAtOnce][V];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
      if (base + k * kStep < end) load<V>(row + base + k * kStep, x[k]);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (base + k * kStep >= end) break;
      if (kKeep) store<V>(kept + base + k * kStep, x[k]);
      for (int v = 0; v < V; ++v) own.most = fmaxf(own.most, x[k][v]);
    }
  }
  own.most = block_max(own.most);
  const float base = own.base();
  for (int64_t i = first; i < end; i += kStep) {
    float x[V];
    load<V>((kKeep ? kept : row) + i, x);
    for (int v = 0; v < V; ++v) own.sum += x[v] = exponential<kFast>(x[v] - base);
    if (kKeep) store<V>(kept + i, x);
  }
  own.sum = block_sum(own.sum);
  const Sum of_row = sum_of_row(own, blocks);
  const float m = of_row.most, at_target = row[target];
  if (rank == 0 && threadIdx.x == 0)
    nll[r] = static_cast<float>(static_cast<double>(m) - static_cast<double>(at_target) +
                                log(static_cast<double>(of_row.sum)));
  // All have read the target's logit, and what the others say.
  blocks == 1 ? __syncthreads() : synchronize_cluster();
  if (grad == LogitsGrad::none) return;
  const double scale = loss_scale.value(), sum = of_row.sum;
  const float factor = static_cast<float>(scale / sum) * expf(own.most - m);
  const auto d_target =
      static_cast<float>(scale * (static_cast<double>(expf(at_target - m)) / sum - 1.0));
  for (int64_t step = begin; step < end; step += kStep) {
    const int64_t i = step + first - begin;
    float x[V];
    if (i < end) {
      load<V>((kKeep ? kept : row) + i, x);
      for (int v = 0; v < V; ++v)
        x[v] =
            i + v == target ? d_target : (kKeep ? x[v] : exponential<kFast>(x[v] - base)) * factor;
    }
    if (grad == LogitsGrad::f32) {
      if (i < end) store<V>(row + i, x);
      continue;
    }
    // bfloat16 fills the first half of the row: what it overwrites has been read, by this step at the latest.
    if (!kKeep) __syncthreads();
    if (i < end) store<V>(reinterpret_cast<__nv_bfloat16*>(row) + i, x);
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
  if (rows == 0) return;
  const bool fours = V % 4 == 0 && in_runs(logits, V, 4, 4), fast = grad == LogitsGrad::bf16;
  auto kernel = fours ? (fast ? rows_kernel<4, true, true> : rows_kernel<4, true, false>)
                      : (fast ? rows_kernel<1, true, true> : rows_kernel<1, true, false>);
  const unsigned most_blocks =
      has_clusters(reinterpret_cast<const void*>(kernel)) ? kMostBlocks : 1;
  unsigned blocks = 1;
  int64_t part = V;
  for (; part * 4 > kKeptBytes && blocks < most_blocks; part = ceil_div(V, blocks * 4) * 4)
    blocks *= 2;
  int64_t kept = part * 4;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(kept)) != cudaSuccess) {
    cudaGetLastError();  // there is not that much
    kernel = fours ? rows_kernel<4, false, false> : rows_kernel<1, false, false>;
    blocks = 1;
    part = V;
    kept = 0;
  }
  const auto threads =
      static_cast<unsigned>(std::min<int64_t>(kThreads, ceil_div(part, (fours ? 4 : 1) * 32) * 32));
  launch_in_order("cross_entropy", kernel, dim3(static_cast<unsigned>(rows) * blocks), threads,
                  static_cast<size_t>(kept), blocks, stream, logits, V, targets, scale, grad, nll,
                  blocks, part);
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
