// selective_scan backward on NVIDIA GPUs. Tile by tile from the end: the states of a tile are computed again
// from the saved one before it, once to keep every eighth, then eight steps at a time in registers, from which
// the adjoint runs back. dB and dC are summed over the channels of a warp by shuffles, over the warps of a
// block in shared memory, over blocks by a second kernel: all in fixed order.
#include <algorithm>

#include "krait/ops/selective_scan/cuda_backward.cuh"
#include "krait/ops/selective_scan/cuda_backward_bf16.h"

namespace krait::ops::scan {
namespace {

template <class S>
__device__ inline void load_row(const BackwardTile<S>& at, int t, int channel,
                                float (&delta)[S::CPT], float (&x)[S::CPT]) {
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
            h[i][k] = fmaf(exp2_of<false>(delta[i] * A[i][k]), h[i][k],
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
    float states[kSub + 1][S::CPT][S::NS], decay[kSub][S::CPT][S::NS], y[kSums], s_A[kSums],
        s_B[kSums];
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
          const float a = exp2_of<false>(delta[i] * A[i][k]);
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
        const int at_sum = l / kSharers * kOwn + j, t = t0 + at_sum / S::CPT,
                  e = channel + at_sum % S::CPT;
        at.row[t][e] = {s_A[j], s_B[j]};
        at.g[t][e] = y[j];
      }
    }
    __syncwarp();
  }
};

