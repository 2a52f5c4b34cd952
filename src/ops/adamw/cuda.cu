// The list of tensors travels in the kernel's parameters, kMost a launch.
#include "krait/ops/adamw/cuda.h"

#include <algorithm>

#include "krait/ops/adamw/scalars.h"
#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

namespace {

using ops::kBias1, ops::kBias2, ops::kClip, ops::kGradNorm, ops::kLearningRate;

constexpr int kMost = 48;
constexpr int kThreads = 256;
constexpr int64_t kUpdatePiece = 2048;  // elements of a block
constexpr int kAtOnce = 8;              // runs of squares of a thread that are on their way at once

template <class T>
struct List {
  T tensor[kMost];
  int64_t first[kMost + 1];  // block of each tensor; then their number
  int count = 0;
};

// The tensor of this block, and which of its pieces.
template <class T>
__device__ int tensor_of_block(const List<T>& list, int64_t& piece) {
  int t = 0;
  while (list.first[t + 1] <= blockIdx.x) ++t;
  piece = blockIdx.x - list.first[t];
  return t;
}

// Calls launch(list, blocks) for each kMost tensors.
template <class T, class F>
void in_lists(const std::vector<T>& tensors, int64_t piece, const F& launch) {
  List<T> list;
  int64_t blocks = 0;
  const auto go = [&] {
    list.first[list.count] = blocks;
    if (blocks > 0) launch(list, static_cast<unsigned>(blocks));
    list.count = 0;
    blocks = 0;
  };
  for (const T& t : tensors) {
    if (t.n == 0) continue;
    list.tensor[list.count] = t;
    list.first[list.count++] = blocks;
    blocks += ceil_div(t.n, piece);
    if (list.count == kMost) go();
  }
  go();
}

// p of its halves, as adamw.h has it.
__device__ float joined(float value, uint16_t low, float v) {
  const unsigned down = __float_as_uint(v) >> 31 << 16;
  return __uint_as_float(__float_as_uint(value) + static_cast<int16_t>(low) + down);
}

// v with the sign that p's halves ask for.
__device__ float signed_by(float p, float v) {
  const bool down = (__float_as_uint(p) & 0x1ffff) == 0x8000;  // a tie above an even number
  return down ? -fabsf(v) : fabsf(v);
}

template <int V>
__device__ void load_halves(const AdamwTensor& t, int64_t i, const float (&v)[V], float (&p)[V]) {
  load<V>(static_cast<const __nv_bfloat16*>(t.value) + i, p);
  const Run<V, uint16_t> low = *reinterpret_cast<const Run<V, uint16_t>*>(t.low + i);
#pragma unroll
  for (int e = 0; e < V; ++e) p[e] = joined(p[e], low.v[e], v[e]);
}

// v gets the signs.
template <int V>
__device__ void store_halves(const AdamwTensor& t, int64_t i, const float (&p)[V], float (&v)[V]) {
  Run<V, uint16_t> low;
#pragma unroll
  for (int e = 0; e < V; ++e) {
    low.v[e] = static_cast<uint16_t>(__float_as_uint(p[e]));
    v[e] = signed_by(p[e], v[e]);
  }
  store<V>(static_cast<__nv_bfloat16*>(t.value) + i, p);
  *reinterpret_cast<Run<V, uint16_t>*>(t.low + i) = low;
}

template <int V, bool kHalves>
__device__ void update(const AdamwTensor& t, int64_t begin, int64_t end, float beta1, float beta2,
                       float eps, const float* scalars) {
  const float lr = t.rate * scalars[kLearningRate];
  const float clip = scalars[kClip], keep = fmaf(-lr, t.decay, 1);
  const float step = lr / scalars[kBias1], inv_bias2 = 1 / scalars[kBias2];
  for (int64_t i = begin + int64_t{threadIdx.x} * V; i < end; i += int64_t{blockDim.x} * V) {
    float value[V], g[V], m[V], v[V];
    load<V>(t.grad + i, g);
    load<V>(t.m + i, m);
    load<V>(t.v + i, v);
    if constexpr (kHalves) {
      load_halves<V>(t, i, v, value);
    } else {
      load<V>(static_cast<const float*>(t.value) + i, value);
    }
#pragma unroll
    for (int e = 0; e < V; ++e) {
      // Fused by name: a compiler's choice differs from one V to another.
      g[e] = __fmul_rn(g[e], clip);
      m[e] = fmaf(1 - beta1, g[e], __fmul_rn(beta1, m[e]));
      v[e] = fmaf(beta2, fabsf(v[e]), __fmul_rn(1 - beta2, __fmul_rn(g[e], g[e])));
      const float size = __fadd_rn(sqrtf(__fmul_rn(v[e], inv_bias2)), eps);
      value[e] = fmaf(-step, m[e] / size, __fmul_rn(keep, value[e]));
    }
    store<V>(t.m + i, m);
    if constexpr (kHalves) {
      store_halves<V>(t, i, value, v);
    } else {
      store<V>(static_cast<float*>(t.value) + i, value);
    }
    store<V>(t.v + i, v);
  }
}

__device__ bool whole_runs(const void* p, unsigned bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

__global__ void adamw_kernel(const __grid_constant__ List<AdamwTensor> list, float beta1,
                             float beta2, float eps, const float* scalars) {
  int64_t piece;
  const AdamwTensor& t = list.tensor[tensor_of_block(list, piece)];
  const int64_t begin = piece * kUpdatePiece, end = min(t.n, begin + kUpdatePiece);
  const bool fours = end % 4 == 0 && whole_runs(t.value, t.low ? 8 : 16) && whole_runs(t.low, 8) &&
                     whole_runs(t.grad, 16) && whole_runs(t.m, 16) && whole_runs(t.v, 16);
  if (scalars[kClip] == 0) return;
  const auto go = [&](auto update_of) { update_of(t, begin, end, beta1, beta2, eps, scalars); };
  if (t.low) {
    fours ? go(update<4, true>) : go(update<1, true>);
  } else {
    fours ? go(update<4, false>) : go(update<1, false>);
  }
}

__global__ void split_kernel(const float* p, __nv_bfloat16* value, uint16_t* low, float* v,
                             int64_t n) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  value[i] = __float2bfloat16(p[i]);
  low[i] = static_cast<uint16_t>(__float_as_uint(p[i]));
  v[i] = signed_by(p[i], v[i]);
}

__global__ void __launch_bounds__(kThreads, 4)
    squares_kernel(const __grid_constant__ List<Floats> list, double* sums) {
  int64_t piece;
  const Floats& t = list.tensor[tensor_of_block(list, piece)];
  const int64_t begin = piece * kGradPiece, end = min(t.n, begin + kGradPiece);
  double sum = 0;
  if (end % 4 == 0 && whole_runs(t.data, 16)) {
    const int64_t step = int64_t{blockDim.x} * 4;
    for (int64_t i = begin + int64_t{threadIdx.x} * 4; i < end; i += kAtOnce * step) {
      float x[kAtOnce][4] = {};
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        if (i + k * step < end) load<4>(t.data + i + k * step, x[k]);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        sum += static_cast<double>(x[k][0] * x[k][0] + x[k][1] * x[k][1] + x[k][2] * x[k][2] +
                                   x[k][3] * x[k][3]);
    }
  } else {
    for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x)
      sum += static_cast<double>(t.data[i]) * static_cast<double>(t.data[i]);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void clip_kernel(const double* sums, int64_t n, const Floats losses, float limit,
                            float* scalars) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += sums[i];
  const double norm = sqrt(block_sum(sum));
  float bad = 0;  // losses that are not finite
  for (int64_t i = threadIdx.x; i < losses.n; i += blockDim.x)
    bad += isfinite(losses.data[i]) ? 0 : 1;
  const bool finite = block_sum(bad) == 0 && isfinite(norm);
  if (threadIdx.x > 0) return;
  scalars[kGradNorm] = static_cast<float>(norm);
  scalars[kClip] = !finite                     ? 0.0f
                   : limit > 0 && norm > limit ? static_cast<float>(limit / (norm + 1e-6))
                                               : 1.0f;
}

}  // namespace

