// The walk with y, and the first pass over pieces of sequences, on a GPU whose warpgroups take products from shared memory
// (sm_90a), N up to 128. A block takes two slices of 64 channels, mostly heads, of one group, for which B and C come once.
// Each slice has two warpgroups. One has the states as sums of products, and multiplies: C times the state, x times the
// scores, and weighted x times B, which is added to the state. Of the other three warps make the scores, a chunk ahead,
// and one has the copy engine bring the chunks and take y away. C Bᵀ of a group is from a kernel before. Transposed
// throughout: rows are channels, columns tokens or states.
//
// A walk in pieces begins with the first pass over its piece, whose end it leaves to the blocks behind it; where those
// before it have left theirs, it adds up the state that its piece begins with. These blocks have lower numbers, so that
// they run or have run.
//
// Where backward is to find the states, the copy engine takes them away from where y is then put.
#include "krait/ops/ssd/cuda_matrix_walk.cuh"
#include "krait/ops/ssd/cuda_warpgroup.cuh"
#include "krait/tensor/cuda/tensor_map.h"

namespace krait::ops::ssd_gpu {

namespace {

constexpr int kSlices = 2, kBlock = 2 * kSlices * kSliceThreads;
constexpr int kWarps = kSliceThreads / 32, kScoring = kWarps - 1;  // of a warpgroup
constexpr int kRowStep = 32 * kScoring / 8;  // a thread has 16 bytes of every so many rows

// Shared memory: stages of x of the slices and B, and with y C and C Bᵀ; for each slice with y the scores, twice, and y on
// its way out; the steps, twice.
template <int NT, bool kY>
struct Room {
  static constexpr int kStages = kY ? 3 : 6, kPairs = kY ? kPairsSize * 4 : 0;
  static constexpr int kRows = (kSlices + NT) * kTileBytes;  // of a stage: x and B
  static constexpr int kStage = kRows + (kY ? NT * kTileBytes + kPairs : 0);
  static constexpr int kOfPart = kY ? 3 * kTileBytes : 0;
  static constexpr int kBarriers = 2 * kStages + 8 * kSlices;
  static constexpr size_t kSize = kStages * kStage + kSlices * (kOfPart + 2 * sizeof(ChunkSteps)) +
                                  kBarriers * sizeof(uint64_t);
  unsigned char *stages, *all_scores, *out;
  ChunkSteps* steps;
  // A stage has come; both slices have multiplied it. Of a slice, in turns but the last two: a chunk's steps, its scores,
  // it is done; a tile of its state is there to leave; what was there to leave, tiles and then y, has left.
  uint64_t *arrived, *freed, *ready, *scores_ready, *done, *leaves, *left;
  int part;

  __device__ Room(unsigned char* memory, int of_part) {
    part = of_part;
    stages = memory;
    unsigned char* const parts = stages + kStages * kStage;
    all_scores = parts + part * kOfPart;
    out = all_scores + 2 * kTileBytes;
    auto* const all_steps = reinterpret_cast<ChunkSteps*>(parts + kSlices * kOfPart);
    steps = all_steps + 2 * part;
    arrived = reinterpret_cast<uint64_t*>(all_steps + 2 * kSlices);
    freed = arrived + kStages;
    ready = freed + kStages + 8 * part, scores_ready = ready + 2, done = ready + 4;
    leaves = ready + 6, left = ready + 7;
  }
  // That of a slice, as the first's knows it.
  __device__ Room of(int of_part) const { return Room(stages, of_part); }
  __device__ unsigned char* stage(int n) const { return stages + n % kStages * kStage; }
  __device__ unsigned char* x(int n) const { return stage(n) + part * kTileBytes; }
  __device__ unsigned char* B(int n) const { return stage(n) + kSlices * kTileBytes; }
  __device__ unsigned char* C(int n) const { return stage(n) + kRows; }
  __device__ const float4* pairs(int n) const {
    return reinterpret_cast<const float4*>(C(n) + NT * kTileBytes) + lane_of();
  }
  __device__ unsigned char* scores(int n) const { return all_scores + n % 2 * kTileBytes; }

