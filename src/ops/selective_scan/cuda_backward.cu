// selective_scan backward on NVIDIA GPUs. Tile by tile from the end: the states of a tile are computed again
// from the saved one before it, once to keep every eighth, then eight steps at a time in registers, from which
// the adjoint runs back. dB and dC are summed over the channels of a warp by shuffles, over the warps of a
// cluster of blocks through distributed shared memory, over clusters by a second kernel: all in fixed order.
#include <algorithm>

#include "krait/ops/selective_scan/cuda_device.cuh"

namespace krait::ops::scan {
namespace {

using cuda::ceil_div;

constexpr int kSub = 8;  // steps whose states are in registers at once

template <class S>
struct BackwardTile {
  float2 row[S::kTile][S::kChannels];  // delta, delta u; then Σ_n dh a h A2, Σ_n dh B
  float g[S::kTile][S::kChannels];     // gradient of y before the gate; then Σ_n C h
  float bc[S::kTile * S::kRow];
  float part[S::kScanWarps][S::kTile * S::kRow];  // dB and dC, summed over the channels of a warp
};

template <class S>
struct BackwardMemory {
  BackwardTile<S> tile[2];
  float start[S::kTile / kSub][S::CPT * S::NS][S::kScanWarps * 32];  // states before every eighth step
  float sums[2][S::kHelpers][4];
};

// What the launcher adds.
struct Work {
  CudaBackward w;
  int64_t pieces = 1, blocks = 1;  // of the sequences; of the channels of a group, a multiple of cluster
  int cluster = 1;
  float *parts, *dA, *dB, *dC, *dD, *ddt_bias, *dstates;
};

__device__ inline void barrier(int cluster) {
  if (cluster == 1) {
    __syncthreads();
  } else {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
  }
}

__device__ inline float4 load_of_rank(const float4* p, unsigned rank) {
  unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(p));
  float4 v;
  asm volatile("{ .reg .u32 a; mapa.shared::cluster.u32 a, %4, %5;\n"
               "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [a]; }"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(at), "r"(rank));
  return v;
}

__device__ inline void add(float4& sum, const float4& v) { sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w; }

// This block's share of the rows of dB and dC of one tile, summed over the cluster.
template <class S>
__device__ inline void sum_parts(const Work& k, const Place& place, const Span& s, int64_t t0, int64_t block,
                                 int helper, const BackwardTile<S>& at) {
  constexpr int kUnits = S::kTile * S::kRow / 4, kUnitsOfRow = S::kRow / 4;
  const int rank = static_cast<int>(block % k.cluster), share = kUnits / k.cluster;
  const int64_t set = (place.group * k.blocks + block) / k.cluster;
  float4* to = reinterpret_cast<float4*>(k.parts) + (set * k.w.p.tokens + s.begin + t0) * kUnitsOfRow;
  for (int i = rank * share + helper; i < (rank + 1) * share; i += S::kHelpers) {
    if (t0 + i / kUnitsOfRow >= s.tokens) break;
    float4 sum = {};
    const auto of_warp = [&](int warp) { return reinterpret_cast<const float4*>(at.part[warp]) + i; };
    if (k.cluster == 1) {
#pragma unroll
      for (int warp = 0; warp < S::kScanWarps; ++warp) add(sum, *of_warp(warp));
    } else {
      for (int first = 0; first < k.cluster; first += 4) {  // clusters are of 4 or 8
        float4 v[4][S::kScanWarps];
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
          for (int warp = 0; warp < S::kScanWarps; ++warp) v[r][warp] = load_of_rank(of_warp(warp), first + r);
#pragma unroll
        for (int r = 0; r < 4; ++r)
#pragma unroll
          for (int warp = 0; warp < S::kScanWarps; ++warp) add(sum, v[r][warp]);
      }
    }
    to[i] = sum;
  }
}

// What a helping thread does: brings the rows of the next tile, and makes du, ddt and dz of the tile before last
// from the sums that the scanning warps left in its place.
template <class S, bool kFast>
struct Helper {
  static constexpr int kBatch = S::kPasses < 2 ? S::kPasses : 2;
  using BC = StagedBC<S, kFast>;
  struct Rows4 {
    Quad u[kBatch], dt[kBatch], z[kBatch], dy[kBatch];
  };
  const CudaBackward& w;
  const Place& place;
  const int helper, quad, first_row, valid;  // of four channels: index in the block; row of a tile; those that exist
  const int64_t column;
  float bias[4], D[4], dD[4] = {}, ddt_bias[4] = {};  // of the thread's channels; the latter summed over time

