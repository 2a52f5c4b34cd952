// A layer's step for more than a few sequences, in bfloat16: products in one pass over the weights.
#include "krait/ops/mamba1_step/cuda.h"
#include "krait/ops/step_in_proj.cuh"
#include "krait/ops/step_parts.cuh"
#include "krait/tensor/cuda/one_pass.cuh"
#include "krait/tensor/cuda/step_norm.h"

namespace krait::cuda {

namespace {

using bfloat16 = __nv_bfloat16;

// What becomes of in_proj's output: z as it is, x through a step of the convolution.
struct GateAndConv {
  static constexpr bool kFactors = false;
  ConvOfStep conv;
  bfloat16 *u, *z;

  using OfRow = ConvOfStep::OfRow;  // neither is used where z is
  using Held = ConvOfStep::Held;
  __device__ OfRow of_row(int64_t n) const { return n < conv.channels ? conv.of_row(n) : OfRow{}; }
  __device__ Held hold(int64_t n, int m) const {
    Held held;  // not set where it is not used: that would wait for the loads before it
    if (n < conv.channels) held = conv.hold(n, m);
    return held;
  }
  __device__ void operator()(int64_t n, int m, float value, const Held& held,
                             const OfRow& of) const {
    const int64_t E = conv.channels;
    const auto rounded = static_cast<bfloat16>(value);
    if (n >= E) {
      z[m * E + n - E] = rounded;
    } else {
      u[m * E + n] = conv(n, m, rounded, held, of);
    }
  }
};

// A block has kChannels channels of kRows rows. Four warps give the products dt_proj δ, each of 16 channels, by tensor
// cores: a lane has elements 8 t to 8 t + 7 of every 32 of its rows, of both factors, and δ is the sum of two
// bfloat16. Then kLanes lanes share a channel, each with 16 bytes of its states; and then a thread has 8 channels of a row.
constexpr int kChannels = 64, kStep = kChannels + 4;

template <class S, int kRuns, int kRows, int kBlocks>
__global__ void __launch_bounds__(kChannels* kStepStates / StateRun<S>::kCount, kBlocks)
    step_scan_rows_kernel(const __grid_constant__ StepScan p) {
  using Run = StateRun<S>;
  constexpr int kCount = Run::kCount, kLanes = kStepStates / kCount, kThreads = kChannels * kLanes;
  constexpr int kParts = kThreads / 128, kMine = (kRuns + kParts - 1) / kParts;
  constexpr int kPlaces = kChannels / 8;  // of 16 bytes in a row of u, of z, or of B and C
  static_assert(kPlaces == 2 * kStepStates / 4 && kRows * kPlaces <= kThreads);
  __shared__ Run held[kRows][kThreads];                              // a thread's own states
  constexpr int kTiles = (kRows + 7) / 8;                            // of eight rows
  __shared__ __align__(16) float deltas[kParts][8 * kTiles][kStep];  // later y
  __shared__ __align__(16) float BC[kRows][2 * kStepStates], Ds[kChannels];
  __shared__ __align__(16) bfloat16 uz[2][kRows][kChannels];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32,
            g = lane / 4, t = lane % 4, part = warp / 4, of_warp = warp % 4 * 16 + g;
  const int R = static_cast<int>(p.R), width = R + 2 * kStepStates;
  const int64_t e0 = int64_t{blockIdx.x} * kChannels, m0 = int64_t{blockIdx.y} * kRows;
  const int count = static_cast<int>(min(int64_t{kRows}, p.M - m0));
  const int mine = thread / kLanes, n0 = thread % kLanes * kCount;
  const bool there = e0 + mine < p.E;
  const int64_t e = there ? e0 + mine : p.E - 1;

  const int64_t step = p.E * kStepStates;
  S* states = static_cast<S*>(p.state) + (m0 * p.E + e) * kStepStates + n0;
#pragma unroll
  for (int m = 0; m < kRows; ++m)
    if (m < count) copy_async(&held[m][thread], states + m * step, true);
  commit_copies();
  uint4 w[kMine][2];
  const auto* const dt_proj = static_cast<const bfloat16*>(p.dt_proj);
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int k = 32 * (i * kParts + part) + 8 * t;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = min(e0 + of_warp + half * 8, p.E - 1);
      w[i][half] = k < R ? __ldg(reinterpret_cast<const uint4*>(dt_proj + row * R + k)) : uint4{};
    }
  }
  float A[kCount];  // times log2(e)
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const float4 a = __ldg(reinterpret_cast<const float4*>(p.A_log + e * kStepStates + n0 + i));
    A[i] = scaled_A(a.x, true), A[i + 1] = scaled_A(a.y, true);
    A[i + 2] = scaled_A(a.z, true), A[i + 3] = scaled_A(a.w, true);
  }
  float bias[2];  // of the lane's products