  // Those of a slice.
  __device__ void start_barriers() const {
    for (int i = 0; i < 2; ++i) {
      cuda::start_barrier(ready + i, kScoring * cuda::kArriving);
      cuda::start_barrier(scores_ready + i, kScoring * cuda::kArriving);
      cuda::start_barrier(done + i, kWarps * cuda::kArriving);
    }
    cuda::start_barrier(leaves, kWarps * cuda::kArriving);
    cuda::start_barrier(left, 1);
  }
  __device__ void free(int n) const { cuda::warp_arrives<cuda::kArriving>(freed + n % kStages); }
  __device__ void wait_until_arrived(int n) const {
    cuda::wait_for_phase(arrived + n % kStages, n / kStages % 2);
  }
  __device__ static void wait_for_turn(uint64_t* barriers, int n) {
    cuda::wait_for_phase(barriers + n % 2, n / 2 % 2);
  }
};

// How the copy engine finds heads of x and y, and groups of B and C, of each walk.
struct Maps {
  CUtensorMap x, B, C, y;
};
struct MapsOfWalks {
  Maps walk[2];
};

#if KRAIT_HOPPER

// A chunk's x of this warp's channels, transposed: left operands of products over tokens.
__device__ inline void load_channels(uint32_t (&v)[4][4], const unsigned char* x, int warp) {
  const int lane = lane_of();
#pragma unroll
  for (int k = 0; k < 4; ++k)
    cuda::load_matrices_transposed(
        v[k], x + in_tile(16 * k + lane / 16 * 8 + lane % 8, 2 * warp + lane / 8 % 2));
}

// Begins to add to the state what a chunk leaves.
template <int kTiles>
__device__ inline void begin_to_add(float (&S)[kTiles][4], const uint32_t (&x)[4][4],
                                    const unsigned char* B, const float* weight) {
  const int t2 = lane_of() % 4 * 2;
  uint32_t weighted[4][4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float2 w0 = *reinterpret_cast<const float2*>(weight + 16 * k + t2);
    const float2 w1 = *reinterpret_cast<const float2*>(weight + 16 * k + 8 + t2);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      weighted[k][i] = cuda::pack_bf16(low_bf16(x[k][i]) * (i < 2 ? w0.x : w1.x),
                                       high_bf16(x[k][i]) * (i < 2 ? w0.y : w1.y));
  }
  const uint64_t of_B = kTiles > 8 ? cuda::tiles_at(B, kTileBytes) : cuda::tile_at(B);
  cuda::begin_products();
#pragma unroll
  for (int k = 0; k < 4; ++k)
    cuda::product<true, true>(S, weighted[k], cuda::further(of_B, k * 2048));
  cuda::commit_products();
}

// The decay over a piece, where a walk has left it with its end; the sum of those before it begins the piece.
__device__ inline void leave_decay(float* kept, float decay) {
  asm volatile("st.release.gpu.f32 [%0], %1;" ::"l"(kept), "f"(decay) : "memory");
}
__device__ inline float wait_for_decay(const float* kept) {
  float decay;
  do {
    asm volatile("ld.acquire.gpu.f32 %0, [%1];" : "=f"(decay) : "l"(kept) : "memory");
  } while (decay == kNoDecay);
  return decay;
}

template <int NT, bool kY, bool kLeaves>
__device__ void multiply(const Course& at, const Room<NT, kY>& room, const Turns& turns) {
  const int warp = at.warp, lane = lane_of(), t2 = lane % 4 * 2;
  float S[8 * NT][4] = {};
  float decay = 1;
#pragma unroll 1
  for (int n = 0; n < turns.first_pass; ++n) {
    room.wait_for_turn(room.ready, n);
    room.wait_until_arrived(n);
    __syncwarp();
    const ChunkSteps& now = room.steps[n % 2];
    decay *= now.through;
    uint32_t x[4][4];
    load_channels(x, room.x(n), warp);
    begin_to_add(S, x, room.B(n), now.weight);
    cuda::wait_for_products<0>(S);
    room.free(n);
    cuda::warp_arrives<cuda::kArriving>(room.done + n % 2);
  }
  if (turns.first_pass > 0) at.end_state(true, S);
  if constexpr (!kY) {
    at.end_decay(decay);
  } else {
    if (turns.first_pass > 0) {
      cuda::sync_warpgroup(room.part);
      if (at.t == 0 && at.channels > 0) leave_decay(at.decay(0), decay);
    }
#pragma unroll
    for (auto& sums : S)
#pragma unroll
      for (float& sum : sums) sum = 0;
    at.take_state<false>(at.begin_of_sequence(), 0, S);
    for (int i = static_cast<int>(at.piece.i); i > 0; --i)
      at.add_piece(i, wait_for_decay(at.decay(i)), S);
    float D[2] = {};
    at.skip(D);
    // Of a chunk the tiles of its state and y take the same place, one after the other.
    constexpr int kToLeave = kLeaves ? NT + 1 : 1;
    const auto wait_until_left = [&](int number) {
      if (number > 0) cuda::wait_for_phase(room.left, (number - 1) % 2);
    };
    const auto leave_tile = [&](const uint32_t(&of_S)[4 * NT][4], int tile, int number) {
      wait_until_left(number);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        cuda::store_matrices(room.out + in_tile(16 * warp + lane % 16, 2 * k + lane / 16),
                             of_S[4 * tile + k]);
      cuda::show_to_products();
      cuda::warp_arrives<cuda::kArriving>(room.leaves);
    };
#pragma unroll 1
    for (int n = turns.first_pass; n < turns.all; ++n) {
      room.wait_for_turn(room.ready, n);
      room.wait_until_arrived(n);
      __syncwarp();
      const int m = n - turns.first_pass;
      const ChunkSteps& now = room.steps[n % 2];
      uint32_t of_S[4 * NT][4];
#pragma unroll
      for (int k = 0; k < 4 * NT; ++k) cuda::pack_a(of_S[k], S[2 * k], S[2 * k + 1]);
      float y[8][4];
      const uint64_t C = cuda::tile_at(room.C(n));
      cuda::begin_products();
      cuda::product<false, false>(y, of_S[0], C);
#pragma unroll
      for (int k = 1; k < 4 * NT; ++k)
        cuda::product<true, false>(y, of_S[k], cuda::further(C, k / 4 * kTileBytes + k % 4 * 32));
      cuda::commit_products();
      if constexpr (kLeaves) leave_tile(of_S, 0, kToLeave * m);
      // Read only here, so that no product waits behind what it multiplies.
      const float through = *const_cast<const volatile float*>(&now.through);
#pragma unroll
      for (auto& sums : S)
#pragma unroll
        for (float& sum : sums) sum *= through;
      uint32_t x[4][4];
      cuda::wait_for_products<0>(y);
      if constexpr (kLeaves && NT > 1) leave_tile(of_S, 1, kToLeave * m + 1);
      load_channels(x, room.x(n), warp);
      begin_to_add(S, x, room.B(n), now.weight);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 e = *reinterpret_cast<const float2*>(now.before + 8 * j + t2);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const uint32_t pair = x[j / 2][j % 2 * 2 + r];
          y[j][2 * r] = fmaf(e.x, y[j][2 * r], D[r] * low_bf16(pair));
          y[j][2 * r + 1] = fmaf(e.y, y[j][2 * r + 1], D[r] * high_bf16(pair));
        }
      }
      room.wait_for_turn(room.scores_ready, m);
      __syncwarp();
      const uint64_t scores = cuda::tile_at(room.scores(m));
      cuda::begin_products();
#pragma unroll
      for (int k = 0; k < 4; ++k)
        cuda::product<true, false>(y, x[k], cuda::further(scores, k * 32));
      cuda::commit_products();
      cuda::wait_for_products<0>(y);
      cuda::wait_for_products<0>(S);
      room.free(n);
      wait_until_left(kToLeave * (m + 1) - 1);
#pragma unroll
      for (int j = 0; j < 8; j += 2) {  // rows become tokens
        const uint32_t v[4] = {cuda::pack_bf16(y[j][0], y[j][1]), cuda::pack_bf16(y[j][2], y[j][3]),
                               cuda::pack_bf16(y[j + 1][0], y[j + 1][1]),
                               cuda::pack_bf16(y[j + 1][2], y[j + 1][3])};
        cuda::store_matrices_transposed(
            room.out + in_tile(8 * (j + lane / 16) + lane % 8, 2 * warp + lane / 8 % 2), v);
      }
      cuda::show_to_products();  // and to the copy engine
      cuda::warp_arrives<cuda::kArriving>(room.done + n % 2);
    }
    at.end_state(false, S);
  }
}

