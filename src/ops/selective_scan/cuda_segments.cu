#include "krait/ops/selective_scan/cuda_segments.h"

#include <algorithm>

#include "krait/ops/selective_scan/cuda_device.cuh"

namespace krait::ops::scan {
namespace {

using cuda::ceil_div;

constexpr int kN = 16, kTile = 32, kChannels = 128, kMultiprocessors = 132;
constexpr float kLeast = -36.0f;  // log2 of the least weight

struct Ends {
  CudaProblem p;
  CudaRows dy;
  CudaSegments k;
  int64_t first, count;  // pieces that are needed
  const float* enters;   // what enters the stretch, (sequences, E, N)
  bool by_row;           // of its sequences, not in the order of their tokens
};

__device__ inline float from_bf16(unsigned short bits) {
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}

// A channel's elements step after step.
struct Column {
  const char* first;
  int step;  // bytes
  __device__ Column(const CudaRows& r, int64_t token, int64_t channel, int direction)
      : first(element(r, true, token, channel)), step(direction * 2 * static_cast<int>(r.stride)) {}
  __device__ unsigned short operator[](int t) const {
    return __ldg(reinterpret_cast<const unsigned short*>(first + int64_t{t} * step));
  }
};

// The tokens of a piece.
struct Piece {
  int64_t begin, tokens;
  __device__ Piece(const Ends& w, int64_t piece) {
    const int64_t end = min(w.k.from + min((piece + 1) * w.k.piece, w.k.tokens), w.p.L);
    begin = w.k.from + piece * w.k.piece;
    tokens = end > begin ? end - begin : 0;
  }
};

// Δ, summed over a piece. One thread two channels.
__global__ void __launch_bounds__(kChannels) sum_deltas(const __grid_constant__ Ends w) {
  constexpr int kStep = 16;
  const CudaProblem& p = w.p;
  const int64_t blocks = ceil_div(p.E, 2 * kChannels),
                e = (blockIdx.x % blocks * kChannels + threadIdx.x) * 2;
  const int64_t n = blockIdx.x / blocks / w.count, piece = w.first + blockIdx.x / blocks % w.count;
  if (e >= p.E) return;
  const Piece at(w, piece);
  const float bias[2] = {p.dt_bias ? p.dt_bias[e] : 0.0f, p.dt_bias ? p.dt_bias[e + 1] : 0.0f};
  float sum[2] = {};
  const auto* rows =
      static_cast<const char*>(p.dt.data) + ((n * p.L + at.begin) * p.dt.stride + e) * 2;
  unsigned next[kStep];  // asked for while those before are summed
  const auto fetch = [&](int64_t t0) {
#pragma unroll
    for (int s = 0; s < kStep; ++s)
      next[s] = t0 + s < at.tokens
                    ? __ldg(reinterpret_cast<const unsigned*>(rows + (t0 + s) * p.dt.stride * 2))
                    : 0;
  };
  fetch(0);
  for (int64_t t0 = 0; t0 < at.tokens; t0 += kStep) {
    unsigned x[kStep];
#pragma unroll
    for (int s = 0; s < kStep; ++s) x[s] = next[s];
    fetch(t0 + kStep);
#pragma unroll
    for (int s = 0; s < kStep; ++s) {
      float unused, low = __uint_as_float(x[s] << 16) + bias[0],
                    high = __uint_as_float(x[s] & 0xffff0000u) + bias[1];
      if (p.softplus) low = softplus<true>(low, unused), high = softplus<true>(high, unused);
      if (t0 + s < at.tokens) sum[0] += low, sum[1] += high;
    }
  }
  *reinterpret_cast<float2*>(&w.k.sums[(n * w.k.pieces + piece) * p.E + e]) = {sum[0], sum[1]};
}

// Sums over the tokens of a piece: of B delta u, decayed to the end of the segment; or, kAdjoint, of C dy silu(z),
// decayed to before its beginning. The walk starts where the weights are largest, and four states of a warp's
// channels are left out from where all their weights are zero. One thread a channel.
template <bool kAdjoint>
__global__ void __launch_bounds__(kChannels, 4) sum_pieces(const __grid_constant__ Ends w) {
  __shared__ float rows[2][kTile][kN];  // B or C
  constexpr int kStep = kAdjoint ? 4 : 8;
  const CudaProblem& p = w.p;
  const CudaRows &r = kAdjoint ? p.C : p.B, &other = kAdjoint ? w.dy : p.u;
  const int64_t in_group = p.E / p.G, of_group = ceil_div(in_group, kChannels),
                blocks = of_group * p.G;
  const int64_t block = blockIdx.x % blocks, group = block / of_group;
  const int64_t n = blockIdx.x / blocks / w.count, piece = w.first + blockIdx.x / blocks % w.count;
  const int64_t in_block = block % of_group * kChannels + threadIdx.x;
  const bool there = in_block < in_group;
  const int64_t e = group * in_group + (there ? in_block : 0);
  const Piece at(w, piece);
  constexpr int kDirection = kAdjoint ? 1 : -1;
  const int64_t first =
      n * p.L + at.begin + (kAdjoint ? 0 : at.tokens - 1);  // token of the first step

  float A[kN], sum[kN] = {}, slowest[kN / 4];
#pragma unroll
  for (int k = 0; k < kN; ++k) {
    A[k] = k < p.N ? scaled_A(p.A[e * p.N + k], p.a_is_log) : -1e30f;
    slowest[k / 4] = k % 4 == 0 ? A[k] : fmaxf(slowest[k / 4], A[k]);
  }
  const float bias = p.dt_bias ? p.dt_bias[e] : 0.0f;
  const int64_t of_segment = w.k.segment / w.k.piece, in_segment = piece % of_segment;
  float decay = 0;  // sum of delta so far, from the end of the segment, or from its beginning
  for (int64_t i = kAdjoint ? 0 : in_segment + 1; i < (kAdjoint ? in_segment : of_segment); ++i)
    decay += w.k.sums[(n * w.k.pieces + piece - in_segment + i) * p.E + e];
  const auto alive = [&](int group_of_4) { return there && slowest[group_of_4] * decay > kLeast; };

  const int tokens = static_cast<int>(at.tokens);
  const int t_of = threadIdx.x / 4, n_of = threadIdx.x % 4 * 4;
  const auto load = [&](int t0) {
    const int t = t0 + t_of;
    const int valid = t < tokens && p.N > n_of ? static_cast<int>(p.N) - n_of : 0;
    return load_quad<false>(
        r, element(r, r.bf16, first + kDirection * (valid > 0 ? t : 0), group * r.group + n_of),
        valid);
  };
  const Column of_dt(p.dt, first, e, kDirection), of_value(other, first, e, kDirection),
      of_z(p.z, first, e, kDirection);
  const bool gated = kAdjoint && p.z.data;
  struct {
    unsigned short dt[kStep], value[kStep], z[kStep];
  } ahead;
  const auto fetch = [&](int t0) {
#pragma unroll
    for (int s = 0; s < kStep; ++s) {
      const int t = min(t0 + s, tokens - 1);
      ahead.dt[s] = of_dt[t], ahead.value[s] = of_value[t];
      if (gated) ahead.z[s] = of_z[t];
    }
  };
  Quad next = load(0);
  if (tokens > 0) fetch(0);
  for (int t0 = 0; t0 < tokens; t0 += kTile) {
    float(&tile)[kTile][kN] = rows[t0 / kTile % 2];
    float x[4];
    to_floats<false>(next, r.bf16, x);
    *reinterpret_cast<float4*>(&tile[t_of][n_of]) = {x[0], x[1], x[2], x[3]};
    if (!__syncthreads_or(alive(0) || alive(1) || alive(2) || alive(3))) break;
    next = load(t0 + kTile);
#pragma unroll 1
    for (int s0 = 0; s0 < kTile; s0 += kStep) {
      const int left = min(tokens - t0, kTile) - s0;
      bool needed[kN / 4];
#pragma unroll
      for (int k = 0; k < kN / 4; ++k) needed[k] = __any_sync(~0u, alive(k));
      if (left <= 0 || !(needed[0] || needed[1] || needed[2] || needed[3])) break;
      float delta[kStep], value[kStep], z[kStep], so_far[kStep];
#pragma unroll
      for (int s = 0; s < kStep; ++s) {
        delta[s] = from_bf16(ahead.dt[s]) + bias, value[s] = from_bf16(ahead.value[s]);
        if (gated) z[s] = from_bf16(ahead.z[s]);
      }
      fetch(t0 + s0 + kStep);
#pragma unroll
      for (int s = 0; s < kStep; ++s) {
        if (p.softplus) {
          float unused;
          delta[s] = softplus<true>(delta[s], unused);
        }
        if (s >= left) delta[s] = 0;  // where B and C are zero, too
        if (!kAdjoint) value[s] *= delta[s];
        if (gated) value[s] *= z[s] * sigmoid<true>(z[s]);
      }
#pragma unroll
      for (int s = 0; s < kStep; ++s) {
        so_far[s] = kAdjoint ? decay + delta[s] : decay;
        decay += delta[s];
      }
#pragma unroll
      for (int k = 0; k < kN; k += 4) {
        if (!needed[k / 4]) continue;
#pragma unroll
        for (int s = 0; s < kStep; ++s) {
          const float4 v = *reinterpret_cast<const float4*>(&tile[s0 + s][k]);
          sum[k] = fmaf(exp2_of<true>(so_far[s] * A[k]), value[s] * v.x, sum[k]);
          sum[k + 1] = fmaf(exp2_of<true>(so_far[s] * A[k + 1]), value[s] * v.y, sum[k + 1]);
          sum[k + 2] = fmaf(exp2_of<true>(so_far[s] * A[k + 2]), value[s] * v.z, sum[k + 2]);
          sum[k + 3] = fmaf(exp2_of<true>(so_far[s] * A[k + 3]), value[s] * v.w, sum[k + 3]);
        }
      }
    }
  }
  if (!there) return;
  float* to = w.k.ends + ((n * w.k.pieces + piece) * p.E + e) * p.N;
#pragma unroll
  for (int k = 0; k < kN; ++k)
    if (k < p.N) to[k] = sum[k];
}

// One thread a state of a sequence: what enters each segment.
template <bool kAdjoint>
__global__ void chain_segments(const __grid_constant__ Ends w) {
  const CudaProblem& p = w.p;
  const int64_t states = p.E * p.N, i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= p.sequences * states) return;
  const int64_t n = i / states, state = i % states, of_segment = w.k.segment / w.k.piece;
  const float A = scaled_A(p.A[state], p.a_is_log);
  const Span s = sequence(p, n);
  const int64_t row = !w.by_row ? n : kAdjoint ? s.out : s.in;
  float value = w.enters && row >= 0 ? w.enters[row * states + state] : 0.0f;
  for (int64_t j = 0; j < w.k.segments; ++j) {
    const int64_t segment = kAdjoint ? w.k.segments - 1 - j : j,
                  piece = n * w.k.pieces + segment * of_segment;
    w.k.at[(n * w.k.segments + segment) * states + state] = value;
    if (j + 1 == w.k.segments) break;
    float decay = 0, sum = 0;
#pragma unroll 8
    for (int64_t m = 0; m < of_segment; ++m) {
      decay += w.k.sums[(piece + m) * p.E + state / p.N];
      sum += w.k.ends[(piece + m) * states + state];
    }
    value = fmaf(exp2_of<true>(A * decay), value, sum);
  }
}

template <bool kAdjoint>
void between(Ends w, void* stream) {
  const CudaProblem& p = w.p;
  const auto queue = static_cast<cudaStream_t>(stream);
  const int64_t of_segment = w.k.segment / w.k.piece;
  w.count = w.k.pieces - of_segment, w.first = kAdjoint ? of_segment : 0;
  const auto grid = [&](int64_t blocks) {
    return static_cast<unsigned>(p.sequences * w.count * blocks);
  };
  if (w.count > 0) {
    sum_deltas<<<grid(ceil_div(p.E, 2 * kChannels)), kChannels, 0, queue>>>(w);
    sum_pieces<kAdjoint><<<grid(p.G * ceil_div(p.E / p.G, kChannels)), kChannels, 0, queue>>>(w);
  }
  chain_segments<kAdjoint>
      <<<static_cast<unsigned>(ceil_div(p.sequences * p.E * p.N, 128)), 128, 0, queue>>>(w);
  cuda::check_launch("segments of selective_scan");
}

}  // namespace