#pragma unroll
  for (int half = 0; half < 2; ++half)
    bias[half] = __ldg(p.dt_bias + min(e0 + of_warp + half * 8, p.E - 1));
  if (thread < kChannels) Ds[thread] = __ldg(p.D + min(e0 + thread, p.E - 1));
  // What a thread brings, and finishes.
  const int row = thread / kPlaces, place = thread % kPlaces, c0 = 8 * place;
  const bool brings = row < count, finishes = brings && e0 + c0 < p.E;
  const int64_t at = (m0 + row) * p.E + e0 + c0;
  const float* const of_BC = p.dt_B_C + (m0 + row) * width + R + 4 * place;
  let_next_start();
  wait_for_previous();

  if (brings) copy_async(&BC[row][4 * place], of_BC, true);
  if (finishes) {
    copy_async(&uz[0][row][c0], static_cast<const bfloat16*>(p.u) + at, true);
    copy_async(&uz[1][row][c0], static_cast<const bfloat16*>(p.z) + at, true);
  }
  commit_copies();
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    float sums[4] = {}, rests[4] = {};
    const float* const low_rank = p.dt_B_C + (m0 + min(8 * tile + g, count - 1)) * width;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int k = 32 * (i * kParts + part) + 8 * t;
      float4 x[2] = {};
      if (k < R) {
        x[0] = __ldcg(reinterpret_cast<const float4*>(low_rank + k));
        x[1] = __ldcg(reinterpret_cast<const float4*>(low_rank + k) + 1);
      }
      const uint4 &a = w[i][0], &b = w[i][1];
      const uint32_t first[4] = {a.x, b.x, a.y, b.y}, second[4] = {a.z, b.z, a.w, b.w};
      const auto rest = [](float4 v, uint2 r) {
        return four_bf16(
            {v.x - low_bf16(r.x), v.y - high_bf16(r.x), v.z - low_bf16(r.y), v.w - high_bf16(r.y)});
      };
      const uint2 high[2] = {four_bf16(x[0]), four_bf16(x[1])};
      const uint2 low[2] = {rest(x[0], high[0]), rest(x[1], high[1])};
      mma_bf16(sums, first, high[0].x, high[0].y);
      mma_bf16(rests, first, low[0].x, low[0].y);
      mma_bf16(sums, second, high[1].x, high[1].y);
      mma_bf16(rests, second, low[1].x, low[1].y);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float delta = sums[j] + rests[j], slope;
      if (kParts == 1) delta = softplus<true>(delta + bias[j / 2], slope);
      deltas[part][8 * tile + 2 * t + j % 2][of_warp + j / 2 * 8] = delta;
    }
  }
  wait_for_copies<0>();
  __syncthreads();
  if constexpr (kParts > 1) {
    const float of_channel = __ldg(p.dt_bias + min(e0 + thread % kChannels, p.E - 1));
    for (int i = thread; i < kRows * kChannels; i += kThreads) {
      const int m = i / kChannels, c = i % kChannels;
      float sum = deltas[0][m][c], slope;
#pragma unroll
      for (int q = 1; q < kParts; ++q) sum += deltas[q][m][c];
      deltas[0][m][c] = softplus<true>(sum + of_channel, slope);
    }
    __syncthreads();
  }

#pragma unroll 4
  for (int m = 0; m < count; ++m, states += step) {
    const float delta = deltas[0][m][mine], x = delta * static_cast<float>(uz[0][m][mine]);
    float state[kCount], y = 0;
    held[m][thread].get(state);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      state[i] = fmaf(exp2_fast(delta * A[i]), state[i], x * BC[m][n0 + i]);
      y = fmaf(BC[m][kStepStates + n0 + i], state[i], y);
    }
