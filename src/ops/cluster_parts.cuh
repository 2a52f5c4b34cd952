// What kernels that take one token through all layers of a small model have in common (sm_90a). One cluster of 16
// multiprocessors has all layers: what its blocks tell each other they send straight into each other's shared memory,
// where barriers count it, in a third of the time that messages through global memory take (stack_parts.cuh). A block
// keeps its channels, and its rows of the stream, through all layers; a warp of its own has the copy engine bring the
// block's weights, layers ahead, into a ring in shared memory. As 16 multiprocessors take in 1.2 TB/s, two more clusters
// multiply in_proj's half for the gate, which is needed late: x goes to them, and z back, in messages.
//
// What is sent in a layer overwrites what was sent in the one before. That goes round: a block sends x behind y of all
// blocks, and these send y behind all that they read before it, z's messages among it.
#pragma once
#include "krait/ops/stack_parts.cuh"
#include "krait/ops/step_parts.cuh"
#include "krait/ops/step_stack.h"

namespace krait::cuda {

// Warps that compute: kClusterSets of them take strips of 16 rows in turn, in kClusterShares of the columns.
constexpr int kClusterBlocks = 16, kClusters = 3, kClusterShares = 4, kClusterSets = 3,
              kClusterWarps = kClusterShares * kClusterSets, kClusterThreads = 32 * kClusterWarps;

template <int D_>
struct ClusterWidths {
  static constexpr int D = D_, E = 2 * D;
  static constexpr int kChannels = E / kClusterBlocks, kRows = D / kClusterBlocks,
                       kStrips = kChannels / 16;
  static constexpr int kPairs = D / kClusterShares / 64;  // of 64 columns of a warp's share of x
  static constexpr int kStripBytes = 16 * D * 2;          // 16 rows of in_proj or eight of out_proj
  // Rows of z of a block of the other clusters, a strip for each set of its warps.
  static constexpr int kZRows = E / (kClusterBlocks * (kClusters - 1));
  static_assert(kRows == 16 * kClusterSets && kStrips % kClusterSets == 0 &&
                kZRows == 16 * kClusterSets && D % (64 * kClusterShares) == 0);
  // Messages, one behind the other.
  static constexpr int kX = D / 2, kZ = E;
  static_assert(D == kClusterWidth && kX + kZ == kClusterMessages);
};

// The ring's slots, numbered through all layers.
template <int kBytes_, int kSlots_>
struct ClusterSlots {
  static constexpr int kBytes = kBytes_, kSlots = kSlots_;
  struct Barriers {
    uint64_t full[kSlots], empty[kSlots];
  };
};

// Counts what the cluster's blocks send into this one's shared memory, so many bytes a layer.
template <int kBytes_>
struct ClusterInbox {
  static constexpr int kBytes = kBytes_;
  uint64_t barrier;
};

// What blocks send of the stream: times the next norm's weight in bfloat16, and a block's sum of squares.
template <class Z>
struct ClusterX {
  __nv_bfloat16 x[Z::D];
  float squares[kClusterBlocks];
  unsigned own[Z::kRows / 2];
  ClusterInbox<Z::D * 2> of_x;
  ClusterInbox<kClusterBlocks * 4> of_squares;
};

// Of a block of the clusters that multiply for the gate.
template <class Z>
struct ClusterGateShared {
  using Slots = ClusterSlots<Z::kStripBytes, 8>;
  unsigned char slots[Slots::kSlots * Slots::kBytes];
  unsigned x[Z::D / 2];
  float sums[kClusterShares][Z::kZRows];
  typename Slots::Barriers ring;
};

// A kernel, and the shared memory that its blocks take, those for the gate among them.
template <class Z, class Shared, auto kKernel_>
struct ClusterKernelOf {
  static constexpr auto kKernel = kKernel_;
  static constexpr int kBytes =
      static_cast<int>(std::max(sizeof(Shared), sizeof(ClusterGateShared<Z>)));
  static_assert(kBytes <= kMostShared);
};

// A room's kernels of kClusterWidth are its Kernel<S>, each a ClusterKernelOf, S the type of the states. use(a Kernel);
// false for other widths.
template <template <class> class Kernel, class Use>
bool with_cluster_kernel(int64_t D, bool state_bf16, const Use& use) {
  return D == kClusterWidth && (state_bf16 ? use(Kernel<__nv_bfloat16>()) : use(Kernel<float>()));
}

// Whether there is one, and room for its clusters at once on the calling thread's device.
template <template <class> class Kernel>
bool has_cluster(int64_t D, bool state_bf16) {
  return with_cluster_kernel<Kernel>(D, state_bf16, []<class K>(K) {
    cudaLaunchAttribute together{};
    together.id = cudaLaunchAttributeClusterDimension;
    together.val.clusterDim = {kClusterBlocks, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(kClusterBlocks * kClusters), config.blockDim = dim3(kClusterThreads + 32);
    config.dynamicSmemBytes = size_t{K::kBytes};
    config.attrs = &together, config.numAttrs = 1;
    int clusters = 0;
    return on_hopper() &&
           cudaFuncSetAttribute(K::kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                K::kBytes) == cudaSuccess &&
           cudaFuncSetAttribute(K::kKernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) ==
               cudaSuccess &&
           cudaOccupancyMaxActiveClusters(&clusters, K::kKernel, &config) == cudaSuccess &&
           clusters >= kClusters;
  });
}
// Where has_cluster has said so. As of launch_stack.
template <template <class> class Kernel, class Call>
void launch_cluster(const char* name, const Call& p, void* stream) {
  clear_messages(p.messages, kClusterMessages, stream);
  with_cluster_kernel<Kernel>(p.D, p.state_bf16, [&]<class K>(K) {
    launch_dependent(name, K::kKernel, dim3(kClusterBlocks * kClusters), dim3(kClusterThreads + 32),
                     size_t{K::kBytes}, unsigned{kClusterBlocks}, stream, p);
    return true;
  });
}

#if KRAIT_HOPPER

__device__ inline void meet_in_block() {
  asm volatile("bar.sync 1, %0;" ::"n"(kClusterThreads) : "memory");
}

template <class Slots>
struct ClusterRing {
  static constexpr int kBytes = Slots::kBytes, kSlots = Slots::kSlots;
  static constexpr int kAsked = 3;  // slots on their way at most
  typename Slots::Barriers& barriers;
  unsigned char* slots;

  __device__ void start() const {  // one thread
    for (int i = 0; i < kSlots; ++i) {
      start_barrier(barriers.full + i, 1);
      start_barrier(barriers.empty + i, kClusterWarps);
    }
  }
  // The warp that fills it: waits for room, and until few enough slots are on their way, then copy(to, barrier) in each lane
  // brings so many bytes into slot n. What is asked for beyond what keeps memory busy stands in the way of messages.
  template <class Copy>
  __device__ void fill(int n, unsigned bytes, const Copy& copy) const {
    const int slot = n % kSlots;
    wait_for_phase(barriers.empty + slot, n / kSlots % 2 ^ 1);
    if (n >= kAsked)
      wait_for_phase(barriers.full + (n - kAsked) % kSlots, (n - kAsked) / kSlots % 2);
    if (threadIdx.x % 32 == 0) arrive_expecting(barriers.full + slot, bytes);
    __syncwarp();
    copy(slots + slot * kBytes, barriers.full + slot);
  }
  // The same of one run of weights. They are read once a token: states are to stay in the second-level cache, not these.
  __device__ void fill_run(int n, const void* from, unsigned bytes) const {
    fill(n, bytes, [&](unsigned char* to, uint64_t* full) {
      if (threadIdx.x % 32 == 0) copy_run(to, from, bytes, full, given_up_first());
    });
  }
  // Those that compute.
  __device__ const unsigned char* await(int n) const {
    wait_for_phase(barriers.full + n % kSlots, n / kSlots % 2);
    return slots + n % kSlots * kBytes;
  }
  // One of kReaders warps has read slot n: what it read must have been used, or a load may be on its way still and find
  // what the copy engine brings next.
  template <int kReaders>
  __device__ void leave(int n) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0)
      asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0], %1;\n}" ::"r"(
                       shared_address(barriers.empty + n % kSlots)),
                   "n"(kClusterWarps / kReaders)
                   : "memory");
  }
};

