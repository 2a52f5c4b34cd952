#include "krait/ops/selective_scan/cuda_segments.h"

#include <algorithm>

#include "krait/ops/selective_scan/cuda_device.cuh"

namespace krait::ops::scan {
namespace {

using cuda::ceil_div;

// A block of sum_segments: 16 channels, of each 16 threads with 8 steps of every round.
constexpr int kN = 16, kChannels = 16, kThreads = 256, kParts = kThreads / kChannels, kSteps = 8,
              kRound = kParts * kSteps, kMultiprocessors = 132;
constexpr float kLeast = -36.0f;  // log2 of the least weight

struct Ends {
  CudaProblem p;
  CudaRows dy;
  CudaSegments k;
  const float* enters;  // what enters the stretch, (sequences, E, N)
  bool by_row;          // of its sequences, not in the order of their tokens
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

// Sums over the tokens of a segment: of B delta u, decayed to its end; or, kAdjoint, of C dy silu(z), decayed to before
// its beginning; and of delta. It goes on from where the weights are largest until all of a block's are zero; four states
// of a warp's channels are left out as soon as theirs are.
template <bool kAdjoint>
__global__ void __launch_bounds__(kThreads, 2) sum_segments(const __grid_constant__ Ends w) {
  __shared__ float rows[kRound][kN];  // B or C
  __shared__ float deltas[kParts][kChannels], A[kN][kChannels], sums[kParts][kN][kChannels + 1];
  const CudaProblem& p = w.p;
  const CudaRows &r = kAdjoint ? p.C : p.B, &other = kAdjoint ? w.dy : p.u;
  const int64_t in_group = p.E / p.G, of_group = ceil_div(in_group, kChannels),
                blocks = of_group * p.G;
  const int64_t block = blockIdx.x % blocks, group = block / of_group;
  const int64_t n = blockIdx.x / blocks / (w.k.segments - 1),
                segment = blockIdx.x / blocks % (w.k.segments - 1) + kAdjoint;
  const int part = threadIdx.x / kChannels, channel = threadIdx.x % kChannels;
  const int64_t in_block = block % of_group * kChannels + channel;
  const bool there = in_block < in_group;
  const int64_t e = group * in_group + (there ? in_block : 0);
  const int64_t begin = w.k.from + segment * w.k.segment,
                end = min(min(begin + w.k.segment, w.k.from + w.k.tokens), p.L);
  const int tokens = end > begin ? static_cast<int>(end - begin) : 0;
  constexpr int kDirection = kAdjoint ? 1 : -1;
  const int64_t first = n * p.L + (kAdjoint ? begin : end - 1);  // token of the first step

  static_assert(kParts == kN);
  A[part][channel] = part < p.N ? scaled_A(p.A[e * p.N + part], p.a_is_log) : -1e30f;
  __syncthreads();
  float sum[kN] = {}, slowest[kN / 4];
#pragma unroll
  for (int k = 0; k < kN; ++k)
    slowest[k / 4] = k % 4 == 0 ? A[k][channel] : fmaxf(slowest[k / 4], A[k][channel]);
  const float bias = p.dt_bias ? p.dt_bias[e] : 0.0f;

  const Column of_dt(p.dt, first, e, kDirection), of_value(other, first, e, kDirection),
      of_z(p.z, first, e, kDirection);
  const bool gated = kAdjoint && p.z.data;
  constexpr int kQuads = kRound * kN / 4 / kThreads;
  struct {
    Quad rows[kQuads];
    unsigned short dt[kSteps], value[kSteps], z[kSteps];
  } ahead;
  const auto fetch = [&](int t0) {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int at = threadIdx.x + i * kThreads, t = t0 + at / 4,
                valid = static_cast<int>(p.N) - at % 4 * 4;
      ahead.rows[i] = load_quad<false>(
          r,
          element(r, r.bf16, first + kDirection * min(t, tokens - 1), group * r.group + at % 4 * 4),
          t < tokens ? valid : 0);
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int t = min(t0 + part * kSteps + s, tokens - 1);
      ahead.dt[s] = of_dt[t], ahead.value[s] = of_value[t];
      if (gated) ahead.z[s] = of_z[t];
    }
  };
  float so_far = 0;  // sum of delta before the round
  const auto alive = [&](int group_of_4, float decay) {
    return there && (!p.softplus || slowest[group_of_4] * decay > kLeast);
  };
  if (tokens > 0) fetch(0);
  for (int t0 = 0; t0 < tokens; t0 += kRound) {
    if (!__syncthreads_or(alive(0, so_far) || alive(1, so_far) || alive(2, so_far) ||
                          alive(3, so_far)))
      break;
    float delta[kSteps], value[kSteps], of_part = 0;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int at = threadIdx.x + i * kThreads;
      float x[4];
      to_floats<false>(ahead.rows[i], r.bf16, x);
      *reinterpret_cast<float4*>(&rows[at / 4][at % 4 * 4]) = {x[0], x[1], x[2], x[3]};
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      delta[s] = from_bf16(ahead.dt[s]) + bias, value[s] = from_bf16(ahead.value[s]);
      if (p.softplus) {
        float unused;
        delta[s] = softplus<true>(delta[s], unused);
      }
      if (t0 + part * kSteps + s >= tokens) delta[s] = 0;  // where B and C are zero, too
      if (!kAdjoint) value[s] *= delta[s];
      if (gated) {
        const float z = from_bf16(ahead.z[s]);
        value[s] *= z * sigmoid<true>(z);
      }
      of_part += delta[s];
    }
    deltas[part][channel] = of_part;
    if (t0 + kRound < tokens) fetch(t0 + kRound);
    __syncthreads();
    float before = 0;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      if (i == part) before = so_far;
      so_far += deltas[i][channel];
    }
#pragma unroll
    for (int k = 0; k < kN; k += 4) {
      if (!__any_sync(~0u, alive(k / 4, before))) continue;
      float a[4], decay = before;
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = A[k + i][channel];
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        if (kAdjoint) decay += delta[s];
        const float4 v = *reinterpret_cast<const float4*>(&rows[part * kSteps + s][k]);
        const float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; ++i)
          sum[k + i] = fmaf(exp2_of<true>(decay * a[i]), value[s] * x[i], sum[k + i]);
        if (!kAdjoint) decay += delta[s];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kN; ++k) sums[part][k][channel] = sum[k];
  __syncthreads();
  if (!there) return;
  const int64_t at = (n * w.k.segments + segment) * p.E + e;
  float total = 0;  // of state `part`
#pragma unroll
  for (int i = 0; i < kParts; ++i) total += sums[i][part][channel];
  if (part < p.N) w.k.ends[at * p.N + part] = total;
  if (part == 0) w.k.deltas[at] = so_far;
}

