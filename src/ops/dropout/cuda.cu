// A thread draws one counter of krait::Philox: four words for four elements.
#include "krait/ops/dropout/cuda.h"

#include <algorithm>

#include "krait/tensor/cuda/math.h"
#include "krait/tensor/cuda/philox.cuh"

namespace krait::cuda {

namespace {

using bfloat16 = __nv_bfloat16;

constexpr int kThreads = 256;

__device__ void draw(const DropoutProblem& p, uint64_t counter, float (&mask)[4]) {
  const Words words = philox(p.seed, p.stream + (p.offset ? *p.offset : 0), counter);
#pragma unroll
  for (int i = 0; i < 4; ++i) mask[i] = (words.v[i] >> 8) >= p.threshold ? p.scale : 0.0f;
}

// Calls f(mask, i, tag) for each run of four elements, or for its elements one by one.
template <bool kFours, class F>
__device__ void for_runs(const DropoutProblem& p, int64_t n, const F& f) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x, runs = (n + 3) / 4;
  for (int64_t run = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; run < runs; run += step) {
    float mask[4] = {1, 1, 1, 1};
    if (p.threshold > 0) draw(p, static_cast<uint64_t>(run), mask);
    if (kFours && run * 4 + 4 <= n) {
      f(mask, run * 4);
      continue;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float one[1] = {mask[i]};
      if (run * 4 + i < n) f(one, run * 4 + i);
    }
  }
}

template <class X, bool kFours>
__global__ void forward_kernel(const DropoutProblem p, const float* stream, float* y, int64_t n) {
  for_runs<kFours>(p, n, [&]<int V>(const float(&mask)[V], int64_t i) {
    float x[V], s[V];
    load<V>(static_cast<const X*>(p.x) + i, x);
    load<V>(stream + i, s);
    for (int v = 0; v < V; ++v) s[v] = fmaf(x[v], mask[v], s[v]);
    store<V>(y + i, s);
  });
}

template <class X, bool kFours>
__global__ void backward_kernel(const DropoutProblem p, const float* dy, X* dx, bool add,
                                int64_t n) {
  for_runs<kFours>(p, n, [&]<int V>(const float(&mask)[V], int64_t i) {
    float d[V], old[V] = {};
    load<V>(dy + i, d);
    if (add) load<V>(dx + i, old);
    for (int v = 0; v < V; ++v) d[v] = add ? old[v] + d[v] * mask[v] : d[v] * mask[v];
    store<V>(dx + i, d);
  });
}

unsigned blocks_for(int64_t n) {
  return static_cast<unsigned>(std::min<int64_t>(ceil_div(ceil_div(n, 4), kThreads), 8192));
}

}  // namespace

void dropout_forward(const DropoutProblem& p, const float* stream_in, float* y, int64_t n,
                     void* stream) {
  if (n == 0) return;
  const bool fours =
      in_runs(p.x, 0, p.bf16 ? 2 : 4, 4) && in_runs(stream_in, 0, 4, 4) && in_runs(y, 0, 4, 4);
  const auto launch = [&](auto kernel) {
    kernel<<<blocks_for(n), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p, stream_in, y, n);
  };
  if (p.bf16) {
    fours ? launch(forward_kernel<bfloat16, true>) : launch(forward_kernel<bfloat16, false>);
  } else {
    fours ? launch(forward_kernel<float, true>) : launch(forward_kernel<float, false>);
  }
  check_launch("dropout_add");
}

void dropout_backward(const DropoutProblem& p, const float* dy, void* dx, bool add, int64_t n,
                      void* stream) {
  if (n == 0) return;
  const bool fours = in_runs(dx, 0, p.bf16 ? 2 : 4, 4) && in_runs(dy, 0, 4, 4);
  const auto launch = [&](auto kernel, auto* to) {
    kernel<<<blocks_for(n), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p, dy, to, add, n);
  };
  if (p.bf16) {
    auto* to = static_cast<bfloat16*>(dx);
    fours ? launch(backward_kernel<bfloat16, true>, to)
          : launch(backward_kernel<bfloat16, false>, to);
  } else {
    auto* to = static_cast<float*>(dx);
    fours ? launch(backward_kernel<float, true>, to) : launch(backward_kernel<float, false>, to);
  }
  check_launch("dropout_add backward");
}

}  // namespace krait::cuda
