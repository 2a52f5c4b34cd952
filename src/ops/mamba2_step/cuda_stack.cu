// One sequence's token through all layers in one kernel: stack_parts.cuh. A block has E/128 channels of a head or two,
// from in_proj to the gate, two of B's and C's together, and D/128 rows of the stream. Between blocks go
//   x        the stream times the norm's weight in bfloat16, and a block's sum of squares,
//   BC       B and C,
//   y        what out_proj reads, before it is normed, and a block's sum of squares.
#include "krait/ops/mamba2_step/cuda_layer.cuh"
#include "krait/ops/stack_parts.cuh"
#include "krait/ops/step_parts.cuh"

namespace krait::cuda {

namespace {

using bfloat16 = __nv_bfloat16;

constexpr int kN = kStack2States, kP = kStep2Channels;

template <int D_>
struct StackSizes {
  static constexpr int D = D_, E = 2 * D, H = E / kP, kConvolved = E + 2 * kN;
  static constexpr int kChannels = E / kStackBlocks, kOfBC = 2 * kN / kStackBlocks;
  static constexpr int kHeads = kP % kChannels == 0 ? 1 : 2;
  static constexpr int kPiece = stack_piece(D);
  static constexpr int kInRows = 2 * kChannels + kOfBC + kHeads, kGroups = (kInRows + 7) / 8,
                       kRows = D / kStackBlocks, kOutGroups = (kRows + 7) / 8;
  static constexpr int kLanes = 8, kAtOnce = kStackThreads / kLanes,  // lanes of a channel
      kPasses = (kChannels + kAtOnce - 1) / kAtOnce;
  static_assert(kOfBC == 2 && kChannels % 4 == 0 && D % kPiece == 0 && kInRows <= kStackThreads);
  // Messages, one behind the other.
  static constexpr int kX = D / 2, kBC = kN, kY = E / 2,
                       kMessages = kX + kBC + kY + 2 * kStackBlocks;
  static_assert(kMessages == step2_stack_messages(D));

