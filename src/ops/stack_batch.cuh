// The same as stack_parts.cuh for up to sixteen sequences (sm_90a). What is different:
//  - x and y of so many do not fit beside the ring. Two blocks are a cluster and share out K: each has half of x and of y,
//    and multiplies it by all rows of a matrix that the two of them need; sums for the other one's rows go into its shared
//    memory.
//  - A warp multiplies by a few slots, not by its columns of all.
//  - Messages are 16 bytes and all data: a word of them is kNothing, a NaN that no instruction makes, until it has come. They
//    lie in the device's own memory: in the host's, some did not come.
//    Layers take turns with two sets of them. A block takes back what it sent when it has got what all blocks have sent
//    since they read that, and another layer passes before that set is read again.
#pragma once
#include "krait/ops/stack_parts.cuh"
#include "krait/tensor/cuda/cluster.cuh"

namespace krait::cuda {

constexpr int kStackMates = 2;  // blocks of a cluster

// Of kSeqs sequences at the most.
template <int D_, int kSeqs_>
struct BatchSizes {
  static constexpr int D = D_, E = 2 * D, kSeqs = kSeqs_;
  static constexpr int kChannels = E / kStackBlocks, kRows = D / kStackBlocks;
  // A slot has so many columns of so many rows, and bytes between rows as in StackSlots. A warp multiplies by a part of the
  // columns of a group of rows: of two slots.
  static constexpr int kPiece = 1024, kSlotRows = 8, kStep = 2 * kPiece + 64,
                       kSlotBytes = kSlotRows * kStep, kPart = 512, kPieceParts = kPiece / kPart,
                       kGroup = 2 * kSlotRows;
  // Of x and y: a block's columns, and bytes between rows.
  static constexpr int kXColumns = D / kStackMates, kYColumns = E / kStackMates,
                       kXStep = 2 * kXColumns + 64, kYStep = 2 * kYColumns + 64;
  static constexpr int kXParts = kXColumns / kPart, kYParts = kYColumns / kPart;
  static constexpr int kPasses = (kSeqs + kStackWarps - 1) / kStackWarps;  // sequences of a warp
  // A message of squares is of four sequences. So many warps read half of all blocks'.
  static constexpr int kFours = kSeqs / 4, kSquareWarps = kStackBlocks / kStackMates * kFours / 32;
  // Words of messages.
  static constexpr int kX = kSeqs * D / 2, kSquares = kStackBlocks * kSeqs, kY = kSeqs * E / 2;
  static_assert(kXColumns == kPiece && kChannels == 32 && kRows == kGroup && kSeqs % 4 == 0 &&
                kRows * kSeqs <= kStackThreads);
};

// Sums of squares of a cluster's sequences: of each warp that reads some of its half of all blocks'.
template <class Z>
using BatchSquares = float[kStackMates * Z::kSquareWarps][Z::kSeqs];

// As many slots as there is room for beside Shared, which lies behind them, and a BatchRing's barriers behind that.
template <class Z, class Shared>
struct BatchLayout {
  static constexpr int kOfSlot = Z::kSlotBytes + 2 * static_cast<int>(sizeof(uint64_t)),
                       kShared = static_cast<int>(sizeof(Shared)) + 16,
                       kSlots = (kMostShared - kShared) / kOfSlot;
  static constexpr int kBytes = kSlots * kOfSlot + kShared;
};

// A room's kernels are those of its Kernel<kSeqs, S>: for the fewest sequences that are enough.
template <template <int, class> class Kernel, class Use>
auto with_batch_kernel(int64_t B, bool state_bf16, const Use& use) {
  const auto of = [&]<int kSeqs>(std::integral_constant<int, kSeqs>) {
    return state_bf16 ? use(Kernel<kSeqs, __nv_bfloat16>()) : use(Kernel<kSeqs, float>());
  };
  if (B <= 4) return of(std::integral_constant<int, 4>());
  if (B <= 8) return of(std::integral_constant<int, 8>());
  return of(std::integral_constant<int, 16>());
}

template <class K>
cudaLaunchConfig_t batch_launch(cudaLaunchAttribute (&attributes)[2], void* stream) {
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {kStackMates, 1, 1};
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kStackBlocks);
  config.blockDim = dim3(kStackThreads + 32);
  config.dynamicSmemBytes = K::Layout::kBytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = 2;
  return config;
}