  __device__ Helper(const CudaBackward& w_, const Place& place_, int helper_)
      : w(w_), place(place_), helper(helper_),
        quad(helper_ % S::kQuads),
        first_row(helper_ / S::kQuads < S::kHelperRows ? helper_ / S::kQuads : S::kTile),
        valid(place_.channels - helper_ % S::kQuads * 4),
        column(place_.first + helper_ % S::kQuads * 4) {
    const CudaProblem& p = w.p;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool there = i < valid;
      bias[i] = there && p.dt_bias ? p.dt_bias[column + i] : 0.0f;
      D[i] = there && p.D ? p.D[column + i] : 0.0f;
    }
  }

  // Step i of the sequence: tile tiles - 1 - i is prepared, the one two before is finished.
  __device__ void step(const Work& k, const Span& s, int64_t tiles, int64_t i, int64_t block, BackwardTile<S>& at) {
    const int64_t t0 = (tiles - 1 - i) * S::kTile, done = t0 + 2 * S::kTile;
    BC bc;
    Rows4 now, before;
    if (i < tiles) bc.load(w.p, place, s, t0, helper, 0);
    if (i >= 2) before = load(s, done, 0);
    if (i < tiles) now = load(s, t0, 0);
    if (i >= 2 && k.parts) sum_parts<S>(k, place, s, done, block, helper, at);
    if (i < tiles) {
      bc.store(w.p, helper, 0, at.bc);
      for (int j = BC::kBatch; j < BC::kPasses; j += BC::kBatch) {
        bc.load(w.p, place, s, t0, helper, j);
        bc.store(w.p, helper, j, at.bc);
      }
    }
    for (int j = 0; j < S::kPasses; j += kBatch) {
      if (j > 0 && i >= 2) before = load(s, done, j);
      if (j > 0 && i < tiles) now = load(s, t0, j);
      if (i >= 2) finish(s, done, j, before, at);
      if (i < tiles) prepare(s, t0, j, now, at);
    }
  }

 private:
  // Rows of the tile that exist, counted from the row of pass `first` on.
  __device__ int rows_left(const Span& s, int64_t t0, int first) const {
    const int64_t left = s.tokens - t0;
    return static_cast<int>(left < S::kTile ? left : S::kTile) - first_row - first * S::kHelperRows;
  }
  __device__ char* row(const CudaRows& r, const Span& s, int64_t t0, int first) const {
    return element(r, kFast || r.bf16, s.begin + t0 + first_row + first * S::kHelperRows, column);
  }
  __device__ int64_t step(const CudaRows& r) const { return bytes_of_rows(r, kFast || r.bf16, S::kHelperRows); }

