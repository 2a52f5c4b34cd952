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

// The largest of some logits, and the sum of exp(logit - base()).
struct Sum {
  float most = -INFINITY, sum = 0;

  __device__ float base() const { return most == -INFINITY ? 0.0f : most; }
};

__device__ inline float max_of_warp(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, lane));
  return x;
}
__device__ inline float sum_of_warp(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
  return x;
}
// Of the logits of all lanes, in every lane.
__device__ inline Sum of_lanes(const Sum& own) {
  Sum all{max_of_warp(own.most), 0};
  all.sum = sum_of_warp(own.sum * expf(own.most - all.base()));
  return all;
}
// Of the block, of which each warp has a part. All threads call it, once.
__device__ inline Sum of_warps(const Sum& warp) {
  __shared__ Sum parts[32];
  const unsigned lane = threadIdx.x % 32;
  if (lane == 0) parts[threadIdx.x / 32] = warp;
  __syncthreads();
  return of_lanes(lane < blockDim.x / 32 ? parts[lane] : Sum());
}
// Of the cluster, of which each block has a part. All have read what they wanted of the row when it returns.
__device__ inline Sum of_blocks(const Sum& block, unsigned blocks) {
  if (blocks == 1) {
    __syncthreads();
    return block;
  }
  __shared__ Sum mine;
  if (threadIdx.x == 0) mine = block;
  synchronize_cluster();
  const unsigned lane = threadIdx.x % 32;
  Sum part;
  if (lane < blocks) part = {of_block(&mine.most, lane), of_block(&mine.sum, lane)};
  return of_lanes(part);
}

template <bool kFast>
__device__ inline float exponential(float x) {
  return kFast ? exp2_fast(kLog2e * x) : expf(x);
}

// The loss and the gradient of a row, from the sum of its exponentials.
struct Row {
  double scale;
  Sum sum;
  float at_target;

  __device__ float nll() const {
    return static_cast<float>(static_cast<double>(sum.most) - static_cast<double>(at_target) +
                              log(static_cast<double>(sum.sum)));
  }
  // exp(logit - base) becomes the gradient
  __device__ float factor(float base) const {
    return static_cast<float>(scale) / sum.sum * expf(base - sum.most);
  }
  __device__ float of_target() const {
    return static_cast<float>(
        scale *
        (static_cast<double>(expf(at_target - sum.most)) / static_cast<double>(sum.sum) - 1.0));
  }
};

__device__ inline bool has_target(const int32_t target, int64_t n, float* nll) {
  if (target >= 0 && target < n) return true;
  if (threadIdx.x == 0) *nll = target == -1 ? 0.0f : nanf("");
  return false;
}

// A row in the registers of a cluster of blocks: all that a thread has of it is on its way at once.
constexpr int kKept = 32;                                    // logits of a thread
constexpr int64_t kMostKeptThreads = 1024, kMostBlocks = 8;  // of a block, of a row
constexpr int64_t kKeptOfABlock = 256 * kKept;               // where more blocks can have the rest

template <int V, bool kFast>
__global__ void __launch_bounds__(kMostKeptThreads)
    kept_kernel(float* all, int64_t n, const int32_t* targets, const LossScale loss_scale,
                bool to_bf16, float* nll, unsigned blocks, int64_t part) {
  constexpr int K = kKept / V;
  const unsigned rank = blocks == 1 ? 0 : rank_in_cluster();
  const int64_t r = blockIdx.x / blocks, begin = rank * part;
  float* const row = all + r * n;
  float* const from = row + begin;
  const int size = static_cast<int>(min(n - begin, part)), step = static_cast<int>(blockDim.x) * V,
            first = static_cast<int>(threadIdx.x) * V;
  const int32_t target = targets[r];
  float x[K][V];
  if (target < 0 || target >= n) {
    if (rank == 0) has_target(target, n, nll + r);
    const float zero[V] = {};
    for (int i = first; i < size; i += step) store<V>(from + i, zero);
    return;
  }
  const float at_target = row[target];
  Sum warp;
#pragma unroll
  for (int k = 0; k < K; ++k) {
#pragma unroll
    for (int v = 0; v < V; ++v) x[k][v] = -INFINITY;
    if (first + k * step < size) load<V>(from + first + k * step, x[k]);
  }
#pragma unroll
  for (int k = 0; k < K; ++k)
#pragma unroll
    for (int v = 0; v < V; ++v) warp.most = fmaxf(warp.most, x[k][v]);
  warp.most = max_of_warp(warp.most);
  const float base = warp.base();
#pragma unroll
  for (int k = 0; k < K; ++k)
#pragma unroll
    for (int v = 0; v < V; ++v) warp.sum += x[k][v] = exponential<kFast>(x[k][v] - base);
  warp.sum = sum_of_warp(warp.sum);
  const Row of{loss_scale.value(), of_blocks(of_warps(warp), blocks), at_target};
  if (rank == 0 && threadIdx.x == 0) nll[r] = of.nll();
  const float factor = of.factor(base);
  const int target_here = static_cast<int>(target - begin);
  // In float64, which takes long: by the thread that has it alone.
  const float of_target =
      target_here / V % static_cast<int>(blockDim.x) == static_cast<int>(threadIdx.x)
          ? of.of_target()
          : 0.0f;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int i = first + k * step;
    if (i >= size) continue;
#pragma unroll
    for (int v = 0; v < V; ++v) x[k][v] = i + v == target_here ? of_target : x[k][v] * factor;
    // bfloat16 fills the first half of the row.
    to_bf16 ? store<V>(reinterpret_cast<__nv_bfloat16*>(row) + begin + i, x[k])
            : store<V>(from + i, x[k]);
  }
  if (blocks > 1) leave_cluster();  // others may be reading what this block says
}