// Words of both sets of messages; 0 where the calling thread's device cannot have all of its blocks at once.
template <template <int, class> class Kernel>
int64_t batch_words(int64_t B, bool state_bf16) {
  return with_batch_kernel<Kernel>(B, state_bf16, []<class K>(K) {
    cudaLaunchAttribute attributes[2];
    const cudaLaunchConfig_t config = batch_launch<K>(attributes, nullptr);
    int clusters = 0;
    const bool here =
        on_hopper() &&
        cudaFuncSetAttribute(K::kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             K::Layout::kBytes) == cudaSuccess &&
        cudaOccupancyMaxActiveClusters(&clusters, K::kKernel, &config) == cudaSuccess &&
        clusters * kStackMates >= kStackBlocks;
    return here ? int64_t{2} * K::kMessages : int64_t{0};
  });
}

// Where batch_words has said so.
template <template <int, class> class Kernel, class Call>
void launch_batch(const char* name, const Call& p, void* stream) {
  with_batch_kernel<Kernel>(p.B, p.state_bf16, [&]<class K>(K) {
    cudaMemsetAsync(p.messages, 0xff, size_t{2} * K::kMessages * sizeof(unsigned),
                    static_cast<cudaStream_t>(stream));
    cudaLaunchAttribute attributes[2];
    const cudaLaunchConfig_t config = batch_launch<K>(attributes, stream);
    return cudaLaunchKernelEx(&config, K::kKernel, p) == cudaSuccess;
  });
  check_launch(name);
}

#if KRAIT_HOPPER

constexpr unsigned kNothing = ~0u;

__device__ inline void send(unsigned* to, unsigned bits) {
  asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(to), "r"(bits) : "memory");
}
__device__ inline void take_back(unsigned* four) {
  asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %1, %1, %1};" ::"l"(four), "r"(kNothing)
               : "memory");
}
__device__ inline bool has_come(const uint4& m) {
  return m.x != kNothing && m.y != kNothing && m.z != kNothing && m.w != kNothing;
}
__device__ inline float4 floats_of(const uint4& m) {
  return {__uint_as_float(m.x), __uint_as_float(m.y), __uint_as_float(m.z), __uint_as_float(m.w)};
}

// Those at `at(i)`, i < kCount where `wanted(i)`. Where they do not come in some seconds, the kernel ends in an error.
template <int kCount, class At, class Wanted>
__device__ inline void receive(uint4 (&m)[kCount], const At& at, const Wanted& wanted) {
  constexpr int kMostTries = 1 << 22;
#pragma unroll
  for (int i = 0; i < kCount; ++i) m[i] = {kNothing, kNothing, kNothing, kNothing};
  for (int tries = 0;; ++tries) {
    bool all = true;
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      if (wanted(i) && !has_come(m[i]))
        asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(m[i].x), "=r"(m[i].y), "=r"(m[i].z), "=r"(m[i].w)
                     : "l"(at(i))
                     : "memory");
#pragma unroll
    for (int i = 0; i < kCount; ++i) all = all && (!wanted(i) || has_come(m[i]));
    if (all) return;
    if (tries == kMostTries)
      __assert_fail("another block's message has come", __FILE__, __LINE__, "receive");
  }
}

// Over lanes that are kFirst, or a multiple, apart.
template <int kFirst>
__device__ inline void add_lanes(float4& v) {
#pragma unroll
  for (int i = kFirst; i < 32; i *= 2)
    v.x += __shfl_xor_sync(~0u, v.x, i), v.y += __shfl_xor_sync(~0u, v.y, i),
        v.z += __shfl_xor_sync(~0u, v.z, i), v.w += __shfl_xor_sync(~0u, v.w, i);
}

// Slots are called by how many came before, from the first layer on. A barrier tells only one lap from the next: a warp
// that has a slot of its own, and none of the lap before, must know that the lap has begun, by `issued`.
template <class Z, int kSlots>
struct BatchRing {
  // Slots on their way at most: what is asked for beyond them stands in the way of messages.
  static constexpr unsigned kAsked = Z::kSeqs > 8 ? 2 : 3;
  static_assert(kAsked < kSlots);
  unsigned char* slots;
  uint64_t *full, *empty;
  volatile unsigned* issued;

  __device__ BatchRing(unsigned char* of_slots, void* barriers)
      : slots(of_slots),
        full(static_cast<uint64_t*>(barriers)),
        empty(full + kSlots),
        issued(reinterpret_cast<unsigned*>(empty + kSlots)) {}
  __device__ void start() const {  // one thread, before a barrier of the cluster
    for (int i = 0; i < kSlots; ++i)
      start_barrier(full + i, 1), start_barrier(empty + i, kStackWarps);
    *issued = 0;
  }
  __device__ unsigned char* at(unsigned n) const { return slots + n % kSlots * Z::kSlotBytes; }

