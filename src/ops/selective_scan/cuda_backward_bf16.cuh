// Private to selective_scan: memory and warps of the backward kernel of cuda_backward_bf16.cu.
#pragma once
#include "krait/ops/selective_scan/cuda_bf16.cuh"
#include "krait/ops/selective_scan/cuda_work.cuh"
#include "krait/tensor/cuda/mma.h"

namespace krait::ops::scan {
namespace {

using cuda::kArriving;  // all lanes would take 4% longer with twelve scanning warps
using cuda::mma_tf32;

constexpr int kSub = 4;  // steps whose states and operands are in registers at once

// A step of a channel: for the scanning warps, and what they leave for the helping ones.
struct Cell {
  float delta, delta_u, g, slope;  // g: gradient of y before the gate; slope: of the softplus
};
struct Sums {
  float s_A, s_B, y, slope;  // Σ_n dh a h A2, Σ_n d B, Σ_n C h
};

template <class S>
struct BackwardTile {
  union {
    Cell cell[S::kTile][S::kChannels];  // at cell_of(channel)
    Sums sums[S::kTile][S::kChannels];
  };
  float delta[S::kTile][S::kChannels];
  float bc[S::kTile * S::kRow];
};

template <class S>
struct BackwardMemory {
  BackwardTile<S> tile[2];
  float4 part[S::kScanWarps]
             [S::kTile * S::kRow / 4];  // dB and dC, summed over the channels of a warp
  float4 start[S::kTile / kSub - 1]
              [S::kScanWarps * 32];  // states before every fourth step but the last
  float4 next[S::kMoreRegisters ? S::kScanWarps * 32
                                : 1];  // states before the next tile to walk through
  float bias[S::kChannels], D[S::kChannels];
  TileBarriers<S, kArriving> tiles;
  uint64_t taken;  // the sums in `part`