  __device__ Rows4 load(const Span& s, int64_t t0, int first) const {
    const CudaProblem& p = w.p;
    Rows4 r;
    const char *u = row(p.u, s, t0, first), *dt = row(p.dt, s, t0, first), *z = row(p.z, s, t0, first),
               *dy = row(w.dy, s, t0, first);
    const int left = rows_left(s, t0, first);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int there = j * S::kHelperRows < left ? valid : 0;
      r.u[j] = load_quad<kFast>(p.u, u + j * step(p.u), there);
      r.dt[j] = load_quad<kFast>(p.dt, dt + j * step(p.dt), there);
      r.z[j] = load_quad<kFast>(p.z, z + j * step(p.z), p.z.data ? there : 0);
      r.dy[j] = load_quad<kFast>(w.dy, dy + j * step(w.dy), w.dy.data ? there : 0);
    }
    return r;
  }

  __device__ void prepare(const Span& s, int64_t t0, int first, const Rows4& r, BackwardTile<S>& at) const {
    const CudaProblem& p = w.p;
    const int left = rows_left(s, t0, first);
    if (t0 >= S::kTile && quad % 4 == 0 && valid > 0) {  // one of a sector
      const char *u = row(p.u, s, t0 - S::kTile, first), *dt = row(p.dt, s, t0 - S::kTile, first);
      const char *z = row(p.z, s, t0 - S::kTile, first), *dy = row(w.dy, s, t0 - S::kTile, first);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (first_row + (first + j) * S::kHelperRows >= S::kTile) break;
        prefetch(u + j * step(p.u));
        prefetch(dt + j * step(p.dt));
        if (p.z.data) prefetch(z + j * step(p.z));
        if (w.dy.data) prefetch(dy + j * step(w.dy));
      }
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int t = first_row + (first + j) * S::kHelperRows;
      if (t >= S::kTile) return;
      const int there = j * S::kHelperRows < left ? valid : 0;
      float u[4], delta[4], z[4], g[4];
      to_floats<kFast>(r.u[j], p.u.bf16, u);
      to_floats<kFast>(r.dt[j], p.dt.bf16, delta);
      to_floats<kFast>(r.z[j], p.z.bf16, z);
      to_floats<kFast>(r.dy[j], w.dy.bf16, g);
#pragma unroll
      for (int i = 0; i < 4; ++i) delta[i] += bias[i];
      if (p.softplus) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float e;
          delta[i] = softplus(delta[i], e);
        }
      }
      if (p.z.data) {
#pragma unroll
        for (int i = 0; i < 4; ++i) g[i] *= z[i] * sigmoid(z[i]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (i >= there) delta[i] = 0;  // steps beyond the end change nothing
      float4* slot = reinterpret_cast<float4*>(&at.row[t][quad * 4]);
      slot[0] = {delta[0], delta[0] * u[0], delta[1], delta[1] * u[1]};
      slot[1] = {delta[2], delta[2] * u[2], delta[3], delta[3] * u[3]};
      *reinterpret_cast<float4*>(&at.g[t][quad * 4]) = {g[0], g[1], g[2], g[3]};
    }
  }

  __device__ void finish(const Span& s, int64_t t0, int first, const Rows4& r, const BackwardTile<S>& at) {
    const CudaProblem& p = w.p;
    const int left = rows_left(s, t0, first);
    char *to_u = row(w.du, s, t0, first), *to_dt = row(w.ddt, s, t0, first), *to_z = row(w.dz, s, t0, first);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int t = first_row + (first + j) * S::kHelperRows;
      if (t >= S::kTile) return;
      const int there = j * S::kHelperRows < left ? valid : 0;
      const float4* slot = reinterpret_cast<const float4*>(&at.row[t][quad * 4]);
      const float4 s01 = slot[0], s23 = slot[1], y_part = *reinterpret_cast<const float4*>(&at.g[t][quad * 4]);
      const float s_A[4] = {s01.x, s01.z, s23.x, s23.z}, s_B[4] = {s01.y, s01.w, s23.y, s23.w};
      const float y[4] = {y_part.x, y_part.y, y_part.z, y_part.w};
      float u[4], x[4], z[4], dy[4], du[4], ddt[4], dz[4] = {};
      to_floats<kFast>(r.u[j], p.u.bf16, u);
      to_floats<kFast>(r.dt[j], p.dt.bf16, x);
      to_floats<kFast>(r.z[j], p.z.bf16, z);
      to_floats<kFast>(r.dy[j], w.dy.bf16, dy);
      float slope[4], g[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] += bias[i], slope[i] = 1, g[i] = dy[i];
      if (p.softplus) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float e;
          const float of = x[i];
          x[i] = softplus(of, e);
          const float inverse = reciprocal(1.0f + e);
          slope[i] = of >= 0 ? inverse : e * inverse;
        }
      }
      if (p.z.data) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float sig = sigmoid(z[i]);
          g[i] *= z[i] * sig;
          dz[i] = dy[i] * fmaf(D[i], u[i], y[i]) * sig * fmaf(z[i], 1.0f - sig, 1.0f);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        du[i] = fmaf(x[i], s_B[i], D[i] * g[i]);
        ddt[i] = fmaf(u[i], s_B[i], kLn2 * s_A[i]) * slope[i];
        if (i < there) {
          dD[i] = fmaf(g[i], u[i], dD[i]);
          ddt_bias[i] += ddt[i];
        }
      }
      store_quad<kFast>(w.du, to_u + j * step(w.du), there, du);
      store_quad<kFast>(w.ddt, to_dt + j * step(w.ddt), there, ddt);
      store_quad<kFast>(w.dz, to_z + j * step(w.dz), there, dz);
    }
  }
};

