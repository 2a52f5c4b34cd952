#include "krait/ops/mamba2_step/cuda.h"

#include "krait/ops/mamba2_step/cuda_states.cuh"
#include "krait/ops/step_in_proj.cuh"
#include "krait/ops/step_parts.cuh"
#include "krait/tensor/cuda/few_rows_stream.cuh"
#include "krait/tensor/cuda/one_pass.cuh"
#include "krait/tensor/cuda/rows_sum.cuh"

namespace krait::cuda {

namespace {

using bfloat16 = __nv_bfloat16;

// What becomes of in_proj's output: z and dt as they are, x, B and C through a step of the convolution.
template <class Conv>
struct Parts {
  static constexpr bool kFactors = false;
  Conv conv;
  int64_t E, H;
  bfloat16 *z, *xBC;
  float* dt;

  using OfRow = typename Conv::OfRow;  // neither is used where z and dt are
  using Held = typename Conv::Held;
  __device__ OfRow of_row(int64_t n) const {
    return n >= E && n - E < conv.channels ? conv.of_row(n - E) : OfRow{};
  }
  __device__ Held hold(int64_t n, int m) const {
    Held held;  // not set where it is not used: that would wait for the loads before it
    if (n >= E && n - E < conv.channels) held = conv.hold(n - E, m);
    return held;
  }
  __device__ void operator()(int64_t n, int m, float value, const Held& held,
                             const OfRow& of = {}) const {
    if (n < E) {
      z[m * E + n] = static_cast<bfloat16>(value);
    } else if (n -= E; n < conv.channels) {
      xBC[m * conv.channels + n] = conv(n, m, static_cast<bfloat16>(value), held, of);
    } else {
      dt[m * H + n - conv.channels] = value;
    }
  }
};

struct FewParts : Parts<HeldConvOfStep> {
  static constexpr bool kHoldsEarly = true;
};

constexpr int kThreads = 256, kWarps = kThreads / 32, kP = kStep2Channels;

template <class S, int kN>
struct HeadLayout {
  static constexpr int kCount = StateRun<S>::kCount;  // states of a lane
  static constexpr int kLanes = kN / kCount;          // of a channel
  static constexpr int kAtOnce = kWarps * 32 / kLanes;
  static constexpr int kWhole = kP / kAtOnce;  // passes over a head
  static constexpr int kQuarter =
      kWhole < 4 ? 1 : kWhole / 4;  // the same of a part of it, for few rows
  static constexpr int kPair = 2 * kWhole;
  static_assert(kLanes <= 32 && kWhole > 0);
};

// A block has kPasses · kAtOnce channels of one row: of a head or two.
template <class S, int kN, int kPasses>
__global__ void __launch_bounds__(kThreads) state_kernel(const __grid_constant__ Step2State p) {
  using Layout = HeadLayout<S, kN>;
  using Run = StateRun<S>;
  constexpr int kCount = Layout::kCount, kLanes = Layout::kLanes, kAtOnce = Layout::kAtOnce,
                kMine = kPasses * kAtOnce, kHeads = kMine > kP ? kMine / kP : 1,
                kSquares = (kMine + 31) / 32;
  __shared__ float xs[kMine], ys[kMine];
  const int thread = static_cast<int>(threadIdx.x), of_block = thread / kLanes,
            n0 = thread % kLanes * kCount;
  const int64_t m = blockIdx.y, E = p.H * kP;
  const int64_t e0 = int64_t{blockIdx.x} * kMine, h = e0 / kP;  // the first channel and its head

  auto* const state = static_cast<S*>(p.state) + (m * E + e0 + of_block) * kN + n0;
  Run held[kPasses];
#pragma unroll
  for (int i = 0; i < kPasses; ++i) held[i].load(state + int64_t{i} * kAtOnce * kN);
  float A[kHeads], bias[kHeads];
#pragma unroll
  for (int i = 0; i < kHeads; ++i)
    A[i] = scaled_A(__ldg(p.A_log + h + i), true), bias[i] = __ldg(p.dt_bias + h + i);
  float D = 0, w = 0;
  if (thread < kMine) {
    D = __ldg(p.D + (p.D_per_channel ? e0 + thread : h + thread / kP));
    w = __ldg(p.w + e0 + thread);
  }
  let_next_start();
  wait_for_previous();

  const auto* const xBC = static_cast<const bfloat16*>(p.xBC) + m * (E + 2 * kN);
  float deltas[kHeads], decays[kHeads];
#pragma unroll
  for (int i = 0; i < kHeads; ++i) {
    float slope;
    const float delta = softplus<false>(__ldcg(p.dt + m * p.H + h + i) + bias[i], slope);
    deltas[i] = delta < p.dt_low ? p.dt_low : delta > p.dt_high ? p.dt_high : delta;  // NaN stays
    decays[i] = exp2_exact(deltas[i] * A[i]);
  }
  float z = 0;
  if (thread < kMine) {
    xs[thread] = static_cast<float>(__ldcg(xBC + e0 + thread));
    z = static_cast<float>(__ldcg(static_cast<const bfloat16*>(p.z) + m * E + e0 + thread));
  }
  float B[kCount], C[kCount];
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const uint2 b = __ldcg(reinterpret_cast<const uint2*>(xBC + E + n0 + i)),
                c = __ldcg(reinterpret_cast<const uint2*>(xBC + E + kN + n0 + i));
    B[i] = low_bf16(b.x), B[i + 1] = high_bf16(b.x), B[i + 2] = low_bf16(b.y),
    B[i + 3] = high_bf16(b.y);
    C[i] = low_bf16(c.x), C[i + 1] = high_bf16(c.x), C[i + 2] = low_bf16(c.y),
    C[i + 3] = high_bf16(c.y);
  }
  __syncthreads();

#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    constexpr int kOfHead = kPasses / kHeads;
    const float x = deltas[i / kOfHead] * xs[of_block + i * kAtOnce], decay = decays[i / kOfHead];
    float s[kCount], y = 0;
    held[i].get(s);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      s[j] = fmaf(decay, s[j], x * B[j]);
      y = fmaf(s[j], C[j], y);
    }
    Run::put(state + int64_t{i} * kAtOnce * kN, s);
#pragma unroll
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) y += __shfl_xor_sync(~0u, y, lanes);
    if (n0 == 0) ys[of_block + i * kAtOnce] = y;
  }
  __syncthreads();
  if (thread >= 32 * kSquares) return;
  float square = 0;
  if (thread < kMine) {
    const float v = fmaf(D, xs[thread], ys[thread]) * z * sigmoid<true>(z);
    square = v * v;
    static_cast<bfloat16*>(p.y)[m * E + e0 + thread] = static_cast<bfloat16>(v * w);
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) square += __shfl_xor_sync(~0u, square, lanes);
  if (thread % 32 == 0) p.squares[(m * gridDim.x + blockIdx.x) * kSquares + thread / 32] = square;
}