  // As StackRing::fill.
  template <class Copy>
  __device__ void fill(unsigned n, unsigned bytes, const Copy& copy) const {
    uint64_t* const there = full + n % kSlots;
    wait_for_phase(empty + n % kSlots, (n / kSlots & 1) ^ 1);
    if (threadIdx.x % 32 == 0) *issued = n + 1;
    if (n >= kAsked) wait_for_phase(full + (n - kAsked) % kSlots, (n - kAsked) / kSlots & 1);
    if (threadIdx.x % 32 == 0) arrive_expecting(there, bytes);
    __syncwarp();
    copy(at(n), there);
  }
  __device__ unsigned char* await(unsigned n) const {
    while (*issued <= n) continue;
    wait_for_phase(full + n % kSlots, n / kSlots & 1);
    return at(n);
  }
  // A warp has read it, and counts for so many: see StackRing::leave.
  __device__ void leave(unsigned n, unsigned count) const {
    fence_for_copies();
    __syncwarp();
    if (threadIdx.x % 32 == 0)
      asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0], %1;\n}" ::"r"(
                       shared_address(empty + n % kSlots)),
                   "r"(count)
                   : "memory");
  }
};

// c[tile]: in two shares, of the sequences in x, kXStep bytes each, times eight rows of a slot: a part of the columns.
template <class Z, int kXStep, int kTiles>
__device__ inline void multiply_part(const unsigned char* x,
                                     const unsigned char* const (&slots)[kTiles],
                                     float (&c)[2][2][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const unsigned char* const of_x = x + g * kXStep + 16 * t;
#pragma unroll 4
  for (int i = 0; i < Z::kPart / kChunk; ++i) {
    uint4 low{}, high{};
    if (Z::kSeqs >= 8 || g < Z::kSeqs) low = *reinterpret_cast<const uint4*>(of_x + 64 * i);
    if constexpr (Z::kSeqs > 8) high = *reinterpret_cast<const uint4*>(of_x + 8 * kXStep + 64 * i);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint4 w = *reinterpret_cast<const uint4*>(slots[tile] + g * Z::kStep + 16 * t + 64 * i);
      multiply_tile(c[tile][0], low.x, high.x, low.y, high.y, w.x, w.y);
      multiply_tile(c[tile][1], low.z, high.z, low.w, high.w, w.z, w.w);
    }
  }
}

// The same with both slots of a group, which are `n` and the next, from part `first` of x's columns on.
template <class Z, int kXStep, int kParts, class Ring>
__device__ inline void multiply_group(const Ring& ring, unsigned n, const unsigned char* x,
                                      int first, float (&c)[2][2][4]) {
  const unsigned char *const low = ring.await(n), *const high = ring.await(n + 1);
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    const int part = first + i, at = part % Z::kPieceParts * Z::kPart * 2;
    const unsigned char* const slots[2] = {low + at, high + at};
    multiply_part<Z, kXStep>(x + part * Z::kPart * 2, slots, c);
  }
  constexpr unsigned kCount = kStackWarps * kParts / Z::kPieceParts;  // of a slot's readers
  ring.leave(n, kCount), ring.leave(n + 1, kCount);
}

// The sums go to sums[sequence][row], kStep floats a sequence, of the cluster's block `rank`.
template <class Z, int kStep>
__device__ inline void send_sums(float* sums, const float (&c)[2][2][4], uint64_t* barrier,
                                 unsigned rank) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int tile = 0; tile < 2; ++tile)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (g + 8 * half < Z::kSeqs)
        send_to_block(reinterpret_cast<float2*>(sums + (g + 8 * half) * kStep + tile * 8 + 2 * t),
                      float2{c[tile][0][2 * half] + c[tile][1][2 * half],
                             c[tile][0][2 * half + 1] + c[tile][1][2 * half + 1]},
                      barrier, rank);
}