template <class S>
using States = float[S::CPT][S::NS];

template <class S>
__device__ inline void load_row(const BackwardTile<S>& at, int t, int channel, float (&delta)[S::CPT],
                                float (&x)[S::CPT]) {
  if constexpr (S::CPT == 2) {
    const float4 v = *reinterpret_cast<const float4*>(&at.row[t][channel]);
    delta[0] = v.x, x[0] = v.y, delta[1] = v.z, x[1] = v.w;
  } else {
    const float2 v = at.row[t][channel];
    delta[0] = v.x, x[0] = v.y;
  }
}

// The adjoint recurrence of one scanning thread.
template <class S, bool kConstant>
struct Adjoint {
  int channel, lane, warp;
  bool constant_B, constant_C;
  States<S> A, B, C, h, dh, dA, dB, dC;  // A: A log2(e)

  __device__ void tile(BackwardMemory<S>& memory, BackwardTile<S>& at, int steps) {
    const int l = lane % S::LPC, thread = warp * 32 + lane, subs = (steps + kSub - 1) / kSub;
    for (int sub = 0; sub < subs; ++sub) {
#pragma unroll
      for (int i = 0; i < S::CPT; ++i)
#pragma unroll
        for (int k = 0; k < S::NS; ++k) memory.start[sub][i * S::NS + k][thread] = h[i][k];
      if (sub + 1 == subs) break;
#pragma unroll
      for (int s = 0; s < kSub; ++s) {
        float b[S::NS], c[S::NS], delta[S::CPT], x[S::CPT];
        load_bc<S>(at.bc, sub * kSub + s, l, b, c);
        load_row<S>(at, sub * kSub + s, channel, delta, x);
#pragma unroll
        for (int i = 0; i < S::CPT; ++i)
#pragma unroll
          for (int k = 0; k < S::NS; ++k)
            h[i][k] = fmaf(exp2_fast(delta[i] * A[i][k]), h[i][k],
                           x[i] * (kConstant && constant_B ? B[i][k] : b[k]));
      }
    }
    for (int sub = subs - 1; sub >= 0; --sub) back(memory, at, sub);
  }