// Calls use(passes of a block): for few rows a head is cut into pieces; for many a block has 32 KB of states.
template <class S, int kN, class Use>
auto with_passes(int64_t M, int64_t H, const Use& use) {
  using Layout = HeadLayout<S, kN>;
  using std::integral_constant;
  if (M < 4) return use(integral_constant<int, Layout::kQuarter>());
  if constexpr (Layout::kPair <= 8)
    if (M >= 16 && H % 2 == 0) return use(integral_constant<int, Layout::kPair>());
  return use(integral_constant<int, Layout::kWhole>());
}

// Rows from which the states pass through shared memory.
constexpr int64_t kFewestCopiedRows = 8;
bool copies_states(int64_t M) { return M >= kFewestCopiedRows && on_hopper(); }

template <class S, int kN>
void launch_state(const Step2State& p, void* stream) {
  if (copies_states(p.M)) return launch_states<S, kN>(p, stream);
  with_passes<S, kN>(p.M, p.H, [&](auto passes) {
    const dim3 grid(static_cast<unsigned>(p.H * kP / (passes * HeadLayout<S, kN>::kAtOnce)),
                    static_cast<unsigned>(p.M));
    launch_dependent("mamba2_step", state_kernel<S, kN, passes>, grid, kThreads, 0, 1, stream, p);
  });
}

template <class S, int kN>
int64_t squares_of(int64_t M, int64_t H) {
  if (copies_states(M)) return H * kP / StateTile<S, kN>::kChannels;
  return with_passes<S, kN>(M, H, [&](auto passes) {
    const int64_t channels = passes * HeadLayout<S, kN>::kAtOnce;
    return H * kP / channels * ceil_div(channels, 32);
  });
}

struct AddNormed {
  static constexpr bool kFactors = true, kHoldsEarly = false;
  const float* squares;
  int64_t squares_of_row, N, E;
  float eps;
  float* stream;

  // A lane's part of a row's squares, and from all of them its factor.
  __device__ float part(int m) const {
    float sum = 0;
    for (int64_t i = threadIdx.x % 32; i < squares_of_row; i += 32)
      sum += __ldcg(squares + m * squares_of_row + i);
    return sum;
  }
  __device__ float factor_of(float part) const {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) part += __shfl_xor_sync(~0u, part, lanes);
    return 1.0f / sqrtf(part / static_cast<float>(E) + eps);
  }
  using Held = float;  // of the stream
  __device__ Held hold(int64_t n, int m) const { return __ldcg(stream + m * N + n); }
  __device__ void operator()(int64_t n, int m, float value, Held held) const {
    stream[m * N + n] = held + value;
  }
};

// A row's factor, computed by some neighbouring lanes.
struct NormFactor {
  static constexpr bool kOnes = false;
  const float* squares;
  int64_t squares_of_row, E;
  float eps;