// y of a chunk of fewer than 64 tokens, behind which is another sequence.
__device__ inline void leave(const Course& at, int c, const unsigned char* y) {
  const CudaRows& to = at.w.y;
  const int rows = at.valid(c), unit = at.t % 8;
  if (8 * unit >= at.channels) return;
  for (int r = at.t / 8; r < rows; r += kRowStep)
    *reinterpret_cast<uint4*>(static_cast<bf16*>(to.data) + (at.row(c) + r) * to.stride +
                              at.column() + 8 * unit) =
        *reinterpret_cast<const uint4*>(y + in_tile(r, unit));
}

// Zeros behind the tokens of such a chunk.
__device__ inline void clear_rows(const Course& at, int c, unsigned char* tile) {
  for (int r = at.valid(c) + at.t / 8; r < kQ; r += kRowStep)
    *reinterpret_cast<uint4*>(tile + in_tile(r, at.t % 8)) = make_uint4(0, 0, 0, 0);
}

// Steps and scores.
template <int NT, bool kY>
__device__ void prepare(const Course& at, const Room<NT, kY>& room, const Turns& turns) {
  const int t = at.t, warp = at.warp, lane = lane_of(), part = room.part;
  // Of the scores a warp makes every third tile of 16 by 16, the one that has no steps one more.
  const int first_tile = kScoring - 1 - warp;
  const auto make_scores_of = [&](int n, unsigned char* scores) {
    unsigned char* const to = scores + lane % 4 * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int tile = first_tile + kScoring * i, m = row_of_tile(tile), k = column_of_tile(tile);
      if (tile >= kTilesOfPairs) break;
      const float4* const of_t = room.pairs(n) + pair_tile(k, 2 * m) * 32;
      const float4 pairs[2] = {of_t[0], of_t[32]};
      uint32_t of_tile[2][2];
      make_scores(room.steps[n % 2], m, k, pairs, of_tile);
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          *reinterpret_cast<uint32_t*>(to + in_tile(16 * m + 8 * j + lane / 4, 2 * k + half)) =
              of_tile[j][half];
    }
  };

  if (kY)  // scores of later tokens stay zero
    for (int i = t; i < 2 * kTileBytes / 16; i += 32 * kScoring)
      reinterpret_cast<uint4*>(room.all_scores)[i] = make_uint4(0, 0, 0, 0);
  WalkSteps steps(at, room.steps, turns);
