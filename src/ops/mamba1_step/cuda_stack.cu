// One sequence's token through all layers in one kernel: stack_parts.cuh. A block has E/128 channels, from in_proj to the
// gate, and D/128 rows of the stream. Between blocks go
//   x      the stream times the norm's weight in bfloat16, and a block's sum of squares,
//   parts  of x_proj u: a block's share of it, two elements for each of those that add them up,
//   low    the sums,
//   y      what out_proj reads.
#include "krait/ops/mamba1_step/cuda_channel.cuh"
#include "krait/ops/stack_parts.cuh"
#include "krait/ops/step_parts.cuh"

namespace krait::cuda {

namespace {

using bfloat16 = __nv_bfloat16;

template <int D_>
struct StackSizes {
  static constexpr int D = D_, E = 2 * D, R = D / 16, kWidth = R + 2 * kStepStates;
  static constexpr int kChannels = E / kStackBlocks, kRows = D / kStackBlocks;
  static constexpr int kPiece = stack_piece(D);
  static constexpr int kGroups = 2 * kChannels / 8, kOutGroups = (kRows + 7) / 8;
  static constexpr int kAdding = kWidth / 2;  // blocks that add two elements of x_proj u up
  static constexpr int kPasses = (kChannels * kStepLanes + kStackThreads - 1) / kStackThreads;
  static_assert(E % kStackBlocks == 0 && kChannels % 4 == 0 && kRows % 2 == 0 && kRows <= 32 &&
                D % kPiece == 0 && 2 * kChannels <= kStackThreads && kWidth <= kStackThreads &&
                kAdding <= kStackBlocks && R % 8 == 0);
  // Messages, one behind the other.
  static constexpr int kX = D / 2, kSquares = kStackBlocks, kParts = kWidth * kStackBlocks,
                       kLow = kWidth, kY = E / 2, kMessages = kX + kSquares + kParts + kLow + kY;
  static_assert(kMessages == step_stack_messages(D));
};

template <class Z, class Slots>
struct StackShared {
  bfloat16 x[Z::D], y[Z::E];
  float sums[kStackWarps][8 * Z::kGroups + 8], squares[kStackBlocks], u[Z::kChannels],
      z[Z::kChannels], low[Z::kWidth];
  typename Slots::Barriers ring;
};

#if KRAIT_HOPPER

template <class Z, class S, class Ring>
__device__ void bring_weights(const StepStack& p, Ring ring) {
  const int lane = static_cast<int>(threadIdx.x) % 32, block = static_cast<int>(blockIdx.x),
            channel = block * Z::kChannels;
  for (int l = 0; l < p.layers; ++l) {
    const StepStackLayer& of = p.layer[l];
    for (int group = 0; group < Z::kGroups; ++group) {  // rows of x, then of z
      const int i = group * 8 + lane % 8, row = i < Z::kChannels ? i : Z::E + i - Z::kChannels;
      ring.fill_rows(static_cast<const bfloat16*>(of.in_proj) + int64_t{channel + row} * Z::D, 8,
                     Z::D);
    }
    using Channels = StackChannels<Z, S>;
    static_assert(sizeof(Channels) <= Ring::kSlotBytes);
    ring.fill(sizeof(Channels), [&](unsigned char* slot, uint64_t* full) {
      auto& to = *reinterpret_cast<Channels*>(slot);
      const ShareCopy copy{lane, block, full};
      copy(0, to.A_log, of.A_log), copy(1, to.state, of.state), copy(2, to.taps, of.taps);
      copy(3, to.before, of.conv_state), copy(4, to.bias, of.bias), copy(5, to.dt_bias, of.dt_bias);
      copy(6, to.D, of.D), copy(7, to.dt_proj, of.dt_proj);
    });
    for (int group = 0; group < Z::kOutGroups; ++group) {
      const int row = block * Z::kRows + group * 8 + lane % 8;
      ring.fill_rows(static_cast<const bfloat16*>(of.out_proj) + int64_t{row} * Z::E,
                     min(8, Z::kRows - group * 8), Z::E);
    }
  }
}

#endif

template <int D, class S, int kSlots>
__global__ void __launch_bounds__(kStackThreads + 32, 1)
    step_stack_kernel(const __grid_constant__ StepStack p) {
#if KRAIT_HOPPER
  using Z = StackSizes<D>;
  using Slots = StackSlots<Z::kPiece, kSlots>;
  extern __shared__ __align__(128) unsigned char memory[];
  auto& s = *reinterpret_cast<StackShared<Z, Slots>*>(memory + kSlots * Slots::kSlotBytes);
  StackRing<Slots> ring{s.ring, memory};
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32,
            block = static_cast<int>(blockIdx.x);
  if (thread == 0) ring.start();
  __syncthreads();
  if (warp == kStackWarps) return bring_weights<Z, S>(p, ring);

  auto* const of_x = static_cast<Message*>(p.messages);
  Message *const of_squares = of_x + Z::kX, *const of_parts = of_squares + Z::kSquares,
                 *const of_low = of_parts + Z::kParts, *const of_y = of_low + Z::kLow;
  const int channel = block * Z::kChannels;
  StackRows<D> rows{of_x, of_squares};
  uint2 x_proj[Z::kChannels / 4] = {};  // the block's part of a row
  const auto ask_for_x_proj = [&](int l) {
    if (thread >= Z::kWidth || l == p.layers) return;
    const auto* const from = reinterpret_cast<const uint2*>(
        static_cast<const bfloat16*>(p.layer[l].x_proj) + int64_t{thread} * Z::E + channel);
#pragma unroll
    for (int i = 0; i < Z::kChannels / 4; ++i) x_proj[i] = __ldg(from + i);
  };
  wait_for_previous();
  if (warp == 0) {
    rows.read(p.stream);
    rows.ask_for_scale(p.layer[0].norm);
    rows.send_x(1);
  }
  ask_for_x_proj(0);

#pragma unroll 1
  for (int l = 0; l < p.layers; ++l) {
    const StepStackLayer& of = p.layer[l];
    const int layer = l + 1;
    if (layer < p.layers) rows.ask_for_scale(p.layer[layer].norm);
    gather<Z::kX>(of_x, layer, s.x);
    gather_squares(of_squares, layer, s.squares);
    meet();
    ring.template multiply<Z::kGroups, D / Z::kPiece>(s.x, s.sums);
    meet();

    const auto& mine = *reinterpret_cast<const StackChannels<Z, S>*>(ring.await());
    if (warp * 32 < 2 * Z::kChannels) {
      const float factor = norm_factor(s.squares, D, of.eps);
      if (thread < 2 * Z::kChannels) {
        const bfloat16 rounded = static_cast<bfloat16>(over_warps(s.sums, thread) * factor);
        if (thread >= Z::kChannels) {
          s.z[thread - Z::kChannels] = static_cast<float>(rounded);
        } else {
          const ConvInputs<bfloat16> inputs =
              ConvInputs<bfloat16>{mine.before[thread]}.then(rounded);
          static_cast<ConvInputs<bfloat16>::Stored*>(of.conv_state)[channel + thread] = inputs.v;
          const float u = convolve(inputs.floats(), mine.taps[thread], mine.bias[thread]);
          s.u[thread] = static_cast<float>(static_cast<bfloat16>(u * sigmoid<true>(u)));
        }
      }
    }
    meet();

    if (thread < Z::kWidth) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < Z::kChannels / 4; ++i) {
        const float4 u = reinterpret_cast<const float4*>(s.u)[i];
        sum = fmaf(low_bf16(x_proj[i].x), u.x, sum), sum = fmaf(high_bf16(x_proj[i].x), u.y, sum);
        sum = fmaf(low_bf16(x_proj[i].y), u.z, sum), sum = fmaf(high_bf16(x_proj[i].y), u.w, sum);
      }
      send(of_parts + (thread / 2 * kStackBlocks + block) * 2 + thread % 2, __float_as_uint(sum),
           layer);
    }
    ask_for_x_proj(layer);
    // What of the channels does not wait for sums.
    using Channel = StepChannel<bfloat16, (Z::R + 63) / 64>;
    constexpr int kAtOnce = kStackThreads / kStepLanes;
    Channel channels[Z::kPasses];
    float2 h[Z::kPasses];
#pragma unroll
    for (int pass = 0; pass < Z::kPasses; ++pass)
      if (const int c = pass * kAtOnce + thread / kStepLanes; c < Z::kChannels) {
        channels[pass] = Channel(mine.dt_proj + c * Z::R, Z::R, mine.A_log + c * kStepStates,
                                 mine.dt_bias[c], mine.D[c]);
        h[pass] = states_at(mine.state + c * kStepStates + 2 * channels[pass].lane);
      }
    ring.leave();
    if (block < Z::kAdding && warp == kStackWarps - 1) {
      constexpr int kEach = kStackBlocks / 32;
      Message parts[kEach][2];
      receive(
          parts, layer,
          [&](int i) { return of_parts + (block * kStackBlocks + i * 32 + lane) * 2; },
          [](int) { return true; });
      float sums[2] = {};
#pragma unroll
      for (int i = 0; i < kEach; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) sums[j] += __uint_as_float(bits_of(parts[i][j]));
      sums[0] = over_lanes(sums[0]), sums[1] = over_lanes(sums[1]);
      if (lane < 2)
        send(of_low + 2 * block + lane, __float_as_uint(lane ? sums[1] : sums[0]), layer);
    }
    gather<Z::kLow>(of_low, layer, s.low);
    meet();

#pragma unroll
    for (int pass = 0; pass < Z::kPasses; ++pass)
      if (const int c = pass * kAtOnce + thread / kStepLanes; c < Z::kChannels) {  // whole warps
        const float y = channels[pass].step(s.low, s.u[c], s.z[c], h[pass]),
                    next = __shfl_down_sync(~0u, y, kStepLanes);
        if (lane % (2 * kStepLanes) == 0) send(of_y + (channel + c) / 2, two_bf16(y, next), layer);
        store_states(
            static_cast<S*>(of.state) + (channel + c) * kStepStates + 2 * channels[pass].lane,
            h[pass]);
      }
    gather<Z::kY>(of_y, layer, s.y);
    meet();
    ring.template multiply<Z::kOutGroups, Z::E / Z::kPiece>(s.y, s.sums);
    meet();
    if (warp == 0) {
      if (rows.mine) rows.value += over_warps(s.sums, lane);
      if (layer < p.layers) rows.send_x(layer + 1);
    }
  }
  if (warp == 0) rows.write(p.stream);
#endif
}

using Widths = std::integer_sequence<int, 1024, 1536, 2560>;

template <int D, class S>
struct StackKernel {
  template <class Slots>
  using Shared = StackShared<StackSizes<D>, Slots>;
  using Layout = StackLayout<stack_piece(D), Shared>;
  static constexpr auto kKernel = step_stack_kernel<D, S, Layout::kSlots>;
};

}  // namespace

int64_t step_stack_words(int64_t D, int64_t B, bool state_bf16) {
  if (D == kBatchWidth) return step_batch_words(B, state_bf16);
  const bool here =
      B == 1 && (D == kClusterWidth ? has_step_cluster(D, state_bf16)
                                    : has_stack<StackKernel>(Widths(), D, state_bf16));
  return here ? 2 * step_stack_messages(D) : 0;
}

void step_stack(const StepStack& p, void* stream) {
  if (p.D == kBatchWidth) return step_batch(p, stream);
  if (p.D == kClusterWidth) return step_cluster(p, stream);
  launch_stack<StackKernel>(Widths(), "mamba1_stack", step_stack_messages(p.D), p, stream);
}

}  // namespace krait::cuda
