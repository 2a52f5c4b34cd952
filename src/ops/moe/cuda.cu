// Routing and the moving of rows. Choices are sorted by counting: a thread an expert walks the choices of a piece
// in their order, so no two write to one place and every run gives the same rows.
#include "krait/ops/moe/cuda.h"

#include <algorithm>

#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

namespace {

using bfloat16 = __nv_bfloat16;

constexpr int kThreads = 128;

cudaStream_t as_stream(void* s) { return static_cast<cudaStream_t>(s); }
unsigned blocks(int64_t n) { return static_cast<unsigned>(n); }

template <class F>
void with_type(bool bf16, const F& f) {
  bf16 ? f(bfloat16()) : f(0.0f);
}

// A block a token: softmax, then the k best, ties to the lower number.
__global__ void __launch_bounds__(kThreads) choose_kernel(const MoeRoute c) {
  const int64_t t = blockIdx.x, n = c.r.n, k = c.r.k;
  float* const p = c.p + t * n;
  float top = -INFINITY, total = 0;
  for (int64_t e = threadIdx.x; e < n; e += kThreads) top = fmaxf(top, p[e]);
  top = block_max(top);
  for (int64_t e = threadIdx.x; e < n; e += kThreads) total += p[e] = expf(p[e] - top);
  total = block_sum(total);
  for (int64_t e = threadIdx.x; e < n; e += kThreads) p[e] /= total;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const auto lane = static_cast<int32_t>(threadIdx.x);
  float sum = 0;
  for (int64_t j = 0; j < k; ++j) {
    int32_t best = -1;
    float most = -1;
    for (int32_t e = lane; e < n; e += 32) {
      bool taken = false;
      for (int64_t i = 0; i < j; ++i) taken = taken || c.r.expert[t * k + i] == e;
      if (!taken && (best < 0 || p[e] > most)) best = e, most = p[e];
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(~0u, most, step);
      const int32_t who = __shfl_xor_sync(~0u, best, step);
      if (who >= 0 && (best < 0 || other > most || (other == most && who < best)))
        best = who, most = other;
    }
    if (lane == 0) {
      c.r.expert[t * k + j] = best;
      c.r.weight[t * k + j] = most;
    }
    sum += most;
    __syncwarp();
  }
  for (int64_t j = lane; c.renormalize && j < k; j += 32) c.r.weight[t * k + j] /= sum;
}

// Blocks: pieces of tokens. counts and, for the report, sums of p.
__global__ void __launch_bounds__(kThreads) count_kernel(const MoeRoute c) {
  const int64_t from = blockIdx.x * kMoeTokens, to = min(c.r.T, from + kMoeTokens), n = c.r.n;
  for (int64_t e = threadIdx.x; e < n; e += kThreads) {
    int64_t count = 0;
    double sum = 0;
#pragma unroll 8
    for (int64_t i = from * c.r.k; i < to * c.r.k; ++i) count += c.r.expert[i] == e;
    for (int64_t t = from; c.report && t < to; ++t) sum += static_cast<double>(c.p[t * n + e]);
    c.counts[blockIdx.x * n + e] = count;
    c.sums[blockIdx.x * n + e] = sum;
  }
}

// One block: where each expert begins, and the first place of each piece among its choices.
__global__ void __launch_bounds__(kThreads) begin_kernel(const MoeRoute c, int64_t pieces) {
  const int64_t n = c.r.n;
  const double T = static_cast<double>(c.r.T);
  double loss = 0;
  for (int64_t e = threadIdx.x; e < n; e += kThreads) {
    int64_t total = 0;
    double sum = 0;
    for (int64_t i = 0; i < pieces; ++i) {
      const int64_t count = c.counts[i * n + e];
      c.counts[i * n + e] = total;
      total += count;
      sum += c.sums[i * n + e];
    }
    c.slope[e] = static_cast<double>(total) * static_cast<double>(n) / T / T;
    loss += c.slope[e] * sum;
    c.r.begin[e + 1] = min(total, c.capacity);
  }
  loss = block_sum(loss);
  __syncthreads();
  if (threadIdx.x > 0) return;
  c.r.begin[0] = 0;
  for (int64_t e = 0; e < n; ++e) c.r.begin[e + 1] += c.r.begin[e];
  if (!c.report) return;
  c.report[0] = c.balance * static_cast<float>(loss);
  c.report[1] = static_cast<float>(c.r.rows() - c.r.begin[n]);
}

__global__ void __launch_bounds__(kThreads) place_kernel(const MoeRoute c) {
  const MoeRouting& r = c.r;
  const int64_t from = blockIdx.x * kMoeTokens, to = min(r.T, from + kMoeTokens);
  for (int64_t e = threadIdx.x; e < r.n; e += kThreads) {
    int64_t at = c.counts[blockIdx.x * r.n + e];
    for (int64_t i = from * r.k; i < to * r.k; ++i) {
      if (r.expert[i] != e) continue;
      const bool kept = at < c.capacity;
      const int64_t row = r.begin[e] + at++;
      r.row[i] = kept ? static_cast<int32_t>(row) : -1;
      if (kept) r.token[row] = static_cast<int32_t>(i / r.k);
    }
  }
  const int64_t used = r.begin[r.n];
  for (int64_t i = from * r.k + threadIdx.x; i < to * r.k; i += kThreads)
    if (i >= used) r.token[i] = -1;
}

// A block a token.
__global__ void __launch_bounds__(kThreads) route_backward_kernel(const MoeRouteBackward b) {
  const MoeRouting& r = b.c.r;
  const int64_t t = blockIdx.x;
  const float *const p = b.c.p + t * r.n, *const w = r.weight + t * r.k;
  const float* const dw = b.dweight ? b.dweight + t * r.k : nullptr;
  const int32_t* const expert = r.expert + t * r.k;
  float sum = 1, mean = 0;  // of the chosen p, of dw under the weights
  if (dw && b.c.renormalize) {
    sum = 0;
    for (int64_t j = 0; j < r.k; ++j) {
      sum += p[expert[j]];
      mean += dw[j] * w[j];
    }
  }
  const auto slope = [&](int64_t e) {
    float dp = b.balance * static_cast<float>(b.c.slope[e]);
    for (int64_t j = 0; dw && j < r.k; ++j)
      if (expert[j] == e) dp += (dw[j] - mean) / sum;
    return dp;
  };
  float dot = 0;
  for (int64_t e = threadIdx.x; e < r.n; e += kThreads) dot += p[e] * slope(e);
  dot = block_sum(dot);
  for (int64_t e = threadIdx.x; e < r.n; e += kThreads)
    b.dlogits[t * r.n + e] = p[e] * (slope(e) - dot);
}

template <class T>
__global__ void dispatch_kernel(const MoeRouting r, const T* x, int64_t x_row, T* y, int64_t D) {
  const int64_t row = blockIdx.x, token = r.token[row];
  for (int64_t i = threadIdx.x; i < D; i += blockDim.x)
    y[row * D + i] = token < 0 ? static_cast<T>(0.0f) : x[token * x_row + i];
}

template <class T>
__global__ void dispatch_backward_kernel(const MoeRouting r, const T* dy, T* dx, int64_t dx_row,
                                         bool add, int64_t D) {
  const int64_t t = blockIdx.x;
  for (int64_t i = threadIdx.x; i < D; i += blockDim.x) {
    T& to = dx[t * dx_row + i];
    float sum = add ? static_cast<float>(to) : 0.0f;
    for (int64_t j = 0; j < r.k; ++j) {
      const int64_t from = r.row[t * r.k + j];
      if (from >= 0) sum += static_cast<float>(dy[from * D + i]);
    }
    to = static_cast<T>(sum);
  }
}

template <class T>
__global__ void combine_kernel(const MoeRouting r, const T* y, const float* residual, float* out,
                               int64_t D) {
  const int64_t t = blockIdx.x;
  for (int64_t i = threadIdx.x; i < D; i += blockDim.x) {
    float sum = residual[t * D + i];
    for (int64_t j = 0; j < r.k; ++j) {
      const int64_t from = r.row[t * r.k + j];
      if (from >= 0) sum = fmaf(r.weight[t * r.k + j], static_cast<float>(y[from * D + i]), sum);
    }
    out[t * D + i] = sum;
  }
}

// Blocks: the choices, then the rows of nobody.
template <class T>
__global__ void __launch_bounds__(kThreads)
    combine_backward_kernel(const MoeRouting r, const T* y, const float* dout, T* dy, bool add_dy,
                            float* dweight, bool add_dweight, int64_t D) {
  const int64_t i = blockIdx.x % r.rows();
  if (blockIdx.x >= r.rows()) {
    if (i < r.begin[r.n]) return;
    for (int64_t e = threadIdx.x; e < D; e += kThreads) dy[i * D + e] = static_cast<T>(0.0f);
    return;
  }
  const int64_t row = r.row[i];
  const float *const d = dout + i / r.k * D, w = r.weight[i];
  float sum = 0;
  for (int64_t e = threadIdx.x; row >= 0 && e < D; e += kThreads) {
    sum = fmaf(d[e], static_cast<float>(y[row * D + e]), sum);
    if (!dy) continue;
    T& to = dy[row * D + e];
    to = static_cast<T>(add_dy ? static_cast<float>(to) + w * d[e] : w * d[e]);
  }
  if (!dweight) return;
  sum = block_sum(sum);
  if (threadIdx.x == 0) dweight[i] = add_dweight ? dweight[i] + sum : sum;
}

unsigned threads_of(int64_t D) {
  return static_cast<unsigned>(std::clamp<int64_t>(ceil_div(D, 32) * 32, 32, 256));
}

}  // namespace

