// A block a row: one pass over memory, the row is kept in shared memory where it fits. Backward: a block
// walks some rows, so that dw and db leave it as one partial sum.
#include "krait/ops/norm/cuda.h"

#include <type_traits>

#include "krait/tensor/cuda/kept_row.cuh"
#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/rows.h"
#include "krait/tensor/cuda/step_norm.h"

namespace krait::cuda {

namespace {

using bfloat16 = __nv_bfloat16;

constexpr int64_t kMostThreads = 256;
constexpr int64_t kSharedFloats =
    11 * 1024;  // a block gets 48 KB without asking, sums of warps included

template <class X, class Y, int V>
__global__ void forward_kernel(const NormProblem p, const bool keep) {
  let_next_start();
  wait_for_previous();
  extern __shared__ float kept[];
  const int64_t row = blockIdx.x, first = int64_t{threadIdx.x} * V, step = int64_t{blockDim.x} * V;
  const X* const x = static_cast<const X*>(p.x) + row * p.x_stride;
  float* const sum = p.residual ? p.sum + row * p.D : nullptr;
  const auto read = [&](int64_t i, float(&s)[V]) {
    if (keep) return load<V>(kept + i, s);
    sum ? load<V>(sum + i, s) : load<V>(x + i, s);
  };
  float total = 0;
  for (int64_t i = first; i < p.D; i += step) {
    float s[V];
    load<V>(x + i, s);
    if (sum) {
      float r[V];
      load<V>(p.residual + row * p.residual_stride + i, r);
      for (int v = 0; v < V; ++v) s[v] += r[v];
      store<V>(sum + i, s);
    }
    if (keep) store<V>(kept + i, s);
    for (int v = 0; v < V; ++v) total += p.layer ? s[v] : s[v] * s[v];
  }
  total = block_sum(total);
  const auto n = static_cast<float>(p.D);
  float mean = 0, square = total;
  if (p.layer) {
    mean = total / n;
    square = 0;
    for (int64_t i = first; i < p.D; i += step) {
      float s[V];
      read(i, s);
      for (int v = 0; v < V; ++v) square += (s[v] - mean) * (s[v] - mean);
    }
    square = block_sum(square);
  }
  const float scale = 1.0f / sqrtf(square / n + p.eps);
  if (threadIdx.x == 0) {
    if (p.scale) p.scale[row] = scale;
    if (p.mean) p.mean[row] = mean;
  }
  for (int64_t i = first; i < p.D; i += step) {
    float s[V], w[V], b[V];
    read(i, s);
    if (p.w) load<V>(p.w + i, w);
    if (p.b) load<V>(p.b + i, b);
    for (int v = 0; v < V; ++v) {
      s[v] = (s[v] - mean) * scale;
      if (p.w) s[v] *= w[v];
      if (p.b) s[v] += b[v];
    }
    store<V>(static_cast<Y*>(p.y) + row * p.D + i, s);
  }
}

constexpr int64_t kMostStepNormRows = 16;
constexpr int kRun = 4;  // neighbouring elements of a thread that keeps its part of a row

// The same where a row fits into a block's registers, K runs a thread.
template <class X, class Y, int K>
__global__ void __launch_bounds__(32 * kMostTeamWarps)
    forward_kept_kernel(const __grid_constant__ NormProblem p) {
  constexpr int V = kRun;
  let_next_start();
  wait_for_previous();
  // From the last row on: the product before has written it last, it may still be in the second-level cache.
  const int64_t row = gridDim.x - 1 - blockIdx.x;
  const X* const x = static_cast<const X*>(p.x) + row * p.x_stride;
  const float* const residual = p.residual ? p.residual + row * p.residual_stride : nullptr;
  const auto n = static_cast<float>(p.D);
  float s[K][V] = {}, r[K][V] = {}, total[1] = {}, mean = 0;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (kept_column<V>(k) >= p.D) continue;
    load<V>(x + kept_column<V>(k), s[k]);
    if (residual) load<V>(residual + kept_column<V>(k), r[k]);
  }
#pragma unroll
  for (int k = 0; k < K; ++k) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      s[k][v] += r[k][v];
      total[0] += p.layer ? s[k][v] : s[k][v] * s[k][v];
    }
    if (residual && kept_column<V>(k) < p.D) store<V>(p.sum + row * p.D + kept_column<V>(k), s[k]);
  }
  int half = 0;
  team_sums<true>(total, half);
  if (p.layer) {
    mean = total[0] / n;
    total[0] = 0;
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
      for (int v = 0; v < V; ++v)
        total[0] += kept_column<V>(k) < p.D ? (s[k][v] - mean) * (s[k][v] - mean) : 0.0f;
    }
    team_sums<true>(total, half);
  }
  const float scale = 1.0f / sqrtf(total[0] / n + p.eps);
  if (threadIdx.x == 0) {
    if (p.scale) p.scale[row] = scale;
    if (p.mean) p.mean[row] = mean;
  }