  __device__ void start_barriers() {
    tiles.start();
    cuda::start_barrier(&taken, S::kHelpers / 32 * kArriving);
  }
};

// Where four floats of a step's row of dB and dC lie in `part`: those that a quarter of a warp writes at once
// are in different banks.
template <class S>
__device__ inline int unit_of_part(int t, int unit) {
  return t * (S::kRow / 4) + (unit ^ (t % 4 * 2));
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
  const int64_t set;  // of channels
  float dD[kQuads][4] = {}, ddt_bias[kQuads][4] = {};

  __device__ Helper(const Work& k_, const Place& place_, BackwardMemory<S>& memory_, int helper_,
                    int64_t block)
      : HelperPlace<S>(place_, helper_),
        k(k_),
        memory(memory_),
        helper(helper_),
        set(place.group * k.blocks + block) {
    const CudaProblem& p = k.w.p;
    for (int c = helper; c < S::kChannels; c += S::kHelpers) {
      const bool there = c < place.channels;
      memory.bias[c] = there && p.dt_bias ? p.dt_bias[place.first + c] : 0.0f;
      memory.D[c] = there && p.D ? p.D[place.first + c] : 0.0f;
    }
    for (int i = helper; !S::kWhole && i < 2 * S::kTile * S::kChannels;
         i += S::kHelpers) {  // that do not exist
      BackwardTile<S>& at = memory.tile[i / (S::kTile * S::kChannels)];
      const int t = i / S::kChannels % S::kTile, c = i % S::kChannels;
      if (c >= place.channels) at.cell[t][cell_of(c)] = {};
    }
    helpers_meet<S>();
  }

  // Step i of a unit: tile tiles - 1 - i is prepared, the one two before is finished; `before`: tiles before the unit.
  __device__ void step(const Unit& u, int i, unsigned before) {
    const unsigned count = before + i;
    BackwardTile<S>& at = memory.tile[count & 1];
    const int tiles = static_cast<int>(u.tiles),
              first = (tiles - 1 - i) * S::kTile,  // from the unit's first token
        begin = static_cast<int>(u.s.begin + u.from),
              last = static_cast<int>(u.s.tokens - u.from) - 1;
    const int t = first + row, done = t + 2 * S::kTile, token = begin + min(t, last);
    AnyBC<S> bc;
    Inputs in;
    if (i < tiles) bc.load(k.w.p, place, u.s, u.from + first, helper);
    if (i >= 2) {
      load(begin + min(done, last), in);
      memory.tiles.wait_until_done(count - 2);
      if (k.parts) sum_parts(u, first + 2 * S::kTile, last);
      cuda::warp_arrives<kArriving>(&memory.taken);
      if (done <= last) finish(begin + done, in, at);
    }
    if (i >= tiles) return;
    Quads dt;
    load(token, in);  // rows beyond the end are those of the last token
    HelperPlace<S>::load(k.w.p.dt, token, dt);
    bc.store(k.w.p, helper, at.bc);
    if (t > last) {
      this->put_minus_infinity(dt);
#pragma unroll
      for (int j = 0; j < kQuads; ++j) in.dy[j] = {};
    }
    prepare(in, dt, at);
    memory.tiles.is_full(count);
  }

  // Over the rows, in order; `sums` in memory that the tiles do not need any more.
  __device__ void sum_over_rows(int64_t piece) {
    auto* sums = reinterpret_cast<float(*)[S::kTile][S::kChannels]>(&memory.tile[0]);
    helpers_meet<S>();
#pragma unroll
    for (int j = 0; j < kQuads; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int c = this->channel(j) + i;
        sums[0][row][c] = dD[j][i], sums[1][row][c] = ddt_bias[j][i];
      }
    helpers_meet<S>();
    for (int c = helper; c < place.channels; c += S::kHelpers) {
      double D_sum = 0, bias_sum = 0;
      for (int r = 0; r < S::kTile; ++r) D_sum += sums[0][r][c], bias_sum += sums[1][r][c];
      const int64_t to = piece * k.w.p.E + place.first + c;
      k.dD[to] = static_cast<float>(k.last ? D_sum : k.dD[to] + D_sum);
      k.ddt_bias[to] = static_cast<float>(k.last ? bias_sum : k.ddt_bias[to] + bias_sum);
    }
  }

 private:
  // Of the tile from the unit's token `first` on.
  __device__ void sum_parts(const Unit& u, int first, int last) {
    constexpr int kUnitsOfRow = S::kRow / 4;
    static_assert(S::kTile * kUnitsOfRow == S::kHelpers);
    const int t = helper / kUnitsOfRow, from = unit_of_part<S>(t, helper % kUnitsOfRow);
    float4 sum = memory.part[0][from];
#pragma unroll
    for (int warp = 1; warp < S::kScanWarps; ++warp) {
      const float4 v = memory.part[warp][from];
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    const int64_t rows = set * k.part_rows + k.part_row(u.n, u.s.begin, u.from) + first;
    if (first + t <= last) reinterpret_cast<float4*>(k.parts)[rows * kUnitsOfRow + helper] = sum;
  }

  __device__ void load(int token, Inputs& to) const {
    HelperPlace<S>::load(k.w.p.u, token, to.u);
    HelperPlace<S>::load(k.w.p.z, token, to.z);
    HelperPlace<S>::load(k.w.dy, token, to.dy);
  }

  __device__ void prepare(const Inputs& in, const Quads& dt, BackwardTile<S>& at) const {
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
      }
#pragma unroll
      for (int n = 0; n < 4; ++n)
        at.cell[row][c + (n ^ this->lane / 2)] = {delta[n], delta[n] * u[n], g[n], slope[n]};
      *reinterpret_cast<float4*>(&at.delta[row][c]) = {delta[0], delta[1], delta[2], delta[3]};
    }
  }