void moe_route(const MoeRoute& c, void* stream) {
  if (c.r.T == 0) return;
  const auto s = as_stream(stream);
  const int64_t pieces = moe_pieces(c.r.T);
  choose_kernel<<<blocks(c.r.T), kThreads, 0, s>>>(c);
  count_kernel<<<blocks(pieces), kThreads, 0, s>>>(c);
  begin_kernel<<<1, kThreads, 0, s>>>(c, pieces);
  place_kernel<<<blocks(pieces), kThreads, 0, s>>>(c);
  check_launch("moe route");
}

void moe_route_backward(const MoeRouteBackward& b, void* stream) {
  if (b.c.r.T == 0) return;
  route_backward_kernel<<<blocks(b.c.r.T), kThreads, 0, as_stream(stream)>>>(b);
  check_launch("moe route backward");
}

void moe_dispatch(const MoeRouting& r, const MoeRows& x, const MoeRows& y, int64_t D,
                  void* stream) {
  if (r.rows() == 0 || D == 0) return;
  with_type(x.bf16, [&](auto type) {
    using T = decltype(type);
    dispatch_kernel<T><<<blocks(r.rows()), threads_of(D), 0, as_stream(stream)>>>(
        r, static_cast<const T*>(x.data), x.row, static_cast<T*>(y.data), D);
  });
  check_launch("moe dispatch");
}