template <int kBytes>
__device__ inline void open_inbox(ClusterInbox<kBytes>& inbox) {  // one thread
  start_barrier(&inbox.barrier, 1);
  fence_barriers();
  arrive_expecting(&inbox.barrier, kBytes);
}
// Until layer l's is there; thread 0, which waits too, has the next layer's counted.
template <int kBytes>
__device__ inline void await_inbox(ClusterInbox<kBytes>& inbox, int l) {
  wait_for_phase(&inbox.barrier, l % 2);
  if (threadIdx.x == 0) arrive_expecting(&inbox.barrier, kBytes);
}

// A lane's 16-byte runs of 64 columns. Lanes of odd rows begin in the other half, so that rows 128 bytes apart fall into
// different banks; x lies the same way, in columns of a product's tile that are the odd rows' own.
__device__ inline int run_of_lane(int second) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return lane % 4 + ((lane / 4 + second) % 2) * 4;
}

template <int kPairs>
__device__ inline void load_vector(uint4 (&v)[kPairs][2], const __nv_bfloat16* x) {
#pragma unroll
  for (int i = 0; i < kPairs; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j)
      v[i][j] = reinterpret_cast<const uint4*>(x + 64 * i)[run_of_lane(j)];
}

// sums += of 16 rows and x, over 64 kPairs columns: the lane's rows begin at `top` and, eight further, at `bottom`.
template <int kPairs>
__device__ inline void multiply_strip(float (&sums)[2][4], const unsigned char* top,
                                      const unsigned char* bottom, const uint4 (&x)[kPairs][2]) {
  uint4 a[kPairs][2], b[kPairs][2];
#pragma unroll
  for (int i = 0; i < kPairs; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      a[i][j] = reinterpret_cast<const uint4*>(top + 128 * i)[run_of_lane(j)];
      b[i][j] = reinterpret_cast<const uint4*>(bottom + 128 * i)[run_of_lane(j)];
    }
#pragma unroll
  for (int i = 0; i < kPairs; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const uint4 v = x[i][j];
      multiply_tile(sums[0], a[i][j].x, b[i][j].x, a[i][j].y, b[i][j].y, v.x, v.y);
      multiply_tile(sums[1], a[i][j].z, b[i][j].z, a[i][j].w, b[i][j].w, v.z, v.w);
    }
}
__device__ inline void store_sums(const float (&sums)[2][4], float* to) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4;
  if (lane % 4) return;
  to[g] = g % 2 ? sums[0][1] + sums[1][1] : sums[0][0] + sums[1][0];
  to[g + 8] = g % 2 ? sums[0][3] + sums[1][3] : sums[0][2] + sums[1][2];
}
template <int kSums>
__device__ inline float over_shares(const float (&sums)[kClusterShares][kSums], int row) {
  static_assert(kClusterShares == 4);
  return (sums[0][row] + sums[1][row]) + (sums[2][row] + sums[3][row]);
}

