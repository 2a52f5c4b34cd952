// Private to selective_scan: memory and warps of the backward kernel of cuda_backward_bf16.cu.
#pragma once
#include "krait/ops/selective_scan/cuda_bf16.cuh"
#include "krait/ops/selective_scan/cuda_work.cuh"
#include "krait/tensor/cuda/mma.h"

namespace krait::ops::scan {
namespace {

using cuda::mma_tf32;

constexpr int kSub = 4;  // steps whose states and operands are in registers at once

template <class S>
struct BackwardTile {
  // Rows are apart by half of the banks, or a quarter: four of them are written at once.
  float2 row[S::kTile][S::kChannels + 8];  // delta, delta u; then Σ_n dh a h A2, Σ_n dh B
  float g[S::kTile][S::kChannels + 8];     // gradient of y before the gate; then Σ_n C h
  float delta[S::kTile][S::kChannels], slope[S::kTile][S::kChannels];  // of the softplus
  float bc[S::kTile * S::kRow];
};

template <class S>
struct BackwardMemory {
  BackwardTile<S> tile[2];
  float4 part[S::kScanWarps][S::kTile * S::kRow / 4];     // dB and dC, summed over the channels of a warp
  float4 start[S::kTile / kSub - 1][S::kScanWarps * 32];  // states before every fourth step but the last
  float bias[S::kChannels], D[S::kChannels];
};

// Where four floats of a step's row of dB and dC lie in `part`: those that a quarter of a warp writes at once
// are in different banks.
template <class S>
__device__ inline int unit_of_part(int t, int unit) {
  return t * (S::kRow / 4) + (unit ^ (t % 4 * 2));
}

// Barrier 1: the scanning warps may write `part` again.
template <class S>
__device__ inline void part_is_free() {
  asm volatile("bar.arrive 1, %0;" ::"n"(S::kThreads) : "memory");
}
template <class S>
__device__ inline void wait_for_part() {
  asm volatile("bar.sync 1, %0;" ::"n"(S::kThreads) : "memory");
}

// What a helping thread does: brings the rows of the next tile, and makes du, ddt and dz of the tile before last
// from the sums that the scanning warps left in its place.
template <class S>
struct Helper : HelperPlace<S> {
  using HelperPlace<S>::kQuads, HelperPlace<S>::kQuadBytes;
  using HelperPlace<S>::row, HelperPlace<S>::place;
  using typename HelperPlace<S>::Quads;
  struct Inputs {
    Quads u, z, dy;
  };
  const Work& k;
  BackwardMemory<S>& memory;
  const int helper;
  Inputs before;  // of the tile that is finished next
  float dD[kQuads][4] = {}, ddt_bias[kQuads][4] = {};

  __device__ Helper(const Work& k_, const Place& place_, BackwardMemory<S>& memory_, int helper_)
      : HelperPlace<S>(place_, helper_), k(k_), memory(memory_), helper(helper_) {
    const CudaProblem& p = k.w.p;
    for (int c = helper; c < S::kChannels; c += S::kHelpers) {
      const bool there = c < place.channels;
      memory.bias[c] = there && p.dt_bias ? p.dt_bias[place.first + c] : 0.0f;
      memory.D[c] = there && p.D ? p.D[place.first + c] : 0.0f;
    }
    for (int i = helper; !S::kWhole && i < 2 * S::kTile * S::kChannels; i += S::kHelpers) {  // that do not exist
      BackwardTile<S>& at = memory.tile[i / (S::kTile * S::kChannels)];
      const int t = i / S::kChannels % S::kTile, c = i % S::kChannels;
      if (c >= place.channels) at.row[t][c] = {0, 0}, at.g[t][c] = 0;
    }
    helpers_meet<S>();
  }

  // Step i of a unit: tile tiles - 1 - i is prepared, the one two before is finished.
  __device__ void step(const Unit& u, int i, int64_t block) {
    BackwardTile<S>& at = memory.tile[i & 1];
    const int tiles = static_cast<int>(u.tiles), first = (tiles - 1 - i) * S::kTile,  // from the unit's first token
        begin = static_cast<int>(u.s.begin + u.from), last = static_cast<int>(u.s.tokens - u.from) - 1;
    AnyBC<S> bc;
    if (i < tiles) bc.load(k.w.p, place, u.s, u.from + first, helper);
    if (i >= 2 && k.parts) sum_parts(u, u.from + first + 2 * S::kTile, block);
    if (i >= 1 && i <= tiles) part_is_free<S>();
    const int t = first + row, done = t + 2 * S::kTile;
    Inputs now;
    Quads dt;
    if (i >= 2 && done <= last) finish(begin + done, at);
    if (i < tiles) {
      const int token = begin + min(t, last);  // rows beyond the end are those of the last token
      load(token, now);
      HelperPlace<S>::load(k.w.p.dt, token, dt);
      bc.store(k.w.p, helper, at.bc);
      prepare(t <= last, now, dt, at);
    }
    if (i >= 1 && i <= tiles) load(begin + min(t + S::kTile, last), before);  // finished in the next step
  }