#pragma unroll
  for (int k = 0; k < K; ++k) {
    if (kept_column<V>(k) >= p.D) continue;
    float w[V], b[V] = {};
#pragma unroll
    for (int v = 0; v < V; ++v) w[v] = 1;
    if (p.w) load<V>(p.w + kept_column<V>(k), w);
    if (p.b) load<V>(p.b + kept_column<V>(k), b);
#pragma unroll
    for (int v = 0; v < V; ++v) s[k][v] = (s[k][v] - mean) * scale * w[v] + b[v];
    store<V>(static_cast<Y*>(p.y) + row * p.D + kept_column<V>(k), s[k]);
  }
}

// With v = (s - mean) * scale and g = dy * w:
//   ds = scale * (g - mean(g) [layer] - v * mean(g * v)),   dw += dy * v,   db += dy
// A thread has the same columns in every row: its sums need no other thread.
template <class S, class X, class Y, int V>
__global__ void backward_kernel(const NormProblem p, int64_t rows, int64_t rows_of_a_piece,
                                float* dw_parts, float* db_parts, const bool in_shared) {
  extern __shared__ float sums[];
  const int64_t D = p.D, first = int64_t{threadIdx.x} * V, step = int64_t{blockDim.x} * V;
  float* const dw_part = dw_parts ? dw_parts + blockIdx.x * D : nullptr;
  float* const db_part = db_parts ? db_parts + blockIdx.x * D : nullptr;
  float* const dw = dw_parts && in_shared ? sums : dw_part;
  float* const db = db_parts && in_shared ? sums + (dw ? D : 0) : db_part;
  const float zero[V] = {};
  for (int64_t i = first; i < D; i += step) {
    if (dw) store<V>(dw + i, zero);
    if (db) store<V>(db + i, zero);
  }
  const int64_t begin = blockIdx.x * rows_of_a_piece, end = min(rows, begin + rows_of_a_piece);
  for (int64_t row = begin; row < end; ++row) {
    const S* s = std::is_same_v<S, X> && !p.sum ? static_cast<const S*>(p.x) + row * p.x_stride
                                                : reinterpret_cast<const S*>(p.sum) + row * D;
    const Y* const dy = p.dy ? static_cast<const Y*>(p.dy) + row * D : nullptr;
    const float scale = p.scale[row], mean = p.layer ? p.mean[row] : 0.0f;
    // dy, g and v of a run
    const auto read = [&](int64_t i, float(&d)[V], float(&g)[V], float(&value)[V]) {
      load<V>(s + i, value);
      load<V>(dy + i, d);
      if (p.w) load<V>(p.w + i, g);
      for (int v = 0; v < V; ++v) {
        value[v] = (value[v] - mean) * scale;
        g[v] = p.w ? g[v] * d[v] : d[v];
      }
    };
    float mean_g = 0, mean_gv = 0;
    if (dy) {
      for (int64_t i = first; i < D; i += step) {
        float d[V], g[V], value[V];
        read(i, d, g, value);
        for (int v = 0; v < V; ++v) {
          mean_g += g[v];
          mean_gv += g[v] * value[v];
        }
      }
      mean_gv = block_sum(mean_gv) / static_cast<float>(D);
      mean_g = p.layer ? block_sum(mean_g) / static_cast<float>(D) : 0.0f;
    }
    for (int64_t i = first; i < D; i += step) {
      float total[V] = {}, other[V];
      if (dy) {
        float d[V], g[V], value[V];
        read(i, d, g, value);
        for (int v = 0; v < V; ++v) total[v] = scale * (g[v] - mean_g - value[v] * mean_gv);
        if (p.y) {
          if (p.w) load<V>(p.w + i, other);
          for (int v = 0; v < V; ++v) other[v] = p.w ? value[v] * other[v] : value[v];
          store<V>(static_cast<Y*>(p.y) + row * D + i, other);
        }
        if (dw) {
          load<V>(dw + i, other);
          for (int v = 0; v < V; ++v) other[v] += d[v] * value[v];
          store<V>(dw + i, other);
        }
        if (db) {
          load<V>(db + i, other);
          for (int v = 0; v < V; ++v) other[v] += d[v];
          store<V>(db + i, other);
        }
      }
      if (p.dsum) {
        load<V>(p.dsum + row * D + i, other);
        for (int v = 0; v < V; ++v) total[v] += other[v];
      }
      if (p.dresidual) store<V>(p.dresidual + row * p.dresidual_stride + i, total);
      if (!p.dx) continue;
      X* const dx = static_cast<X*>(p.dx) + row * p.dx_stride + i;
      if (p.dx_add) {
        load<V>(dx, other);
        for (int v = 0; v < V; ++v) total[v] += other[v];
      }
      store<V>(dx, total);
      if (p.dx_bf16) store<V>(static_cast<bfloat16*>(p.dx_bf16) + row * D + i, total);
    }
  }
  for (int64_t i = first; i < D && in_shared; i += step) {
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

// The same where a row fits into the registers of a team: each is read once, the next one while it is at work.
template <class S, class X, class Y, int K, bool kBias>
__global__ void __maxnreg__(kTeamRegisters)
    backward_kept_kernel(const __grid_constant__ NormProblem p, int64_t rows, float* dw_parts,
                         float* db_parts) {
  constexpr int V = kRun;
  extern __shared__ __align__(16) unsigned char memory[];
  unsigned char* at = memory;
  StagedRows<S, V, K> of_s(at);
  const bool more = p.dx && p.dx_add;
  StagedRows<X, V, K> of_dx(at, more);
  StagedRows<float, V, K> of_dsum(at, p.dsum != nullptr);
  StagedRows<Y, V, K> of_dy(at);
  const int D = static_cast<int>(p.D);
  const float share = 1.0f / static_cast<float>(D);
  float w[K][V], dw[K][V] = {}, db[kBias ? K : 1][V] = {};
#pragma unroll
  for (int k = 0; k < K; ++k) {
#pragma unroll
    for (int v = 0; v < V; ++v) w[k][v] = 1;
    if (p.w && kept_column<V>(k) < D) load<V>(p.w + kept_column<V>(k), w[k]);
  }
  const auto fetch = [&](int64_t row, int stage) {
    const S* const s = p.sum ? reinterpret_cast<const S*>(p.sum) + row * D
                             : static_cast<const S*>(p.x) + row * p.x_stride;
    const Y* const dy = static_cast<const Y*>(p.dy) + row * D;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int i = kept_column<V>(k);
      if (i >= D) continue;
      of_s.copy(stage, k, s + i);
      of_dy.copy(stage, k, dy + i);
      if (more) of_dx.copy(stage, k, static_cast<const X*>(p.dx) + row * p.dx_stride + i);
      if (p.dsum) of_dsum.copy(stage, k, p.dsum + row * D + i);
    }
  };
  const int64_t first = rows - 1 - (int64_t{blockIdx.x} * blockDim.y + threadIdx.y);
  float next_scale = first >= 0 ? p.scale[first] : 0.0f,
        next_mean = first >= 0 && p.layer ? p.mean[first] : 0.0f;
  int half = 0;
  for_staged_rows(rows, fetch, [&](int64_t row, int64_t next, int stage) {
    const float scale = next_scale, row_mean = next_mean;
    if (next >= 0) {
      next_scale = p.scale[next];
      if (p.layer) next_mean = p.mean[next];
    }
    float value[K][V] = {}, d[K][V] = {}, mean[2] = {};  // of g v, of g
#pragma unroll
    for (int k = 0; k < K; ++k) {
      if (kept_column<V>(k) >= D) continue;
      of_s.read(stage, k, value[k]), of_dy.read(stage, k, d[k]);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        value[k][v] = (value[k][v] - row_mean) * scale;
        dw[k][v] = fmaf(d[k][v], value[k][v], dw[k][v]);
        if (kBias) db[k][v] += d[k][v];
        d[k][v] *= w[k][v];
        mean[0] = fmaf(d[k][v], value[k][v], mean[0]);
        mean[1] += d[k][v];
      }
      if (!p.y) continue;
      float y[V];
#pragma unroll
      for (int v = 0; v < V; ++v) y[v] = value[k][v] * w[k][v];
      store<V>(static_cast<Y*>(p.y) + row * D + kept_column<V>(k), y);
    }
    team_sums<false>(mean, half);
    mean[0] *= share;
    mean[1] = p.layer ? mean[1] * share : 0.0f;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int i = kept_column<V>(k);
      if (i >= D) continue;
      float total[V], other[V] = {};
      if (p.dsum) of_dsum.read(stage, k, other);
#pragma unroll
      for (int v = 0; v < V; ++v)
        total[v] = scale * (d[k][v] - mean[1] - value[k][v] * mean[0]) + other[v];
      if (p.dresidual) store<V>(p.dresidual + row * p.dresidual_stride + i, total);
      if (!p.dx) continue;
      if (more) {
        of_dx.read(stage, k, other);
#pragma unroll
        for (int v = 0; v < V; ++v) total[v] += other[v];
      }
      store<V>(static_cast<X*>(p.dx) + row * p.dx_stride + i, total);
      if (p.dx_bf16) store<V>(static_cast<bfloat16*>(p.dx_bf16) + row * D + i, total);
    }
  });
  wait_for_copies<0>();
  float* const shared = reinterpret_cast<float*>(memory);
  const int64_t to = blockIdx.x * p.D;
  write_team_sums<V>(dw, D, shared, dw_parts ? dw_parts + to : nullptr);
  if constexpr (kBias) write_team_sums<V>(db, D, shared, db_parts + to);
}