void adamw(const std::vector<AdamwTensor>& tensors, float beta1, float beta2, float eps,
           const float* scalars, void* stream) {
  in_lists(tensors, kUpdatePiece, [&](const List<AdamwTensor>& list, unsigned blocks) {
    adamw_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(list, beta1, beta2,
                                                                             eps, scalars);
    check_launch("adamw");
  });
}

void split(const float* p, void* value, uint16_t* low, float* v, int64_t n, void* stream) {
  if (n == 0) return;
  split_kernel<<<static_cast<unsigned>(ceil_div(n, int64_t{kThreads})), kThreads, 0,
                 static_cast<cudaStream_t>(stream)>>>(p, static_cast<__nv_bfloat16*>(value), low, v,
                                                      n);
  check_launch("split");
}

void clip_grad_norm(const std::vector<Floats>& grads, const Floats& losses, float limit,
                    double* sums, float* scalars, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  int64_t done = 0;
  in_lists(grads, kGradPiece, [&](const List<Floats>& list, unsigned blocks) {
    squares_kernel<<<blocks, kThreads, 0, s>>>(list, sums + done);
    check_launch("clip_grad_norm");
    done += blocks;
  });
  clip_kernel<<<1, 1024, 0, s>>>(sums, done, losses, limit, scalars);
  check_launch("clip_grad_norm");
}

}  // namespace krait::cuda
