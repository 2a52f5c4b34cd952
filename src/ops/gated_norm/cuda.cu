// A block has a group of channels, of one row or (backward) of some rows, so that dw and db leave it as one
// partial sum.
#include "krait/ops/gated_norm/cuda.h"

#include <type_traits>

#include "krait/tensor/cuda/exponentials.cuh"
#include "krait/tensor/cuda/kept_row.cuh"
#include "krait/tensor/cuda/rows.h"

namespace krait::cuda {

namespace {

using ops::GatedNormProblem;

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
      float d[V], w[V], b[V], of_w[V], of_b[V], dx[V], dz[V], y[V];
      load<V>(dy + i, d);
      load<V>(p.w + e, w);
      if (p.b) load<V>(p.b + e, b);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float m = c.normed(p, v) * scale;
        y[v] = m * w[v];
        if (p.b) y[v] += b[v];
        if (!p.gate_first) y[v] *= c.gate[v];
        of_b[v] = p.gate_first ? d[v] : d[v] * c.gate[v];
        of_w[v] = of_b[v] * m;
        const float dv = scale * (of_b[v] * w[v] - m * mean);
        dx[v] = p.gate_first ? dv * c.gate[v] : dv;
        if (p.dz)
          dz[v] =
              (p.gate_first ? dv * c.x[v] : d[v] * (m * w[v] + (p.b ? b[v] : 0.0f))) * c.slope(v);
      }
      if (p.y) store<V>(static_cast<T*>(p.y) + row * p.E + e, y);
      if (dw) add_to<V>(dw + i, of_w);
      if (db) add_to<V>(db + i, of_b);
      if (p.dx) store_or_add<V>(static_cast<T*>(p.dx) + row * p.dx_stride + e, dx, p.dx_add);
      if (p.dz) store_or_add<V>(static_cast<T*>(p.dz) + row * p.dz_stride + e, dz, p.dz_add);
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

// sigmoid(z), to what rounding to T leaves of it.
template <class T>
__device__ inline float sigmoid_of(float z) {
  if constexpr (std::is_same_v<T, float>) return sigmoid(z);
  return reciprocal<true>(1.0f + exp2_fast(-kLog2e * z));
}

// 1 - sigmoid(z), where s is sigmoid(z).
template <class T>
__device__ inline float rest_of(float z, float s) {
  if constexpr (std::is_same_v<T, float>) return sigmoid(-z);
  return 1.0f - s;
}

// A thread that keeps its part of a row has 16 channels, in runs of 16 bytes.
template <class T>
constexpr int kRun = 16 / sizeof(T);
template <class T>
constexpr int kRuns = 16 / kRun<T>;
constexpr int kForwardRegisters = 64;  // of a thread

// The same where a row's group of n fits into a block's registers. kUsual: with z, without b.
template <class T, bool kGateFirst, bool kUsual>
__global__ void __maxnreg__(kForwardRegisters)
    forward_kept_kernel(const __grid_constant__ GatedNormProblem p, int n) {
  constexpr int V = kRun<T>, K = kRuns<T>;
  // From the last row on: the product behind it begins with the first one, which then lies in the second-level cache.
  const int64_t row = gridDim.x - 1 - blockIdx.x;
  const int from = static_cast<int>(blockIdx.y) * n;
  const T* const x = static_cast<const T*>(p.x) + row * p.x_stride + from;
  const T* const z = static_cast<const T*>(p.z) + row * p.z_stride + from;
  T* const y = static_cast<T*>(p.y) + row * p.E + from;
  Run<V, T> of_x[K] = {}, of_z[K] = {};
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int i = kept_column<V>(k);
    if (i >= n) continue;
    of_x[k] = *reinterpret_cast<const Run<V, T>*>(x + i);
    if (kUsual || p.z) of_z[k] = *reinterpret_cast<const Run<V, T>*>(z + i);
  }
  float normed[K][V], gate[K][V], square[1] = {};
#pragma unroll
  for (int k = 0; k < K; ++k) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const auto at = static_cast<float>(of_z[k].v[v]);
      gate[k][v] = kUsual || p.z ? at * sigmoid_of<T>(at) : 1.0f;
      normed[k][v] = static_cast<float>(of_x[k].v[v]);
      if (kGateFirst) normed[k][v] *= gate[k][v];
      square[0] = fmaf(normed[k][v], normed[k][v], square[0]);
    }
  }
  int half = 0;
  team_sums<true>(square, half);
  const float scale = 1.0f / sqrtf(square[0] / static_cast<float>(n) + p.eps);
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int i = kept_column<V>(k);
    if (i >= n) continue;
    float w[V], b[V] = {}, out[V];
    load_fours(p.w + from + i, w);
    if (!kUsual && p.b) load_fours(p.b + from + i, b);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      out[v] = fmaf(normed[k][v] * scale, w[v], b[v]);
      if (!kGateFirst) out[v] *= gate[k][v];
    }
    store<V>(y + i, out);
  }
}