  __device__ void finish(int token, const Inputs& in, const BackwardTile<S>& at) {
    const CudaBackward& w = k.w;
    char *const to_u = this->at(w.du, token), *const to_dt = this->at(w.ddt, token),
                *const to_z = this->at(w.dz, token), *const to_y = this->at(w.y, token);
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      if (!this->exists(j)) break;
      const int c = this->channel(j);
      float D[4], delta[4], u[4], z[4], dy[4], du[4], ddt[4], dz[4], y[4];
      to_floats(*reinterpret_cast<const float4*>(&memory.D[c]), D);
      to_floats(*reinterpret_cast<const float4*>(&at.delta[row][c]), delta);
      to_floats<true>(in.u[j], true, u);
      to_floats<true>(in.z[j], true, z);
      to_floats<true>(in.dy[j], true, dy);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const Sums of = at.sums[row][c + (n ^ this->lane / 2)];
        const float sig = sigmoid<true>(z[n]), gate = z[n] * sig, g = dy[n] * gate;
        y[n] = fmaf(D[n], u[n], of.y);
        dz[n] = dy[n] * y[n] * fmaf(gate, 1.0f - sig, sig);
        y[n] *= gate;
        du[n] = fmaf(delta[n], of.s_B, D[n] * g);
        ddt[n] = fmaf(u[n], of.s_B, kLn2 * of.s_A) * of.slope;
        dD[j][n] = fmaf(g, u[n], dD[j][n]);
        ddt_bias[j][n] += ddt[n];
      }
      store_quad<true, S::kWhole>(w.du, to_u + j * kQuadBytes, 4, du);
      store_quad<true, S::kWhole>(w.ddt, to_dt + j * kQuadBytes, 4, ddt);
      if (S::kWhole || w.y.data) store_quad<true, true>(w.y, to_y + j * kQuadBytes, 4, y);
      store_quad<true, S::kWhole>(w.dz, to_z + j * kQuadBytes, 4, dz);
    }
  }
};

// Sums over the eight channels of a warp of four steps' products of a vector of states with a number of the channel
// and step, on tensor cores, which cut their operands to 11 bits. Lane 8 l + c brings the number of step l. Of the
// sums over channels 0 to 3 and 4 to 7 it gets those of step c % 4, in of(n, 0) or of(n, 1), c < 4 or not: the other
// is of no use. kExact: to 22 bits, of products and what the cut leaves of them.
template <bool kExact>
struct SumOverChannels {
  float low[4] = {}, high[4] = {};  // states 0 and 1; 2 and 3
  float of_step[kSub];              // the number, in the lanes of the step

  __device__ SumOverChannels(float number, int lane) {
    // The number is rounded, and makes up for what cutting takes of the other operand on average.
    if (!kExact)
      number = __uint_as_float(__float_as_uint(fmaf(number, 0x1.7p-12f, number)) + 0x1000);
#pragma unroll
    for (int s = 0; s < kSub; ++s) of_step[s] = lane / 8 == s ? kExact ? 1.0f : number : 0.0f;
  }
  // Of steps 2 pair and 2 pair + 1.
  __device__ void add(int pair, const float (&even)[4], float of_even, const float (&odd)[4],
                      float of_odd) {
    const float one = of_step[pair * 2], other = of_step[pair * 2 + 1];
    if constexpr (!kExact) {
      mma_tf32(low, {even[0], even[1], odd[0], odd[1]}, one, other);
      mma_tf32(high, {even[2], even[3], odd[2], odd[3]}, one, other);
    } else {
      float x[8], left[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        x[i] = i % 4 < 2 ? even[i / 4 * 2 + i % 2] * of_even : odd[i / 4 * 2 + i % 2] * of_odd;
        left[i] = x[i] - __uint_as_float(__float_as_uint(x[i]) & 0xffffe000u);
      }
      mma_tf32(low, {x[0], x[1], x[2], x[3]}, one, other);
      mma_tf32(low, {left[0], left[1], left[2], left[3]}, one, other);
      mma_tf32(high, {x[4], x[5], x[6], x[7]}, one, other);
      mma_tf32(high, {left[4], left[5], left[6], left[7]}, one, other);
    }
  }
  __device__ float of(int n, int half) const {
    return n < 2 ? low[n * 2 + half] : high[n * 2 - 4 + half];
  }
};

