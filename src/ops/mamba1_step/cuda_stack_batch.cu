// Up to sixteen sequences' token through all layers in one kernel: stack_batch.cuh. A block has E/128 channels, from in_proj
// to the gate, and D/128 rows of the stream. Between blocks go
//   x      the stream times the norm's weight in bfloat16, and a block's sums of squares,
//   parts  of x_proj u: a block's share of it, two rows for each of those that add them up,
//   low    the sums,
//   y      what out_proj reads.
// A lane is a channel of the sequence `warp`, or eight further on.
#include <algorithm>

#include "krait/ops/mamba1_step/cuda_channel.cuh"
#include "krait/ops/stack_batch.cuh"
#include "krait/ops/step_parts.cuh"

namespace krait::cuda {

namespace {

using bfloat16 = __nv_bfloat16;

template <int kSeqs_, class S>
struct Sizes : BatchSizes<kBatchWidth, kSeqs_> {
  using Base = BatchSizes<kBatchWidth, kSeqs_>;
  using Base::D, Base::E, Base::kSeqs, Base::kChannels;
  static constexpr int R = D / 16, kWidth = R + 2 * kStepStates;
  static constexpr int kAdding = kWidth / 2;  // blocks that add two rows of x_proj u up
  // A layer's slots: in_proj's rows of x; the channels; in_proj's rows of z; states of so many sequences each; out_proj.
  static constexpr int kStateBytes = kChannels * kStepStates * static_cast<int>(sizeof(S)),
                       kSlotSeqs = std::min(kSeqs, Base::kSlotBytes / kStateBytes / 8 * 8);
  static constexpr int kGroups = kStackMates * kChannels / Base::kGroup,  // of a cluster's channels
      kGroupsEach = kChannels / Base::kGroup;
  static constexpr int kOfChannels = 2 * kGroups, kOfZ = kOfChannels + 1,
                       kOfStates = kOfZ + 2 * kGroups, kOfOut = kOfStates + kSeqs / kSlotSeqs,
                       kOutSlots = 2 * kStackMates * Base::kYParts / Base::kPieceParts,
                       kSlots = kOfOut + kOutSlots;
  // Warps that add x_proj u up; the others multiply by z's rows meanwhile.
  static constexpr int kAddingWarps = kStackWarps / 2, kAddingThreads = 32 * kAddingWarps;
  static_assert(kGroups * Base::kXParts == kStackWarps && kGroups == kStackWarps - kAddingWarps &&
                kStackMates * Base::kYParts == kStackWarps && kAdding <= kStackBlocks);
  static constexpr int kTurns =
      128 / (kStepStates * static_cast<int>(sizeof(S)));  // channels of 32 banks
  // Floats, of u elements, between rows whose neighbours lie in different banks.
  static constexpr int kInStep = kChannels + 4, kOutStep = Base::kRows + 4, kLowStep = kWidth + 4,
                       kDtStep = kChannels + 4, kUStep = kChannels + 8;
  // Words of messages.
  static constexpr int kParts = kAdding * kStackBlocks * 2 * kSeqs, kLow = kSeqs * kWidth,
                       kMessages = Base::kX + Base::kSquares + kParts + kLow + Base::kY;
};

// What a block's channels have beside products: a slot of the ring.
template <class Z>
struct Channels {
  float A_log[Z::kChannels * kStepStates];
  float4 taps[Z::kChannels];
  float bias[Z::kChannels], dt_bias[Z::kChannels], D[Z::kChannels];
  bfloat16 dt_proj[Z::kChannels * Z::R];
  ConvInputs<bfloat16>::Stored before[Z::kSeqs * Z::kChannels];
};

template <class Z>
struct alignas(16) Shared {
  struct Before {
    unsigned char x[Z::kSeqs * Z::kXStep];
    float low[Z::kSeqs * Z::kLowStep], dt[2][16 * Z::kDtStep];
    float adding[Z::kAddingWarps][2 * Z::kSeqs];
  };
  union {
    Before b;
    unsigned char y[Z::kSeqs * Z::kYStep];
  };
  float of_x[kStackMates * Z::kXParts][Z::kSeqs][Z::kInStep],
      of_z[kStackMates][Z::kSeqs][Z::kInStep], out[kStackWarps][Z::kSeqs][Z::kOutStep];
  BatchSquares<Z> squares;
  bfloat16 u[16 * Z::kUStep];
  uint64_t x_there, z_there, out_there;
};

// Messages of a layer, one behind the other.
template <class Z>
struct Messages {
  unsigned *x, *squares, *parts, *low, *y;
  __device__ Messages(void* all, int layer)
      : x(static_cast<unsigned*>(all) + (layer & 1) * Z::kMessages),
        squares(x + Z::kX),
        parts(squares + Z::kSquares),
        low(parts + Z::kParts),
        y(low + Z::kLow) {}
};

#if KRAIT_HOPPER

template <class Z, class S, class Ring>
__device__ void bring_weights(const StepStack& p, const Ring& ring) {
  const int lane = static_cast<int>(threadIdx.x) % 32, block = static_cast<int>(blockIdx.x),
            half = static_cast<int>(rank_in_cluster()), first = block - half,
            B = static_cast<int>(p.B), channel = block * Z::kChannels;
  const uint64_t policy = given_up_first();
  // A lane's row of a slot, and a sequence's states.
  const auto in_proj_at = [&](const StepStackLayer& of, int first_row, int slot) {
    const int row = first_row + first * Z::kChannels + slot * Z::kSlotRows + lane % Z::kSlotRows;
    return static_cast<const bfloat16*>(of.in_proj) + int64_t{row} * Z::D + half * Z::kXColumns;
  };
  const auto out_proj_at = [&](const StepStackLayer& of, int slot) {
    constexpr int kOfPiece = Z::kGroup * kStackMates / Z::kSlotRows;
    const int row = first * Z::kRows + slot % kOfPiece * Z::kSlotRows + lane % Z::kSlotRows;
    return static_cast<const bfloat16*>(of.out_proj) + int64_t{row} * Z::E + half * Z::kYColumns +
           slot / kOfPiece * Z::kPiece;
  };
  const auto states_at = [&](const StepStackLayer& of, int seq) {
    return static_cast<const S*>(of.state) + (seq * Z::E + channel) * kStepStates;
  };
  unsigned n = 0;
  const auto fill = [&](unsigned bytes, const auto& copy) { ring.fill(n++, bytes, copy); };
  const auto fill_rows = [&](const bfloat16* row) {
    fill(Z::kSlotRows * Z::kPiece * 2, [&](unsigned char* to, uint64_t* there) {
      if (lane < Z::kSlotRows) copy_run(to + lane * Z::kStep, row, Z::kPiece * 2, there, policy);
    });
  };
  for (int l = 0; l < p.layers; ++l) {
    const StepStackLayer& of = p.layer[l];
    for (int i = 0; i < 2 * Z::kGroups; ++i) fill_rows(in_proj_at(of, 0, i));
    using Of = Channels<Z>;
    static_assert(sizeof(Of) <= Z::kSlotBytes);
    constexpr int kConvBytes = Z::kChannels * static_cast<int>(sizeof(Of::before[0]));
    fill(static_cast<unsigned>(sizeof(Of) - sizeof(Of::before)) + B * kConvBytes,
         [&](unsigned char* slot, uint64_t* there) {
           auto& to = *reinterpret_cast<Of*>(slot);
           const ShareCopy copy{lane, block, there};
           copy(16, to.A_log, of.A_log), copy(17, to.taps, of.taps), copy(18, to.bias, of.bias);
           copy(19, to.dt_bias, of.dt_bias), copy(20, to.D, of.D), copy(21, to.dt_proj, of.dt_proj);
           if (lane < B)
             copy_run(to.before + lane * Z::kChannels,
                      static_cast<const ConvInputs<bfloat16>::Stored*>(of.conv_state) +
                          lane * Z::E + channel,
                      kConvBytes, there);
         });
    for (int i = 0; i < 2 * Z::kGroups; ++i) fill_rows(in_proj_at(of, Z::E, i));
    for (int seq = 0; seq < Z::kSeqs; seq += Z::kSlotSeqs) {
      const int count = max(0, min(Z::kSlotSeqs, B - seq));
      fill(static_cast<unsigned>(count * Z::kStateBytes), [&](unsigned char* to, uint64_t* there) {
        if (lane < count)
          copy_run(to + lane * Z::kStateBytes, states_at(of, seq + lane), Z::kStateBytes, there);
      });
    }
    for (int i = 0; i < Z::kOutSlots; ++i) fill_rows(out_proj_at(of, i));
  }
}

// Two floats as the sum of two bfloat16.
__device__ inline void split_two(float a, float b, unsigned& high, unsigned& low) {
  high = two_bf16(a, b);
  low = two_bf16(a - low_bf16(high), b - high_bf16(high));
}

// A barrier of the first kThreads.
template <int kThreads>
__device__ inline void adders_meet() {
  asm volatile("bar.sync 2, %0;" ::"n"(kThreads) : "memory");
}

// A warp's part of dt_proj, eight channels and half of R, and its product with low.
template <class Z>
struct DtProduct {
  static constexpr int kChunks = Z::R / 2 / kChunk;
  int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32,
      g = lane / 4, t = lane % 4, tile = warp % 4, half = warp / 4;
  uint4 w[kChunks];