// kUsual: with z, without b, and every gradient is written for the first time.
template <class T, bool kGateFirst, bool kBias, bool kUsual>
__global__ void __maxnreg__(kTeamRegisters)
    backward_kept_kernel(const __grid_constant__ GatedNormProblem p, int64_t rows, int n,
                         float* dw_parts, float* db_parts) {
  constexpr int V = kRun<T>, K = kRuns<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  unsigned char* at = memory;
  StagedRows<T, V, K> of_x(at), of_z(at), of_dy(at);
  const int from = static_cast<int>(blockIdx.y) * n;
  const float share = 1.0f / static_cast<float>(n);
  float w[K][V] = {}, dw[K][V] = {}, db[kBias ? K : 1][V] = {};
#pragma unroll
  for (int k = 0; k < K; ++k)
    if (kept_column<V>(k) < n) load_fours(p.w + from + kept_column<V>(k), w[k]);
  const auto fetch = [&](int64_t row, int stage) {
    const T* const x = static_cast<const T*>(p.x) + row * p.x_stride + from;
    const T* const z = static_cast<const T*>(p.z) + row * p.z_stride + from;
    const T* const dy = static_cast<const T*>(p.dy) + row * p.E + from;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int i = kept_column<V>(k);
      if (i >= n) continue;
      of_x.copy(stage, k, x + i);
      if (kUsual || p.z) of_z.copy(stage, k, z + i);
      of_dy.copy(stage, k, dy + i);
    }
  };
  int half = 0;
  for_staged_rows(rows, fetch, [&](int64_t row, int64_t, int stage) {
    // s: sigmoid(z); gate: silu(z), 1 without z; value: what the norm sees; g: the gradient behind it, before w
    float s[K][V], sums[2] = {0, 0};  // Σ v², Σ g v
    const auto part = [&](float s, float x, float z, float dy, float& gate, float& value,
                          float& g) {
      gate = kUsual || p.z ? z * s : 1.0f;
      value = kGateFirst ? x * gate : x;
      g = kGateFirst ? dy : dy * gate;
    };
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (kept_column<V>(k) >= n) continue;
      float x[V], z[V] = {}, dy[V];
      of_x.read(stage, k, x), of_dy.read(stage, k, dy);
      if (kUsual || p.z) of_z.read(stage, k, z);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        float gate, value, g;
        s[k][v] = sigmoid_of<T>(z[v]);
        part(s[k][v], x[v], z[v], dy[v], gate, value, g);
        sums[0] = fmaf(value, value, sums[0]);
        sums[1] = fmaf(value, g * w[k][v], sums[1]);
      }
    }
    team_sums<false>(sums, half);
    const float scale = 1.0f / sqrtf(sums[0] / static_cast<float>(n) + p.eps);
    const float mean = sums[1] * scale * share;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (kept_column<V>(k) >= n) continue;
      const int i = from + kept_column<V>(k);
      float x[V], z[V] = {}, dy[V], b[V] = {}, dx[V], dz[V], y[V];
      of_x.read(stage, k, x), of_dy.read(stage, k, dy);
      if (kUsual || p.z) of_z.read(stage, k, z);
      if (!kUsual && p.b) load_fours(p.b + i, b);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        float gate, value, g;
        part(s[k][v], x[v], z[v], dy[v], gate, value, g);
        const float m = value * scale, slope = s[k][v] + gate * rest_of<T>(z[v], s[k][v]),
                    normed = fmaf(m, w[k][v], b[v]);
        dw[k][v] = fmaf(g, m, dw[k][v]);
        if (kBias) db[k][v] += g;
        const float dv = scale * (g * w[k][v] - m * mean);
        dx[v] = kGateFirst ? dv * gate : dv;
        dz[v] = (kGateFirst ? dv * x[v] : dy[v] * normed) * slope;
        y[v] = kGateFirst ? normed : normed * gate;
      }
      if (p.y) store<V>(static_cast<T*>(p.y) + row * p.E + i, y);
      if (kUsual || p.dx)
        store_or_add<V>(static_cast<T*>(p.dx) + row * p.dx_stride + i, dx, !kUsual && p.dx_add);
      if (kUsual || p.dz)
        store_or_add<V>(static_cast<T*>(p.dz) + row * p.dz_stride + i, dz, !kUsual && p.dz_add);
    }
  });
  wait_for_copies<0>();
  float* const shared = reinterpret_cast<float*>(memory);
  const int64_t to = blockIdx.x * p.E + from;
  write_team_sums<V>(dw, n, shared, dw_parts ? dw_parts + to : nullptr);
  if constexpr (kBias) write_team_sums<V>(db, n, shared, db_parts + to);
}

