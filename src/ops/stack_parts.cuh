// What kernels that take one token through all layers of a model have in common (sm_90a). Such a kernel has a block on
// each of kStackBlocks multiprocessors, all there at once, and a block keeps its channels, and its rows of the stream,
// through all layers. Launches, and barriers of the grid, would cost 3 us for each product; so
//  - a warp of its own has the copy engine bring the block's weights, in the order in which they are needed, into a ring
//    that all of shared memory is: they depend on nothing, and memory is read without a pause;
//  - what blocks tell each other goes through global memory in messages that say themselves what layer they belong to:
//    who needs them reads them until they do. No fence, no flag, and a message may be overwritten in the next layer,
//    as a block sends that only when all have read what this layer's later messages depend on.
// 4 bytes in 8 are data; so this is for one sequence.
#pragma once
#include "krait/tensor/cuda/few_rows.cuh"
#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/one_pass.h"

namespace krait::cuda {

constexpr int kStackBlocks = 128, kStackWarps = 8, kStackThreads = 32 * kStackWarps;
constexpr int kMostShared = 227 << 10;  // of a block

// The ring's slots: each has kPiece columns of eight rows of a matrix, or what else is needed at that place.
template <int kPiece_, int kSlots_>
struct StackSlots {
  static constexpr int kPiece = kPiece_, kSlots = kSlots_,
                       kChunks = kPiece / (kChunk * kStackWarps);
  static constexpr int kStep =
      2 * kPiece + 64;  // bytes between rows: two rows are in different banks
  static constexpr int kSlotBytes = 8 * kStep;
  static_assert(kPiece % (kChunk * kStackWarps) == 0);
  struct Barriers {
    uint64_t full[kSlots], empty[kSlots];
  };
};

// As many slots as there is room for beside Shared<Slots>, which lies behind them.
template <int kPiece, template <class> class Shared>
struct StackLayout {
  template <int kCount>
  static constexpr int bytes_of() {
    using Slots = StackSlots<kPiece, kCount>;
    return kCount * Slots::kSlotBytes + static_cast<int>(sizeof(Shared<Slots>));
  }
  static constexpr int kSlots = 1 + (kMostShared - bytes_of<1>()) / (bytes_of<2>() - bytes_of<1>());
  static constexpr int kBytes = bytes_of<kSlots>();
  static_assert(kBytes <= kMostShared);
};
constexpr int stack_piece(int D) { return D % 1024 == 0 ? 1024 : D % 1280 == 0 ? 1280 : 768; }

// A room's kernels are those of its Kernel<D, S>, S the type of the states: kKernel and its Layout. use(a Kernel) for one
// of the widths D; false for others.
template <template <int, class> class Kernel, int... kD, class Use>
bool with_stack_kernel(std::integer_sequence<int, kD...>, int64_t D, bool state_bf16,
                       const Use& use) {
  return ((D == kD && (state_bf16 ? use(Kernel<kD, __nv_bfloat16>()) : use(Kernel<kD, float>()))) ||
          ...);
}

// Whether there is one whose blocks are all there at once on the calling thread's device.
template <template <int, class> class Kernel, class Widths>
bool has_stack(Widths widths, int64_t D, bool state_bf16) {
  return with_stack_kernel<Kernel>(widths, D, state_bf16, []<class K>(K) {
    constexpr int kBytes = K::Layout::kBytes;
    int device = 0, multiprocessors = 0, cooperative = 0, blocks = 0;
    return on_hopper() && cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) ==
               cudaSuccess &&
           cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device) ==
               cudaSuccess &&
           cooperative != 0 &&
           cudaFuncSetAttribute(K::kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes) ==
               cudaSuccess &&
           cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, K::kKernel, kStackThreads + 32,
                                                         size_t{kBytes}) == cudaSuccess &&
           blocks * multiprocessors >= kStackBlocks;
  });
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads) clear_messages_kernel(uint4* messages, int runs) {
  let_next_start();
  wait_for_previous();
  if (const int i = static_cast<int>(blockIdx.x) * kThreads + threadIdx.x; i < runs)
    messages[i] = {};
}
// So many of them: none is left of an earlier token. By a kernel, so that the next one can start before it.
inline void clear_messages(void* messages, int64_t count, void* stream) {
  constexpr int kThreads = 256;
  const int64_t runs = count / 2;
  launch_dependent("clear messages", clear_messages_kernel<kThreads>,
                   dim3(static_cast<unsigned>(ceil_div(runs, kThreads))), kThreads, 0, 1, stream,
                   static_cast<uint4*>(messages), static_cast<int>(runs));
}