int64_t bytes_of(bool bf16) { return bf16 ? 2 : 4; }

// Whether every tensor of the call can be walked in runs of four.
bool in_fours(const NormProblem& p, const float* dw, const float* db) {
  const int64_t x = bytes_of(p.x_bf16), y = bytes_of(p.y_bf16);
  return p.D % 4 == 0 && in_runs(p.x, p.x_stride, x, 4) &&
         in_runs(p.residual, p.residual_stride, 4, 4) && in_runs(p.w, 0, 4, 4) &&
         in_runs(p.b, 0, 4, 4) && in_runs(p.y, 0, y, 4) && in_runs(p.sum, 0, 4, 4) &&
         in_runs(p.dy, 0, y, 4) && in_runs(p.dsum, 0, 4, 4) &&
         in_runs(p.dresidual, p.dresidual_stride, 4, 4) && in_runs(p.dx, p.dx_stride, x, 4) &&
         in_runs(p.dx_bf16, 0, 2, 4) && in_runs(dw, 0, 4, 4) && in_runs(db, 0, 4, 4);
}

// Whole warps, no more than the row has runs.
unsigned threads_for(int64_t D, int V) {
  return static_cast<unsigned>(
      std::clamp<int64_t>(ceil_div(ceil_div(D, V), 32) * 32, 32, kMostThreads));
}

