// A block has a group of channels, of one row or (backward) of some rows, so that dw and db leave it as one
// partial sum.
#include "krait/ops/gated_norm/cuda.h"

#include <type_traits>

#include "krait/tensor/cuda/kept_row.cuh"

namespace krait::cuda {

namespace {

using ops::GatedNormProblem;

constexpr int64_t kPiecesForward = 4096;      // of all rows, at most
constexpr int64_t kSharedFloats = 11 * 1024;  // a block gets 48 KB without asking, sums included

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// V neighbouring channels of a row.
template <class T, int V>
struct Channels {
  float x[V], z[V], gate[V];  // gate: silu(z); 1 without z

  __device__ Channels(const GatedNormProblem& p, int64_t row, int64_t e) {
    load<V>(static_cast<const T*>(p.x) + row * p.x_stride + e, x);
    if (p.z) load<V>(static_cast<const T*>(p.z) + row * p.z_stride + e, z);
#pragma unroll
    for (int v = 0; v < V; ++v) gate[v] = p.z ? z[v] * sigmoid(z[v]) : 1.0f;
  }
  __device__ float normed(const GatedNormProblem& p, int v) const {  // what the norm sees
    return p.gate_first ? x[v] * gate[v] : x[v];
  }
  __device__ float slope(int v) const {  // of silu
    return sigmoid(z[v]) * fmaf(z[v], sigmoid(-z[v]), 1.0f);
  }
};

template <class T, int V>
__global__ void forward_kernel(const GatedNormProblem p) {
  const int64_t row = blockIdx.x / p.groups, n = p.E / p.groups, from = blockIdx.x % p.groups * n;
  const int64_t first = from + int64_t{threadIdx.x} * V, step = int64_t{blockDim.x} * V;
  float square = 0;
  for (int64_t e = first; e < from + n; e += step) {
    const Channels<T, V> c(p, row, e);
#pragma unroll
    for (int v = 0; v < V; ++v) square += c.normed(p, v) * c.normed(p, v);
  }
  const float scale = 1.0f / sqrtf(block_sum(square) / static_cast<float>(n) + p.eps);
  for (int64_t e = first; e < from + n; e += step) {
    const Channels<T, V> c(p, row, e);
    float w[V], b[V], y[V];
    load<V>(p.w + e, w);
    if (p.b) load<V>(p.b + e, b);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      y[v] = c.normed(p, v) * scale * w[v];
      if (p.b) y[v] += b[v];
      if (!p.gate_first) y[v] *= c.gate[v];
    }
    store<V>(static_cast<T*>(p.y) + row * p.E + e, y);
  }
}

template <class T, int V>
__device__ inline void put(void* base, int64_t at, float (&value)[V], bool add) {
  T* const to = static_cast<T*>(base) + at;
  if (add) {
    float old[V];
    load<V>(to, old);
#pragma unroll
    for (int v = 0; v < V; ++v) value[v] += old[v];
  }
  store<V>(to, value);
}

template <int V>
__device__ inline void add_to(float* to, const float (&value)[V]) {
  float sum[V];
  load<V>(to, sum);
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] += value[v];
  store<V>(to, sum);
}