template <class S>
__device__ inline void help_backward(const Work& k, const Place& place, int64_t block,
                                     int64_t piece, int helper, BackwardMemory<S>& memory,
                                     Meeting& meeting) {
  const CudaProblem& p = k.w.p;
  Helper<S> h(k.w, place, helper);
  for (int64_t n = first_of(k, piece); n < p.sequences && piece_of(k, n) == piece; ++n) {
    const Unit u = unit_of<S>(k, n);
    for (int64_t i = 0; i < u.tiles + 2; ++i) {
      h.step(k, n, u.s, u.tiles, i, block, memory.tile[i & 1]);
      meeting.wait();
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    memory.sums[0][helper][i] = h.dD[i], memory.sums[1][helper][i] = h.ddt_bias[i];
}

template <class S, bool kConstant>
__device__ inline void scan_backward_states(const Work& k, const Place& place, int64_t piece,
                                            int role, int lane, BackwardMemory<S>& memory,
                                            Meeting& meeting) {
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
    }
  // Sums go on from the launch before.
  const auto so_far = [&](const float* of) { return k.last ? nullptr : of + piece * states; };
  load_states<S>(so_far(k.dA), p.N, e, left, n0, a.dA);
  if constexpr (kConstant) {
    load_states<S>(so_far(k.dB), p.N, e, left, n0, a.dB);
    load_states<S>(so_far(k.dC), p.N, e, left, n0, a.dC);
  }
  if constexpr (kConstant) {
    load_states<S>(p.constant_B ? static_cast<const float*>(p.B.data) : nullptr, p.N, e, left, n0,
                   a.B);
    load_states<S>(p.constant_C ? static_cast<const float*>(p.C.data) : nullptr, p.N, e, left, n0,
                   a.C);
  }
  for (int64_t n = first_of(k, piece); n < p.sequences && piece_of(k, n) == piece; ++n) {
    const Unit u = unit_of<S>(k, n);
    const Span& s = u.s;
    const int64_t tiles = u.tiles, first_tile = k.from / S::kTile;
    const float* of_start = p.state_in && s.in >= 0 ? p.state_in + s.in * states : nullptr;
    const auto before = [&](int64_t i) {
      const int64_t tile = first_tile + i;
      return tile > 0 ? w.saved + (s.begin / S::kTile + tile - 1) * states : of_start;
    };
    const float* dstate_out = w.dstate_out && s.out >= 0 ? w.dstate_out + s.out * states : nullptr;
    load_states<S>(k.last ? dstate_out : k.dstates + n * states, p.N, e, left, n0, a.dh);
    States<S> next;
    if (tiles > 0) load_states<S>(before(tiles - 1), p.N, e, left, n0, next);
    meeting.wait();
    for (int64_t i = tiles - 1; i >= 0; --i) {
#pragma unroll
      for (int c = 0; c < S::CPT; ++c)
#pragma unroll
        for (int j = 0; j < S::NS; ++j) a.h[c][j] = next[c][j];
      if (i > 0) load_states<S>(before(i - 1), p.N, e, left, n0, next);
      const int64_t t = k.from + i * S::kTile;
      const int steps = static_cast<int>(s.tokens - t < S::kTile ? s.tokens - t : S::kTile);
      a.tile(memory, memory.tile[(tiles - 1 - i) & 1], steps);
      meeting.wait();
    }
    meeting.wait();
    if (k.dstates) store_states<S>(a.dh, p.N, e, left, n0, k.dstates + n * states);
  }
  store_states<S>(a.dA, p.N, e, left, n0, k.dA + piece * states);
  if constexpr (kConstant) {
    store_states<S>(a.dB, p.N, e, left, n0, k.dB + piece * states);
    store_states<S>(a.dC, p.N, e, left, n0, k.dC + piece * states);
  }
}

template <class S, bool kConstant, int kBlocks>
__global__ void __launch_bounds__(S::kThreads, kBlocks)
    scan_backward(const __grid_constant__ Work k) {
  extern __shared__ float4 shared[];
  auto& memory = *reinterpret_cast<BackwardMemory<S>*>(shared);
  const CudaProblem& p = k.w.p;
  const int64_t all = k.blocks * p.G, of_all = blockIdx.x % all, piece = blockIdx.x / all;
  const int64_t block = of_all % k.blocks;
  const Place place = place_of<S>(p, of_all / k.blocks, block);
  const int warp = warp_index(), lane = threadIdx.x % 32, role = S::role(warp);
  Meeting meeting{&memory.meeting};
  meeting.start<S>();
  if (role == S::kIdle) return;
  if (role >= 0)
    scan_backward_states<S, kConstant>(k, place, piece, role, lane, memory, meeting);
  else
    help_backward<S>(k, place, block, piece, ~role * 32 + lane, memory, meeting);
  meeting.wait();
  if (role != ~0) return;
  // The helpers of a channel, in order; what they have may be far larger than its sum.
  for (int c = lane; c < place.channels; c += 32) {
    double dD = 0, ddt_bias = 0;
    for (int r = 0; r < S::kHelperRows; ++r) {
      dD += memory.sums[0][r * S::kQuads + c / 4][c % 4];
      ddt_bias += memory.sums[1][r * S::kQuads + c / 4][c % 4];
    }
    const int64_t at = piece * p.E + place.first + c;
    k.dD[at] = static_cast<float>(k.last ? dD : k.dD[at] + dD);
    k.ddt_bias[at] = static_cast<float>(k.last ? ddt_bias : k.ddt_bias[at] + ddt_bias);
  }
}

template <class S>
Work plan(const CudaProblem& p, float* scratch, int64_t* floats) {
  Memory at{scratch};
  Work k = plan_spans<S>(p, at);
  k.pieces = std::clamp<int64_t>(p.sequences, 1, 64);
  take_sums(p, k, at);
  *floats = at.taken;
  return k;
}

template <class S, bool kConstant, int kBlocks>
void launch(const CudaBackward& w, void* stream) {
  int64_t floats = 0;
  Work k = plan<S>(w.p, w.scratch, &floats);
  k.w = w;
  const auto kernel = scan_backward<S, kConstant, kBlocks>;
  constexpr int bytes = sizeof(BackwardMemory<S>);
  static_assert(kBlocks * (bytes + 1024) <= 228 * 1024);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  in_spans<S>(k, stream, [&](const Work& span, cudaStream_t queue) {
    kernel<<<static_cast<unsigned>(span.pieces * w.p.G * span.blocks), S::kThreads, bytes, queue>>>(
        span);
  });
}

// Lanes a channel, states a lane, channels a thread; scanning and helping warps; steps of a tile.
using Few = Layout<8, 2, 1, 3, 3, true, 32>;
using Many = Layout<4, 4, 1, 4, 4, false, 32>;
using Any16 = Layout<8, 2, 1, 4, 2, false, 32>;
using Any32 = Layout<8, 4, 1, 2, 2, false, 32>;
using Any64 = Layout<16, 4, 1, 2, 2, false, 32>;
using Any128 = Layout<32, 4, 2, 2, 2, false, 32>;
using Any256 = Layout<32, 8, 2, 2, 2, false, 16>;

// Calls f with a layout, whether B or C is constant, blocks of a multiprocessor.
template <class F>
auto with_layout(const CudaProblem& p, const F& f) {
  const auto any = [&]<bool kConstant>() {
    if (p.N <= 16) return f.template operator()<Any16, kConstant, 1>();
    if (p.N <= 32) return f.template operator()<Any32, kConstant, 1>();
    if (p.N <= 64) return f.template operator()<Any64, kConstant, 1>();
    if (p.N <= 128) return f.template operator()<Any128, kConstant, 1>();
    return f.template operator()<Any256, kConstant, 1>();
  };
  if (p.constant_B || p.constant_C) return any.template operator()<true>();
  if (p.N > 16) return any.template operator()<false>();
  const int64_t pieces = std::clamp<int64_t>(p.sequences, 1, 64);
  const bool many = rounds<Many>(p, pieces) <= rounds<Few>(p, pieces);
  if (many) return f.template operator()<Many, false, 2>();
  return f.template operator()<Few, false, 1>();
}

}  // namespace

int64_t cuda_backward_scratch(const CudaProblem& p) {
  const int64_t any = with_layout(p, [&]<class S, bool kConstant, int kBlocks>() {
    int64_t floats = 0;
    plan<S>(p, nullptr, &floats);
    return floats;
  });
  return p.N <= 16 ? std::max(any, cuda_backward_bf16_scratch(p)) : any;
}

bool cuda_remakes_y(const CudaProblem& unaligned) {
  CudaProblem p = unaligned;
  return align(p, {}) && cuda_takes_bf16_backward(p);
}

void cuda_scan_backward(const CudaBackward& unaligned, void* stream) {
  CudaBackward w = unaligned;
  const bool fast = align(w.p, {&w.dy, &w.du, &w.ddt, &w.dz, &w.y}),
             whole = w.dy.data && w.du.data && w.ddt.data && w.dz.data;
  if (w.p.E == 0 || w.p.N == 0) return;
  if (fast && whole && cuda_takes_bf16_backward(w.p)) return cuda_scan_backward_bf16(w, stream);
  with_layout(w.p, [&]<class S, bool kConstant, int kBlocks>() {
    launch<S, kConstant, kBlocks>(w, stream);
  });
}

}  // namespace krait::ops::scan
