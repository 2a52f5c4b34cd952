// A layer's step for more than a few sequences, in bfloat16: products in one pass over the weights.
#include <algorithm>

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

// A block has kChannels channels of kRows rows. A warp of sixteen channels gives their products dt_proj dt by tensor
// cores: a lane has elements 8 t to 8 t + 7 of every 32 of its rows, of both factors, and dt is the sum of two bfloat16.
// Then kLanes lanes share a channel, each with 16 bytes of its states; and then a thread has 8 channels of a row.
template <class S, int kRows_, int kChannels_>
struct ScanTile {
  static constexpr int kRows = kRows_, kChannels = kChannels_;
  static constexpr int kCount = StateRun<S>::kCount, kLanes = kStepStates / kCount,
                       kThreads = kChannels * kLanes;
  static constexpr int kParts = kThreads / 2 / kChannels;  // of the products' K
  static constexpr int kTiles = (kRows + 7) / 8;           // of eight rows
  static constexpr int kStep = kChannels + 4;              // floats between rows of δ
  static constexpr int kTogether = 4;                      // rows
  static_assert(kRows % kTogether == 0);
  static constexpr int kRowBytes = kChannels * kStepStates * static_cast<int>(sizeof(S));
  // Of shared memory: states, B and C, u, D, and dt, later δ, later y. Of every eight of a row of dt first the
  // high parts come, then the low ones; in odd rows the other way round: what lanes read at once falls into different banks.
  static constexpr int kBC = kRows * kRowBytes, kU = kBC + kRows * 8 * kStepStates,
                       kD = kU + 2 * kRows * kChannels, kLow = kD + 4 * kChannels;
  static int bytes(int R) { return kLow + 4 * std::max(kRows * R, kParts * 8 * kTiles * kStep); }
};

template <class S, class Tile, int kRuns, int kBlocks>
__global__ void __launch_bounds__(Tile::kThreads, kBlocks)
    step_scan_rows_kernel(const __grid_constant__ StepScan p) {
  using Run = StateRun<S>;
  constexpr int kRows = Tile::kRows, kChannels = Tile::kChannels, kCount = Tile::kCount,
                kLanes = Tile::kLanes, kThreads = Tile::kThreads, kParts = Tile::kParts,
                kTiles = Tile::kTiles, kTogether = Tile::kTogether;
  constexpr int kMine = (kRuns + kParts - 1) / kParts;
  constexpr int kPlaces = kChannels / 8;          // of 16 bytes in a row of u
  constexpr int kBringers = 2 * kStepStates / 4;  // threads that bring a row of dt, B and C
  static_assert(kRows * kPlaces <= kThreads && kRows * kBringers <= kThreads);
  extern __shared__ __align__(128) unsigned char scanned[];
  auto* const BC = reinterpret_cast<float(*)[2 * kStepStates]>(scanned + Tile::kBC);
  auto* const us = reinterpret_cast<bfloat16(*)[kChannels]>(scanned + Tile::kU);
  auto* const Ds = reinterpret_cast<float*>(scanned + Tile::kD);
  unsigned char* const dts = scanned + Tile::kLow;
  auto* const deltas = reinterpret_cast<float(*)[8 * kTiles][Tile::kStep]>(dts);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32,
            g = lane / 4, t = lane % 4, part = warp / (kChannels / 16),
            of_warp = warp % (kChannels / 16) * 16 + g;
  const int R = static_cast<int>(p.R), width = R + 2 * kStepStates;
  const int64_t e0 = int64_t{blockIdx.x} * kChannels, m0 = int64_t{blockIdx.y} * kRows;
  const int count = static_cast<int>(min(int64_t{kRows}, p.M - m0));
  const int mine = thread / kLanes, n0 = thread % kLanes * kCount;
  const bool there = e0 + mine < p.E;
  const int64_t e = there ? e0 + mine : p.E - 1;

  const int64_t step = p.E * kStepStates;
  S* states = static_cast<S*>(p.state) + (m0 * p.E + e) * kStepStates + n0;
  // A thread's own states.
  const auto bring = [&](int first) {
#pragma unroll
    for (int m = first; m < first + kTogether; ++m)
      if (m < count) copy_async<16>(scanned + m * Tile::kRowBytes + thread * 16, states + m * step);
    commit_copies();
  };
  bring(0);
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
  float A[kCount];  // later -exp(A_log) log2(e)
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const float4 a = __ldg(reinterpret_cast<const float4*>(p.A_log + e * kStepStates + n0 + i));
    A[i] = a.x, A[i + 1] = a.y, A[i + 2] = a.z, A[i + 3] = a.w;
  }
  float bias[2];  // of the lane's products