 private:
  __device__ void back(BackwardMemory<S>& memory, BackwardTile<S>& at, int sub) {
    constexpr int kSums = kSub * S::CPT, kOwn = kSums > S::LPC ? kSums / S::LPC : 1,
                  kSharers = kSums < S::LPC ? S::LPC / kSums : 1;
    const int l = lane % S::LPC, thread = warp * 32 + lane, t0 = sub * kSub;
    float states[kSub + 1][S::CPT][S::NS], decay[kSub][S::CPT][S::NS], y[kSums], s_A[kSums], s_B[kSums];
#pragma unroll
    for (int i = 0; i < S::CPT; ++i)
#pragma unroll
      for (int k = 0; k < S::NS; ++k) states[0][i][k] = memory.start[sub][i * S::NS + k][thread];
#pragma unroll
    for (int s = 0; s < kSub; ++s) {
      float b[S::NS], c[S::NS], delta[S::CPT], x[S::CPT];
      load_bc<S>(at.bc, t0 + s, l, b, c);
      load_row<S>(at, t0 + s, channel, delta, x);
#pragma unroll
      for (int i = 0; i < S::CPT; ++i) {
        float sum = 0;
#pragma unroll
        for (int k = 0; k < S::NS; ++k) {
          const float a = exp2_fast(delta[i] * A[i][k]);
          const float after =
              fmaf(a, states[s][i][k], x[i] * (kConstant && constant_B ? B[i][k] : b[k]));
          decay[s][i][k] = a, states[s + 1][i][k] = after;
          sum = fmaf(kConstant && constant_C ? C[i][k] : c[k], after, sum);
        }
        y[s * S::CPT + i] = sum;
      }
    }
    sum_transposed<S::LPC, 1>(y, lane);
#pragma unroll
    for (int s = kSub - 1; s >= 0; --s) {
      float b[S::NS], c[S::NS], delta[S::CPT], x[S::CPT], g[S::CPT], part[2 * S::NS] = {};
      load_bc<S>(at.bc, t0 + s, l, b, c);
      load_row<S>(at, t0 + s, channel, delta, x);
      if constexpr (S::CPT == 2) {
        const float2 v = *reinterpret_cast<const float2*>(&at.g[t0 + s][channel]);
        g[0] = v.x, g[1] = v.y;
      } else {
        g[0] = at.g[t0 + s][channel];
      }
#pragma unroll
      for (int i = 0; i < S::CPT; ++i) {
        float sum_A = 0, sum_B = 0;
#pragma unroll
        for (int k = 0; k < S::NS; ++k) {
          const float bk = kConstant && constant_B ? B[i][k] : b[k];
          const float ck = kConstant && constant_C ? C[i][k] : c[k];
          const float d = fmaf(ck, g[i], dh[i][k]);
          part[k] = fmaf(d, x[i], part[k]);
          part[S::NS + k] = fmaf(g[i], states[s + 1][i][k], part[S::NS + k]);
          if constexpr (kConstant) {
            dB[i][k] = fmaf(d, x[i], dB[i][k]);
            dC[i][k] = fmaf(g[i], states[s + 1][i][k], dC[i][k]);
          }
          sum_B = fmaf(d, bk, sum_B);
          dh[i][k] = d * decay[s][i][k];
          const float q = dh[i][k] * states[s][i][k];
          dA[i][k] = fmaf(q, delta[i], dA[i][k]);
          sum_A = fmaf(q, A[i][k], sum_A);
        }
        s_A[s * S::CPT + i] = sum_A, s_B[s * S::CPT + i] = sum_B;
      }
      constexpr int kLanes = 32 / S::LPC, kEach = 2 * S::NS / kLanes > 0 ? 2 * S::NS / kLanes : 1;
      static_assert(kLanes <= 2 * S::NS);
      sum_transposed<kLanes, S::LPC>(part, lane);
      float* to = at.part[warp] + (t0 + s) * S::kRow + l * 2 * S::NS + lane / S::LPC * kEach;
#pragma unroll
      for (int i = 0; i < kEach; ++i) to[i] = part[i];
    }
    sum_transposed<S::LPC, 1>(s_A, lane);
    sum_transposed<S::LPC, 1>(s_B, lane);
    __syncwarp();
    if (kSharers == 1 || l % kSharers == 0) {
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        const int at_sum = l / kSharers * kOwn + j, t = t0 + at_sum / S::CPT, e = channel + at_sum % S::CPT;
        at.row[t][e] = {s_A[j], s_B[j]};
        at.g[t][e] = y[j];
      }
    }
    __syncwarp();
  }
};

// A sequence belongs to the piece of the tokens that holds its first.
__device__ inline int64_t piece_of(const Work& k, int64_t s) {
  const CudaProblem& p = k.w.p;
  const int64_t piece = begin_of(p, s) * k.pieces / (p.tokens > 0 ? p.tokens : 1);
  return piece < k.pieces ? piece : k.pieces - 1;
}