// A warp's strip of in_proj, in slot n.
template <class Z, class Ring>
__device__ inline void multiply_in(const Ring& ring, int n, int share,
                                   const uint4 (&x)[Z::kPairs][2], float* to) {
  constexpr int kRowBytes = 2 * Z::D;
  const int g = static_cast<int>(threadIdx.x) % 32 / 4;
  const unsigned char* const top =
      ring.await(n) + g * kRowBytes + share * (kRowBytes / kClusterShares);
  float sums[2][4] = {};
  multiply_strip(sums, top, top + 8 * kRowBytes, x);
  store_sums(sums, to);
  ring.template leave<kClusterShares>(n);
}
// Of out_proj, in slots n and n + 1.
template <class Z, class Ring>
__device__ inline void multiply_out(const Ring& ring, int n, int share, const __nv_bfloat16* y,
                                    float* to) {
  constexpr int kRowBytes = 2 * Z::E;
  const int at =
      static_cast<int>(threadIdx.x) % 32 / 4 * kRowBytes + share * (kRowBytes / kClusterShares);
  const unsigned char *const top = ring.await(n) + at, *const bottom = ring.await(n + 1) + at;
  float sums[2][4] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint4 v[Z::kPairs][2];
    load_vector(v, y + share * (Z::E / kClusterShares) + half * 64 * Z::kPairs);
    multiply_strip(sums, top + half * 128 * Z::kPairs, bottom + half * 128 * Z::kPairs, v);
  }
  store_sums(sums, to);
  ring.template leave<kClusterShares>(n);
  ring.template leave<kClusterShares>(n + 1);
}