  // in_proj's row, of which row i of the block is the sum: z, x, B or C, dt.
  __device__ static int in_row(int block, int i) {
    if (i < kChannels) return block * kChannels + i;
    if (i < 2 * kChannels) return E + block * kChannels + i - kChannels;
    if (i < 2 * kChannels + kOfBC) return 2 * E + block * kOfBC + i - 2 * kChannels;
    return E + kConvolved + min(block * kChannels / kP + i - 2 * kChannels - kOfBC, H - 1);
  }
};

template <class Z, class Slots>
struct StackShared {
  bfloat16 x[Z::D], y[Z::E], BC[2 * kN];
  float sums[kStackWarps][8 * Z::kGroups];
  // Each its own: a warp may be at the next layer's while another still adds up this one's.
  float squares[kStackBlocks], blocks_y_squares[kStackBlocks];
  float u[Z::kChannels], z[Z::kChannels], deltas[2], decays[2], y_squares[Z::kPasses][kStackWarps];
  typename Slots::Barriers ring;
};

#if KRAIT_HOPPER

template <class Z, class S, class Ring>
__device__ void bring_weights(const Step2Stack& p, Ring ring) {
  const int lane = static_cast<int>(threadIdx.x) % 32, block = static_cast<int>(blockIdx.x);
  for (int l = 0; l < p.layers; ++l) {
    const Step2StackLayer& of = p.layer[l];
    for (int group = 0; group < Z::kGroups; ++group) {
      const int row = Z::in_row(block, min(group * 8 + lane % 8, Z::kInRows - 1));
      ring.fill_rows(static_cast<const bfloat16*>(of.in_proj) + int64_t{row} * Z::D,
                     min(8, Z::kInRows - group * 8), Z::D);
    }
    constexpr unsigned kStateBytes = Z::kChannels * kN * sizeof(S);
    static_assert(kStateBytes <= Ring::kSlotBytes);
    ring.fill(kStateBytes, [&](unsigned char* to, uint64_t* full) {
      if (lane == 0)
        copy_run(to, static_cast<const S*>(of.state) + block * Z::kChannels * kN, kStateBytes,
                 full);
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
    step2_stack_kernel(const __grid_constant__ Step2Stack p) {
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
  Message *const of_BC = of_x + Z::kX, *const of_y = of_BC + Z::kBC,
                 *const of_squares = of_y + Z::kY, *const of_y_squares = of_squares + kStackBlocks;
  const int channel = block * Z::kChannels, head = channel / kP;
  StackRows<D> rows{of_x, of_squares};

  // What a thread needs of its row of in_proj: a step of the convolution, or of dt; and of its channel's end.
  const int part = thread - Z::kChannels,  // of xBC
      conv_row =
          part < Z::kChannels ? channel + part : Z::E + block * Z::kOfBC + part - Z::kChannels,
            of_dt = part - Z::kChannels - Z::kOfBC, dt_head = min(head + of_dt, Z::H - 1);
  const bool convolves = part >= 0 && part < Z::kChannels + Z::kOfBC,
             has_dt = of_dt >= 0 && of_dt < Z::kHeads;
  ConvOfStep::Held before;
  ConvOfStep::OfRow conv_weights;
  float dt_bias = 0, A = 0;
  float skip[Z::kPasses], weight[Z::kPasses];
  const auto ask = [&](int l) {
    if (l == p.layers) return;
    const Step2StackLayer& of = p.layer[l];
    if (convolves) {
      const ConvOfStep conv = conv_of(of);
      before = conv.hold(conv_row, 0), conv_weights = conv.of_row(conv_row);
    } else if (has_dt) {
      dt_bias = __ldg(of.dt_bias + dt_head), A = __ldg(of.A_log + dt_head);
    }
  };
  const auto ask_for_ends = [&](int l) {
    if (l == p.layers) return;
    const Step2StackLayer& of = p.layer[l];
#pragma unroll
    for (int pass = 0; pass < Z::kPasses; ++pass)
      if (const int c = pass * Z::kAtOnce + thread / Z::kLanes; c < Z::kChannels) {
        skip[pass] = __ldg(of.D + (of.D_per_channel ? channel + c : (channel + c) / kP));
        weight[pass] = __ldg(of.gate_norm + channel + c);
      }
  };
  wait_for_previous();
  if (warp == 0) {
    rows.read(p.stream);
    rows.ask_for_scale(p.layer[0].norm);
    rows.send_x(1);
  }
  ask(0), ask_for_ends(0);

#pragma unroll 1
  for (int l = 0; l < p.layers; ++l) {
    const Step2StackLayer& of = p.layer[l];
    const int layer = l + 1;
    if (layer < p.layers) rows.ask_for_scale(p.layer[layer].norm);
    gather<Z::kX>(of_x, layer, s.x);
    gather_squares(of_squares, layer, s.squares);
    meet();
    ring.template multiply<Z::kGroups, D / Z::kPiece>(s.x, s.sums);
    meet();

    if (warp * 32 < Z::kInRows) {
      const float factor = norm_factor(s.squares, D, of.eps);
      float u = 0;
      if (thread < Z::kInRows) {
        const float sum = over_warps(s.sums, thread) * factor;
        const auto rounded = static_cast<bfloat16>(sum);
        if (thread < Z::kChannels) s.z[thread] = static_cast<float>(rounded);
        if (convolves) {
          u = static_cast<float>(conv_of(of)(conv_row, 0, rounded, before, conv_weights));
          if (part < Z::kChannels) s.u[part] = u;
        }
        if (has_dt) {
          float slope;
          const float delta = softplus<false>(sum + dt_bias, slope),
                      limited = delta < of.dt_low    ? of.dt_low
                                : delta > of.dt_high ? of.dt_high
                                                     : delta;  // NaN stays
          s.deltas[of_dt] = limited;
          s.decays[of_dt] = exp2_exact(limited * scaled_A(A, true));
        }
      }
      const float next = __shfl_down_sync(~0u, u, 1);
      if (part == Z::kChannels) send(of_BC + block, two_bf16(u, next), layer);
    }
    ask(layer);
    gather<Z::kBC>(of_BC, layer, s.BC);
    meet();

    const S* const mine = reinterpret_cast<const S*>(ring.await());
#pragma unroll
    for (int pass = 0; pass < Z::kPasses; ++pass)
      if (const int c = pass * Z::kAtOnce + thread / Z::kLanes; c < Z::kChannels) {  // whole warps
        const int n0 = thread % Z::kLanes * kRun, of_head = (channel + c) / kP - head;
        const float x = s.u[c], decay = s.decays[of_head], in = s.deltas[of_head] * x;
        float y = 0;
#pragma unroll
        for (int n = n0; n < kN; n += Z::kLanes * kRun) {
          const float4 B = four_states(s.BC + n), C = four_states(s.BC + kN + n);
          float4 h = four_states(mine + c * kN + n);
          h = {fmaf(decay, h.x, in * B.x), fmaf(decay, h.y, in * B.y), fmaf(decay, h.z, in * B.z),
               fmaf(decay, h.w, in * B.w)};
          y = fmaf(h.x, C.x, y), y = fmaf(h.y, C.y, y), y = fmaf(h.z, C.z, y),
          y = fmaf(h.w, C.w, y);
          store_four(static_cast<S*>(of.state) + (channel + c) * kN + n, h);
        }
#pragma unroll
        for (int i = Z::kLanes / 2; i > 0; i /= 2) y += __shfl_xor_sync(~0u, y, i);
        const float z = s.z[c], v = fmaf(skip[pass], x, y) * z * sigmoid<true>(z),
                    w = v * weight[pass], next = __shfl_down_sync(~0u, w, Z::kLanes);
        if (lane % (2 * Z::kLanes) == 0) send(of_y + (channel + c) / 2, two_bf16(w, next), layer);
        const float square = over_lanes(lane % Z::kLanes == 0 ? v * v : 0.0f);
        if (lane == 0) s.y_squares[pass][warp] = square;
      }
    ring.leave();
    ask_for_ends(layer);
    gather<Z::kY>(of_y, layer, s.y);
    meet();
    if (thread == 0) {
      float square = 0;
#pragma unroll
      for (int c = 0; c < Z::kChannels; c += 32 / Z::kLanes)
        square += s.y_squares[c / Z::kAtOnce][c % Z::kAtOnce * Z::kLanes / 32];
      send(of_y_squares + block, __float_as_uint(square), layer);
    }
    ring.template multiply<Z::kOutGroups, Z::E / Z::kPiece>(s.y, s.sums);
    gather_squares(of_y_squares, layer, s.blocks_y_squares);
    meet();
    if (warp == 0) {
      const float factor = norm_factor(s.blocks_y_squares, Z::E, of.gate_eps);
      if (rows.mine) rows.value = fmaf(over_warps(s.sums, lane), factor, rows.value);
      if (layer < p.layers) rows.send_x(layer + 1);
    }
  }
  if (warp == 0) rows.write(p.stream);
#endif
}

using Widths = std::integer_sequence<int, 1024, 1536, 2048, 2560>;

template <int D, class S>
struct StackKernel {
  template <class Slots>
  using Shared = StackShared<StackSizes<D>, Slots>;
  using Layout = StackLayout<stack_piece(D), Shared>;
  static constexpr auto kKernel = step2_stack_kernel<D, S, Layout::kSlots>;
};

}  // namespace

bool has_step2_stack(int64_t D, bool state_bf16) {
  return D == kClusterWidth ? has_step2_cluster(D, state_bf16)
                            : has_stack<StackKernel>(Widths(), D, state_bf16);
}

void step2_stack(const Step2Stack& p, void* stream) {
  if (p.D == kClusterWidth) return step2_cluster(p, stream);
  launch_stack<StackKernel>(Widths(), "mamba2_stack", step2_stack_messages(p.D), p, stream);
}

}  // namespace krait::cuda