  __device__ float factor(int m, int lane, int lanes) const {
    const float* const row = squares + m * squares_of_row;
    float sum = 0;
    if (squares_of_row % 4 == 0) {
#pragma unroll 4
      for (int64_t i = 4 * lane; i < squares_of_row; i += 4 * lanes) {
        const float4 v = __ldcg(reinterpret_cast<const float4*>(row + i));
        sum += (v.x + v.y) + (v.z + v.w);
      }
    } else {
      for (int64_t i = lane; i < squares_of_row; i += lanes) sum += __ldcg(row + i);
    }
    for (int i = lanes / 2; i > 0; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
    return 1.0f / sqrtf(sum / static_cast<float>(E) + eps);
  }
};

// AddNormed of four neighbouring elements.
struct AddNormedFours : NormFactor {
  static constexpr bool kFactors = true, kFours = true;
  int64_t N;
  float* stream;

  using Held = float4;  // of the stream
  __device__ float4* at(int64_t n, int m) const {
    return reinterpret_cast<float4*>(stream + m * N + n);
  }
  __device__ Held hold(int64_t n, int m) const { return __ldcg(at(n, m)); }
  __device__ void operator()(int64_t n, int m, float4 sums, const Held& held) const {
    add_fours(sums, held);
    *at(n, m) = sums;
  }
};

// Norming on the way into in_proj is faster up to so many rows.
constexpr int64_t kMostNormedRows = 4;

// H200, mamba2-1.3b: of 16 rows a layer takes 38.6 us with both, 43.4 with neither, 41.9 or 41.0 with one; of 8 29.5,
// 32.9, 31.8 and 31.6; of 5 26.6, 32.3, 25.4 and 28.7.
using StreamIn = StreamTile<144, 2, 1, 2, 8>;
using StreamOut = StreamTile<64, 4, 2, 2, 9>;

}  // namespace

bool step2_norms(int64_t M, int64_t rows, int64_t D) {
  return M <= kMostNormedRows ||
         (M <= kMostFewRows && on_hopper() && StreamIn::fills(rows) && StreamIn(D, true).fits());
}

void step2_in_proj(const Step2InProj& p, void* stream) {
  const ConvOfStep conv{p.taps, p.bias, static_cast<ConvOfStep::Held::Stored*>(p.state),
                        p.E + 2 * p.N};
  const auto end = [&](auto of_step) {
    return Parts<decltype(of_step)>{of_step,
                                    p.E,
                                    p.product.N - p.E - conv.channels,
                                    static_cast<bfloat16*>(p.z),
                                    static_cast<bfloat16*>(p.xBC),
                                    p.dt};
  };
  if (p.norm) {
    const FewParts parts{end(HeldConvOfStep{conv})};
    const Normed norm{p.norm, p.eps};
    p.product.M <= kMostNormedRows ? normed_few_rows_into<bfloat16>(p.product, norm, parts, stream)
                                   : stream_rows<StreamIn, true>(p.product, norm, parts, stream);
  } else if (const FewRows& q = p.product; !step_rows({.w = q.w,
                                                       .x = q.x,
                                                       .M = q.M,
                                                       .N = q.N,
                                                       .K = q.K,
                                                       .conv = conv,
                                                       .conv_first = p.E,
                                                       .z_first = 0,
                                                       .E = p.E,
                                                       .dt_first = p.E + conv.channels,
                                                       .H = q.N - p.E - conv.channels,
                                                       .u = static_cast<bfloat16*>(p.xBC),
                                                       .z = static_cast<bfloat16*>(p.z),
                                                       .dt = p.dt},
                                                      stream)) {
    one_pass_into(rows_of(q), end(conv), stream);
  }
}

int64_t step2_squares(int64_t M, int64_t H, int64_t N, bool state_bf16) {
  if (!state_bf16) return N == 64 ? squares_of<float, 64>(M, H) : squares_of<float, 128>(M, H);
  if (N == 64) return squares_of<bfloat16, 64>(M, H);
  return N == 128 ? squares_of<bfloat16, 128>(M, H) : squares_of<bfloat16, 256>(M, H);
}

void step2_state(const Step2State& p, void* stream) {
  if (!p.state_bf16)
    return p.N == 64 ? launch_state<float, 64>(p, stream) : launch_state<float, 128>(p, stream);
  if (p.N == 64) return launch_state<bfloat16, 64>(p, stream);
  p.N == 128 ? launch_state<bfloat16, 128>(p, stream) : launch_state<bfloat16, 256>(p, stream);
}

void step2_out_proj(const Step2OutProj& p, void* stream) {
  if (const FewRows& q = p.product; q.M <= kMostFewRows) {
    const AddNormed add{p.squares, p.squares_of_row, q.N, q.K, p.eps, p.stream};
    const bool streams =
        q.M >= 8 && on_hopper() && StreamOut::fills(q.N) && StreamOut(q.K, false).fits();
    return streams ? stream_rows<StreamOut>(q, Normed{}, add, stream)
                   : few_rows_into<bfloat16>(q, add, stream);
  }
  const NormFactor factor{p.squares, p.squares_of_row, p.product.K, p.eps};
  const OnePass product = rows_of(p.product);
  if (on_hopper() && rows_added({product, p.stream}, factor, stream)) return;
  one_pass_into(product, AddNormedFours{factor, product.N, p.stream}, stream);
}

}  // namespace krait::cuda