// The adjoint recurrence of one scanning thread: one channel, four of its states. Lanes 8 i + c have channel c of
// the warp's eight.
template <class S, bool kExact>
struct Adjoint {
  static constexpr int kStride = S::kChannels, kSubs = S::kTile / kSub,
                       kThreads = S::kScanWarps * 32;
  int channel, lane, warp;
  float A[4], h[4], dh[4], dA[4];  // A: A log2(e)

  // Where the thread reads and writes in a tile: of its channel, and of its states.
  struct Own {
    Cell* cell;
    const float* bc;
    float4 *start, *part;  // of dB and dC: of the step lane % 4 of four
  };

  // The count-th of the block. Steps beyond the end of the sequence change nothing.
  __device__ void tile(BackwardMemory<S>& memory, unsigned count) {
    BackwardTile<S>& at = memory.tile[count & 1];
    memory.tiles.wait_until_full(count);
    const int l = lane / 8;
    Own own = {&at.cell[0][cell_of(channel)], at.bc + l * 8, &memory.start[0][warp * 32 + lane],
               memory.part[warp] + unit_of_part<S>(lane & 3, l * 2 + (lane >> 2 & 1))};
    // Of four steps; the next four's are asked for before states are stored, which loads do not pass.
    struct {
      float4 b[kSub];
      float2 v[kSub];
    } ahead[2];
    const auto fetch = [&](int sub) {
#pragma unroll
      for (int s = 0; s < kSub; ++s) {
        const int t = sub * kSub + s;
        ahead[sub % 2].b[s] = *reinterpret_cast<const float4*>(own.bc + t * S::kRow);
        ahead[sub % 2].v[s] = *reinterpret_cast<const float2*>(own.cell + t * kStride);
      }
    };
    fetch(0);
#pragma unroll
    for (int sub = 0; sub + 1 < kSubs; ++sub) {
      if (sub + 2 < kSubs) fetch(sub + 1);
      own.start[sub * kThreads] = {h[0], h[1], h[2], h[3]};
#pragma unroll
      for (int s = 0; s < kSub; ++s) {
        float b[4];
        to_floats(ahead[sub % 2].b[s], b);
        const float2 v = ahead[sub % 2].v[s];
#pragma unroll
        for (int n = 0; n < 4; ++n) h[n] = fmaf(exp2_of<true>(v.x * A[n]), h[n], v.y * b[n]);
      }
    }
    if (count > 0) cuda::wait_for_phase(&memory.taken, (count - 1) & 1);
    own.cell += (kSubs - 1) * kSub * kStride, own.bc += (kSubs - 1) * kSub * S::kRow;
    own.part += (kSubs - 1) * kSub * (S::kRow / 4), own.start += (kSubs - 1) * kThreads;
    Operands operands;
    load(own, operands);
    if constexpr (S::kMoreRegisters) {
      // Two a round, at whose end all that is on its way is waited for.
#pragma unroll 1
      for (int two = kSubs / 2 - 1; two > 0; --two)
        back<true>(own, operands), back<true>(own, operands);
      back<true>(own, operands);
      back<false>(own, operands);
    } else {
      back<false>(own, operands);
#pragma unroll 1
      for (int sub = kSubs - 1; sub > 0; --sub) {
        load_before(own, operands);
        back<false>(own, operands);
      }
    }
    memory.tiles.is_done(count);
  }

 private:
  // Of four steps, besides C.
  struct Operands {
    float b[kSub][4], decay[kSub][4];
    float4 cell[kSub];
  };