// Calls f(S, X, Y) with the types of s (x itself, or the float32 sum), x and y.
template <class F>
void with_types(const NormProblem& p, bool sum, const F& f) {
  const auto with_y = [&](auto s, auto x) { p.y_bf16 ? f(s, x, bfloat16()) : f(s, x, 0.0f); };
  if (!p.x_bf16) {
    with_y(0.0f, 0.0f);
  } else if (sum) {
    with_y(0.0f, bfloat16());
  } else {
    with_y(bfloat16(), bfloat16());
  }
}

}  // namespace

void norm_forward(const NormProblem& p, int64_t rows, void* stream) {
  if (rows == 0 || p.D == 0) return;
  const KeptRow row(p.D, kRun, 2, 4);
  const bool keep = p.D <= kSharedFloats, fours = in_fours(p, nullptr, nullptr);
  const size_t shared = keep ? static_cast<size_t>(p.D) * sizeof(float) : 0;
  // Where weights would come last, behind those of the head that follows: they are brought along.
  const bool plain = !p.layer && p.w && !p.b && !p.residual && !p.scale && !p.x_bf16 && p.y_bf16;
  if (plain && rows <= kMostStepNormRows && fours && p.x_stride == p.D)
    return step_norm({.x = static_cast<const float*>(p.x),
                      .w = p.w,
                      .y = p.y,
                      .M = rows,
                      .D = p.D,
                      .eps = p.eps},
                     stream);
  with_types(p, true, [&](auto, auto x, auto y) {
    using X = decltype(x);
    using Y = decltype(y);
    const auto launch = [&](auto kernel, int V) {
      launch_dependent("norm_forward", kernel, dim3(static_cast<unsigned>(rows)),
                       threads_for(p.D, V), shared, 1, stream, p, keep);
    };
    const auto launch_kept = [&](auto kernel) {
      launch_dependent("norm_forward", kernel, dim3(static_cast<unsigned>(rows)), row.threads, 0, 1,
                       stream, p);
    };
    if (fours && row.threads > 0)
      return row.runs == 2 ? launch_kept(forward_kept_kernel<X, Y, 2>)
                           : launch_kept(forward_kept_kernel<X, Y, 4>);
    fours ? launch(forward_kernel<X, Y, 4>, 4) : launch(forward_kernel<X, Y, 1>, 1);
  });
}