__device__ inline int64_t first_of(const Work& k, int64_t piece) {
  int64_t low = 0, high = k.w.p.sequences;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (piece_of(k, middle) < piece)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

template <class S, bool kFast>
__device__ inline void help_backward(const Work& k, const Place& place, int64_t block, int64_t piece, int helper,
                                     BackwardMemory<S>& memory) {
  const CudaProblem& p = k.w.p;
  Helper<S, kFast> h(k.w, place, helper);
  for (int64_t n = first_of(k, piece); n < p.sequences && piece_of(k, n) == piece; ++n) {
    const Span s = sequence(p, n);
    const int64_t tiles = ceil_div(s.tokens, S::kTile);
    for (int64_t i = 0; i < tiles + 2; ++i) {
      h.step(k, s, tiles, i, block, memory.tile[i & 1]);
      barrier(k.cluster);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) memory.sums[0][helper][i] = h.dD[i], memory.sums[1][helper][i] = h.ddt_bias[i];
}

template <class S, bool kConstant>
__device__ inline void scan_backward_states(const Work& k, const Place& place, int64_t piece, int role, int lane,
                                            BackwardMemory<S>& memory) {
  const CudaBackward& w = k.w;
  const CudaProblem& p = w.p;
  Adjoint<S, kConstant> a;
  a.warp = role, a.lane = lane;
  a.channel = (role * (32 / S::LPC) + lane / S::LPC) * S::CPT;
  a.constant_B = p.constant_B, a.constant_C = p.constant_C;
  const int n0 = lane % S::LPC * S::NS, left = place.channels - a.channel;
  const int64_t e = place.first + a.channel, states = p.E * p.N;
  load_states<S>(p.A, p.N, e, left, n0, a.A);
#pragma unroll
  for (int c = 0; c < S::CPT; ++c)
#pragma unroll
    for (int i = 0; i < S::NS; ++i) {
      a.A[c][i] = scaled_A(a.A[c][i], p.a_is_log);
      a.dA[c][i] = 0;
      if constexpr (kConstant) a.dB[c][i] = a.dC[c][i] = 0;
    }
  if constexpr (kConstant) {
    load_states<S>(p.constant_B ? static_cast<const float*>(p.B.data) : nullptr, p.N, e, left, n0, a.B);
    load_states<S>(p.constant_C ? static_cast<const float*>(p.C.data) : nullptr, p.N, e, left, n0, a.C);
  }
  for (int64_t n = first_of(k, piece); n < p.sequences && piece_of(k, n) == piece; ++n) {
    const Span s = sequence(p, n);
    const int64_t tiles = ceil_div(s.tokens, S::kTile);
    const float* of_start = p.state_in && s.in >= 0 ? p.state_in + s.in * states : nullptr;
    const auto before = [&](int64_t i) {
      return i > 0 ? w.saved + (s.begin / S::kTile + i - 1) * states : of_start;
    };
    load_states<S>(w.dstate_out && s.out >= 0 ? w.dstate_out + s.out * states : nullptr, p.N, e, left, n0, a.dh);
    States<S> next;
    if (tiles > 0) load_states<S>(before(tiles - 1), p.N, e, left, n0, next);
    barrier(k.cluster);
    for (int64_t i = tiles - 1; i >= 0; --i) {
#pragma unroll
      for (int c = 0; c < S::CPT; ++c)
#pragma unroll
        for (int j = 0; j < S::NS; ++j) a.h[c][j] = next[c][j];
      if (i > 0) load_states<S>(before(i - 1), p.N, e, left, n0, next);
      const int64_t t = i * S::kTile;
      const int steps = static_cast<int>(s.tokens - t < S::kTile ? s.tokens - t : S::kTile);
      a.tile(memory, memory.tile[(tiles - 1 - i) & 1], steps);
      barrier(k.cluster);
    }
    barrier(k.cluster);
    if (k.dstates) store_states<S>(a.dh, p.N, e, left, n0, k.dstates + n * states);
  }
  store_states<S>(a.dA, p.N, e, left, n0, k.dA + piece * states);
  if constexpr (kConstant) {
    store_states<S>(a.dB, p.N, e, left, n0, k.dB + piece * states);
    store_states<S>(a.dC, p.N, e, left, n0, k.dC + piece * states);
  }
}

template <class S, bool kConstant, bool kFast, int kBlocks>
__global__ void __launch_bounds__(S::kThreads, kBlocks) scan_backward(const __grid_constant__ Work k) {
  extern __shared__ float4 shared[];
  auto& memory = *reinterpret_cast<BackwardMemory<S>*>(shared);
  const CudaProblem& p = k.w.p;
  const int64_t all = k.blocks * p.G, of_all = blockIdx.x % all, piece = blockIdx.x / all;
  const int64_t block = of_all % k.blocks;
  const Place place = place_of<S>(p, of_all / k.blocks, block);
  const int warp = warp_index(), lane = threadIdx.x % 32, role = S::role(warp);
  if (role == S::kIdle) return;
  if (role >= 0)
    scan_backward_states<S, kConstant>(k, place, piece, role, lane, memory);
  else
    help_backward<S, kFast>(k, place, block, piece, ~role * 32 + lane, memory);
  __syncthreads();
  if (role != ~0) return;
  for (int c = lane; c < place.channels; c += 32) {  // the helpers of a channel, in order
    float dD = 0, ddt_bias = 0;
    for (int r = 0; r < S::kHelperRows; ++r) {
      dD += memory.sums[0][r * S::kQuads + c / 4][c % 4];
      ddt_bias += memory.sums[1][r * S::kQuads + c / 4][c % 4];
    }
    k.dD[piece * p.E + place.first + c] = dD;
    k.ddt_bias[piece * p.E + place.first + c] = ddt_bias;
  }
}

__device__ inline void put(const CudaSum& g, int64_t i, float value) {
  if (g.to) g.to[i] = g.add ? g.to[i] + value : value;
}

// Over the pieces: dA, dD, ddt_bias, constant dB and dC. One thread a state.
__global__ void sum_pieces(const __grid_constant__ Work k) {
  const CudaBackward& w = k.w;
  const int64_t N = w.p.N, states = w.p.E * N, i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= states) return;
  const auto total = [&](const float* of, int64_t at, int64_t step) {
    float sum = 0;
    for (int64_t piece = 0; piece < k.pieces; ++piece) sum += of[piece * step + at];
    return sum;
  };
  if (w.dA.to) put(w.dA, i, total(k.dA, i, states) * (w.p.a_is_log ? kLn2 * scaled_A(w.p.A[i], true) : 1.0f));
  if (w.dB_constant.to) put(w.dB_constant, i, total(k.dB, i, states));
  if (w.dC_constant.to) put(w.dC_constant, i, total(k.dC, i, states));
  if (i % N != 0) return;
  if (w.dD.to) put(w.dD, i / N, total(k.dD, i / N, w.p.E));
  if (w.ddt_bias.to) put(w.ddt_bias, i / N, total(k.ddt_bias, i / N, w.p.E));
}

// A row of states may have started several sequences, or none. One thread a state.
__global__ void sum_states(const __grid_constant__ Work k) {
  const CudaBackward& w = k.w;
  const int64_t states = w.p.E * w.p.N, i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= states) return;
  float* to = w.dstate_in.to + i;
  if (!w.dstate_in.add)
    for (int64_t row = 0; row < w.state_rows; ++row) to[row * states] = 0;
  for (int64_t n = 0; n < w.p.sequences; ++n) {
    const int64_t row = sequence(w.p, n).in;
    if (row >= 0) to[row * states] += k.dstates[n * states + i];
  }
}