  __device__ void load(const Own& own, Operands& to) const {
#pragma unroll
    for (int s = 0; s < kSub; ++s)
      to.cell[s] = *reinterpret_cast<const float4*>(own.cell + s * kStride);
#pragma unroll
    for (int s = 0; s < kSub; ++s) {
      to_floats(*reinterpret_cast<const float4*>(own.bc + s * S::kRow), to.b[s]);
#pragma unroll
      for (int n = 0; n < 4; ++n) to.decay[s][n] = exp2_of<true>(to.cell[s].x * A[n]);
    }
  }

  // Of the four steps before those.
  __device__ void load_before(Own& own, Operands& to) {
    own.cell -= kSub * kStride, own.bc -= kSub * S::kRow;
    own.part -= kSub * (S::kRow / 4), own.start -= kThreads;
    to_floats(*own.start, h);
    load(own, to);
  }

  // Four steps backwards. kAhead: the operands of those before them come while sums are taken.
  template <bool kAhead>
  __device__ void back(Own& own, Operands& o) {
    const int l = lane / 8;
    float states[kSub + 1][4], c[kSub][4], y[kSub], s_A[kSub], s_B[kSub];
#pragma unroll
    for (int n = 0; n < 4; ++n) states[0][n] = h[n];
#pragma unroll
    for (int s = 0; s < kSub; ++s) {
      to_floats(*reinterpret_cast<const float4*>(own.bc + s * S::kRow + 4), c[s]);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        states[s + 1][n] = fmaf(o.decay[s][n], states[s][n], o.cell[s].y * o.b[s][n]);
        y[s] = n == 0 ? c[s][n] * states[s + 1][n] : fmaf(c[s][n], states[s + 1][n], y[s]);
      }
    }
    sum_transposed<4, 8>(y, lane);
    float4* const to = reinterpret_cast<float4*>(own.cell + l * kStride);
    float4* const part = own.part;
    const float4 of_lane = *to;
    SumOverChannels<kExact> sum_B(of_lane.y, lane), sum_C(of_lane.z, lane);
    float d[kSub][4];
#pragma unroll
    for (int s = kSub - 1; s >= 0; --s) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        d[s][n] = fmaf(c[s][n], o.cell[s].z, dh[n]);
        s_B[s] = n == 0 ? d[s][n] * o.b[s][n] : fmaf(d[s][n], o.b[s][n], s_B[s]);
        dh[n] = d[s][n] * o.decay[s][n];
        const float of_A = dh[n] * states[s][n];
        dA[n] = fmaf(of_A, o.cell[s].x, dA[n]);
        s_A[s] = n == 0 ? of_A * A[n] : fmaf(of_A, A[n], s_A[s]);
      }
      if (s % 2 == 0) {
        sum_B.add(s / 2, d[s], o.cell[s].y, d[s + 1], o.cell[s + 1].y);
        sum_C.add(s / 2, states[s + 1], o.cell[s].z, states[s + 2], o.cell[s + 1].z);
      }
    }
    if constexpr (kAhead) load_before(own, o);
    sum_transposed<4, 8>(s_A, lane);
    sum_transposed<4, 8>(s_B, lane);
    float sum[4];  // over all channels: dB in the lower lanes, dC in the upper
    const bool upper = lane & 4;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float send = upper ? sum_B.of(n, 1) : sum_C.of(n, 0),
                  keep = upper ? sum_C.of(n, 1) : sum_B.of(n, 0);
      sum[n] = keep + __shfl_xor_sync(~0u, send, 4);
    }
    *part = {sum[0], sum[1], sum[2], sum[3]};
    // The shuffles are not a barrier of memory: the cells are read by all lanes before they are written.
    __syncwarp();
    *to = {s_A[0], s_B[0], y[0], of_lane.w};
  }
};

}  // namespace
}  // namespace krait::ops::scan