// With m = v * scale, s = silu(z), and g = dy w (gate first) or dy s w:
//   dv = scale * (g - m * mean(g m)),   dw += g m / w,   db += g / w
//   gate first: dx = dv s, dz = dv x silu'(z);   norm first: dx = dv, dz = dy (m w + b) silu'(z)
// A thread has the same channels in every row: its sums need no other thread.
template <class T, int V>
__global__ void backward_kernel(const GatedNormProblem p, int64_t rows, int64_t rows_of_a_piece,
                                float* dw_parts, float* db_parts, const bool in_shared) {
  extern __shared__ float sums[];
  const int64_t n = p.E / p.groups, from = blockIdx.y * n;
  const int64_t first = int64_t{threadIdx.x} * V, step = int64_t{blockDim.x} * V;
  float* const dw_part = dw_parts ? dw_parts + blockIdx.x * p.E + from : nullptr;
  float* const db_part = db_parts ? db_parts + blockIdx.x * p.E + from : nullptr;
  float* const dw = dw_part && in_shared ? sums : dw_part;
  float* const db = db_part && in_shared ? sums + (dw ? n : 0) : db_part;
  const float zero[V] = {};
  for (int64_t i = first; i < n; i += step) {
    if (dw) store<V>(dw + i, zero);
    if (db) store<V>(db + i, zero);
  }
  const int64_t begin = blockIdx.x * rows_of_a_piece, end = min(rows, begin + rows_of_a_piece);
  for (int64_t row = begin; row < end; ++row) {
    const T* const dy = static_cast<const T*>(p.dy) + row * p.E + from;
    float square = 0, along = 0;  // Σ v², Σ g v
    for (int64_t i = first; i < n; i += step) {
      const Channels<T, V> c(p, row, from + i);
      float d[V], w[V];
      load<V>(dy + i, d);
      load<V>(p.w + from + i, w);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float value = c.normed(p, v);
        square += value * value;
        along += value * (p.gate_first ? d[v] : d[v] * c.gate[v]) * w[v];
      }
    }
    const float scale = 1.0f / sqrtf(block_sum(square) / static_cast<float>(n) + p.eps);
    const float mean = block_sum(along) * scale / static_cast<float>(n);
    for (int64_t i = first; i < n; i += step) {
      const int64_t e = from + i;
      const Channels<T, V> c(p, row, e);
      float d[V], w[V], b[V], of_w[V], of_b[V], dx[V], dz[V];
      load<V>(dy + i, d);
      load<V>(p.w + e, w);
      if (p.b) load<V>(p.b + e, b);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float m = c.normed(p, v) * scale;
        of_b[v] = p.gate_first ? d[v] : d[v] * c.gate[v];
        of_w[v] = of_b[v] * m;
        const float dv = scale * (of_b[v] * w[v] - m * mean);
        dx[v] = p.gate_first ? dv * c.gate[v] : dv;
        if (p.dz)
          dz[v] =
              (p.gate_first ? dv * c.x[v] : d[v] * (m * w[v] + (p.b ? b[v] : 0.0f))) * c.slope(v);
      }
      if (dw) add_to<V>(dw + i, of_w);
      if (db) add_to<V>(db + i, of_b);
      if (p.dx) put<T, V>(p.dx, row * p.dx_stride + e, dx, p.dx_add);
      if (p.dz) put<T, V>(p.dz, row * p.dz_stride + e, dz, p.dz_add);
    }
  }
  for (int64_t i = first; i < n && in_shared; i += step) {
    float run[V];
    if (dw) {
      load<V>(dw + i, run);
      store<V>(dw_part + i, run);
    }
    if (db) {
      load<V>(db + i, run);
      store<V>(db_part + i, run);
    }
  }
}

// The same where a block keeps a row in its registers: each row is read once.
template <class T, int K>
struct Row {
  Run<kKeptRun, T> x[K], z[K], dy[K];
};

// A group of channels of some rows, K runs of four channels a thread.
template <class T, int K>
struct Rows {
  const GatedNormProblem& p;
  const int64_t n = p.E / p.groups, from = blockIdx.y * n, begin, end;
  float w[K][kKeptRun] = {};

  __device__ Rows(const GatedNormProblem& problem, int64_t rows, int64_t rows_of_a_piece)
      : p(problem), begin(blockIdx.x * rows_of_a_piece), end(min(rows, begin + rows_of_a_piece)) {
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (here(k)) load<kKeptRun>(p.w + channel(k), w[k]);
  }
  __device__ bool here(int k) const { return kept_column(k) < n; }
  __device__ int64_t channel(int k) const { return from + kept_column(k); }

  __device__ Row<T, K> fetch(int64_t row) const {
    const auto run = [](const void* base, int64_t at) {
      return *reinterpret_cast<const Run<kKeptRun, T>*>(static_cast<const T*>(base) + at);
    };
    Row<T, K> r = {};
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (!here(k)) continue;
      r.x[k] = run(p.x, row * p.x_stride + channel(k));
      if (p.z) r.z[k] = run(p.z, row * p.z_stride + channel(k));
      if (p.dy) r.dy[k] = run(p.dy, row * p.E + channel(k));
    }
    return r;
  }
  __device__ void bias(int k, float (&b)[kKeptRun]) const {
#pragma unroll
    for (int v = 0; v < kKeptRun; ++v) b[v] = 0;
    if (p.b) load<kKeptRun>(p.b + channel(k), b);
  }
};

// sigmoid(z), to what rounding to T leaves of it.
template <class T>
__device__ inline float sigmoid_of(float z) {
  if constexpr (std::is_same_v<T, float>) return sigmoid(z);
  return __fdividef(1.0f, 1.0f + __expf(fminf(-z, 80)));
}

// 1 - sigmoid(z), where s is sigmoid(z).
template <class T>
__device__ inline float rest_of(T z, float s) {
  if constexpr (std::is_same_v<T, float>) return sigmoid(-z);
  return 1.0f - s;
}