// In rounds of blocks that each walk over the whole stretch of `tokens`. Only the last tokens before a segment, some
// thousands, have a weight in what enters it.
static double cost(int64_t tokens, int64_t blocks, int64_t segments, const ScanCosts& costs) {
  const auto s = static_cast<double>(segments), b = static_cast<double>(blocks);
  const double alive = std::min(1 / s, 4096.0 / static_cast<double>(std::max<int64_t>(tokens, 1)));
  return static_cast<double>(ceil_div(blocks * segments, kMultiprocessors)) / s +
         costs.entering * b / kMultiprocessors * (s - 1) * alive;
}

static int64_t best_segments(const CudaProblem& p, int64_t tokens, int64_t blocks,
                             const ScanCosts& costs) {
  int64_t best = 1;
  const int64_t of_sequence =
      p.begin && p.sequences > 1 ? 1 : std::max<int64_t>(64 / std::max<int64_t>(p.sequences, 1), 1);
  const int64_t most = std::clamp<int64_t>(tokens / 512, 1, of_sequence);
  for (int64_t s = 2; s <= most; ++s)
    if (cost(tokens, blocks, s, costs) < 0.97 * cost(tokens, blocks, best, costs)) best = s;
  return best;
}

int cuda_scan_channels(const CudaProblem& p, const ScanCosts& costs) {
  const auto time = [&](int64_t channels) {
    const int64_t blocks = p.sequences * p.G * ceil_div(p.E / p.G, channels);
    const double of_block = channels == 32 ? costs.few : static_cast<double>(channels / 8);
    return cost(p.L, blocks, best_segments(p, p.L, blocks, costs), costs) * of_block;
  };
  if (time(32) < time(64) && time(32) < time(96)) return 32;
  return time(64) < time(96) ? 64 : 96;
}