  // Over the rows, in order; `sums` in memory that the tiles do not need any more.
  __device__ void sum_over_rows(int64_t piece) {
    auto* sums = reinterpret_cast<float(*)[S::kTile][S::kChannels]>(&memory.tile[0]);
#pragma unroll
    for (int j = 0; j < kQuads; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int c = this->channel(j) + i;
        sums[0][row][c] = dD[j][i], sums[1][row][c] = ddt_bias[j][i];
      }
    helpers_meet<S>();
    for (int c = helper; c < place.channels; c += S::kHelpers) {
      float D_sum = 0, bias_sum = 0;
      for (int r = 0; r < S::kTile; ++r) D_sum += sums[0][r][c], bias_sum += sums[1][r][c];
      const int64_t to = piece * k.w.p.E + place.first + c;
      k.dD[to] = k.last ? D_sum : k.dD[to] + D_sum;
      k.ddt_bias[to] = k.last ? bias_sum : k.ddt_bias[to] + bias_sum;
    }
  }

 private:
  __device__ void sum_parts(const Unit& u, int64_t t0, int64_t block) {
    constexpr int kUnitsOfRow = S::kRow / 4, kUnits = S::kTile * kUnitsOfRow;
    const int64_t set = place.group * k.blocks + block;
    float4* to = reinterpret_cast<float4*>(k.parts) +
                 (set * k.part_rows + k.part_row(u.n, u.s.begin, t0)) * kUnitsOfRow;
#pragma unroll
    for (int i = helper; i < kUnits; i += S::kHelpers) {
      const int t = i / kUnitsOfRow, from = unit_of_part<S>(t, i % kUnitsOfRow);
      float4 sum = memory.part[0][from];
#pragma unroll
      for (int warp = 1; warp < S::kScanWarps; ++warp) {
        const float4 v = memory.part[warp][from];
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
      }
      if (t0 + t < u.s.tokens) to[i] = sum;
    }
  }

  __device__ void load(int token, Inputs& to) const {
    HelperPlace<S>::load(k.w.p.u, token, to.u);
    HelperPlace<S>::load(k.w.p.z, token, to.z);
    HelperPlace<S>::load(k.w.dy, token, to.dy);
  }

  __device__ void prepare(bool there, const Inputs& in, const Quads& dt, BackwardTile<S>& at) const {
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      if (!this->exists(j)) break;
      const int c = this->channel(j);
      float bias[4], u[4], delta[4], z[4], g[4], slope[4];
      to_floats(*reinterpret_cast<const float4*>(&memory.bias[c]), bias);
      to_floats<true>(in.u[j], true, u);
      to_floats<true>(dt[j], true, delta);
      to_floats<true>(in.z[j], true, z);
      to_floats<true>(in.dy[j], true, g);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float x = delta[n] + bias[n];
        float e;
        delta[n] = softplus<true>(x, e);
        slope[n] = (x >= 0 ? 1.0f : e) * reciprocal<true>(1.0f + e);
        g[n] *= z[n] * sigmoid<true>(z[n]);
        if (!there) delta[n] = g[n] = 0;  // steps beyond the end change nothing
      }
      float4* slot = reinterpret_cast<float4*>(&at.row[row][c]);
      slot[0] = {delta[0], delta[0] * u[0], delta[1], delta[1] * u[1]};
      slot[1] = {delta[2], delta[2] * u[2], delta[3], delta[3] * u[3]};
      *reinterpret_cast<float4*>(&at.g[row][c]) = {g[0], g[1], g[2], g[3]};
      *reinterpret_cast<float4*>(&at.delta[row][c]) = {delta[0], delta[1], delta[2], delta[3]};
      *reinterpret_cast<float4*>(&at.slope[row][c]) = {slope[0], slope[1], slope[2], slope[3]};
    }
  }

  __device__ void finish(int token, const BackwardTile<S>& at) {
    const CudaBackward& w = k.w;
    char *const to_u = this->at(w.du, token), *const to_dt = this->at(w.ddt, token),
               *const to_z = this->at(w.dz, token);
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      if (!this->exists(j)) break;
      const int c = this->channel(j);
      const float4* slot = reinterpret_cast<const float4*>(&at.row[row][c]);
      const float4 s01 = slot[0], s23 = slot[1];
      const float s_A[4] = {s01.x, s01.z, s23.x, s23.z}, s_B[4] = {s01.y, s01.w, s23.y, s23.w};
      float D[4], y[4], delta[4], slope[4], u[4], z[4], dy[4], du[4], ddt[4], dz[4];
      to_floats(*reinterpret_cast<const float4*>(&memory.D[c]), D);
      to_floats(*reinterpret_cast<const float4*>(&at.g[row][c]), y);
      to_floats(*reinterpret_cast<const float4*>(&at.delta[row][c]), delta);
      to_floats(*reinterpret_cast<const float4*>(&at.slope[row][c]), slope);
      to_floats<true>(before.u[j], true, u);
      to_floats<true>(before.z[j], true, z);
      to_floats<true>(before.dy[j], true, dy);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float sig = sigmoid<true>(z[n]), gate = z[n] * sig, g = dy[n] * gate;
        dz[n] = dy[n] * fmaf(D[n], u[n], y[n]) * fmaf(gate, 1.0f - sig, sig);
        du[n] = fmaf(delta[n], s_B[n], D[n] * g);
        ddt[n] = fmaf(u[n], s_B[n], kLn2 * s_A[n]) * slope[n];
        dD[j][n] = fmaf(g, u[n], dD[j][n]);
        ddt_bias[j][n] += ddt[n];
      }
      store_quad<true>(w.du, to_u + j * kQuadBytes, 4, du);
      store_quad<true>(w.ddt, to_dt + j * kQuadBytes, 4, ddt);
      store_quad<true>(w.dz, to_z + j * kQuadBytes, 4, dz);
    }
  }
};