// Where has_stack has said so. messages: that many, an even number. The kernel starts early: it must wait_for_previous()
// before it reads the stream or a message, or sends one.
template <template <int, class> class Kernel, class Widths, class Call>
void launch_stack(Widths widths, const char* name, int64_t messages, const Call& p, void* stream) {
  clear_messages(p.messages, messages, stream);
  with_stack_kernel<Kernel>(widths, p.D, p.state_bf16, [&]<class K>(K) {
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeCooperative, attributes[0].val.cooperative = 1;
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization,
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(kStackBlocks), config.blockDim = dim3(kStackThreads + 32);
    config.dynamicSmemBytes = K::Layout::kBytes;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = attributes, config.numAttrs = 2;
    return cudaLaunchKernelEx(&config, K::kKernel, p) == cudaSuccess;
  });
  check_launch(name);
}

#if KRAIT_HOPPER

// 32 bits and the number of a layer, from 1 on.
using Message = unsigned long long;

__device__ inline void send(Message* to, unsigned bits, int layer) {
  asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(to),
               "l"(static_cast<Message>(layer) << 32 | bits)
               : "memory");
}
__device__ inline unsigned bits_of(Message m) { return static_cast<unsigned>(m); }
__device__ inline bool is_of(Message m, int layer) { return static_cast<int>(m >> 32) == layer; }

// Reads those of `layer` at `at(i)`, i < kCount where `wanted(i)`, in runs of kRun (1 or 2). Where they do not come in
// some seconds, the kernel ends in an error.
template <int kCount, int kRun, class At, class Wanted>
__device__ inline void receive(Message (&m)[kCount][kRun], int layer, const At& at,
                               const Wanted& wanted) {
  constexpr int kMostTries = 1 << 22;
#pragma unroll
  for (int i = 0; i < kCount; ++i)
#pragma unroll
    for (int j = 0; j < kRun; ++j) m[i][j] = 0;
  for (int tries = 0;; ++tries) {
    bool all = true;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (!wanted(i) || (is_of(m[i][0], layer) && is_of(m[i][kRun - 1], layer))) continue;
      if constexpr (kRun == 1) {
        asm volatile("ld.relaxed.gpu.global.b64 %0, [%1];" : "=l"(m[i][0]) : "l"(at(i)) : "memory");
      } else {
        asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];"
                     : "=l"(m[i][0]), "=l"(m[i][1])
                     : "l"(at(i))
                     : "memory");
      }
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      all = all && (!wanted(i) || (is_of(m[i][0], layer) && is_of(m[i][kRun - 1], layer)));
    if (all) return;
    if (tries == kMostTries)
      __assert_fail("another block's message has come", __FILE__, __LINE__, "receive");
  }
}

// kCount messages' bits into shared memory, by kStackThreads.
template <int kCount>
__device__ inline void gather(const Message* from, int layer, void* to) {
  constexpr int kRuns = kCount / 2, kEach = (kRuns + kStackThreads - 1) / kStackThreads;
  static_assert(kCount % 2 == 0);
  const int thread = static_cast<int>(threadIdx.x);
  const auto wanted = [&](int i) { return thread + i * kStackThreads < kRuns; };
  Message m[kEach][2];
  receive(
      m, layer, [&](int i) { return from + 2 * (thread + i * kStackThreads); }, wanted);
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    if (wanted(i))
      static_cast<uint2*>(to)[thread + i * kStackThreads] = {bits_of(m[i][0]), bits_of(m[i][1])};
}