// A block a row, of any length. Without a gradient it is read once, else once more for that.
template <int V>
__global__ void __launch_bounds__(kThreads)
    rows_kernel(float* all, int64_t n, const int32_t* targets, const LossScale loss_scale,
                LogitsGrad grad, float* nll) {
  float* const row = all + blockIdx.x * n;
  const int32_t target = targets[blockIdx.x];
  const int64_t step = int64_t{blockDim.x} * V, first = int64_t{threadIdx.x} * V;
  if (!has_target(target, n, nll + blockIdx.x)) {
    const float zero[V] = {};
    for (int64_t i = first; i < n; i += step) store<V>(row + i, zero);
    return;
  }
  Sum own;
  for (int64_t at = first; at < n; at += kAtOnce * step) {
    float x[kAtOnce][V];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
#pragma unroll
      for (int v = 0; v < V; ++v) x[k][v] = -INFINITY;
      if (at + k * step < n) load<V>(row + at + k * step, x[k]);
    }
    Sum both = own;
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
#pragma unroll
      for (int v = 0; v < V; ++v) both.most = fmaxf(both.most, x[k][v]);
    const float base = both.base();
    both.sum *= expf(own.most - base);
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k)
#pragma unroll
      for (int v = 0; v < V; ++v) both.sum += expf(x[k][v] - base);
    own = both;
  }
  const float at_target = row[target];
  const Row of{loss_scale.value(), of_blocks(of_warps(of_lanes(own)), 1), at_target};
  if (threadIdx.x == 0) nll[blockIdx.x] = of.nll();
  if (grad == LogitsGrad::none) return;
  const float base = of.sum.base(), factor = of.factor(base), of_target = of.of_target();
  for (int64_t at = 0; at < n; at += step) {
    const int64_t i = at + first;
    float x[V];
    if (i < n) {
      load<V>(row + i, x);
#pragma unroll
      for (int v = 0; v < V; ++v) x[v] = i + v == target ? of_target : expf(x[v] - base) * factor;
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
  if (rows == 0) return;
  const bool fours = V % 4 == 0 && in_runs(logits, V, 4, 4), fast = grad == LogitsGrad::bf16;
  const auto kept = fours ? (fast ? kept_kernel<4, true> : kept_kernel<4, false>)
                          : (fast ? kept_kernel<1, true> : kept_kernel<1, false>);
  const int64_t most_blocks = has_clusters(reinterpret_cast<const void*>(kept)) ? kMostBlocks : 1;
  int64_t blocks = 1;
  while (blocks < most_blocks && V > blocks * kKeptOfABlock) blocks *= 2;
  const int64_t part = ceil_div(V, blocks * 4) * 4, threads = ceil_div(part, 32 * kKept) * 32;
  if (grad == LogitsGrad::none || threads > kMostKeptThreads)
    return launch_in_order("cross_entropy", fours ? rows_kernel<4> : rows_kernel<1>,
                           dim3(static_cast<unsigned>(rows)), dim3(kThreads), 0, 1, stream, logits,
                           V, targets, scale, grad, nll);
  launch_in_order("cross_entropy", kept, dim3(static_cast<unsigned>(rows * blocks)),
                  dim3(static_cast<unsigned>(threads)), 0, static_cast<unsigned>(blocks), stream,
                  logits, V, targets, scale, fast, nll, static_cast<unsigned>(blocks), part);
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
