// Columns are summed in parts of some rows, in float64: a block has 32 columns of a part, a warp a slice of its rows.
#include "krait/ops/batch_norm/cuda.h"

#include <cuda_bf16.h>

#include <algorithm>

#include "krait/tensor/cuda/launch.h"

namespace krait::cuda {

namespace {

constexpr int kColumns = 32, kSlices = 16, kThreads = 256;
constexpr int64_t kMostParts = 64;

int64_t rows_of_a_part(int64_t rows) { return std::max<int64_t>(128, ceil_div(rows, kMostParts)); }
int64_t parts_of(int64_t rows) { return ceil_div(rows, rows_of_a_part(rows)); }

// sums (parts, 2, D) = Σ over a part's rows of what f(row, column, first, second) adds.
template <class F>
__device__ void sum_columns(const BatchNormCall& c, int64_t each, const F& f) {
  __shared__ double of_slice[2][kSlices][kColumns];
  const int64_t d = int64_t{blockIdx.x} * kColumns + threadIdx.x;
  const int64_t begin = blockIdx.y * each, end = min(c.rows, begin + each);
  double first = 0, second = 0;
  for (int64_t r = begin + threadIdx.y; r < end && d < c.D; r += kSlices) f(r, d, first, second);
  of_slice[0][threadIdx.y][threadIdx.x] = first;
  of_slice[1][threadIdx.y][threadIdx.x] = second;
  __syncthreads();
  if (threadIdx.y > 1 || d >= c.D) return;
  double sum = 0;
  for (int s = 0; s < kSlices; ++s) sum += of_slice[threadIdx.y][s][threadIdx.x];
  c.sums[(blockIdx.y * 2 + threadIdx.y) * c.D + d] = sum;
}

__global__ void moments_kernel(const BatchNormCall c, int64_t each) {
  sum_columns(c, each, [&](int64_t r, int64_t d, double& sum, double& squares) {
    const double x = c.x[r * c.D + d];
    sum += x;
    squares += x * x;
  });
}

struct Pair {
  double first = 0, second = 0;
};

__device__ Pair total(const BatchNormCall& c, int64_t parts, int64_t d) {
  Pair p;
  for (int64_t i = 0; i < parts; ++i) {
    p.first += c.sums[i * 2 * c.D + d];
    p.second += c.sums[(i * 2 + 1) * c.D + d];
  }
  return p;
}

__global__ void scale_kernel(const BatchNormCall c, bool training, int64_t parts) {
  const int64_t d = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (d >= c.D) return;
  double mean = c.running_mean[d], var = c.running_var[d];
  if (training) {
    const Pair p = total(c, parts, d);
    mean = p.first / static_cast<double>(c.rows);
    var = fmax(p.second / static_cast<double>(c.rows) - mean * mean, 0.0);
  }
  c.mean[d] = static_cast<float>(mean);
  c.scale[d] = static_cast<float>(1 / sqrt(var + static_cast<double>(c.eps)));
}

template <class Y>
__global__ void forward_kernel(const BatchNormCall c, Y* y) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < c.rows * c.D; i += step) {
    const int64_t d = i % c.D;
    y[i] = static_cast<Y>((c.x[i] - c.mean[d]) * c.scale[d] * c.w[d] + c.b[d]);
  }
}

template <class Y>
__global__ void gradient_sums_kernel(const BatchNormBackward g, int64_t each) {
  const BatchNormCall& c = g.c;
  sum_columns(c, each, [&](int64_t r, int64_t d, double& db, double& dw) {
    const float dy = static_cast<float>(static_cast<const Y*>(g.dy)[r * c.D + d]);
    db += dy;
    dw += static_cast<double>(dy) * ((c.x[r * c.D + d] - c.mean[d]) * c.scale[d]);
  });
}

// The sums of all parts, into the first one; and what was seen moves.
__global__ void finish_kernel(const BatchNormBackward g, int64_t parts) {
  const BatchNormCall& c = g.c;
  const int64_t d = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (d >= c.D) return;
  const Pair p = total(c, parts, d);
  c.sums[d] = p.first;
  c.sums[c.D + d] = p.second;
  const auto put = [d](const BatchNormSum& s, double value) {
    if (s.to) s.to[d] = static_cast<float>(value) + (s.add ? s.to[d] : 0.0f);
  };
  put(g.db, p.first);
  put(g.dw, p.second);
  if (!g.training) return;
  const double scale = c.scale[d], n = static_cast<double>(c.rows);
  const double var = (1 / (scale * scale) - static_cast<double>(c.eps)) * n / (n - 1);
  c.running_mean[d] += 0.1f * (c.mean[d] - c.running_mean[d]);
  c.running_var[d] += 0.1f * (static_cast<float>(var) - c.running_var[d]);
}

template <class Y>
__global__ void backward_kernel(const BatchNormBackward g) {
  const BatchNormCall& c = g.c;
  const double n = static_cast<double>(c.rows);
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < c.rows * c.D; i += step) {
    const int64_t d = i % c.D;
    float dy = static_cast<float>(static_cast<const Y*>(g.dy)[i]);
    if (g.training) {
      const float value = (c.x[i] - c.mean[d]) * c.scale[d];
      dy -= static_cast<float>(c.sums[d] / n) + value * static_cast<float>(c.sums[c.D + d] / n);
    }
    const float dx = dy * c.w[d] * c.scale[d];
    g.dx[i] = g.dx_add ? g.dx[i] + dx : dx;
  }
}

unsigned blocks_for(int64_t n) {
  return static_cast<unsigned>(std::min<int64_t>(ceil_div(n, kThreads), 4096));
}

dim3 grid_of(const BatchNormCall& c) {
  return {static_cast<unsigned>(ceil_div(c.D, kColumns)), static_cast<unsigned>(parts_of(c.rows))};
}

}  // namespace

int64_t batch_norm_sums(int64_t rows, int64_t D) {
  return std::max<int64_t>(parts_of(rows), 1) * 2 * D;
}

void batch_norm(const BatchNormCall& c, bool training, void* y, bool bf16, void* stream) {
  if (c.rows * c.D == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  if (training)
    moments_kernel<<<grid_of(c), dim3(kColumns, kSlices), 0, s>>>(c, rows_of_a_part(c.rows));
  scale_kernel<<<blocks_for(c.D), kThreads, 0, s>>>(c, training, parts_of(c.rows));
  const auto run = [&](auto type) {
    using Y = decltype(type);
    forward_kernel<Y><<<blocks_for(c.rows * c.D), kThreads, 0, s>>>(c, static_cast<Y*>(y));
  };
  bf16 ? run(__nv_bfloat16()) : run(0.0f);
  check_launch("batch_norm");
}

void batch_norm_backward(const BatchNormBackward& g, void* stream) {
  const BatchNormCall& c = g.c;
  if (c.D == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  const auto run = [&](auto type) {
    using Y = decltype(type);
    if (c.rows > 0)
      gradient_sums_kernel<Y>
          <<<grid_of(c), dim3(kColumns, kSlices), 0, s>>>(g, rows_of_a_part(c.rows));
    finish_kernel<<<static_cast<unsigned>(ceil_div(c.D, kThreads)), kThreads, 0, s>>>(
        g, parts_of(c.rows));
    if (g.dx && c.rows > 0) backward_kernel<Y><<<blocks_for(c.rows * c.D), kThreads, 0, s>>>(g);
  };
  g.bf16 ? run(__nv_bfloat16()) : run(0.0f);
  check_launch("batch_norm backward");
}

}  // namespace krait::cuda