template <class T, int K>
__global__ void __launch_bounds__(kMostKeptThreads)
    forward_kept_kernel(const __grid_constant__ GatedNormProblem p, int64_t rows,
                        int64_t rows_of_a_piece) {
  Rows<T, K> of(p, rows, rows_of_a_piece);
  int half = 0;
  for (int64_t row = of.begin; row < of.end; ++row) {
    const Row<T, K> now = of.fetch(row);
    float normed[K][kKeptRun], gate[K][kKeptRun], square[1] = {};
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
      for (int v = 0; v < kKeptRun; ++v) {
        const auto z = static_cast<float>(now.z[k].v[v]);
        const float silu = z * sigmoid_of<T>(z);  // also without z: no branch a channel
        gate[k][v] = p.z ? silu : 1.0f;
        normed[k][v] = static_cast<float>(now.x[k].v[v]);
        if (p.gate_first) normed[k][v] *= gate[k][v];
        square[0] = fmaf(normed[k][v], normed[k][v], square[0]);
      }
    }
    block_sums(square, half);
    const float scale = 1.0f / sqrtf(square[0] / static_cast<float>(of.n) + p.eps);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (!of.here(k)) continue;
      float y[kKeptRun], b[kKeptRun];
      of.bias(k, b);
#pragma unroll
      for (int v = 0; v < kKeptRun; ++v) {
        y[v] = normed[k][v] * scale * of.w[k][v] + b[v];
        if (!p.gate_first) y[v] *= gate[k][v];
      }
      store<kKeptRun>(static_cast<T*>(p.y) + row * p.E + of.channel(k), y);
    }
  }
}

template <class T, int K>
__global__ void __launch_bounds__(kMostKeptThreads)
    backward_kept_kernel(const __grid_constant__ GatedNormProblem p, int64_t rows,
                         int64_t rows_of_a_piece, float* dw_parts, float* db_parts) {
  Rows<T, K> of(p, rows, rows_of_a_piece);
  float dw[K][kKeptRun] = {}, db[K][kKeptRun] = {};
  int half = 0;
  for (int64_t row = of.begin; row < of.end; ++row) {
    const Row<T, K> now = of.fetch(row);
    float s[K][kKeptRun];    // sigmoid(z)
    float sums[2] = {0, 0};  // Σ v², Σ g v
    // gate: silu(z), 1 without z; v: what the norm sees; g: the gradient behind it, before w
    const auto part = [&](int k, int v, float& gate, float& value, float& g) {
      gate = p.z ? static_cast<float>(now.z[k].v[v]) * s[k][v] : 1.0f;
      value = static_cast<float>(now.x[k].v[v]), g = static_cast<float>(now.dy[k].v[v]);
      (p.gate_first ? value : g) *= gate;
    };
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
      for (int v = 0; v < kKeptRun; ++v) {
        s[k][v] = sigmoid_of<T>(static_cast<float>(now.z[k].v[v]));
        float gate, value, g;
        part(k, v, gate, value, g);
        sums[0] = fmaf(value, value, sums[0]);
        sums[1] = fmaf(value, g * of.w[k][v], sums[1]);
      }
    }
    block_sums(sums, half);
    const float scale = 1.0f / sqrtf(sums[0] / static_cast<float>(of.n) + p.eps);
    const float mean = sums[1] * scale / static_cast<float>(of.n);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (!of.here(k)) continue;
      float dx[kKeptRun], dz[kKeptRun], b[kKeptRun];
      of.bias(k, b);
#pragma unroll
      for (int v = 0; v < kKeptRun; ++v) {
        float gate, value, g;
        part(k, v, gate, value, g);
        const float m = value * scale, slope = s[k][v] + gate * rest_of<T>(now.z[k].v[v], s[k][v]);
        dw[k][v] = fmaf(g, m, dw[k][v]);
        db[k][v] += g;
        const float dv = scale * (g * of.w[k][v] - m * mean);
        dx[v] = p.gate_first ? dv * gate : dv;
        dz[v] = (p.gate_first ? dv * static_cast<float>(now.x[k].v[v])
                              : static_cast<float>(now.dy[k].v[v]) * fmaf(m, of.w[k][v], b[v])) *
                slope;
      }
      if (p.dx) put<T, kKeptRun>(p.dx, row * p.dx_stride + of.channel(k), dx, p.dx_add);
      if (p.dz) put<T, kKeptRun>(p.dz, row * p.dz_stride + of.channel(k), dz, p.dz_add);
    }
  }
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (!of.here(k)) continue;
    const int64_t at = blockIdx.x * p.E + of.channel(k);
    if (dw_parts) store<kKeptRun>(dw_parts + at, dw[k]);
    if (db_parts) store<kKeptRun>(db_parts + at, db[k]);
  }
}

