#include "krait/ops/selective_scan/cuda_segments.h"

#include <algorithm>

#include "krait/ops/selective_scan/cuda_device.cuh"

namespace krait::ops::scan {
namespace {

using cuda::ceil_div;

// A block of sum_segments: 16 channels; a thread has 8 steps of every round.
constexpr int kN = 16, kChannels = 16, kThreads = 256, kWarps = kThreads / 32, kSteps = 8,
              kMultiprocessors = 132;
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

// Channels of a block, a bit each.
__device__ inline int count_of(unsigned channels) { return __popc(channels); }
__device__ inline int nth_of(unsigned channels, int n) {
  for (; n > 0; --n) channels &= channels - 1;
  return __ffs(channels) - 1;
}

// Where a block of sum_segments is: sixteen channels of a segment, walked through from where weights are largest on.
template <bool kAdjoint>
struct Stretch {
  static constexpr int kDirection = kAdjoint ? 1 : -1;
  int64_t n, segment;      // n: the sequence
  int64_t group, channel;  // channel: the first
  int64_t first;           // token of the first step
  int tokens, channels;

  __device__ explicit Stretch(const Ends& w) {
    const CudaProblem& p = w.p;
    const int64_t in_group = p.E / p.G, of_group = ceil_div(in_group, kChannels),
                  blocks = of_group * p.G;
    const int64_t block = blockIdx.x % blocks;
    group = block / of_group, channel = group * in_group + block % of_group * kChannels;
    channels = static_cast<int>(min((group + 1) * in_group - channel, int64_t{kChannels}));
    n = blockIdx.x / blocks / (w.k.segments - 1);
    segment = blockIdx.x / blocks % (w.k.segments - 1) + kAdjoint;
    const int64_t begin = w.k.from + segment * w.k.segment,
                  end = min(min(begin + w.k.segment, w.k.from + w.k.tokens), p.L);
    tokens = end > begin ? static_cast<int>(end - begin) : 0;
    first = n * p.L + (kAdjoint ? begin : end - 1);
  }
};

struct SumMemory {
  float rows[kThreads * (kSteps + 1)];  // B or C of a round, see Rounds::row
  float A[kN][kChannels];
  float so_far[kChannels];           // sum of delta
  float of_warp[kWarps][kChannels];  // sum of delta in a round
  float sums[kWarps][kN][kChannels + 1];
};

// Rounds of a block through its stretch, over kWidth of its channels and the first kWidth of their states: where fewer have
// weights that are not zero, a round has more tokens. `among`: which channels.
template <bool kAdjoint, int kWidth>
struct Rounds {
  static constexpr int kQuads = kWidth / 4, kTokens = kThreads / kWidth * kSteps;
  const Ends& w;
  const Stretch<kAdjoint>& at;
  SumMemory& memory;
  const unsigned among;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = threadIdx.x / kWidth;
  const bool there;
  const int channel;
  float sum[kWidth] = {}, so_far;

  __device__ Rounds(const Ends& w_, const Stretch<kAdjoint>& at_, SumMemory& memory_,
                    unsigned among_)
      : w(w_),
        at(at_),
        memory(memory_),
        among(among_),
        there(static_cast<int>(threadIdx.x) % kWidth < count_of(among_)),
        channel(nth_of(among_, there ? threadIdx.x % kWidth : 0)),
        so_far(memory_.so_far[channel]) {}

  // From step t0 on until weights are zero, or those of half of the channels and of the upper half of the states. Returns
  // the channels that are left, and in t0 where.
  __device__ unsigned walk(int& t0) {
    const CudaProblem& p = w.p;
    float slowest[kQuads];
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      slowest[k / 4] =
          k % 4 == 0 ? memory.A[k][channel] : fmaxf(slowest[k / 4], memory.A[k][channel]);
    const auto alive = [&](int quad, float decay) {
      return there && (!p.softplus || slowest[quad] * decay > kLeast);
    };
    const int64_t e = at.channel + channel;
    const float bias = p.dt_bias ? p.dt_bias[e] : 0.0f;
    constexpr int kDirection = Stretch<kAdjoint>::kDirection;
    const Column of_dt(p.dt, at.first, e, kDirection),
        of_value(kAdjoint ? w.dy : p.u, at.first, e, kDirection),
        of_z(p.z, at.first, e, kDirection);
    const bool gated = kAdjoint && p.z.data;
    const CudaRows& r = kAdjoint ? p.C : p.B;
    struct {
      Quad rows[2];
      unsigned short dt[kSteps], value[kSteps], z[kSteps];
    } ahead;
    const auto fetch = [&](int from) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int quad = threadIdx.x + i * kThreads, t = from + quad / kQuads,
                  k = quad % kQuads * 4;
        ahead.rows[i] =
            load_quad<false>(r,
                             element(r, r.bf16, at.first + kDirection * min(t, at.tokens - 1),
                                     at.group * r.group + k),
                             t < at.tokens ? static_cast<int>(p.N) - k : 0);
      }
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const int t = min(from + part * kSteps + s, at.tokens - 1);
        ahead.dt[s] = of_dt[t], ahead.value[s] = of_value[t];
        if (gated) ahead.z[s] = of_z[t];
      }
    };
    fetch(t0);
    for (; t0 < at.tokens; t0 += kTokens) {
      bool any = false, upper = false;
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const bool is = alive(q, so_far);
        any |= is;
        if (q >= kQuads / 2) upper |= is;
      }
      // The same in all warps: all have the sums of all channels.
      const unsigned left = __reduce_or_sync(~0u, any ? 1u << channel : 0);
      if (left == 0) break;
      if (kWidth > 4 && count_of(left) <= kWidth / 2 && !__any_sync(~0u, upper)) return left;
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int quad = threadIdx.x + i * kThreads;
        float x[4];
        to_floats<false>(ahead.rows[i], r.bf16, x);
        *reinterpret_cast<float4*>(row(quad / kQuads) + quad % kQuads * 4) = {x[0], x[1], x[2],
                                                                              x[3]};
      }
      float delta[kSteps], value[kSteps], of_part = 0;
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        delta[s] = from_bf16(ahead.dt[s]) + bias, value[s] = from_bf16(ahead.value[s]);
        if (p.softplus) {
          float unused;
          delta[s] = softplus<true>(delta[s], unused);
        }
        if (t0 + part * kSteps + s >= at.tokens) delta[s] = 0;  // where B and C are zero, too
        if (!kAdjoint) value[s] *= delta[s];
        if (gated) {
          const float z = from_bf16(ahead.z[s]);
          value[s] *= z * sigmoid<true>(z);
        }
        of_part += delta[s];
      }
      if (t0 + kTokens < at.tokens) fetch(t0 + kTokens);
      const float decay = sum_before(of_part);