// 1 / sqrt(mean of what kSquares sum up to + eps).
template <int kSquares>
__device__ inline float norm_of_squares(const float (&squares)[kSquares], int count, float eps) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kSquares / 4; ++i) {
    const float4 v = reinterpret_cast<const float4*>(squares)[i];
    sum += (v.x + v.y) + (v.z + v.w);
  }
  return rsqrtf(fmaf(sum, 1.0f / static_cast<float>(count), eps));
}

// A block's rows of the stream, two in each lane of warp 0.
template <class Z>
struct ClusterRows {
  Message* of_x;
  int rank = static_cast<int>(rank_in_cluster()), lane = static_cast<int>(threadIdx.x) % 32,
      row = rank * Z::kRows + 2 * lane;
  bool mine = threadIdx.x < Z::kRows / 2;
  float2 value{}, scale{};

  __device__ void read(const float* stream) {
    if (mine) value = __ldcg(reinterpret_cast<const float2*>(stream + row));
  }
  __device__ void ask_for_scale(const float* norm) {
    if (mine) scale = __ldg(reinterpret_cast<const float2*>(norm + row));
  }
  // += scale of what out_proj's shares sum up to.
  template <int kSums>
  __device__ void add(const float (&sums)[kClusterShares][kSums], float by) {
    if (!mine) return;
    value.x = fmaf(over_shares(sums, 2 * lane), by, value.x);
    value.y = fmaf(over_shares(sums, 2 * lane + 1), by, value.y);
  }
  __device__ void send_x(ClusterX<Z>& s, int layer) const {
    const unsigned own = two_bf16(value.x * scale.x, value.y * scale.y);
    if (mine) s.own[lane] = own;
    __syncwarp();
    constexpr int kRuns = Z::kRows / 8;
    static_assert(kRuns * kClusterBlocks % 32 == 0);
#pragma unroll
    for (int i = lane; i < kRuns * kClusterBlocks; i += 32) {
      const int run = i % kRuns;
      send_to_block(reinterpret_cast<uint4*>(s.x + rank * Z::kRows) + run,
                    reinterpret_cast<const uint4*>(s.own)[run], &s.of_x.barrier, i / kRuns);
    }
    if (mine) send(of_x + row / 2, own, layer);
    const float square = over_lanes(fmaf(value.x, value.x, value.y * value.y));
    if (lane < kClusterBlocks) send_to_block(s.squares + rank, square, &s.of_squares.barrier, lane);
  }
  __device__ void write(float* stream) const {
    if (mine) *reinterpret_cast<float2*>(stream + row) = value;
  }
};

__device__ inline unsigned receive_one(const Message* from, int layer) {
  Message m[1][1];
  receive(
      m, layer, [&](int) { return from; }, [](int) { return true; });
  return bits_of(m[0][0]);
}

// A block of the other clusters: in_proj(l) is that of layer l.
template <class Z, class InProj>
__device__ void multiply_gate(unsigned char* memory, int layers, Message* of_x,
                              const InProj& in_proj) {
  auto& s = *reinterpret_cast<ClusterGateShared<Z>*>(memory);
  const ClusterRing<typename ClusterGateShared<Z>::Slots> ring{s.ring, s.slots};
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32,
            share = warp % kClusterShares, set = warp / kClusterShares,
            row = (static_cast<int>(blockIdx.x) - kClusterBlocks) * Z::kZRows;
  if (thread == 0) ring.start(), fence_barriers();
  __syncthreads();
  if (warp == kClusterWarps) {
    for (int l = 0; l < layers; ++l)
      for (int i = 0; i < kClusterSets; ++i)
        ring.fill_run(l * kClusterSets + i, in_proj(l) + int64_t{row + 16 * i} * Z::D,
                      Z::kStripBytes);
    return;
  }
  static_assert(Z::D / 2 == kClusterThreads);
  wait_for_previous();
  for (int l = 0; l < layers; ++l) {
    s.x[thread] = receive_one(of_x + thread, l + 1);
    meet_in_block();
    uint4 x[Z::kPairs][2];
    load_vector(x, reinterpret_cast<const __nv_bfloat16*>(s.x) + share * (Z::D / kClusterShares));
    multiply_in<Z>(ring, l * kClusterSets + set, share, x, s.sums[share] + 16 * set);
    meet_in_block();
    if (thread < Z::kZRows)
      send(of_x + Z::kX + row + thread, __float_as_uint(over_shares(s.sums, thread)), l + 1);
  }
}

#endif

}  // namespace krait::cuda