// Whether every tensor of the call can be walked in runs of V, those of float32 in runs of four.
bool in_runs_of(int64_t V, const GatedNormProblem& p, const float* dw, const float* db) {
  const int64_t bytes = p.bf16 ? 2 : 4;
  return p.E / p.groups % V == 0 && in_runs(p.x, p.x_stride, bytes, V) &&
         in_runs(p.z, p.z_stride, bytes, V) && in_runs(p.w, 0, 4, 4) && in_runs(p.b, 0, 4, 4) &&
         in_runs(p.y, 0, bytes, V) && in_runs(p.dy, 0, bytes, V) &&
         in_runs(p.dx, p.dx_stride, bytes, V) && in_runs(p.dz, p.dz_stride, bytes, V) &&
         in_runs(dw, 0, 4, 4) && in_runs(db, 0, 4, 4);
}

// Whole warps, no more than the group has runs.
unsigned threads_for(int64_t n, int64_t V, int64_t most = 256) {
  return static_cast<unsigned>(std::clamp<int64_t>(ceil_div(ceil_div(n, V), 32) * 32, 32, most));
}

// False where the rows do not fit into registers: nothing was launched.
bool forward_kept(const GatedNormProblem& p, int64_t rows, cudaStream_t stream) {
  const int64_t n = p.E / p.groups;
  const auto with_type = [&](auto t) {
    using T = decltype(t);
    const KeptRow row(n, kRun<T>, kRuns<T>, kRuns<T>);
    if (row.threads == 0 || !in_runs_of(kRun<T>, p, nullptr, nullptr)) return false;
    const bool usual = p.z && !p.b;
    const auto kernel =
        p.gate_first
            ? (usual ? forward_kept_kernel<T, true, true> : forward_kept_kernel<T, true, false>)
            : (usual ? forward_kept_kernel<T, false, true> : forward_kept_kernel<T, false, false>);
    const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(p.groups));
    kernel<<<grid, row.threads, 0, stream>>>(p, static_cast<int>(n));
    return true;
  };
  return p.bf16 ? with_type(__nv_bfloat16()) : with_type(0.0f);
}

bool backward_kept(const GatedNormProblem& p, int64_t rows, int64_t rows_of_a_piece, float* dw,
                   float* db, cudaStream_t stream) {
  const int64_t n = p.E / p.groups;
  const auto with_type = [&](auto t) {
    using T = decltype(t);
    const KeptRow row(n, kRun<T>, kRuns<T>, kRuns<T>);
    if (row.threads == 0 || !in_runs_of(kRun<T>, p, dw, db)) return false;
    const size_t stages =
        std::max(3 * StagedRows<T, kRun<T>, kRuns<T>>::bytes(row.threads * row.teams),
                 static_cast<size_t>(row.teams * n) * sizeof(float));
    // H200: E 4096 219 us instead of 223, E 5120 265 of 304; E 1536 67 of 72, but where y is written 89 instead of 82.
    const bool usual =
        (n >= 2048 || !p.y) && p.z && !p.b && !db && p.dx && p.dz && !p.dx_add && !p.dz_add;
    const auto pick = [&](auto gate_first) {
      constexpr bool kFirst = decltype(gate_first)::value;
      return db      ? backward_kept_kernel<T, kFirst, true, false>
             : usual ? backward_kept_kernel<T, kFirst, false, true>
                     : backward_kept_kernel<T, kFirst, false, false>;
    };
    const auto kernel = p.gate_first ? pick(std::true_type()) : pick(std::false_type());
    if (stages > kMostOfStages ||
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(stages)) != cudaSuccess)
      return false;
    const dim3 grid(static_cast<unsigned>(ceil_div(rows, rows_of_a_piece)),
                    static_cast<unsigned>(p.groups));
    kernel<<<grid, dim3(row.threads, row.teams), stages, stream>>>(p, rows, static_cast<int>(n), dw,
                                                                   db);
    return true;
  };
  return p.bf16 ? with_type(__nv_bfloat16()) : with_type(0.0f);
}

}  // namespace

void gated_norm_forward(const GatedNormProblem& p, int64_t rows, void* stream) {
  if (rows * p.E == 0) return;
  const auto at = static_cast<cudaStream_t>(stream);
  if (forward_kept(p, rows, at)) return check_launch("gated_norm");
  const bool fours = in_runs_of(4, p, nullptr, nullptr);
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
                each = rows_of_a_partial_sum(rows);
  const bool in_shared = floats <= kSharedFloats, fours = in_runs_of(4, p, dw, db);
  const auto at = static_cast<cudaStream_t>(stream);
  if (backward_kept(p, rows, each, dw, db, at)) return check_launch("gated_norm backward");
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