#pragma unroll
      for (int q = 0; q < kQuads; ++q)
        if (__any_sync(~0u, alive(q, decay))) add(q, decay, delta, value);
    }
    return 0;
  }

  // To the block's totals, of which each thread has one: that of state threadIdx.x / kChannels of a channel.
  __device__ void hand_over(float& total) {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
#pragma unroll
      for (int d = kWidth; d < 32; d *= 2) sum[k] += __shfl_xor_sync(~0u, sum[k], d);
      if (lane < kWidth && there) memory.sums[warp][k][channel] = sum[k];
    }
    if (threadIdx.x < kWidth && there) memory.so_far[channel] = so_far;
    __syncthreads();
    const int k = threadIdx.x / kChannels, c = threadIdx.x % kChannels;
    if (k < kWidth && (among >> c & 1)) {
#pragma unroll
      for (int i = 0; i < kWarps; ++i) total += memory.sums[i][k][c];
    }
  }

 private:
  // Neighbouring parts lie in banks of their own.
  __device__ float* row(int t) const { return memory.rows + t * kWidth + t / kSteps * 4; }

  // Sum of delta before the thread's steps. so_far becomes that behind the round.
  __device__ float sum_before(float of_part) {
    float up_to = of_part;
#pragma unroll
    for (int d = kWidth; d < 32; d *= 2) {
      const float other = __shfl_up_sync(~0u, up_to, d);
      if (lane >= d) up_to += other;
    }
    float before = __shfl_up_sync(~0u, up_to, kWidth);
    if (lane < kWidth) before = 0;
    if (lane >= 32 - kWidth) memory.of_warp[warp][lane % kWidth] = up_to;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      if (i == warp) before += so_far;
      so_far += memory.of_warp[i][lane % kWidth];
    }
    return before;
  }

  __device__ void add(int q, float decay, const float (&delta)[kSteps],
                      const float (&value)[kSteps]) {
    float a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = memory.A[q * 4 + i][channel];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (kAdjoint) decay += delta[s];
      const float4 v = *reinterpret_cast<const float4*>(row(part * kSteps + s) + q * 4);
      const float x[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sum[q * 4 + i] = fmaf(exp2_of<true>(decay * a[i]), value[s] * x[i], sum[q * 4 + i]);
      if (!kAdjoint) decay += delta[s];
    }
  }
};

// Sums over the tokens of a segment: of B delta u, decayed to its end; or, kAdjoint, of C dy silu(z), decayed to
// before its beginning; and of delta. It goes on from where the weights are largest until all of a block's are zero; four
// states of a warp's channels are left out as soon as theirs are, and the block turns to the slow channels where they
// are few: of a fresh model's sixteen a quarter is left behind 8,000 tokens.
template <bool kAdjoint>
__global__ void __launch_bounds__(kThreads, 2) sum_segments(const __grid_constant__ Ends w) {
  __shared__ __align__(16) SumMemory memory;
  const CudaProblem& p = w.p;
  const Stretch<kAdjoint> at(w);
  const int k = threadIdx.x / kChannels, c = threadIdx.x % kChannels;
  const bool there = c < at.channels;
  static_assert(kThreads == kN * kChannels);
  memory.A[k][c] =
      there && k < p.N ? scaled_A(p.A[(at.channel + c) * p.N + k], p.a_is_log) : -1e30f;
  if (k == 0) memory.so_far[c] = 0;
  __syncthreads();
  float total = 0;
  int t0 = 0;
  unsigned left = at.tokens > 0 ? (1u << at.channels) - 1 : 0;
  const auto go_on = [&]<int kWidth>() {
    if (left == 0) return;
    Rounds<kAdjoint, kWidth> rounds(w, at, memory, left);
    left = rounds.walk(t0);
    rounds.hand_over(total);
  };
  go_on.template operator()<16>(), go_on.template operator()<8>(), go_on.template operator()<4>();
  if (!there) return;
  const int64_t to = (at.n * w.k.segments + at.segment) * p.E + at.channel + c;
  if (k < p.N) w.k.ends[to * p.N + k] = total;
  if (k == 0) w.k.deltas[to] = memory.so_far[c];
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

constexpr int64_t kLeastTokens = 400;  // of a segment: 2,048 tokens make five

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
  const int64_t most = std::clamp<int64_t>(tokens / kLeastTokens, 1, of_sequence);
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