// The adjoint recurrence of one scanning thread: one channel, four of its states. Lanes 8 i + c have channel c of
// the warp's eight.
template <class S>
struct Adjoint {
  int channel, lane, warp;
  float A[4], h[4], dh[4], dA[4];  // A: A log2(e)

  __device__ void tile(BackwardMemory<S>& memory, BackwardTile<S>& at, int steps) {
    const int l = lane / 8, thread = warp * 32 + lane, subs = (steps + kSub - 1) / kSub;
    for (int sub = 0; sub + 1 < subs; ++sub) {
      memory.start[sub][thread] = {h[0], h[1], h[2], h[3]};
#pragma unroll
      for (int s = 0; s < kSub; ++s) {
        float b[4], c[4];
        load_bc<S>(at.bc, sub * kSub + s, l, b, c);
        const float2 v = at.row[sub * kSub + s][channel];
#pragma unroll
        for (int n = 0; n < 4; ++n) h[n] = fmaf(exp2_of<true>(v.x * A[n]), h[n], v.y * b[n]);
      }
    }
    wait_for_part<S>();
    for (int sub = subs - 1; sub >= 0; --sub) {
      if (sub + 1 < subs) to_floats(memory.start[sub][thread], h);
      back(memory, at, sub);
    }
  }

 private:
  __device__ void back(BackwardMemory<S>& memory, BackwardTile<S>& at, int sub) {
    const int l = lane / 8, t0 = sub * kSub;
    const bool upper = lane & 4;
    float states[kSub + 1][4], decay[kSub][4], b[kSub][4], c[kSub][4], y[kSub], s_A[kSub], s_B[kSub];
    float2 v[kSub];
#pragma unroll
    for (int n = 0; n < 4; ++n) states[0][n] = h[n];
#pragma unroll
    for (int s = 0; s < kSub; ++s) {
      load_bc<S>(at.bc, t0 + s, l, b[s], c[s]);
      v[s] = at.row[t0 + s][channel];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        decay[s][n] = exp2_of<true>(v[s].x * A[n]);
        states[s + 1][n] = fmaf(decay[s][n], states[s][n], v[s].y * b[s][n]);
        y[s] = n == 0 ? c[s][n] * states[s + 1][n] : fmaf(c[s][n], states[s + 1][n], y[s]);
      }
    }
    sum_transposed<4, 8>(y, lane);
    // Products with a matrix of zeros and ones: each lane gets the sums over four channels of the step lane % 4.
    float sum_B[4] = {}, sum_C[4] = {};
#pragma unroll
    for (int s = kSub - 1; s >= 0; --s) {
      float part_B[4], part_C[4];
      const float g = at.g[t0 + s][channel];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float d = fmaf(c[s][n], g, dh[n]);
        part_B[n] = d * v[s].y, part_C[n] = g * states[s + 1][n];
        s_B[s] = n == 0 ? d * b[s][n] : fmaf(d, b[s][n], s_B[s]);
        dh[n] = d * decay[s][n];
        const float of_A = dh[n] * states[s][n];
        dA[n] = fmaf(of_A, v[s].x, dA[n]);
        s_A[s] = n == 0 ? of_A * A[n] : fmaf(of_A, A[n], s_A[s]);
      }
      const float even = lane / 4 == 2 * s ? 1.0f : 0.0f, odd = lane / 4 == 2 * s + 1 ? 1.0f : 0.0f;
      mma_tf32(sum_B, part_B, even, odd);
      mma_tf32(sum_C, part_C, even, odd);
    }
    float sum[4];  // over the other four channels: dB in the lower lanes, dC in the upper
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float send = upper ? sum_B[n] : sum_C[n], keep = upper ? sum_C[n] : sum_B[n];
      sum[n] = keep + __shfl_xor_sync(~0u, send, 4);
    }
    memory.part[warp][unit_of_part<S>(t0 + lane % 4, l * 2 + upper)] = {sum[0], sum[2], sum[1], sum[3]};
    sum_transposed<4, 8>(s_A, lane);
    sum_transposed<4, 8>(s_B, lane);
    __syncwarp();
    at.row[t0 + l][channel] = {s_A[0], s_B[0]};
    at.g[t0 + l][channel] = y[0];
  }
};

}  // namespace
}  // namespace krait::ops::scan