// Brings block `share`'s part of an array: lane `of_lane` of a warp whose lanes all come here.
struct ShareCopy {
  int lane, share;
  uint64_t* full;

  template <class Part>
  __device__ void operator()(int of_lane, Part& part, const void* from) const {
    if (lane == of_lane)
      copy_run(&part, static_cast<const unsigned char*>(from) + share * sizeof(part), sizeof(part),
               full);
  }
};

// A barrier of the kStackThreads that compute.
__device__ inline void meet() { asm volatile("bar.sync 1, %0;" ::"n"(kStackThreads) : "memory"); }

template <class Slots>
struct StackRing {
  static constexpr int kPiece = Slots::kPiece, kSlots = Slots::kSlots, kChunks = Slots::kChunks,
                       kStep = Slots::kStep, kSlotBytes = Slots::kSlotBytes;
  static constexpr int kAsked = kPiece < 1024 ? 4 : 3;  // slots on their way at most
  static_assert(kAsked < kSlots);
  typename Slots::Barriers& barriers;
  unsigned char* slots;
  int slot = 0;
  unsigned parity = 0;

  __device__ void start() const {  // one thread, before a barrier of the block
    for (int i = 0; i < kSlots; ++i) {
      start_barrier(barriers.full + i, 1);
      start_barrier(barriers.empty + i, kStackWarps * kArriving);
    }
    fence_barriers();
  }
  __device__ unsigned char* here() const { return slots + slot * kSlotBytes; }
  __device__ void next() {
    if (++slot == kSlots) slot = 0, parity ^= 1;
  }

  // The warp that fills it: waits for room, and until few enough slots are on their way, then calls copy(to, barrier) in
  // each lane. What is asked for beyond what keeps memory busy stands in the way of messages.
  template <class Copy>
  __device__ void fill(unsigned bytes, const Copy& copy) {
    wait_for_phase(barriers.empty + slot, parity ^ 1);
    const bool wraps = slot < kAsked;
    wait_for_phase(barriers.full + slot - kAsked + (wraps ? kSlots : 0),
                   wraps ? parity ^ 1 : parity);
    if (threadIdx.x % 32 == 0) arrive_expecting(barriers.full + slot, bytes);
    __syncwarp();
    copy(here(), barriers.full + slot);
    next();
  }
  // `count` rows of K columns, lane i's `row`, piece by piece. They are read once a token: messages and states are to
  // stay in the second-level cache, not these.
  __device__ void fill_rows(const __nv_bfloat16* row, int count, int K) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const uint64_t policy = given_up_first();
    for (int k = 0; k < K; k += kPiece)
      fill(static_cast<unsigned>(count * kPiece * 2), [&](unsigned char* to, uint64_t* full) {
        if (lane < count) copy_run(to + lane * kStep, row + k, kPiece * 2, full, policy);
      });
  }

  // Those that compute: what fill() brought; and that a warp has read it. A load may be on its way still when a later
  // instruction arrives at the barrier, and then find what the copy engine brings next: the fence waits for it.
  __device__ const unsigned char* await() const {
    wait_for_phase(barriers.full + slot, parity);
    return here();
  }
  __device__ void leave() {
    fence_for_copies();
    warp_arrives<kArriving>(barriers.empty + slot);
    next();
  }

  // sums[warp][8 i + row]: of the warp's share of K columns of the next kGroups times eight rows and x in shared memory. A
  // group's rows are the columns of a product of tensor cores, whose first row is x and whose others are zero.
  template <int kGroups, int kPieces, int kSums>
  __device__ void multiply(const __nv_bfloat16* x, float (&sums)[kStackWarps][kSums]) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32,
              g = lane / 4, t = lane % 4, k0 = warp * kChunks * kChunk + 8 * t;