// One thread a state of a sequence: what enters each segment.
template <bool kAdjoint>
__global__ void chain_segments(const __grid_constant__ Ends w) {
  const CudaProblem& p = w.p;
  const int64_t states = p.E * p.N, i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= p.sequences * states) return;
  const int64_t n = i / states, state = i % states;
  const float A = scaled_A(p.A[state], p.a_is_log);
  const Span s = sequence(p, n);
  const int64_t row = !w.by_row ? n : kAdjoint ? s.out : s.in;
  float value = w.enters && row >= 0 ? w.enters[row * states + state] : 0.0f;
#pragma unroll 4
  for (int64_t j = 0; j < w.k.segments; ++j) {
    const int64_t at = n * w.k.segments + (kAdjoint ? w.k.segments - 1 - j : j);
    w.k.at[at * states + state] = value;
    if (j + 1 < w.k.segments)
      value = fmaf(exp2_of<true>(A * w.k.deltas[at * p.E + state / p.N]), value,
                   w.k.ends[at * states + state]);
  }
}

template <bool kAdjoint>
void between(const Ends& w, void* stream) {
  const CudaProblem& p = w.p;
  const auto queue = static_cast<cudaStream_t>(stream);
  if (w.k.segments > 1) {
    const int64_t blocks = p.sequences * (w.k.segments - 1) * p.G * ceil_div(p.E / p.G, kChannels);
    sum_segments<kAdjoint><<<static_cast<unsigned>(blocks), kThreads, 0, queue>>>(w);
  }
  chain_segments<kAdjoint>
      <<<static_cast<unsigned>(ceil_div(p.sequences * p.E * p.N, 128)), 128, 0, queue>>>(w);
  cuda::check_launch("segments of selective_scan");
}

}  // namespace

// In rounds of blocks that each walk over the whole stretch of `tokens`. Of those before a segment the last 2,600 or so
// have a weight in what enters it.
static double cost(int64_t tokens, int64_t blocks, int64_t segments, const ScanCosts& costs) {
  const auto s = static_cast<double>(segments), b = static_cast<double>(blocks);
  const double alive = std::min(1 / s, 2600.0 / static_cast<double>(std::max<int64_t>(tokens, 1)));
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
  // Backward, longer sequences go in stretches of about so many tokens.
  const int64_t tokens = std::min<int64_t>(p.L, 1 << 17);
  const auto time = [&](int64_t channels) {
    const int64_t blocks = p.sequences * p.G * ceil_div(p.E / p.G, channels);
    const double of_block = channels == 32 ? costs.few : static_cast<double>(channels / 8);
    return cost(tokens, blocks, best_segments(p, tokens, blocks, costs), costs) * of_block;
  };
  if (time(32) < time(64) && time(32) < time(96)) return 32;
  return time(64) < time(96) ? 64 : 96;
}

CudaSegments cuda_segments(const CudaProblem& p, int64_t tokens, int64_t blocks, int64_t tile,
                           const ScanCosts& costs) {
  CudaSegments k;
  k.tokens = tokens;
  k.segments = best_segments(p, tokens, blocks, costs);
  k.segment = ceil_div(ceil_div(std::max<int64_t>(tokens, 1), k.segments), tile) * tile;
  k.segments = std::max<int64_t>(ceil_div(tokens, k.segment), 1);
  return k;
}

void cuda_states_between(const CudaProblem& p, const CudaSegments& k, void* stream) {
  between<false>({p, {}, k, p.state_in, true}, stream);
}

void cuda_adjoints_between(const CudaProblem& p, const CudaRows& dy, const CudaSegments& k,
                           const float* last, bool by_row, void* stream) {
  between<true>({p, dy, k, last, by_row}, stream);
}

}  // namespace krait::ops::scan