void moe_dispatch_backward(const MoeRouting& r, const MoeRows& dy, const MoeRows& dx, int64_t D,
                           void* stream) {
  if (r.T == 0 || D == 0) return;
  with_type(dy.bf16, [&](auto type) {
    using T = decltype(type);
    dispatch_backward_kernel<T><<<blocks(r.T), threads_of(D), 0, as_stream(stream)>>>(
        r, static_cast<const T*>(dy.data), static_cast<T*>(dx.data), dx.row, dx.add, D);
  });
  check_launch("moe dispatch backward");
}

void moe_combine(const MoeRouting& r, const MoeRows& y, const float* residual, float* out,
                 int64_t D, void* stream) {
  if (r.T == 0 || D == 0) return;
  with_type(y.bf16, [&](auto type) {
    using T = decltype(type);
    combine_kernel<T><<<blocks(r.T), threads_of(D), 0, as_stream(stream)>>>(
        r, static_cast<const T*>(y.data), residual, out, D);
  });
  check_launch("moe combine");
}

void moe_combine_backward(const MoeRouting& r, const MoeRows& y, const float* dout,
                          const MoeRows& dy, float* dweight, bool add_dweight, int64_t D,
                          void* stream) {
  if (r.T == 0 || D == 0) return;
  const int64_t n = r.rows() * (dy.data && !dy.add ? 2 : 1);
  with_type(y.bf16, [&](auto type) {
    using T = decltype(type);
    combine_backward_kernel<T><<<blocks(n), kThreads, 0, as_stream(stream)>>>(
        r, static_cast<const T*>(y.data), dout, static_cast<T*>(dy.data), dy.add, dweight,
        add_dweight, D);
  });
  check_launch("moe combine backward");
}

}  // namespace krait::cuda