  __device__ explicit DtProduct(const bfloat16* dt_proj) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i)
      w[i] = *reinterpret_cast<const uint4*>(dt_proj + (tile * 8 + g) * Z::R + at(i));
  }
  __device__ int at(int i) const { return half * (Z::R / 2) + i * kChunk + 8 * t; }

  __device__ void multiply(typename Shared<Z>::Before& of) const {
    float c[2][4] = {};
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      unsigned high[2][4] = {}, rest[2][4] = {};
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (g + 8 * r < Z::kSeqs) {
          const float* const from = of.low + (g + 8 * r) * Z::kLowStep + at(i);
#pragma unroll
          for (int j = 0; j < 4; ++j)
            split_two(from[2 * j], from[2 * j + 1], high[r][j], rest[r][j]);
        }
      multiply_tile(c[0], high[0][0], high[1][0], high[0][1], high[1][1], w[i].x, w[i].y);
      multiply_tile(c[1], rest[0][0], rest[1][0], rest[0][1], rest[1][1], w[i].x, w[i].y);
      multiply_tile(c[0], high[0][2], high[1][2], high[0][3], high[1][3], w[i].z, w[i].w);
      multiply_tile(c[1], rest[0][2], rest[1][2], rest[0][3], rest[1][3], w[i].z, w[i].w);
    }
    float* const to = of.dt[half] + tile * 8 + 2 * t;
#pragma unroll
    for (int r = 0; r < 2; ++r)
      *reinterpret_cast<float2*>(to + (g + 8 * r) * Z::kDtStep) = {
          c[0][2 * r] + c[1][2 * r], c[0][2 * r + 1] + c[1][2 * r + 1]};
  }
};