CudaSegments cuda_segments(const CudaProblem& p, int64_t tokens, int64_t blocks, int64_t tile,
                           const ScanCosts& costs) {
  CudaSegments k;
  k.tokens = tokens;
  k.segments = best_segments(p, tokens, blocks, costs);
  // Pieces of 128 tokens at least, in whole rounds of four blocks a multiprocessor.
  const int64_t of_one =
      std::max<int64_t>(p.sequences * p.G * ceil_div(p.E / p.G, kChannels) * (k.segments - 1), 1);
  const int64_t rounds = std::max<int64_t>(of_one / (4 * kMultiprocessors), 1);
  const int64_t most = std::max<int64_t>(tokens / k.segments / 128, 1);
  const int64_t of_segment =
      std::clamp<int64_t>(6 * rounds * 4 * kMultiprocessors / of_one, 1, most);
  k.piece = ceil_div(ceil_div(std::max<int64_t>(tokens, 1), k.segments * of_segment), tile) * tile;
  k.segment = k.piece * of_segment;
  k.segments = std::max<int64_t>(ceil_div(tokens, k.segment), 1);
  k.pieces = k.segments * of_segment;
  return k;
}

void cuda_states_between(const CudaProblem& p, const CudaSegments& k, void* stream) {
  between<false>({p, {}, k, 0, 0, p.state_in, true}, stream);
}

void cuda_adjoints_between(const CudaProblem& p, const CudaRows& dy, const CudaSegments& k,
                           const float* last, bool by_row, void* stream) {
  between<true>({p, dy, k, 0, 0, last, by_row}, stream);
}

}  // namespace krait::ops::scan