void norm_backward(const NormProblem& p, int64_t rows, float* dw, float* db, void* stream) {
  if (rows == 0 || p.D == 0) return;
  const int64_t floats = p.D * ((dw ? 1 : 0) + (db ? 1 : 0)), each = rows_of_a_partial_sum(rows);
  const auto pieces = static_cast<unsigned>(ceil_div(rows, each));
  const auto at = static_cast<cudaStream_t>(stream);
  const KeptRow row(p.D, kRun, 3, 4);
  const bool in_shared = floats <= kSharedFloats;
  const size_t shared = in_shared ? static_cast<size_t>(floats) * sizeof(float) : 0;
  with_types(p, p.sum != nullptr, [&](auto s, auto x, auto y) {
    using S = decltype(s);
    using X = decltype(x);
    using Y = decltype(y);
    const auto launch = [&](auto kernel, int V) {
      kernel<<<pieces, threads_for(p.D, V), shared, at>>>(p, rows, each, dw, db, in_shared);
    };
    const bool fours = in_fours(p, dw, db);
    const auto launch_kept = [&](auto K) {
      const unsigned threads = row.threads * row.teams;
      const size_t stages =
          std::max(StagedRows<S, kRun, K>::bytes(threads) + StagedRows<Y, kRun, K>::bytes(threads) +
                       (p.dx && p.dx_add ? StagedRows<X, kRun, K>::bytes(threads) : 0) +
                       (p.dsum ? StagedRows<float, kRun, K>::bytes(threads) : 0),
                   static_cast<size_t>(row.teams * p.D) * sizeof(float));
      const auto kernel =
          db ? backward_kept_kernel<S, X, Y, K, true> : backward_kept_kernel<S, X, Y, K, false>;
      if (!fours || !p.dy || threads == 0 || stages > kMostOfStages ||
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(stages)) != cudaSuccess)
        return false;
      kernel<<<pieces, dim3(row.threads, row.teams), stages, at>>>(p, rows, dw, db);
      return true;
    };
    if (row.runs == 3 ? launch_kept(std::integral_constant<int, 3>())
                      : launch_kept(std::integral_constant<int, 4>()))
      return;
    fours ? launch(backward_kernel<S, X, Y, 4>, 4) : launch(backward_kernel<S, X, Y, 1>, 1);
  });
  check_launch("norm_backward");
}

}  // namespace krait::cuda