#pragma unroll 1
  for (int n = 0; n < turns.all; ++n) {
    const int c = turns.chunk(n), m = n - turns.first_pass;
    if (at.valid(c) < kQ) {
      room.wait_until_arrived(n);
      clear_rows(at, c, room.x(n));
      for (int i = part; i < NT; i += kSlices) clear_rows(at, c, room.B(n) + i * kTileBytes);
      cuda::show_to_products();
      cuda::sync_warps<kSlices * kScoring>(2 * kSlices);
    }
    cuda::sync_warps<kScoring>(kSlices + part);
    cuda::warp_arrives<cuda::kArriving>(room.ready + n % 2);
    if (kY && m >= 0) {
      room.wait_until_arrived(n);
      make_scores_of(n, room.scores(m));
      cuda::show_to_products();
      cuda::warp_arrives<cuda::kArriving>(room.scores_ready + m % 2);
    }
    if (n > 0) room.wait_for_turn(room.done, n - 1);
    steps.take(n + 1);
  }
  if constexpr (kY) {
    const int last = at.chunks - 1;
    if (at.valid(last) == kQ) return;
    room.wait_for_turn(room.done, turns.all - 1);
    leave(at, last, room.out);
  }
}

// The copy engine's thread of a slice, which brings its x, and the first slice's B, the other's C and C Bᵀ, and takes its
// y away. x, B and C are older than the kernel before, C Bᵀ is its.
template <int NT, bool kY, bool kLeaves>
__device__ void move(const Course& at, const Room<NT, kY>& room, const Turns& turns,
                     const Maps& maps) {
  using R = Room<NT, kY>;
  const int part = room.part;
  const auto with_y = [&](int n) { return kY && n >= turns.first_pass; };
  const auto bring_rows = [&](int n) {
    uint64_t* const barrier = room.arrived + n % R::kStages;
    const int row = static_cast<int>(at.row(turns.chunk(n)));
    const bool of_C = part > 0 && with_y(n);
    cuda::arrive_expecting(barrier, kTileBytes + (part == 0 ? NT * kTileBytes
                                                  : of_C    ? NT * kTileBytes + R::kPairs
                                                            : 0));
    cuda::copy_box(room.x(n), maps.x, at.p0, at.h, row, barrier);
    if (part > 0 && !of_C) return;
    const CUtensorMap& map = part > 0 ? maps.C : maps.B;
    unsigned char* const to = part > 0 ? room.C(n) : room.B(n);
#pragma unroll
    for (int i = 0; i < NT; ++i)
      cuda::copy_box(to + i * kTileBytes, map, 64 * i, at.group, row, barrier);
  };
  const auto bring_pairs = [&](int n) {
    if (part > 0 && with_y(n))
      cuda::copy_run(room.C(n) + NT * kTileBytes, at.pairs(turns.chunk(n)), R::kPairs,
                     room.arrived + n % R::kStages);
  };

  const int ahead = min(R::kStages, turns.all);
  for (int n = 0; n < ahead; ++n) bring_rows(n);
  cuda::wait_for_previous();
  for (int n = 0; n < ahead; ++n) bring_pairs(n);
#pragma unroll 1
  for (int n = 0; n < turns.all; ++n) {
#pragma unroll
    for (int i = 0; kLeaves && i < NT; ++i) {
      if (!with_y(n)) break;
      cuda::wait_for_phase(room.leaves, (NT * (n - turns.first_pass) + i) % 2);
      if (at.channels > 0)
        cuda::send_run(at.state(turns.chunk(n)) + i * kTileBytes, room.out, kTileBytes);
      cuda::commit_sent();
      cuda::wait_for_sent_reads<0>();
      cuda::arrive(room.left);
    }
    if (n + R::kStages < turns.all) {
      cuda::wait_for_phase(room.freed + n % R::kStages, n / R::kStages % 2);
      bring_rows(n + R::kStages), bring_pairs(n + R::kStages);
    }
    if (!with_y(n)) continue;
    const int c = turns.chunk(n);
    room.wait_for_turn(room.done, n);
    if (at.channels > 0 && at.valid(c) == kQ)
      cuda::send_box(maps.y, at.p0, at.h, static_cast<int>(at.row(c)), room.out);
    cuda::commit_sent();
    cuda::wait_for_sent_reads<0>();
    cuda::arrive(room.left);
  }
}