#pragma unroll 1
    for (int group = 0; group < kGroups; ++group) {
      float c[2][4] = {};
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        const unsigned char* const row = await() + g * kStep + 2 * k0;
        uint4 w[kChunks], v[kChunks];
#pragma unroll
        for (int i = 0; i < kChunks; ++i) {
          w[i] = *reinterpret_cast<const uint4*>(row + 2 * kChunk * i);
          v[i] = g == 0 ? *reinterpret_cast<const uint4*>(x + piece * kPiece + k0 + kChunk * i)
                        : uint4{};
        }
#pragma unroll
        for (int i = 0; i < kChunks; ++i) {
          multiply_tile(c[0], v[i].x, 0, v[i].y, 0, w[i].x, w[i].y);
          multiply_tile(c[1], v[i].z, 0, v[i].w, 0, w[i].z, w[i].w);
        }
        leave();
      }
      if (g == 0)
        *reinterpret_cast<float2*>(&sums[warp][group * 8 + 2 * t]) = {c[0][0] + c[1][0],
                                                                      c[0][1] + c[1][1]};
    }
  }
};

template <int kSums>
__device__ inline float over_warps(const float (&sums)[kStackWarps][kSums], int row) {
  float sum = sums[0][row];
#pragma unroll
  for (int w = 1; w < kStackWarps; ++w) sum += sums[w][row];
  return sum;
}

__device__ inline float over_lanes(float x) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) x += __shfl_xor_sync(~0u, x, i);
  return x;
}

// A block's rows of the stream (D), in lanes of warp 0, which calls what is here. Others need them times the next norm's
// weight in bfloat16, x, and each block's sum of squares.
template <int D>
struct StackRows {
  static constexpr int kRows = D / kStackBlocks;
  static_assert(D % kStackBlocks == 0 && kRows % 2 == 0 && kRows <= 32);
  Message *x, *squares;  // (D / 2), (kStackBlocks)
  int row = static_cast<int>(blockIdx.x) * kRows + static_cast<int>(threadIdx.x);
  bool mine = threadIdx.x < kRows;
  float value = 0, scale = 0;

  __device__ void read(const float* stream) {
    if (mine) value = __ldcg(stream + row);
  }
  __device__ void ask_for_scale(const float* norm) {
    if (mine) scale = __ldg(norm + row);
  }
  __device__ void send_x(int layer) const {
    const float v = value * scale, next = __shfl_down_sync(~0u, v, 1),
                square = over_lanes(value * value);
    if (mine && threadIdx.x % 2 == 0) send(x + row / 2, two_bf16(v, next), layer);
    if (threadIdx.x == 0) send(squares + blockIdx.x, __float_as_uint(square), layer);
  }
  __device__ void write(float* stream) const {
    if (mine) stream[row] = value;
  }
};

// 1 / sqrt(mean of what the blocks' squares sum up to + eps): of a warp whose lanes have kStackBlocks / 32 each.
__device__ inline float norm_factor(const float (&squares)[kStackBlocks], int count, float eps) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kStackBlocks; i += 32) sum += squares[i + threadIdx.x % 32];
  return rsqrtf(fmaf(over_lanes(sum), 1.0f / static_cast<float>(count), eps));
}
// One of them each, by the first kStackBlocks threads.
__device__ inline void gather_squares(const Message* from, int layer, float (&to)[kStackBlocks]) {
  if (threadIdx.x >= kStackBlocks) return;
  Message square[1][1];
  receive(
      square, layer, [&](int) { return from + threadIdx.x; }, [](int) { return true; });
  to[threadIdx.x] = __uint_as_float(bits_of(square[0][0]));
}

#endif

}  // namespace krait::cuda
