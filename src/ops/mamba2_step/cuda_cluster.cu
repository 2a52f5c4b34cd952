// One sequence's token through all layers of a small model in one cluster: cluster_parts.cuh. A block has E/16 channels of
// two heads, from in_proj to the gate, 2 N/16 of B's and C's together, and D/16 rows of the stream. Between blocks go
//   x        the stream times the norm's weight in bfloat16, and a block's sum of squares,
//   BC       B and C,
//   y        what out_proj reads, before it is normed, and sums of squares.
#include "krait/ops/cluster_parts.cuh"
#include "krait/ops/mamba2_step/cuda_layer.cuh"

namespace krait::cuda {

namespace {

using bfloat16 = __nv_bfloat16;

constexpr int kN = kStack2States, kP = kStep2Channels, kHeads = 2;  // of a block

template <int D_>
struct Widths : ClusterWidths<D_> {
  using Base = ClusterWidths<D_>;
  static constexpr int kLanes = 8,  // of a channel
      kPasses = Base::kChannels * kLanes / kClusterThreads, kOfPass = Base::kChannels / kPasses;
  static constexpr int kOfBC = 2 * kN / kClusterBlocks;
  // Strips of in_proj: of B and C, of dt, of x; their sums lie one behind the other.
  static constexpr int kOfX = 2, kIn = kOfX + Base::kStrips;
  static constexpr int kConvWarp =
      3;  // the first of x; warp 0 has B and C, warp 1 dt, the last three z
  static_assert(kPasses == 2 && kOfBC == 16 && Base::kChannels % (kP / 2) == 0 &&
                Base::kChannels <= kP + kP / 2 &&
                kConvWarp * 32 + 2 * Base::kChannels <= kClusterThreads);
};

using Slots = ClusterSlots<ClusterWidths<kClusterWidth>::kStripBytes, 8>;

template <class Z, class S>
struct States {
  static constexpr int kBytes = Z::kChannels * kN * sizeof(S), kSlots = kBytes / Z::kStripBytes,
                       kOfSlot = Z::kChannels / kSlots,
                       kOfLayer = Z::kIn + kSlots + 2 * kClusterSets;
  static_assert(kBytes % Z::kStripBytes == 0);
};

template <class Z>
struct ClusterShared {
  unsigned char slots[Slots::kSlots * Slots::kBytes];
  ClusterX<Z> x;
  bfloat16 y[Z::E], BC[2 * kN];
  float sums[kClusterShares][16 * Z::kIn];
  float y_squares[kClusterBlocks * kClusterWarps];
  float u[Z::kChannels], z[Z::kChannels], deltas[kHeads], decays[kHeads];
  ClusterInbox<2 * kN * 2> of_BC;
  ClusterInbox<Z::E * 2> of_y;
  ClusterInbox<kClusterBlocks * kClusterWarps * 4> of_y_squares;
  Slots::Barriers ring;
};

#if KRAIT_HOPPER

template <class Z, class S>
__device__ void bring_weights(const Step2Stack& p, const ClusterRing<Slots>& ring) {
  const int rank = static_cast<int>(rank_in_cluster()), channel = rank * Z::kChannels;
  int n = 0;
  for (int l = 0; l < p.layers; ++l) {
    const Step2StackLayer& of = p.layer[l];
    const auto rows = [&](int row, int count) {
      ring.fill_run(n++, static_cast<const bfloat16*>(of.in_proj) + int64_t{row} * Z::D,
                    static_cast<unsigned>(count * Z::D * 2));
    };
    rows(2 * Z::E + rank * Z::kOfBC, 16);
    rows(2 * Z::E + 2 * kN + channel / kP, kHeads);
    for (int i = 0; i < Z::kStrips; ++i) rows(Z::E + channel + 16 * i, 16);
    using Of = States<Z, S>;
    for (int i = 0; i < Of::kSlots; ++i)
      ring.fill(n++, Z::kStripBytes, [&](unsigned char* to, uint64_t* full) {
        if (threadIdx.x % 32 == 0)
          copy_run(to, static_cast<const S*>(of.state) + (channel + i * Of::kOfSlot) * kN,
                   Z::kStripBytes, full);
      });
    for (int i = 0; i < 2 * kClusterSets; ++i)
      ring.fill_run(
          n++, static_cast<const bfloat16*>(of.out_proj) + int64_t{rank * Z::kRows + 8 * i} * Z::E,
          Z::kStripBytes);
  }
}

#endif

template <int D, class S>
__global__ void __launch_bounds__(kClusterThreads + 32, 1)
    step2_cluster_kernel(const __grid_constant__ Step2Stack p) {
#if KRAIT_HOPPER
  using Z = Widths<D>;
  using Of = States<Z, S>;
  extern __shared__ __align__(128) unsigned char memory[];
  auto* const of_messages = static_cast<Message*>(p.messages);
  if (blockIdx.x >= kClusterBlocks)
    return multiply_gate<Z>(memory, p.layers, of_messages, [&](int l) {
      return static_cast<const bfloat16*>(p.layer[l].in_proj);
    });
  auto& s = *reinterpret_cast<ClusterShared<Z>*>(memory);
  const ClusterRing<Slots> ring{s.ring, s.slots};
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32,
            share = warp % kClusterShares, set = warp / kClusterShares,
            rank = static_cast<int>(rank_in_cluster()), channel = rank * Z::kChannels,
            head = channel / kP;
  if (thread == 0) {
    ring.start();
    open_inbox(s.x.of_x), open_inbox(s.x.of_squares), open_inbox(s.of_BC), open_inbox(s.of_y),
        open_inbox(s.of_y_squares);
  }
  synchronize_cluster();
  if (warp == kClusterWarps) return bring_weights<Z, S>(p, ring);

  // What a thread needs of its row of the convolution, or of dt; and of its channels' ends.
  const int of_x = thread - Z::kConvWarp * 32;
  const bool has_x = of_x >= 0 && of_x < Z::kChannels, has_BC = thread < Z::kOfBC,
             has_dt = warp == 1 && lane < kHeads;
  const int conv_row = has_x ? channel + of_x : Z::E + rank * Z::kOfBC + thread;
  ConvOfStep::Held before{};
  ConvOfStep::OfRow conv_weights{};
  float dt_bias = 0, A = 0, skip[Z::kPasses], weight[Z::kPasses];
  const auto channel_of = [&](int pass) {
    return pass * Z::kOfPass + warp * (32 / Z::kLanes) + lane / Z::kLanes;
  };
  const auto ask = [&](int l) {
    if (l == p.layers) return;
    const Step2StackLayer& of = p.layer[l];
    if (has_x || has_BC) {
      const ConvOfStep conv = conv_of(of);
      before = conv.hold(conv_row, 0), conv_weights = conv.of_row(conv_row);
    } else if (has_dt) {
      dt_bias = __ldg(of.dt_bias + head + lane), A = __ldg(of.A_log + head + lane);
    }
#pragma unroll
    for (int pass = 0; pass < Z::kPasses; ++pass) {
      const int c = channel + channel_of(pass);
      skip[pass] = __ldg(of.D + (of.D_per_channel ? c : c / kP));
      weight[pass] = __ldg(of.gate_norm + c);
    }
  };
  ClusterRows<Z> rows{of_messages};
  wait_for_previous();
  if (warp == 0) {
    rows.read(p.stream);
    rows.ask_for_scale(p.layer[0].norm);
    rows.send_x(s.x, 1);
  }
  ask(0);

#pragma unroll 1
  for (int l = 0; l < p.layers; ++l) {
    const Step2StackLayer& of = p.layer[l];
    const int first = l * Of::kOfLayer, states_first = first + Z::kIn,
              out_first = states_first + Of::kSlots;
    if (l + 1 < p.layers) rows.ask_for_scale(p.layer[l + 1].norm);
    await_inbox(s.x.of_x, l);
    uint4 x[Z::kPairs][2];
    load_vector(x, s.x.x + share * (D / kClusterShares));
    multiply_in<Z>(ring, first + set, share, x, s.sums[share] + 16 * set);
    await_inbox(s.x.of_squares, l);
    const float factor = norm_of_squares(s.x.squares, D, of.eps);
    meet_in_block();

    if (warp == 0) {
      float u = 0;
      if (has_BC)
        u = static_cast<float>(
            conv_of(of)(conv_row, 0, static_cast<bfloat16>(over_shares(s.sums, thread) * factor),
                        before, conv_weights));
      const unsigned two = two_bf16(u, __shfl_down_sync(~0u, u, 1));
      unsigned v[4];  // lane 2 i + j sends eight to block i
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = __shfl_sync(~0u, two, lane % 2 * 8 + 2 * i);
      send_to_block(reinterpret_cast<uint4*>(s.BC + rank * Z::kOfBC) + lane % 2,
                    uint4{v[0], v[1], v[2], v[3]}, &s.of_BC.barrier, lane / 2);
    }
    if (has_dt) {
      float slope;
      const float delta = softplus<false>(over_shares(s.sums, 16 + lane) * factor + dt_bias, slope),
                  limited = delta < of.dt_low    ? of.dt_low
                            : delta > of.dt_high ? of.dt_high
                                                 : delta;  // NaN stays
      s.deltas[lane] = limited;
      s.decays[lane] = exp2_exact(limited * scaled_A(A, true));
    }
    for (int i = kClusterSets + set; i < Z::kIn; i += kClusterSets)
      multiply_in<Z>(ring, first + i, share, x, s.sums[share] + 16 * i);
    meet_in_block();
    if (has_x)
      s.u[of_x] = static_cast<float>(conv_of(of)(
          conv_row, 0, static_cast<bfloat16>(over_shares(s.sums, 16 * Z::kOfX + of_x) * factor),
          before, conv_weights));
    if (const int c = thread - (kClusterThreads - Z::kChannels); c >= 0)
      s.z[c] = __uint_as_float(receive_one(of_messages + Z::kX + channel + c, l + 1)) * factor;
    await_inbox(s.of_BC, l);
    meet_in_block();

    float w[Z::kPasses], squares = 0;
#pragma unroll
    for (int pass = 0; pass < Z::kPasses; ++pass) {
      const int c = channel_of(pass), of_head = (channel + c) / kP - head,
                n0 = lane % Z::kLanes * kRun;
      const auto* const mine =
          reinterpret_cast<const S*>(ring.await(states_first + c / Of::kOfSlot)) +
          c % Of::kOfSlot * kN;
      const float x = s.u[c], decay = s.decays[of_head], in = s.deltas[of_head] * x;
      float y = 0;
#pragma unroll
      for (int n = n0; n < kN; n += Z::kLanes * kRun) {
        const float4 B = four_states(s.BC + n), C = four_states(s.BC + kN + n);
        float4 h = four_states(mine + n);
        h = {fmaf(decay, h.x, in * B.x), fmaf(decay, h.y, in * B.y), fmaf(decay, h.z, in * B.z),
             fmaf(decay, h.w, in * B.w)};
        y = fmaf(h.x, C.x, y), y = fmaf(h.y, C.y, y), y = fmaf(h.z, C.z, y), y = fmaf(h.w, C.w, y);
        store_four(static_cast<S*>(of.state) + (channel + c) * kN + n, h);
      }
#pragma unroll
      for (int i = Z::kLanes / 2; i > 0; i /= 2) y += __shfl_xor_sync(~0u, y, i);
      const float z = static_cast<float>(static_cast<bfloat16>(s.z[c])),
                  v = fmaf(skip[pass], x, y) * z * sigmoid<true>(z);
      w[pass] = v * weight[pass];
      squares = fmaf(v, v, squares);
    }
    unsigned both[32 / Z::kLanes];
#pragma unroll
    for (int i = 0; i < 32 / Z::kLanes; ++i)
      both[i] = __shfl_sync(~0u, two_bf16(w[0], w[1]), i * Z::kLanes);
    if (lane < kClusterBlocks) {
      auto* const to = reinterpret_cast<uint2*>(s.y + channel) + warp;
      send_to_block(
          to, uint2{__byte_perm(both[0], both[1], 0x5410), __byte_perm(both[2], both[3], 0x5410)},
          &s.of_y.barrier, lane);
      send_to_block(
          to + Z::kOfPass / 4,
          uint2{__byte_perm(both[0], both[1], 0x7632), __byte_perm(both[2], both[3], 0x7632)},
          &s.of_y.barrier, lane);
    }
    squares = over_lanes(lane % Z::kLanes == 0 ? squares : 0.0f);
    if (lane < kClusterBlocks)
      send_to_block(s.y_squares + rank * kClusterWarps + warp, squares, &s.of_y_squares.barrier,
                    lane);
    for (int i = 0; i < Of::kSlots; ++i) ring.template leave<kClusterWarps>(states_first + i);
    ask(l + 1);
    await_inbox(s.of_y, l);
    multiply_out<Z>(ring, out_first + 2 * set, share, s.y, s.sums[share] + 16 * set);
    meet_in_block();
    if (warp == 0) {
      await_inbox(s.of_y_squares, l);
      float square = 0;
#pragma unroll
      for (int i = 0; i < kClusterBlocks * kClusterWarps; i += 32) square += s.y_squares[i + lane];
      rows.add(s.sums, rsqrtf(fmaf(over_lanes(square), 1.0f / Z::E, of.gate_eps)));
      if (l + 1 < p.layers) rows.send_x(s.x, l + 2);
    }
  }
  rows.write(p.stream);
#endif
}

template <class S>
struct ClusterKernel : ClusterKernelOf<Widths<kClusterWidth>, ClusterShared<Widths<kClusterWidth>>,
                                       step2_cluster_kernel<kClusterWidth, S>> {};

}  // namespace

bool has_step2_cluster(int64_t D, bool state_bf16) {
  return has_cluster<ClusterKernel>(D, state_bf16);
}

void step2_cluster(const Step2Stack& p, void* stream) {
  launch_cluster<ClusterKernel>("mamba2_stack", p, stream);
}

}  // namespace krait::cuda