#pragma unroll
  for (int half = 0; half < 2; ++half)
    bias[half] = __ldg(p.dt_bias + min(e0 + of_warp + half * 8, p.E - 1));
  const float of_D = thread < kChannels ? __ldg(p.D + min(e0 + thread, p.E - 1)) : 0.0f;
  // What a thread finishes.
  const int row = thread / kPlaces, c0 = thread % kPlaces * 8;
  const bool finishes = row < count && e0 + c0 < p.E;
  const int64_t at = (m0 + row) * p.E + e0 + c0;
  let_next_start();
  // A few rows at once keep the memory busy: x_proj, which runs meanwhile, would stand in line behind more.
#pragma unroll
  for (int first = kTogether; first < kRows; first += kTogether) {
    wait_for_copies<0>();
    bring(first);
  }
  wait_for_previous();

  const int brought = thread / kBringers, k0 = thread % kBringers * 4;
  if (brought < count) {
    const float* const of_row = p.dt_B_C + (m0 + brought) * width;
#pragma unroll
    for (int i = 0; i < kRuns; ++i)
      if (const int k = 32 * i + k0; k < R) copy_async<16>(dts + 4 * (brought * R + k), of_row + k);
    copy_async<16>(&BC[brought][k0], of_row + R + k0);
  }
  uint4 z{};
  if (finishes) {
    copy_async<16>(&us[row][c0], static_cast<const bfloat16*>(p.u) + at);
    z = __ldcg(reinterpret_cast<const uint4*>(static_cast<const bfloat16*>(p.z) + at));
  }
  commit_copies();
  if (thread < kChannels) Ds[thread] = of_D;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    asm volatile("" : "+f"(A[i]));  // not before the copies: that would wait for A
    A[i] = scaled_A(A[i], true);
  }
  wait_for_copies<0>();
  // A thread's own copies, of which two neighbours have the same eight.
#pragma unroll
  for (int i = 0; i < kRuns; ++i) {
    const int k = 32 * i + k0;
    const bool own = brought < count && k < R;
    float4 dt{};
    if (own) dt = *reinterpret_cast<const float4*>(dts + 4 * (brought * R + k));
    __syncwarp();
    if (!own) continue;
    const uint2 high = four_bf16(dt),
                low = four_bf16({dt.x - low_bf16(high.x), dt.y - high_bf16(high.x),
                                 dt.z - low_bf16(high.y), dt.w - high_bf16(high.y)});
    unsigned char* const to = dts + 4 * (brought * R + k / 8 * 8) + 2 * (k % 8);
    *reinterpret_cast<uint2*>(to + brought % 2 * 16) = high;
    *reinterpret_cast<uint2*>(to + (1 - brought % 2) * 16) = low;
  }
  __syncthreads();
  float sums[kTiles][4] = {}, rests[kTiles][4] = {};
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const int of_tile = min(8 * tile + g, count - 1);
    const unsigned char* const of_row = dts + 4 * of_tile * R;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int k = 32 * (i * kParts + part) + 8 * t;
      uint4 high{}, low{};
      if (k < R) {
        high = *reinterpret_cast<const uint4*>(of_row + 4 * k + of_tile % 2 * 16);
        low = *reinterpret_cast<const uint4*>(of_row + 4 * k + (1 - of_tile % 2) * 16);
      }
      const uint4 &a = w[i][0], &b = w[i][1];
      const uint32_t first[4] = {a.x, b.x, a.y, b.y}, second[4] = {a.z, b.z, a.w, b.w};
      mma_bf16(sums[tile], first, high.x, high.y);
      mma_bf16(rests[tile], first, low.x, low.y);
      mma_bf16(sums[tile], second, high.z, high.w);
      mma_bf16(rests[tile], second, low.z, low.w);
    }
  }
  __syncthreads();  // δ comes where dt was
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float delta = sums[tile][j] + rests[tile][j], slope;
      if (kParts == 1) delta = softplus<true>(delta + bias[j / 2], slope);
      deltas[part][8 * tile + 2 * t + j % 2][of_warp + j / 2 * 8] = delta;
    }
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

