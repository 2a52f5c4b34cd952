// Private to selective_scan: memory and helping warps of the backward kernel of cuda_backward.cu.
#pragma once
#include "krait/ops/selective_scan/cuda_work.cuh"

namespace krait::ops::scan {
namespace {

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
  float start[S::kTile / kSub][S::CPT * S::NS]
             [S::kScanWarps * 32];  // states before every eighth step
  float sums[2][S::kHelpers][4];
  uint64_t meeting;
};

__device__ inline void add(float4& sum, const float4& v) {
  sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
}

// The rows of dB and dC of one tile, summed over the warps.
template <class S>
__device__ inline void sum_parts(const Work& k, const Place& place, int64_t n, const Span& s,
                                 int64_t t0, int64_t block, int helper, const BackwardTile<S>& at) {
  constexpr int kUnits = S::kTile * S::kRow / 4, kUnitsOfRow = S::kRow / 4;
  const int64_t set = place.group * k.blocks + block;
  float4* to = reinterpret_cast<float4*>(k.parts) +
               (set * k.part_rows + k.part_row(n, s.begin, t0)) * kUnitsOfRow;
  for (int i = helper; i < kUnits; i += S::kHelpers) {
    if (t0 + i / kUnitsOfRow >= s.tokens) break;
    float4 sum = {};
#pragma unroll
    for (int warp = 0; warp < S::kScanWarps; ++warp)
      add(sum, reinterpret_cast<const float4*>(at.part[warp])[i]);
    to[i] = sum;
  }
}

// What a helping thread does: brings the rows of the next tile, and makes du, ddt and dz of the tile before last
// from the sums that the scanning warps left in its place.
template <class S>
struct Helper {
  static constexpr int kBatch = S::kPasses < 2 ? S::kPasses : 2;
  using BC = StagedBC<S>;
  struct Rows4 {
    Quad u[kBatch], dt[kBatch], z[kBatch], dy[kBatch];
  };
  const CudaBackward& w;
  const Place& place;
  const int helper, quad, first_row,
      valid;  // of four channels: index in the block; row of a tile; those that exist
  const int64_t column;
  float bias[4], D[4], dD[4] = {},
                       ddt_bias[4] = {};  // of the thread's channels; the latter summed over time

  __device__ Helper(const CudaBackward& w_, const Place& place_, int helper_)
      : w(w_),
        place(place_),
        helper(helper_),
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

  // Step i of sequence n: tile tiles - 1 - i is prepared, the one two before is finished.
  __device__ void step(const Work& k, int64_t n, const Span& s, int64_t tiles, int64_t i,
                       int64_t block, BackwardTile<S>& at) {
    const int64_t t0 = k.from + (tiles - 1 - i) * S::kTile, done = t0 + 2 * S::kTile;
    BC bc;
    Rows4 now, before;
    if (i < tiles) bc.load(w.p, place, s, t0, helper, 0);
    if (i >= 2) before = load(s, done, 0);
    if (i < tiles) now = load(s, t0, 0);
    if (i >= 2 && k.parts) sum_parts<S>(k, place, n, s, done, block, helper, at);
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
    return element(r, r.bf16, s.begin + t0 + first_row + first * S::kHelperRows, column);
  }
  __device__ int64_t step(const CudaRows& r) const {
    return bytes_of_rows(r, r.bf16, S::kHelperRows);
  }

  __device__ Rows4 load(const Span& s, int64_t t0, int first) const {
    const CudaProblem& p = w.p;
    Rows4 r;
    const char *u = row(p.u, s, t0, first), *dt = row(p.dt, s, t0, first),
               *z = row(p.z, s, t0, first), *dy = row(w.dy, s, t0, first);
    const int left = rows_left(s, t0, first);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int there = j * S::kHelperRows < left ? valid : 0;
      r.u[j] = load_quad<false>(p.u, u + j * step(p.u), there);
      r.dt[j] = load_quad<false>(p.dt, dt + j * step(p.dt), there);
      r.z[j] = load_quad<false>(p.z, z + j * step(p.z), p.z.data ? there : 0);
      r.dy[j] = load_quad<false>(w.dy, dy + j * step(w.dy), w.dy.data ? there : 0);
    }
    return r;
  }

  __device__ void prepare(const Span& s, int64_t t0, int first, const Rows4& r,
                          BackwardTile<S>& at) const {
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
      to_floats<false>(r.u[j], p.u.bf16, u);
      to_floats<false>(r.dt[j], p.dt.bf16, delta);
      to_floats<false>(r.z[j], p.z.bf16, z);
      to_floats<false>(r.dy[j], w.dy.bf16, g);
#pragma unroll
      for (int i = 0; i < 4; ++i) delta[i] += bias[i];
      if (p.softplus) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float e;
          delta[i] = softplus<false>(delta[i], e);
        }
      }
      if (p.z.data) {
#pragma unroll
        for (int i = 0; i < 4; ++i) g[i] *= z[i] * sigmoid<false>(z[i]);
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

  __device__ void finish(const Span& s, int64_t t0, int first, const Rows4& r,
                         const BackwardTile<S>& at) {
    const CudaProblem& p = w.p;
    const int left = rows_left(s, t0, first);
    char *to_u = row(w.du, s, t0, first), *to_dt = row(w.ddt, s, t0, first),
         *to_z = row(w.dz, s, t0, first);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int t = first_row + (first + j) * S::kHelperRows;
      if (t >= S::kTile) return;
      const int there = j * S::kHelperRows < left ? valid : 0;
      const float4* slot = reinterpret_cast<const float4*>(&at.row[t][quad * 4]);
      const float4 s01 = slot[0], s23 = slot[1],
                   y_part = *reinterpret_cast<const float4*>(&at.g[t][quad * 4]);
      const float s_A[4] = {s01.x, s01.z, s23.x, s23.z}, s_B[4] = {s01.y, s01.w, s23.y, s23.w};
      const float y[4] = {y_part.x, y_part.y, y_part.z, y_part.w};
      float u[4], x[4], z[4], dy[4], du[4], ddt[4], dz[4] = {};
      to_floats<false>(r.u[j], p.u.bf16, u);
      to_floats<false>(r.dt[j], p.dt.bf16, x);
      to_floats<false>(r.z[j], p.z.bf16, z);
      to_floats<false>(r.dy[j], w.dy.bf16, dy);
      float slope[4], g[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] += bias[i], slope[i] = 1, g[i] = dy[i];
      if (p.softplus) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float e;
          const float of = x[i];
          x[i] = softplus<false>(of, e);
          const float inverse = reciprocal<false>(1.0f + e);
          slope[i] = of >= 0 ? inverse : e * inverse;
        }
      }
      if (p.z.data) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float sig = sigmoid<false>(z[i]);
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
      store_quad<false>(w.du, to_u + j * step(w.du), there, du);
      store_quad<false>(w.ddt, to_dt + j * step(w.ddt), there, ddt);
      store_quad<false>(w.dz, to_z + j * step(w.dz), there, dz);
    }
  }
};

template <class S>
using States = float[S::CPT][S::NS];

}  // namespace
}  // namespace krait::ops::scan