#endif

template <int kSeqs, class S, int kRing>
__global__ void __launch_bounds__(kStackThreads + 32, 1)
    batch_stack_kernel(const __grid_constant__ StepStack p) {
#if KRAIT_HOPPER
  using Z = Sizes<kSeqs, S>;
  extern __shared__ __align__(128) unsigned char memory[];
  auto& s = *reinterpret_cast<Shared<Z>*>(memory + kRing * Z::kSlotBytes);
  const BatchRing<Z, kRing> ring(memory, &s + 1);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32,
            block = static_cast<int>(blockIdx.x), g = lane / 4, t = lane % 4,
            B = static_cast<int>(p.B), channel = block * Z::kChannels;
  const unsigned half = rank_in_cluster();
  if (thread == 0) {
    ring.start();
    start_barrier(&s.x_there, 1), start_barrier(&s.z_there, 1), start_barrier(&s.out_there, 1);
    fence_barriers();
  }
  for (int i = thread; i < 16 * Z::kUStep; i += kStackThreads + 32) s.u[i] = bfloat16{};
  synchronize_cluster();
  if (warp == kStackWarps) {
    bring_weights<Z, S>(p, ring);
    __syncwarp();
    return leave_cluster();
  }

  BatchStream<Z> rows(B);
  constexpr int kTiles = Z::kWidth / 8, kTilesEach = (kTiles + kStackWarps - 1) / kStackWarps;
  uint4 x_proj[kTilesEach] = {};  // of eight rows the block's part
  const auto ask_for_x_proj = [&](int l) {
    if (l == p.layers) return;
#pragma unroll
    for (int i = 0; i < kTilesEach; ++i)
      if (const int tile = warp + i * kStackWarps; tile < kTiles)
        x_proj[i] =
            __ldg(reinterpret_cast<const uint4*>(static_cast<const bfloat16*>(p.layer[l].x_proj) +
                                                 int64_t{tile * 8 + g} * Z::E + channel + 8 * t));
  };
  rows.read(p.stream);
  rows.ask_for_scale(p.layer[0].norm);
  {
    const Messages<Z> first(p.messages, 0);
    rows.send_x(first.x, first.squares);
  }
  ask_for_x_proj(0);

#pragma unroll 1
  for (int l = 0; l < p.layers; ++l) {
    const StepStackLayer& of = p.layer[l];
    const Messages<Z> now(p.messages, l),
        other(p.messages, l + 1);  // of the layer before, and the next
    const unsigned first_slot = static_cast<unsigned>(l) * Z::kSlots, parity = l & 1;
    if (thread == 0) {
      constexpr unsigned kOfEach = sizeof(float) * kStackMates * kSeqs;
      arrive_expecting(&s.x_there, kOfEach * (Z::kXParts * Z::kChannels + Z::kSquareWarps));
      arrive_expecting(&s.z_there, kOfEach * Z::kChannels);
      arrive_expecting(&s.out_there, sizeof(float) * kStackWarps * Z::kRows * kSeqs);
    }
    if (l + 1 < p.layers) rows.ask_for_scale(p.layer[l + 1].norm);
    const uint4 squares = gather_rows<Z, Z::kXColumns, true>(now.x, now.squares, s.b.x);
    {
      float c[2][2][4] = {};
      const int group = warp % Z::kGroups, part = warp / Z::kGroups;
      multiply_group<Z, Z::kXStep, 1>(ring, first_slot + static_cast<unsigned>(2 * group), s.b.x,
                                      part, c);
      send_sums<Z, Z::kInStep>(&s.of_x[half * Z::kXParts + static_cast<unsigned>(part)][0]
                                      [group % Z::kGroupsEach * Z::kGroup],
                               c, &s.x_there, static_cast<unsigned>(group / Z::kGroupsEach));
    }
    send_squares<Z>(squares, s.squares, &s.x_there);
    const auto& mine =
        *reinterpret_cast<const Channels<Z>*>(ring.await(first_slot + Z::kOfChannels));
    wait_for_sent(&s.x_there, parity);
    float u[Z::kPasses], factor[Z::kPasses];
#pragma unroll
    for (int pass = 0; pass < Z::kPasses; ++pass)
      if (const int seq = warp + pass * kStackWarps; seq < kSeqs) {
        factor[pass] = norm_factor_of<Z>(s.squares, seq, Z::D, of.eps);
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kStackMates * Z::kXParts; ++i) sum += s.of_x[i][seq][lane];
        const auto inputs = ConvInputs<bfloat16>{mine.before[seq * Z::kChannels + lane]}.then(
            static_cast<bfloat16>(sum * factor[pass]));
        if (seq < B)
          static_cast<ConvInputs<bfloat16>::Stored*>(of.conv_state)[seq * Z::E + channel + lane] =
              inputs.v;
        const float x = convolve(inputs.floats(), mine.taps[lane], mine.bias[lane]);
        const auto rounded = static_cast<bfloat16>(x * sigmoid<true>(x));
        s.u[seq * Z::kUStep + lane] = rounded;
        u[pass] = static_cast<float>(rounded);
      }
    meet();

    {
      const auto u_at = [&](int row) {
        return *reinterpret_cast<const uint4*>(s.u + row * Z::kUStep + 8 * t);
      };
      const uint4 a = u_at(g), b = u_at(g + 8);
#pragma unroll
      for (int i = 0; i < kTilesEach; ++i)
        if (const int tile = warp + i * kStackWarps; tile < kTiles) {
          float c[4] = {};
          multiply_tile(c, a.x, b.x, a.y, b.y, x_proj[i].x, x_proj[i].y);
          multiply_tile(c, a.z, b.z, a.w, b.w, x_proj[i].z, x_proj[i].w);
          unsigned* const to = now.parts + ((tile * 4 + t) * kStackBlocks + block) * 2 * kSeqs;
#pragma unroll
          for (int j = 0; j < 4; ++j)
            if (const int seq = g + j / 2 * 8; seq < kSeqs)
              send(to + j % 2 * kSeqs + seq, __float_as_uint(c[j]));
        }
    }
    ask_for_x_proj(l + 1);
    // A channel's states in four runs, of which a lane takes first what lies in banks of its own.
    const auto run = [&](int i) { return (i + lane / Z::kTurns) % 4 * 4; };
    float4 A[4];  // times log2(e)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 a = four_states(mine.A_log + lane * kStepStates + run(i));
      A[i] = {scaled_A(a.x, true), scaled_A(a.y, true), scaled_A(a.z, true), scaled_A(a.w, true)};
    }
    const float dt_bias = mine.dt_bias[lane], skip = mine.D[lane];
    const DtProduct<Z> of_dt(mine.dt_proj);
    ring.leave(first_slot + Z::kOfChannels, 1);  // what comes after z may need the room
    if (warp >= Z::kAddingWarps) {
      float c[2][2][4] = {};
      const int group = warp - Z::kAddingWarps;
      multiply_group<Z, Z::kXStep, Z::kXParts>(
          ring, first_slot + Z::kOfZ + static_cast<unsigned>(2 * group), s.b.x, 0, c);
      send_sums<Z, Z::kInStep>(&s.of_z[half][0][group % Z::kGroupsEach * Z::kGroup], c, &s.z_there,
                               static_cast<unsigned>(group / Z::kGroupsEach));
    } else if (block < Z::kAdding) {
      constexpr int kRuns = kSeqs / 2, kEach = kStackBlocks * kRuns / Z::kAddingThreads;
      uint4 parts[kEach];
      receive(
          parts,
          [&](int i) {
            return now.parts + block * kStackBlocks * 2 * kSeqs +
                   (thread + i * Z::kAddingThreads) * 4;
          },
          [](int) { return true; });
      float4 sum{};
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const float4 v = floats_of(parts[i]);
        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
      }
      add_lanes<kRuns>(sum);
      if (lane < kRuns) *reinterpret_cast<float4*>(&s.b.adding[warp][4 * lane]) = sum;
      adders_meet<Z::kAddingThreads>();
      if (thread < 2 * kSeqs) {
        float all = 0;
#pragma unroll
        for (int i = 0; i < Z::kAddingWarps; ++i) all += s.b.adding[i][thread];
        send(now.low + thread % kSeqs * Z::kWidth + 2 * block + thread / kSeqs,
             __float_as_uint(all));
      }
    }
    {
      constexpr int kOfRow = Z::kWidth / 4, kRuns = kSeqs * kOfRow,
                    kEach = (kRuns + kStackThreads - 1) / kStackThreads;
      uint4 low[kEach];
      const auto mine_too = [&](int i) { return thread + i * kStackThreads < kRuns; };
      receive(
          low, [&](int i) { return now.low + (thread + i * kStackThreads) * 4; }, mine_too);
#pragma unroll
      for (int i = 0; i < kEach; ++i)
        if (const int run = thread + i * kStackThreads; mine_too(i))
          *reinterpret_cast<uint4*>(s.b.low + run / kOfRow * Z::kLowStep + run % kOfRow * 4) =
              low[i];
    }
    meet();
    of_dt.multiply(s.b);
    meet();

    wait_for_sent(&s.z_there, parity);