// Whether every tensor of the call can be walked in runs of four.
bool in_fours(const GatedNormProblem& p, const float* dw, const float* db) {
  const int64_t bytes = p.bf16 ? 2 : 4;
  return p.E / p.groups % 4 == 0 && in_runs(p.x, p.x_stride, bytes, 4) &&
         in_runs(p.z, p.z_stride, bytes, 4) && in_runs(p.w, 0, 4, 4) && in_runs(p.b, 0, 4, 4) &&
         in_runs(p.y, 0, bytes, 4) && in_runs(p.dy, 0, bytes, 4) &&
         in_runs(p.dx, p.dx_stride, bytes, 4) && in_runs(p.dz, p.dz_stride, bytes, 4) &&
         in_runs(dw, 0, 4, 4) && in_runs(db, 0, 4, 4);
}

// Whole warps, no more than the group has runs.
unsigned threads_for(int64_t n, int64_t V, int64_t most = 256) {
  return static_cast<unsigned>(std::clamp<int64_t>(ceil_div(ceil_div(n, V), 32) * 32, 32, most));
}

// Calls f(K, grid, threads) where the kernels that keep a row in registers can take the call, K a
// constant; else false, and nothing is done.
template <class F>
bool with_kept(const GatedNormProblem& p, bool fours, int64_t pieces, const F& f) {
  const KeptRow row(p.E / p.groups);
  if (!fours || row.threads == 0) return false;
  const dim3 grid(static_cast<unsigned>(pieces), static_cast<unsigned>(p.groups));
  row.runs == 2 ? f(std::integral_constant<int, 2>(), grid, row.threads)
                : f(std::integral_constant<int, 4>(), grid, row.threads);
  return true;
}

}  // namespace

void gated_norm_forward(const GatedNormProblem& p, int64_t rows, void* stream) {
  if (rows * p.E == 0) return;
  const auto at = static_cast<cudaStream_t>(stream);
  const bool fours = in_fours(p, nullptr, nullptr);
  const int64_t each = ceil_div(rows, kPiecesForward);
  const bool kept =
      with_kept(p, fours, ceil_div(rows, each), [&](auto K, dim3 grid, unsigned threads) {
        p.bf16 ? forward_kept_kernel<__nv_bfloat16, K><<<grid, threads, 0, at>>>(p, rows, each)
               : forward_kept_kernel<float, K><<<grid, threads, 0, at>>>(p, rows, each);
      });
  if (kept) return check_launch("gated_norm");
  const auto launch = [&](auto kernel, int V) {
    kernel<<<static_cast<unsigned>(rows * p.groups), threads_for(p.E / p.groups, V), 0, at>>>(p);
  };
  if (p.bf16) {
    fours ? launch(forward_kernel<__nv_bfloat16, 4>, 4)
          : launch(forward_kernel<__nv_bfloat16, 1>, 1);
  } else {
    fours ? launch(forward_kernel<float, 4>, 4) : launch(forward_kernel<float, 1>, 1);
  }
  check_launch("gated_norm");
}

void gated_norm_backward(const GatedNormProblem& p, int64_t rows, float* dw, float* db,
                         void* stream) {
  if (rows * p.E == 0) return;
  const int64_t n = p.E / p.groups, floats = n * ((dw ? 1 : 0) + (db ? 1 : 0)),
                each = gated_norm_rows_of_a_piece(rows);
  const bool in_shared = floats <= kSharedFloats, fours = in_fours(p, dw, db);
  const auto at = static_cast<cudaStream_t>(stream);
  const bool kept =
      with_kept(p, fours, ceil_div(rows, each), [&](auto K, dim3 grid, unsigned threads) {
        p.bf16 ? backward_kept_kernel<__nv_bfloat16, K>
            <<<grid, threads, 0, at>>>(p, rows, each, dw, db)
               : backward_kept_kernel<float, K><<<grid, threads, 0, at>>>(p, rows, each, dw, db);
      });
  if (kept) return check_launch("gated_norm backward");
  const auto launch = [&](auto kernel, int V) {
    const dim3 grid(static_cast<unsigned>(ceil_div(rows, each)), static_cast<unsigned>(p.groups));
    kernel<<<grid, threads_for(n, V), in_shared ? static_cast<size_t>(floats) * sizeof(float) : 0,
             at>>>(p, rows, each, dw, db, in_shared);
  };
  if (p.bf16) {
    fours ? launch(backward_kernel<__nv_bfloat16, 4>, 4)
          : launch(backward_kernel<__nv_bfloat16, 1>, 1);
  } else {
    fours ? launch(backward_kernel<float, 4>, 4) : launch(backward_kernel<float, 1>, 1);
  }
  check_launch("gated_norm backward");
}

}  // namespace krait::cuda