// dB and dC over the sets of channels. One thread a (token, group, n), B and C.
template <int NS>
__global__ void sum_sets(const __grid_constant__ Work k, int64_t sets_of_group, int row) {
  const CudaBackward& w = k.w;
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, t = i / row;
  const int column = static_cast<int>(i % row), n = column / (2 * NS) * NS + column % NS;
  const CudaRows& to = column % (2 * NS) < NS ? w.dB : w.dC;
  if (t >= w.p.tokens || n >= w.p.N || !to.data) return;
  for (int64_t group = 0; group < w.p.G; ++group) {
    const float* part = k.parts + (group * sets_of_group * w.p.tokens + t) * row + column;
    float sum = 0;
#pragma unroll 8
    for (int64_t set = 0; set < sets_of_group; ++set) sum += part[set * w.p.tokens * row];
    const int64_t at = t * to.stride + group * to.group + n;
    if (to.bf16) {
      auto* x = static_cast<__nv_bfloat16*>(to.data) + at;
      *x = __float2bfloat16_rn(to.add ? __bfloat162float(*x) + sum : sum);
    } else {
      auto* x = static_cast<float*>(to.data) + at;
      *x = to.add ? *x + sum : sum;
    }
  }
}

// Sizes and places in the scratch, from the shapes alone.
template <class S>
Work plan(const CudaProblem& p, int cluster, float* scratch, int64_t* floats) {
  Work k{};
  k.pieces = std::clamp<int64_t>(p.sequences, 1, 64);
  k.cluster = cluster;
  k.blocks = ceil_div(blocks_of_group<S>(p), cluster) * cluster;
  const int64_t states = p.E * p.N, sets = p.G * k.blocks / cluster;
  int64_t at = 0;
  const auto take = [&](int64_t n) {
    float* const here = scratch ? scratch + at : nullptr;
    at += ceil_div(n, 4) * 4;
    return here;
  };
  k.dA = take(k.pieces * states);
  k.dB = take(p.constant_B || p.constant_C ? k.pieces * states : 0);
  k.dC = take(p.constant_B || p.constant_C ? k.pieces * states : 0);
  k.dD = take(k.pieces * p.E);
  k.ddt_bias = take(k.pieces * p.E);
  k.dstates = take(p.state_in ? p.sequences * states : 0);
  k.parts = take(p.constant_B && p.constant_C ? 0 : sets * p.tokens * S::kRow);
  *floats = at;
  return k;
}

