// One sequence's token through all layers of a small model in one cluster: cluster_parts.cuh. A block has E/16 channels,
// from in_proj to the gate, and D/16 rows of the stream. Between blocks go
//   x      the stream times the norm's weight in bfloat16, and a block's sum of squares,
//   parts  of x_proj u: a block's share of each sum, to all,
//   y      what out_proj reads.
#include "krait/ops/cluster_parts.cuh"
#include "krait/ops/mamba1_step/cuda_channel.cuh"

namespace krait::cuda {

namespace {

using bfloat16 = __nv_bfloat16;

template <int D_>
struct Widths : ClusterWidths<D_> {
  using Base = ClusterWidths<D_>;
  static constexpr int R = D_ / 16, kWidth = R + 2 * kStepStates;
  static constexpr int kProjecting = kWidth / 16;  // warps: 16 rows of x_proj each
  static constexpr int kChunks = Base::kChannels / kChunk;
  static constexpr int kPasses = Base::kChannels * kStepLanes / kClusterThreads;
  static constexpr int kOfLayer = Base::kStrips + 2 * kClusterSets;  // slots
  static_assert(kWidth % 16 == 0 && kProjecting <= kClusterWarps &&
                kWidth <= kClusterThreads - Base::kChannels && Base::kChannels % kChunk == 0 &&
                kPasses == 2 && Base::kChannels <= kClusterThreads && R % 8 == 0 && R <= 64);
};

using Slots = ClusterSlots<ClusterWidths<kClusterWidth>::kStripBytes, 7>;

template <class Z, class S>
struct ClusterShared {
  unsigned char slots[Slots::kSlots * Slots::kBytes];
  StackChannels<Z, S> channels;
  bfloat16 x_proj[Z::kWidth][Z::kChannels];
  ClusterX<Z> x;
  bfloat16 y[Z::E];
  float parts[kClusterBlocks][Z::kWidth];
  float sums[kClusterShares][Z::kChannels];  // of x, then of the stream's rows
  float z[Z::kChannels], low[Z::kWidth];
  bfloat16 u[Z::kChannels];
  ClusterInbox<kClusterBlocks * Z::kWidth * 4> of_parts;
  ClusterInbox<Z::E * 2> of_y;
  Slots::Barriers ring;
  uint64_t channels_full, channels_empty;
};

#if KRAIT_HOPPER

template <class Z, class S>
__device__ void bring_weights(const StepStack& p, ClusterShared<Z, S>& s) {
  const ClusterRing<Slots> ring{s.ring, s.slots};
  const int lane = static_cast<int>(threadIdx.x) % 32, rank = static_cast<int>(rank_in_cluster());
  int n = 0;
  for (int l = 0; l < p.layers; ++l) {
    const StepStackLayer& of = p.layer[l];
    const auto* const in = static_cast<const bfloat16*>(of.in_proj);
    for (int i = 0; i < Z::kStrips; ++i)
      ring.fill_run(n++, in + int64_t{rank * Z::kChannels + 16 * i} * Z::D, Z::kStripBytes);
    wait_for_phase(&s.channels_empty, l % 2 ^ 1);
    if (lane == 0) arrive_expecting(&s.channels_full, sizeof(s.channels));
    __syncwarp();
    const ShareCopy copy{lane, rank, &s.channels_full};
    auto& to = s.channels;
    copy(0, to.A_log, of.A_log), copy(1, to.state, of.state), copy(2, to.taps, of.taps);
    copy(3, to.before, of.conv_state), copy(4, to.bias, of.bias), copy(5, to.dt_bias, of.dt_bias);
    copy(6, to.D, of.D), copy(7, to.dt_proj, of.dt_proj);
    const auto* const out = static_cast<const bfloat16*>(of.out_proj);
    for (int i = 0; i < 2 * kClusterSets; ++i)
      ring.fill_run(n++, out + int64_t{rank * Z::kRows + 8 * i} * Z::E, Z::kStripBytes);
  }
}

#endif

template <int D, class S>
__global__ void __launch_bounds__(kClusterThreads + 32, 1)
    step_cluster_kernel(const __grid_constant__ StepStack p) {
#if KRAIT_HOPPER
  using Z = Widths<D>;
  extern __shared__ __align__(128) unsigned char memory[];
  auto* const of_x = static_cast<Message*>(p.messages);
  if (blockIdx.x >= kClusterBlocks)
    return multiply_gate<Z>(memory, p.layers, of_x, [&](int l) {
      return static_cast<const bfloat16*>(p.layer[l].in_proj) + int64_t{Z::E} * D;
    });
  auto& s = *reinterpret_cast<ClusterShared<Z, S>*>(memory);
  const ClusterRing<Slots> ring{s.ring, s.slots};
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32,
            g = lane / 4, t = lane % 4, share = warp % kClusterShares, set = warp / kClusterShares,
            rank = static_cast<int>(rank_in_cluster()), channel = rank * Z::kChannels;
  if (thread == 0) {
    ring.start();
    start_barrier(&s.channels_full, 1), start_barrier(&s.channels_empty, kClusterWarps);
    open_inbox(s.x.of_x), open_inbox(s.x.of_squares), open_inbox(s.of_parts), open_inbox(s.of_y);
  }
  synchronize_cluster();
  if (warp == kClusterWarps) return bring_weights(p, s);

  ClusterRows<Z> rows{of_x};
  // The block's part of a projecting warp's 16 rows of x_proj, asked for past registers, which are few.
  constexpr int kRuns = Z::kChannels / 8;
  auto* const x_proj = s.x_proj[warp % Z::kProjecting * 16];
  const auto ask_for_x_proj = [&](int l) {
    if (warp >= Z::kProjecting || l == p.layers) return;
    const auto* const from =
        static_cast<const bfloat16*>(p.layer[l].x_proj) + int64_t{16 * warp} * Z::E + channel;
#pragma unroll 1
    for (int i = lane; i < 16 * kRuns; i += 32)
      asm volatile(
          "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(x_proj + 8 * i)),
          "l"(from + i / kRuns * Z::E + i % kRuns * 8)
          : "memory");
  };
  wait_for_previous();
  if (warp == 0) {
    rows.read(p.stream);
    rows.ask_for_scale(p.layer[0].norm);
    rows.send_x(s.x, 1);
  }
  ask_for_x_proj(0);

#pragma unroll 1
  for (int l = 0; l < p.layers; ++l) {
    const StepStackLayer& of = p.layer[l];
    const int first = l * Z::kOfLayer;
    if (l + 1 < p.layers) rows.ask_for_scale(p.layer[l + 1].norm);

    await_inbox(s.x.of_x, l);
    uint4 x[Z::kPairs][2];
    load_vector(x, s.x.x + share * (D / kClusterShares));
    for (int i = set; i < Z::kStrips; i += kClusterSets)
      multiply_in<Z>(ring, first + i, share, x, s.sums[share] + 16 * i);
    await_inbox(s.x.of_squares, l);
    const float factor = norm_of_squares(s.x.squares, D, of.eps);
    meet_in_block();
    wait_for_phase(&s.channels_full, l % 2);
    const auto& held = s.channels;
    if (thread < Z::kChannels) {
      const auto rounded = static_cast<bfloat16>(over_shares(s.sums, thread) * factor);
      const ConvInputs<bfloat16> inputs = ConvInputs<bfloat16>{held.before[thread]}.then(rounded);
      static_cast<ConvInputs<bfloat16>::Stored*>(of.conv_state)[channel + thread] = inputs.v;
      const float u = convolve(inputs.floats(), held.taps[thread], held.bias[thread]);
      s.u[thread] = static_cast<bfloat16>(u * sigmoid<true>(u));
    }
    meet_in_block();
    if (warp < Z::kProjecting) {
      float c[2][4] = {};
      const auto* const top_row = x_proj + g * Z::kChannels;
      asm volatile("cp.async.wait_all;" ::: "memory");
      __syncwarp();
#pragma unroll
      for (int i = 0; i < Z::kChunks; ++i) {
        const int k = kChunk * i + 8 * t;
        const uint4 v = *reinterpret_cast<const uint4*>(s.u + k),
                    a = *reinterpret_cast<const uint4*>(top_row + k),
                    b = *reinterpret_cast<const uint4*>(top_row + 8 * Z::kChannels + k);
        multiply_tile(c[0], a.x, b.x, a.y, b.y, v.x, v.y);
        multiply_tile(c[1], a.z, b.z, a.w, b.w, v.z, v.w);
      }
      // Lane 4 i + j sends rows 4 j to 4 j + 3 to blocks i and i + 8.
      const float top = c[0][0] + c[1][0], bottom = c[0][2] + c[1][2];
      float v[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int from = 4 * ((4 * t + j) % 8);
        const float of_top = __shfl_sync(~0u, top, from),
                    of_bottom = __shfl_sync(~0u, bottom, from);
        v[j] = t < 2 ? of_top : of_bottom;
      }
#pragma unroll
      for (int i = 0; i < kClusterBlocks; i += 8)
        send_to_block(reinterpret_cast<float4*>(s.parts[rank] + 16 * warp) + t,
                      float4{v[0], v[1], v[2], v[3]}, &s.of_parts.barrier, g + i);
      ask_for_x_proj(l + 1);
    }
    // What of the channels does not wait for sums.
    StepChannel<bfloat16, 1> channels[Z::kPasses];
    float2 h[Z::kPasses];
    const auto channel_of = [&](int pass) {
      return (warp * Z::kPasses + pass) * (32 / kStepLanes) + lane / kStepLanes;
    };
#pragma unroll
    for (int pass = 0; pass < Z::kPasses; ++pass) {
      const int c = channel_of(pass);
      channels[pass] = StepChannel<bfloat16, 1>(
          held.dt_proj + c * Z::R, Z::R, held.A_log + c * kStepStates, held.dt_bias[c], held.D[c]);
      h[pass] = states_at(held.state + c * kStepStates + 2 * channels[pass].lane);
    }
    if (thread < Z::kWidth) {
      await_inbox(s.of_parts, l);
      float sums[4] = {};
#pragma unroll
      for (int i = 0; i < kClusterBlocks; ++i) sums[i % 4] += s.parts[i][thread];
      s.low[thread] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    } else if (const int c = thread - (kClusterThreads - Z::kChannels); c >= 0) {
      s.z[c] = __uint_as_float(receive_one(of_x + Z::kX + channel + c, l + 1)) * factor;
    }
    meet_in_block();
    float y[Z::kPasses];
#pragma unroll
    for (int pass = 0; pass < Z::kPasses; ++pass) {
      const int c = channel_of(pass);
      const auto z = static_cast<bfloat16>(s.z[c]);
      y[pass] =
          channels[pass].step(s.low, static_cast<float>(s.u[c]), static_cast<float>(z), h[pass]);
    }
    unsigned both[32 / kStepLanes];  // of both passes
#pragma unroll
    for (int i = 0; i < 32 / kStepLanes; ++i)
      both[i] = __shfl_sync(~0u, two_bf16(y[0], y[1]), i * kStepLanes);
    if (lane < kClusterBlocks)
      send_to_block(
          reinterpret_cast<uint4*>(s.y + channel) + warp,
          uint4{__byte_perm(both[0], both[1], 0x5410), __byte_perm(both[2], both[3], 0x5410),
                __byte_perm(both[0], both[1], 0x7632), __byte_perm(both[2], both[3], 0x7632)},
          &s.of_y.barrier, lane);
#pragma unroll
    for (int pass = 0; pass < Z::kPasses; ++pass)
      store_states(static_cast<S*>(of.state) + (channel + channel_of(pass)) * kStepStates +
                       2 * channels[pass].lane,
                   h[pass]);
    // All that was read of the channels has been used.
    __syncwarp();
    if (lane == 0) arrive(&s.channels_empty);
    await_inbox(s.of_y, l);
    multiply_out<Z>(ring, first + Z::kStrips + 2 * set, share, s.y, s.sums[share] + 16 * set);
    meet_in_block();
    if (warp == 0) {
      rows.add(s.sums, 1);
      if (l + 1 < p.layers) rows.send_x(s.x, l + 2);
    }
  }
  rows.write(p.stream);
#endif
}

template <class S>
struct ClusterKernel
    : ClusterKernelOf<Widths<kClusterWidth>, ClusterShared<Widths<kClusterWidth>, S>,
                      step_cluster_kernel<kClusterWidth, S>> {};

}  // namespace

bool has_step_cluster(int64_t D, bool state_bf16) {
  return has_cluster<ClusterKernel>(D, state_bf16);
}

void step_cluster(const StepStack& p, void* stream) {
  launch_cluster<ClusterKernel>("mamba1_stack", p, stream);
}

}  // namespace krait::cuda