#pragma unroll
    for (int i = kLanes / 2; i > 0; i /= 2) y += __shfl_xor_sync(~0u, y, i);
    if (there) Run::put(states, state);
    if (n0 == 0) deltas[0][m][mine] = y;  // the channel's lanes have read δ
  }
  __syncthreads();
  if (!finishes) return;
  float of_u[8], gate[8], D[8], y[8];
  load(&uz[0][row][c0], of_u), load(&uz[1][row][c0], gate);
  load_fours(&Ds[c0], D), load_fours(&deltas[0][row][c0], y);
#pragma unroll
  for (int i = 0; i < 8; ++i) y[i] = fmaf(D[i], of_u[i], y[i]) * gate[i] * sigmoid<true>(gate[i]);
  StateRun<bfloat16>::put(static_cast<bfloat16*>(p.y) + at, y);
}

template <class S, int kRows, int kBlocks>
void launch_scan_rows(const StepScan& p, void* stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div(p.E, kChannels)),
                  static_cast<unsigned>(ceil_div(p.M, kRows)));
  const auto launch = [&](auto kernel) {
    launch_dependent("mamba1_step", kernel, grid, kChannels * kStepStates / StateRun<S>::kCount, 0,
                     1, stream, p);
  };
  if (p.R <= 64) return launch(step_scan_rows_kernel<S, 2, kRows, kBlocks>);
  if (p.R <= 128) return launch(step_scan_rows_kernel<S, 4, kRows, kBlocks>);
  if (p.R <= 192) return launch(step_scan_rows_kernel<S, 6, kRows, kBlocks>);
  launch(step_scan_rows_kernel<S, kStepMostRank / 32, kRows, kBlocks>);
}

}  // namespace

void step_in_proj_rows(const StepInProj& p, void* normed, void* stream) {
  step_norm({.x = static_cast<const float*>(p.product.x),
             .w = p.norm,
             .y = normed,
             .M = p.product.M,
             .D = p.product.K,
             .eps = p.eps},
            stream);
  OnePass product = rows_of(p.product);
  product.x = normed;
  const int64_t E = product.N / 2;
  const ConvOfStep conv{p.taps, p.bias, p.state, E};
  auto *const u = static_cast<bfloat16*>(p.u), *const z = static_cast<bfloat16*>(p.z);
  if (step_rows({.w = product.w,
                 .x = normed,
                 .M = product.M,
                 .N = product.N,
                 .K = product.K,
                 .conv = conv,
                 .conv_first = 0,
                 .z_first = E,
                 .E = E,
                 .u = u,
                 .z = z},
                stream))
    return;
  const GateAndConv end{conv, u, z};
  // Wider still: of many rows blocks have half, in clusters of two, of which more are on the card at once than of four
  // (H200, 128 rows, when mamba-1.4b went this way: a layer took 60.0 us, 64.7 the other way; of mamba-2.8b 81.5 and 84.6).
  if (product.M > 64 && product.N >= 8192 && on_hopper())
    return launch_hopper<HopperTile<2, 64, 4>>(product, end, 2, stream);
  one_pass_into(product, end, stream);
}

void step_scan_rows(const StepScan& p, void* stream) {
  // Blocks of sixteen rows where all are on the card at once, four on a multiprocessor (H200, mamba-1.4b, 128 rows: 2.7 us
  // less of a layer's 64).
  const int64_t of_sixteen = ceil_div(p.E, kChannels) * ceil_div(p.M, 16);
  if (p.state_bf16 && of_sixteen >= 2 * kOnePassProcessors && of_sixteen <= 4 * kOnePassProcessors)
    return launch_scan_rows<bfloat16, 16, 4>(p, stream);
  // Blocks of eight rows where two of them come on a multiprocessor.
  if (ceil_div(p.E, kChannels) * ceil_div(p.M, 8) >= 2 * kOnePassProcessors) {
    p.state_bf16 ? launch_scan_rows<bfloat16, 8, 5>(p, stream)
                 : launch_scan_rows<float, 8, 3>(p, stream);
  } else {
    p.state_bf16 ? launch_scan_rows<bfloat16, 4, 6>(p, stream)
                 : launch_scan_rows<float, 4, 3>(p, stream);
  }
}

}  // namespace krait::cuda