#pragma unroll
    for (int pass = 0; pass < Z::kPasses; ++pass) {
      const int seq = warp + pass * kStackWarps;
      unsigned char* const slot = ring.await(
          first_slot + Z::kOfStates + static_cast<unsigned>(pass * kStackWarps / Z::kSlotSeqs));
      if (seq >= kSeqs) continue;
      const int at = seq * Z::kDtStep + lane;
      float slope;
      const float delta = softplus<true>(s.b.dt[0][at] + s.b.dt[1][at] + dt_bias, slope),
                  x = delta * u[pass];
      S* const states = reinterpret_cast<S*>(slot + seq % Z::kSlotSeqs * Z::kStateBytes);
      const float* const of_B = s.b.low + seq * Z::kLowStep + Z::R;
      float sum = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        S* const four = states + lane * kStepStates + run(i);
        const float4 b = four_states(of_B + run(i)), c = four_states(of_B + kStepStates + run(i));
        float4 h = four_states(four);
        h = {fmaf(exp2_of<true>(delta * A[i].x), h.x, x * b.x),
             fmaf(exp2_of<true>(delta * A[i].y), h.y, x * b.y),
             fmaf(exp2_of<true>(delta * A[i].z), h.z, x * b.z),
             fmaf(exp2_of<true>(delta * A[i].w), h.w, x * b.w)};
        store_four(four, h);
        sum += fmaf(c.x, h.x, c.y * h.y) + fmaf(c.z, h.z, c.w * h.w);
      }
      const float z = static_cast<float>(static_cast<bfloat16>(
                      (s.of_z[0][seq][lane] + s.of_z[1][seq][lane]) * factor[pass])),
                  y = fmaf(skip, u[pass], sum) * (z * sigmoid<true>(z)),
                  next = __shfl_down_sync(~0u, y, 1);
      if (lane % 2 == 0) send(now.y + (seq * Z::E + channel + lane) / 2, two_bf16(y, next));
      fence_for_copies();
      __syncwarp();
      if (lane == 0 && seq < B) {
        send_run(static_cast<S*>(of.state) + (seq * Z::E + channel) * kStepStates, states,
                 Z::kStateBytes);
        commit_sent();
      }
    }
    // Who has all of `low` knows that all blocks have read this layer's x and parts, and the last one's low and y.
    BatchStream<Z>::take_x_back(now.x, now.squares);
    constexpr int kOfParts = kSeqs / 2, kOfY = Z::kChannels / 8;
    for (int i = thread; i < Z::kAdding * kOfParts; i += kStackThreads)
      take_back(now.parts + (i / kOfParts * kStackBlocks + block) * 2 * kSeqs + i % kOfParts * 4);
    if (thread < kSeqs * kOfY)
      take_back(other.y + (thread / kOfY * Z::E + channel) / 2 + thread % kOfY * 4);
    if (block < Z::kAdding && thread < 2 * kSeqs)
      send(other.low + thread % kSeqs * Z::kWidth + 2 * block + thread / kSeqs, kNothing);

    wait_for_sent_reads<0>();
    for (unsigned n = first_slot + Z::kOfStates; n < first_slot + Z::kOfOut; ++n) ring.leave(n, 1);

    gather_rows<Z, Z::kYColumns, false>(now.y, nullptr, s.y);
    {
      float c[2][2][4] = {};
      const int group = warp % kStackMates, part = warp / kStackMates,
                slot = part / Z::kPieceParts * 2 * kStackMates + 2 * group;
      multiply_group<Z, Z::kYStep, 1>(ring, first_slot + Z::kOfOut + static_cast<unsigned>(slot),
                                      s.y, part, c);
      send_sums<Z, Z::kOutStep>(&s.out[half * Z::kYParts + static_cast<unsigned>(part)][0][0], c,
                                &s.out_there, static_cast<unsigned>(group));
    }
    wait_for_sent(&s.out_there, parity);
    if (rows.seq < kSeqs) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kStackWarps; ++i) sum += s.out[i][rows.seq][rows.row];
      rows.value += sum;
    }
    if (l + 1 < p.layers) rows.send_x(other.x, other.squares);
  }
  rows.write(p.stream);
  __syncwarp();
  leave_cluster();
#endif
}

template <int kSeqs, class S>
struct BatchKernel {
  using Z = Sizes<kSeqs, S>;
  using Layout = BatchLayout<Z, Shared<Z>>;
  static constexpr int kMessages = Z::kMessages;
  static constexpr auto kKernel = batch_stack_kernel<kSeqs, S, Layout::kSlots>;
};

}  // namespace

int64_t step_batch_words(int64_t B, bool state_bf16) {
  return B <= kMostBatchRows ? batch_words<BatchKernel>(B, state_bf16) : 0;
}

void step_batch(const StepStack& p, void* stream) {
  launch_batch<BatchKernel>("mamba1_stack", p, stream);
}

}  // namespace krait::cuda