// A thread's message of squares, of the kStackThreads / 32 warps' first Z::kSquareWarps.
template <class Z>
__device__ inline const unsigned* squares_at(const unsigned* squares) {
  const int thread = static_cast<int>(threadIdx.x), half = static_cast<int>(rank_in_cluster());
  return squares + (half * (kStackBlocks / kStackMates) + thread / Z::kFours) * Z::kSeqs +
         thread % Z::kFours * 4;
}
// Their sums go to both blocks.
template <class Z>
__device__ inline void send_squares(const uint4& message, BatchSquares<Z>& squares,
                                    uint64_t* barrier) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  if (warp >= Z::kSquareWarps) return;
  float4 sum = floats_of(message);
  add_lanes<Z::kFours>(sum);
  if (lane < Z::kFours)
    for (unsigned to = 0; to < kStackMates; ++to)
      send_to_block(reinterpret_cast<float4*>(&squares[rank_in_cluster() * Z::kSquareWarps +
                                                       static_cast<unsigned>(warp)][4 * lane]),
                    sum, barrier, to);
}
// 1 / sqrt(mean + eps) of a sequence, in each lane of a warp.
template <class Z>
__device__ inline float norm_factor_of(const BatchSquares<Z>& squares, int seq, int count,
                                       float eps) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float sum = over_lanes(lane < kStackMates * Z::kSquareWarps ? squares[lane][seq] : 0.0f);
  return rsqrtf(fmaf(sum, 1.0f / static_cast<float>(count), eps));
}

// A block's rows of the stream (B, D): a thread has one of a sequence.
template <class Z>
struct BatchStream {
  int B, row = static_cast<int>(threadIdx.x) % Z::kRows,
         seq = static_cast<int>(threadIdx.x) / Z::kRows,
         at = static_cast<int>(blockIdx.x) * Z::kRows + row;
  float value = 0, scale = 0;

  __device__ explicit BatchStream(int of_sequences) : B(of_sequences) {}
  __device__ void read(const float* stream) {
    if (seq < B) value = __ldcg(stream + seq * Z::D + at);
  }
  __device__ void ask_for_scale(const float* norm) { scale = __ldg(norm + at); }
  // x (kSeqs, D) and each block's squares (kSeqs).
  __device__ void send_x(unsigned* x, unsigned* squares) const {
    const float v = value * scale, next = __shfl_down_sync(~0u, v, 1);
    float square = value * value;
#pragma unroll
    for (int i = Z::kRows / 2; i > 0; i /= 2) square += __shfl_xor_sync(~0u, square, i);
    if (seq >= Z::kSeqs) return;
    if (row % 2 == 0) send(x + (seq * Z::D + at) / 2, two_bf16(v, next));
    if (row == 0) send(squares + blockIdx.x * Z::kSeqs + seq, __float_as_uint(square));
  }
  __device__ static void take_x_back(unsigned* x, unsigned* squares) {
    const int thread = static_cast<int>(threadIdx.x), block = static_cast<int>(blockIdx.x);
    constexpr int kEach = Z::kRows / 8;
    if (thread < Z::kSeqs * kEach)
      take_back(x + (thread / kEach * Z::D + block * Z::kRows) / 2 + thread % kEach * 4);
    if (thread < Z::kFours) take_back(squares + block * Z::kSeqs + 4 * thread);
  }
  __device__ void write(float* stream) const {
    if (seq < B) stream[seq * Z::D + at] = value;
  }
};

// A block's half of the rows of x (kSeqs, kColumns times kStackMates), into shared memory when all of its threads are
// done with what was there; and with x a thread's message of squares.
template <class Z, int kColumns, bool kSquares>
__device__ inline uint4 gather_rows(const unsigned* from, const unsigned* squares,
                                    unsigned char* to) {
  constexpr int kOfRow = kColumns / 8, kAtOnce = kStackThreads / kOfRow, kRuns = Z::kSeqs / kAtOnce;
  static_assert(kStackThreads % kOfRow == 0 && Z::kSeqs % kAtOnce == 0);
  const int thread = static_cast<int>(threadIdx.x), half = static_cast<int>(rank_in_cluster()),
            row = thread / kOfRow, run = thread % kOfRow;
  const unsigned* const mine = from + (row * kStackMates + half) * (kColumns / 2) + run * 4;
  const unsigned* const of_squares = kSquares ? squares_at<Z>(squares) : nullptr;
  uint4 m[kRuns + kSquares];
  receive(
      m,
      [&](int i) {
        return i == kRuns ? of_squares : mine + i * (kAtOnce * kStackMates * kColumns / 2);
      },
      [&](int i) { return i < kRuns || thread < 32 * Z::kSquareWarps; });
  meet();
  unsigned char* const to_mine = to + row * (2 * kColumns + 64) + run * 16;
#pragma unroll
  for (int i = 0; i < kRuns; ++i)
    *reinterpret_cast<uint4*>(to_mine + i * (kAtOnce * (2 * kColumns + 64))) = m[i];
  meet();
  return m[kRuns + kSquares - 1];
}

#endif

}  // namespace krait::cuda