#pragma unroll 1
  for (int first = 0; first < count; first += kTogether) {
#pragma unroll
    for (int i = 0; i < kTogether; ++i, states += step) {
      const int m = first + i;
      const float delta = deltas[0][m][mine], x = delta * static_cast<float>(us[m][mine]);
      const Run held{*reinterpret_cast<const uint4*>(scanned + m * Tile::kRowBytes + thread * 16)};
      float state[kCount], y = 0;
      held.get(state);
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        state[j] = fmaf(exp2_fast(delta * A[j]), state[j], x * BC[m][n0 + j]);
        y = fmaf(BC[m][kStepStates + n0 + j], state[j], y);
      }
#pragma unroll
      for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) y += __shfl_xor_sync(~0u, y, lanes);
      if (there && m < count) Run::put(states, state);
      __syncwarp();  // the channel's lanes have read δ
      if (n0 == 0) deltas[0][m][mine] = y;
    }
  }
  __syncthreads();
  if (!finishes) return;
  float of_u[8], D[8], y[8];
  load(&us[row][c0], of_u);
  load_fours(&Ds[c0], D), load_fours(&deltas[0][row][c0], y);
  const unsigned gates[4] = {z.x, z.y, z.z, z.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float gate = i % 2 ? high_bf16(gates[i / 2]) : low_bf16(gates[i / 2]);
    y[i] = fmaf(D[i], of_u[i], y[i]) * gate * sigmoid<true>(gate);
  }
  StateRun<bfloat16>::put(static_cast<bfloat16*>(p.y) + at, y);
}

template <class S, int kRows, int kBlocks, int kChannels = 64>
void launch_scan_rows(const StepScan& p, void* stream) {
  using Tile = ScanTile<S, kRows, kChannels>;
  const dim3 grid(static_cast<unsigned>(ceil_div(p.E, kChannels)),
                  static_cast<unsigned>(ceil_div(p.M, kRows)));
  const auto launch = [&](auto kernel) {
    const int bytes = Tile::bytes(static_cast<int>(p.R));
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    launch_dependent("mamba1_step", kernel, grid, Tile::kThreads, static_cast<size_t>(bytes), 1,
                     stream, p);
  };
  if (p.R <= 64) return launch(step_scan_rows_kernel<S, Tile, 2, kBlocks>);
  if (p.R <= 128) return launch(step_scan_rows_kernel<S, Tile, 4, kBlocks>);
  if (p.R <= 192) return launch(step_scan_rows_kernel<S, Tile, 6, kBlocks>);
  launch(step_scan_rows_kernel<S, Tile, kStepMostRank / 32, kBlocks>);
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
  const ConvOfStep conv{p.taps, p.bias, static_cast<ConvOfStep::Held::Stored*>(p.state), E};
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
  const auto blocks = [&](int channels, int rows) {
    return ceil_div(p.E, channels) * ceil_div(p.M, rows);
  };
  const auto fits = [&](int channels) { return blocks(channels, 16) <= 4 * kOnePassProcessors; };
  if (p.state_bf16 && blocks(64, 16) >= 2 * kOnePassProcessors) {
    if (fits(64)) return launch_scan_rows<bfloat16, 16, 4>(p, stream);
    if (fits(80)) return launch_scan_rows<bfloat16, 16, 4, 80>(p, stream);
  }
  // Blocks of eight rows where two of them come on a multiprocessor.
  if (blocks(64, 8) >= 2 * kOnePassProcessors) {
    p.state_bf16 ? launch_scan_rows<bfloat16, 8, 5>(p, stream)
                 : launch_scan_rows<float, 8, 3>(p, stream);
  } else {
    p.state_bf16 ? launch_scan_rows<bfloat16, 4, 6>(p, stream)
                 : launch_scan_rows<float, 4, 3>(p, stream);
  }
}

}  // namespace krait::cuda