#endif

// kLeaves: with y, the state before each chunk is left to backward.
template <int NT, bool kY, bool kLeaves>
__global__ void __launch_bounds__(kBlock, 1)
    warpgroup_y_kernel(const Walks walks, const int64_t span,
                       const __grid_constant__ MapsOfWalks maps) {
#if KRAIT_HOPPER
  extern __shared__ __align__(1024) unsigned char memory[];
  cuda::let_next_start();
  const int warpgroup = static_cast<int>(threadIdx.x) / kSliceThreads, part = warpgroup % kSlices;
  const Course at = Course::of<kSlices>(walks.walk[blockIdx.z], span, part);
  if (!at.there(!kY)) return cuda::wait_for_previous();
  using R = Room<NT, kY>;
  const R room(memory, part);
  const int first_pass = !kY || (at.w.pieces && !at.last) ? at.chunks : 0;
  const Turns turns = {first_pass, first_pass + (kY ? at.chunks : 0)};
  if (threadIdx.x == 0) {
    for (int i = 0; i < R::kStages; ++i) {
      cuda::start_barrier(room.arrived + i, kSlices);
      cuda::start_barrier(room.freed + i, kSlices * kWarps * cuda::kArriving);
    }
    for (int i = 0; i < kSlices; ++i) room.of(i).start_barriers();
    cuda::fence_barriers();
  }
  __syncthreads();
  // 128 a thread where the block starts, in all.
  if (warpgroup < kSlices) {
    cuda::take_registers<168>();
    cuda::wait_for_previous();
    multiply<NT, kY, kLeaves>(at, room, turns);
    return;
  }
  cuda::leave_registers<88>();
  if (at.warp < kScoring) {
    cuda::wait_for_previous();
    prepare(at, room, turns);
  } else if (lane_of() == 0) {
    move<NT, kY, kLeaves>(at, room, turns, maps.walk[blockIdx.z]);
  }
#endif
}