template <class S, bool kConstant, bool kFast, int kBlocks>
void launch(const CudaBackward& w, int cluster, void* stream) {
  int64_t floats = 0;
  Work k = plan<S>(w.p, cluster, w.scratch, &floats);
  k.w = w;
  if (!w.dB.data && !w.dC.data) k.parts = nullptr;
  if (!w.dstate_in.to) k.dstates = nullptr;
  const auto kernel = scan_backward<S, kConstant, kFast, kBlocks>;
  constexpr int bytes = sizeof(BackwardMemory<S>);
  static_assert(kBlocks * (bytes + 1024) <= 228 * 1024);
  static_assert(S::kTile * S::kRow / 4 % 8 == 0);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  cudaLaunchAttribute shape;
  shape.id = cudaLaunchAttributeClusterDimension;
  shape.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = {static_cast<unsigned>(k.pieces * w.p.G * k.blocks), 1, 1};
  config.blockDim = {S::kThreads, 1, 1};
  config.dynamicSmemBytes = bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &shape;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, k);
  cuda::check_launch("selective_scan backward");
  const auto blocks = [](int64_t n) { return static_cast<unsigned>(ceil_div(n, 256)); };
  const int64_t states = w.p.E * w.p.N;
  sum_pieces<<<blocks(states), 256, 0, config.stream>>>(k);
  if (k.parts && w.p.tokens > 0)
    sum_sets<S::NS><<<blocks(w.p.tokens * S::kRow), 256, 0, config.stream>>>(k, k.blocks / cluster, S::kRow);
  if (k.dstates) sum_states<<<blocks(states), 256, 0, config.stream>>>(k);
  cuda::check_launch("sums of selective_scan backward");
}

// Lanes a channel, states a lane, channels a thread; scanning and helping warps; steps of a tile.
using Few = Layout<8, 2, 1, 3, 3, true, 32>;
using Many = Layout<4, 4, 1, 4, 4, false, 32>;
using Any16 = Layout<8, 2, 1, 4, 2, false, 32>;
using Any32 = Layout<8, 4, 1, 2, 2, false, 32>;
using Any64 = Layout<16, 4, 1, 2, 2, false, 32>;
using Any128 = Layout<32, 4, 2, 2, 2, false, 32>;
using Any256 = Layout<32, 8, 2, 2, 2, false, 16>;

// Calls f with a layout, whether B or C is constant, the blocks of a multiprocessor and of a cluster.
template <class F>
auto with_layout(const CudaProblem& p, const F& f) {
  const auto any = [&]<bool kConstant>() {
    if (p.N <= 16) return f.template operator()<Any16, kConstant, 1>(1);
    if (p.N <= 32) return f.template operator()<Any32, kConstant, 1>(1);
    if (p.N <= 64) return f.template operator()<Any64, kConstant, 1>(1);
    if (p.N <= 128) return f.template operator()<Any128, kConstant, 1>(1);
    return f.template operator()<Any256, kConstant, 1>(1);
  };
  if (p.constant_B || p.constant_C) return any.template operator()<true>();
  if (p.N > 16) return any.template operator()<false>();
  const int64_t pieces = std::clamp<int64_t>(p.sequences, 1, 64);
  const bool many = rounds<Many>(p, pieces) <= rounds<Few>(p, pieces);
  if (many) return f.template operator()<Many, false, 2>(1);
  return f.template operator()<Few, false, 1>(1);
}

}  // namespace

int64_t cuda_backward_scratch(const CudaProblem& p) {
  return with_layout(p, [&]<class S, bool kConstant, int kBlocks>(int cluster) {
    int64_t floats = 0;
    plan<S>(p, cluster, nullptr, &floats);
    return floats;
  });
}

void cuda_scan_backward(const CudaBackward& unaligned, void* stream) {
  CudaBackward w = unaligned;
  const bool fast = align(w.p, {&w.dy, &w.du, &w.ddt, &w.dz});
  if (w.p.E == 0 || w.p.N == 0) return;
  with_layout(w.p, [&]<class S, bool kConstant, int kBlocks>(int cluster) {
    if constexpr (!kConstant && S::NP == 16)
      if (fast) return launch<S, false, true, kBlocks>(w, cluster, stream);
    launch<S, kConstant, false, kBlocks>(w, cluster, stream);
  });
}

}  // namespace krait::ops::scan
