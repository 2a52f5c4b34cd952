// x_proj and the scan behind it in one kernel, for small models and few rows: each cluster of eight blocks computes all
// of x_proj u, an eighth of its rows a block, and then scans its own channels. So there is a launch less to wait for,
// where the weights of x_proj are read from the second-level cache by every cluster.
#include "krait/ops/mamba1_step/cuda_channel.cuh"

namespace krait::cuda {

namespace {

using bfloat16 = __nv_bfloat16;

constexpr int kClusters = 16, kBlocks = 8, kSlots = 16;  // kSlots: channels of a block, at most
constexpr int kThreads = kFewWarps * 32, kChunks = 8;    // chunks of K that a warp has
constexpr int kMostWidth = kBlocks * kStrip;             // of x_proj u
static_assert(kThreads == kStepLanes * kSlots * kStepJoinedRows &&
              kThreads == kStrip * kStepJoinedRows * kBlocks &&
              kSlots * kClusters * kBlocks == kStepJoinedChannels &&
              kChunks * kFewWarps * kChunk == kStepJoinedChannels &&
              kMostWidth == kStepJoinedRank + 2 * kStepStates);

// A thread steps its channel of one row. kRuns: of a lane, in its row of dt_proj.
template <class S, int kRuns>
__global__ void __launch_bounds__(kThreads, 2)
    low_rank_scan_kernel(const bfloat16* __restrict__ x_proj, const __grid_constant__ StepScan p) {
  __shared__ __align__(16) float sums[kFewWarps][kStrip][8], low[kStepJoinedRows][kMostWidth];
  __shared__ uint64_t all_low;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32,
            g = lane / 4, t = lane % 4;
  const int E = static_cast<int>(p.E), M = static_cast<int>(p.M),
            width = static_cast<int>(p.R) + 2 * kStepStates,
            share = (width + kBlocks - 1) / kBlocks;
  const int rank = static_cast<int>(rank_in_cluster()), n0 = rank * share;

  if (thread == 0) expect_in_block(&all_low, static_cast<unsigned>(M * width) * 4);
  __syncwarp();
  arrive_in_cluster();
  Eight<bfloat16> w[kChunks][2];
  const auto there = [&](int i) { return (warp + i * kFewWarps) * kChunk + 8 * t < E; };
  const auto at = [&](int i) { return (warp + i * kFewWarps) * kChunk + 8 * t; };
#pragma unroll
  for (int i = 0; i < kChunks; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = half * 8 + g;
      w[i][half] = load_weights(x_proj + int64_t{min(n0 + row, width - 1)} * E + at(i),
                                there(i) && row < share);
    }
  const int channels = (E + kClusters * kBlocks - 1) / (kClusters * kBlocks),
            slot = thread / kStepLanes % kSlots, m = thread / kStepLanes / kSlots,
            channel = static_cast<int>(blockIdx.x) * channels + slot, e = min(channel, E - 1);
  const bool mine = slot < channels && channel < E && m < M;
  const StepChannel<bfloat16, kRuns> of_channel(p, e);
  S* const states = static_cast<S*>(p.state) + 2 * of_channel.lane;
  const int64_t to = int64_t{m} * E + e;
  float2 h{};
  if (mine) h = load_states(states + to * kStepStates);
  let_next_start();
  wait_for_previous();

  const auto* const u = static_cast<const bfloat16*>(p.u);
  Eight<bfloat16> x[kChunks];
#pragma unroll
  for (int i = 0; i < kChunks; ++i)
    x[i] = load_written(u + int64_t{min(g, M - 1)} * E + at(i), there(i) && g < M);
  float of_u = 0, of_z = 0;
  if (mine) {
    of_u = static_cast<float>(__ldcg(u + to));
    of_z = static_cast<float>(__ldcg(static_cast<const bfloat16*>(p.z) + to));
  }
  float c[4] = {};
#pragma unroll
  for (int i = 0; i < kChunks; ++i) {
    const uint4 &a = w[i][0].v[0], &b = w[i][1].v[0], &v = x[i].v[0];
    multiply_tile(c, a.x, b.x, a.y, b.y, v.x, v.y);
    multiply_tile(c, a.z, b.z, a.w, b.w, v.z, v.w);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half)
    *reinterpret_cast<float2*>(&sums[warp][half * 8 + g][2 * t]) = {c[2 * half], c[2 * half + 1]};
  __syncthreads();
  wait_in_cluster();
  // A thread sends one sum to one of the blocks.
  if (const int of_row = thread % kStrip, row = thread / kStrip % kStepJoinedRows;
      of_row < share && n0 + of_row < width && row < M) {
    float sum = sums[0][of_row][row];
#pragma unroll
    for (int i = 1; i < kFewWarps; ++i) sum += sums[i][of_row][row];
    send_to_block(&low[row][n0 + of_row], sum, &all_low,
                  static_cast<unsigned>(thread / (kStrip * kStepJoinedRows)));
  }
  wait_for_sent(&all_low);

  const float y = of_channel.step(low[m], of_u, of_z, h);
  if (mine) {
    store_states(states + to * kStepStates, h);
    if (of_channel.lane == 0) static_cast<bfloat16*>(p.y)[to] = static_cast<bfloat16>(y);
  }
}

template <class S>
void launch(const void* x_proj, const StepScan& p, void* stream) {
  const auto of = [&](auto kernel) {
    launch_dependent("mamba1_step", kernel, dim3(kClusters * kBlocks), kThreads, 0, kBlocks, stream,
                     static_cast<const bfloat16*>(x_proj), p);
  };
  p.R <= 8 * kStepLanes ? of(low_rank_scan_kernel<S, 1>) : of(low_rank_scan_kernel<S, 2>);
}

}  // namespace

void step_low_rank_scan(const void* x_proj, const StepScan& p, void* stream) {
  p.state_bf16 ? launch<bfloat16>(x_proj, p, stream) : launch<float>(x_proj, p, stream);
}

}  // namespace krait::cuda