template <int NT, bool kY, bool kLeaves = false>
void launch(const Walks& w, int64_t span, cudaStream_t stream) {
  const CudaProblem& p = w.walk[0].p;
  const auto kernel = warpgroup_y_kernel<NT, kY, kLeaves>;
  constexpr size_t kBytes = Room<NT, kY>::kSize;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(kBytes));
  const auto map = [&](const CudaRows& r, int64_t parts, int64_t columns) {
    return cuda::map_of_parts(r.data, p.tokens, parts, columns, r.stride, kQ);
  };
  MapsOfWalks maps = {};
  for (int i = 0; i < w.count; ++i) {
    const Walk& of = w.walk[i];
    Maps& to = maps.walk[i];
    to.x = map(of.p.x, p.H, p.P), to.B = map(of.p.B, p.G, p.N);
    if (kY) to.C = map(of.p.C, p.G, p.N), to.y = map(of.y, p.H, p.P);
  }
  const dim3 grid(static_cast<unsigned>(slots(p, span)),
                  static_cast<unsigned>(blocks_of_slices<kSlices>(p)),
                  static_cast<unsigned>(w.count));
  cuda::launch("ssd", !w.first, kernel, grid, kBlock, kBytes, 1, stream, w, span, maps);
}

}  // namespace

void warpgroup_walk_y(const Walks& w, int64_t span, bool first_pass, cudaStream_t stream) {
  const bool few = w.walk[0].p.N <= 64;
  if (first_pass) {
    few ? launch<1, false>(w, span, stream) : launch<2, false>(w, span, stream);
  } else if (w.walk[0].states) {
    few ? launch<1, true, true>(w, span, stream) : launch<2, true, true>(w, span, stream);
  } else {
    few ? launch<1, true>(w, span, stream) : launch<2, true>(w, span, stream);
  }
}

}  // namespace krait::ops::ssd_gpu
