// The walk with y, and the first pass over pieces of sequences, on a GPU whose warpgroups take products from shared memory
// (sm_90a), N up to 128. A block takes two slices of 64 channels, mostly heads, of one group, for which B and C come once.
// Each slice has two warpgroups. One has the states as sums of products, and multiplies: C times the state, what the chunk
// adds to the state, and the scores times x. The other weights x and makes the scores; the copy engine brings the chunks
// and takes y away. C Bᵀ of a group is from a kernel before. Transposed throughout: rows are channels, columns tokens or
// states.
#include "krait/ops/ssd/cuda_matrix_walk.cuh"
#include "krait/ops/ssd/cuda_warpgroup.cuh"
#include "krait/tensor/cuda/tensor_map.h"

namespace krait::ops::ssd_gpu {

namespace {

constexpr int kSlices = 2, kBlock = 2 * kSlices * kSliceThreads;
constexpr int kWarps = kSliceThreads / 32;   // of a warpgroup
constexpr int kRowStep = kSliceThreads / 8;  // a thread has 16 bytes of every so many rows

// The warpgroups: those that multiply, then those that prepare.
__device__ inline int multiplies(int part) { return part; }
__device__ inline int prepares(int part) { return kSlices + part; }

// Shared memory: stages of x of the slices and B, and with y C and C Bᵀ; for each slice weighted x, whose place y of the
// chunk takes, twice; the scores; the steps, twice.
template <int NT, bool kY>
struct Room {
  static constexpr int kStages = kY ? 3 : 4, kPairs = kY ? kPairsSize * 4 : 0;
  static constexpr int kStage = (kSlices + (kY ? 2 : 1) * NT) * kTileBytes + kPairs;
  static constexpr int kOfPart = (kY ? 3 : 2) * kTileBytes;
  static constexpr int kBarriers = 2 * kStages + 5 * kSlices;
  static constexpr size_t kSize = kStages * kStage + kSlices * (kOfPart + 2 * sizeof(ChunkSteps)) +
                                  kBarriers * sizeof(uint64_t);
  unsigned char *stages, *of_weighted, *scores;
  ChunkSteps* steps;
  // A stage has come; both slices are done with it. Of a slice, in turns but the last: a chunk is weighted, done; its scores.
  uint64_t *arrived, *freed, *ready, *done, *scores_ready;
  int part;

  __device__ Room(unsigned char* memory, int of_part) {
    part = of_part;
    stages = memory;
    unsigned char* const parts = stages + kStages * kStage;
    of_weighted = parts + part * kOfPart;
    scores = of_weighted + 2 * kTileBytes;
    auto* const all_steps = reinterpret_cast<ChunkSteps*>(parts + kSlices * kOfPart);
    steps = all_steps + 2 * part;
    arrived = reinterpret_cast<uint64_t*>(all_steps + 2 * kSlices), freed = arrived + kStages;
    ready = freed + kStages + 5 * part, done = ready + 2, scores_ready = ready + 4;
  }
  __device__ unsigned char* stage(int c) const { return stages + c % kStages * kStage; }
  __device__ unsigned char* x(int c) const { return stage(c) + part * kTileBytes; }
  __device__ unsigned char* B(int c) const { return stage(c) + kSlices * kTileBytes; }
  __device__ unsigned char* C(int c) const { return B(c) + NT * kTileBytes; }
  __device__ const float4* pairs(int c) const {
    return reinterpret_cast<const float4*>(C(c) + NT * kTileBytes) + lane_of();
  }
  __device__ unsigned char* weighted(int c) const { return of_weighted + c % 2 * kTileBytes; }
};

// How the copy engine finds heads of x and y, and groups of B and C, of each walk.
struct Maps {
  CUtensorMap x, B, C, y;
};
struct MapsOfWalks {
  Maps walk[2];
};

#if KRAIT_HOPPER

template <int NT, bool kY>
__device__ void multiply(const Course& at, const Room<NT, kY>& room) {
  constexpr int kStages = Room<NT, kY>::kStages;
  const int warp = at.warp, lane = lane_of(), t2 = lane % 4 * 2;
  float S[NT][8][4] = {}, D[2] = {};
  auto& all_of_S = reinterpret_cast<float(&)[8 * NT][4]>(S);
  at.begin_state(!kY, all_of_S);
  if (kY) at.skip(D);
#pragma unroll 1
  for (int c = 0; c < at.chunks; ++c) {
    cuda::wait_for_phase(room.ready + c % 2, c / 2 % 2);
    __syncwarp();
    const ChunkSteps& now = room.steps[c % 2];
    uint32_t of_S[4 * NT][4];
#pragma unroll
    for (int n = 0; n < 4 * NT; ++n) {
      float(&left)[4] = S[n / 4][2 * (n % 4)], (&right)[4] = S[n / 4][2 * (n % 4) + 1];
      if (kY) cuda::pack_a(of_S[n], left, right);
#pragma unroll
      for (int e = 0; e < 4; ++e) left[e] *= now.through, right[e] *= now.through;
    }
    float y[8][4];
    cuda::begin_products();
    if constexpr (kY) {
      const uint64_t C = cuda::tile_at(room.C(c));
      cuda::product<false, false>(y, of_S[0], C);
#pragma unroll
      for (int n = 1; n < 4 * NT; ++n)
        cuda::product<true, false>(y, of_S[n], cuda::further(C, n / 4 * kTileBytes + n % 4 * 32));
      cuda::commit_products();
    }
    const uint64_t B = cuda::tile_at(room.B(c)), weighted = cuda::tile_at(room.weighted(c));
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int i = 0; i < NT; ++i)
        cuda::product<true, true, true>(S[i], cuda::further(weighted, k * 2048),
                                        cuda::further(B, i * kTileBytes + k * 2048));
    cuda::commit_products();

    if constexpr (kY) {
      cuda::wait_for_products<1>(y);
      const unsigned char* const x = room.x(c);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        uint32_t channels[4];  // this warp's, transposed
        cuda::load_matrices_transposed(
            channels, x + in_tile(16 * m + lane / 16 * 8 + lane % 8, 2 * warp + lane / 8 % 2));
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float2 e = *reinterpret_cast<const float2*>(now.before + 16 * m + 8 * j + t2);
          float(&v)[4] = y[2 * m + j];
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const uint32_t pair = channels[2 * j + r];
            v[2 * r] = fmaf(e.x, v[2 * r], D[r] * low_bf16(pair));
            v[2 * r + 1] = fmaf(e.y, v[2 * r + 1], D[r] * high_bf16(pair));
          }
        }
      }
      cuda::wait_for_phase(room.scores_ready, c % 2);
      const uint64_t X = cuda::tile_at(x), scores = cuda::tile_at(room.scores);
      cuda::begin_products();
#pragma unroll
      for (int k = 0; k < 4; ++k)
        cuda::product<true, true, false>(y, cuda::further(X, k * 2048),
                                         cuda::further(scores, k * 32));
      cuda::commit_products();
      cuda::wait_for_products<0>(y);
    }
#pragma unroll
    for (int i = 0; i < NT; ++i) cuda::wait_for_products<0>(S[i]);
    cuda::warp_arrives<cuda::kArriving>(room.freed + c % kStages);
    if constexpr (kY) {
      cuda::sync_warpgroup(multiplies(room.part));  // weighted x was read
#pragma unroll
      for (int j = 0; j < 8; j += 2) {  // rows become tokens
        const uint32_t v[4] = {cuda::pack_bf16(y[j][0], y[j][1]), cuda::pack_bf16(y[j][2], y[j][3]),
                               cuda::pack_bf16(y[j + 1][0], y[j + 1][1]),
                               cuda::pack_bf16(y[j + 1][2], y[j + 1][3])};
        cuda::store_matrices_transposed(
            room.weighted(c) + in_tile(8 * (j + lane / 16) + lane % 8, 2 * warp + lane / 8 % 2), v);
      }
      cuda::show_to_products();  // and to the copy engine
    }
    cuda::warp_arrives<cuda::kArriving>(room.done + c % 2);
  }
  at.end_state(!kY, all_of_S);
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

// x of each token times what it weighs in the state behind the chunk.
__device__ inline void weight(const Course& at, const ChunkSteps& steps, const unsigned char* x,
                              unsigned char* weighted) {
  const int first = at.t / 8, place = in_tile(first, at.t % 8);
#pragma unroll
  for (int r = 0; r < kQ; r += kRowStep) {
    const float by = steps.weight[first + r];
    uint4 v = *reinterpret_cast<const uint4*>(x + place + r * 128);
    for (uint32_t* pair : {&v.x, &v.y, &v.z, &v.w})
      *pair = cuda::pack_bf16(low_bf16(*pair) * by, high_bf16(*pair) * by);
    *reinterpret_cast<uint4*>(weighted + place + r * 128) = v;
  }
}

template <int NT, bool kY>
__device__ void prepare(const Course& at, const Room<NT, kY>& room, const Maps& maps) {
  using R = Room<NT, kY>;
  constexpr int kStages = R::kStages;
  const int t = at.t, warp = at.warp, lane = lane_of(), part = room.part;
  // One thread brings for both slices. x, B and C are older than the kernel before, C Bᵀ is its.
  const bool brings = t == 0 && part == 0;
  Course other = at;
  other.go_to<kSlices>(1);
  const auto bring_rows = [&](int c) {
    uint64_t* const barrier = room.arrived + c % kStages;
    const int row = static_cast<int>(at.row(c));
    cuda::arrive_expecting(barrier, R::kStage);
    cuda::copy_box(room.x(c), maps.x, at.p0, at.h, row, barrier);
    cuda::copy_box(room.x(c) + kTileBytes, maps.x, other.p0, other.h, row, barrier);
#pragma unroll
    for (int i = 0; i < NT; ++i) {
      const int of_tile = i * kTileBytes;
      cuda::copy_box(room.B(c) + of_tile, maps.B, 64 * i, at.group, row, barrier);
      if (kY) cuda::copy_box(room.C(c) + of_tile, maps.C, 64 * i, at.group, row, barrier);
    }
  };
  const auto bring_pairs = [&](int c) {
    if (kY)
      cuda::copy_run(room.C(c) + NT * kTileBytes, at.pairs(c), R::kPairs,
                     room.arrived + c % kStages);
  };
  const auto bring_chunk = [&](int c) {
    if (!brings || c >= at.chunks) return;
    if (c >= kStages) cuda::wait_for_phase(room.freed + c % kStages, (c / kStages - 1) % 2);
    bring_rows(c), bring_pairs(c);
  };
  const auto leave_y = [&](int c) {
    if (t > 0 || at.channels == 0) return;
    cuda::send_box(maps.y, at.p0, at.h, static_cast<int>(at.row(c)), room.weighted(c));
    cuda::commit_sent();
  };
  const auto wait_until_done = [&](int c) { cuda::wait_for_phase(room.done + c % 2, c / 2 % 2); };
  // Of the scores a warp makes every fourth tile of 16 by 16, the two warps that have no steps one more.
  const int first_tile = kWarps - 1 - warp;
  uint32_t of_tile[3][2][2];
  const auto make_tiles = [&](int c, const ChunkSteps& steps) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const int tile = first_tile + kWarps * i, m = row_of_tile(tile), k = column_of_tile(tile);
      if (tile >= kTilesOfPairs) break;
      const float4* const of_t = room.pairs(c) + pair_tile(k, 2 * m) * 32;
      const float4 pairs[2] = {of_t[0], of_t[32]};
      make_scores(steps, m, k, pairs, of_tile[i]);
    }
  };
  const auto store_tiles = [&] {
    unsigned char* const to = room.scores + lane % 4 * 4;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const int tile = first_tile + kWarps * i, m = row_of_tile(tile), k = column_of_tile(tile);
      if (tile >= kTilesOfPairs) break;
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          *reinterpret_cast<uint32_t*>(to + in_tile(16 * m + 8 * j + lane / 4, 2 * k + half)) =
              of_tile[i][j][half];
    }
  };

  const int ahead = min(kStages - 1, at.chunks);
  for (int c = 0; brings && c < ahead; ++c) bring_rows(c);
  cuda::wait_for_previous();
  for (int c = 0; brings && c < ahead; ++c) bring_pairs(c);
  WalkSteps steps(at, room.steps);
  if (kY)  // scores of later tokens stay zero
    for (int i = t; i < kTileBytes / 16; i += kSliceThreads)
      reinterpret_cast<uint4*>(room.scores)[i] = make_uint4(0, 0, 0, 0);
#pragma unroll 1
  for (int c = 0; c < at.chunks; ++c) {
    const ChunkSteps& now = room.steps[c % 2];
    if (c > 0) steps.take(c);
    cuda::wait_for_phase(room.arrived + c % kStages, c / kStages % 2);
    if (at.valid(c) < kQ) {
      clear_rows(at, c, room.x(c));
      for (int i = part; i < NT; i += kSlices) clear_rows(at, c, room.B(c) + i * kTileBytes);
      cuda::show_to_products();
      cuda::sync_warpgroups<kSlices>(prepares(kSlices));
    }
    if (kY && t == 0) cuda::wait_for_sent_reads<0>();  // from where weighted x goes
    cuda::sync_warpgroup(prepares(part));
    weight(at, now, room.x(c), room.weighted(c));
    cuda::show_to_products();
    cuda::warp_arrives<cuda::kArriving>(room.ready + c % 2);
    if (kY) make_tiles(c, now);
    if (c > 0) wait_until_done(c - 1);
    if constexpr (kY) {
      store_tiles();
      cuda::show_to_products();
      cuda::warp_arrives<cuda::kArriving>(room.scores_ready);
      if (c > 0) leave_y(c - 1);
    }
    bring_chunk(c + kStages - 1);
  }
  if constexpr (kY) {
    const int last = at.chunks - 1;
    wait_until_done(last);
    if (at.valid(last) < kQ) {
      leave(at, last, room.weighted(last));
    } else {
      leave_y(last);
    }
    if (t == 0) cuda::wait_for_sent_reads<0>();
  } else {
    at.end_decay(steps.kept());
  }
}

#endif

template <int NT, bool kY>
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
  constexpr int kArrivals = kWarps * cuda::kArriving;
  if (threadIdx.x == 0) {
    for (int i = 0; i < R::kStages; ++i) {
      cuda::start_barrier(room.arrived + i, 1);
      cuda::start_barrier(room.freed + i, kSlices * kArrivals);
    }
    for (int i = 0; i < 5 * kSlices; ++i) cuda::start_barrier(room.ready + i, kArrivals);
    cuda::fence_barriers();
  }
  __syncthreads();
  // 128 a thread where the block starts, in all.
  if (warpgroup == multiplies(part)) {
    cuda::take_registers<160>();
    cuda::wait_for_previous();
    multiply(at, room);
  } else {
    cuda::leave_registers<96>();
    prepare(at, room, maps.walk[blockIdx.z]);
  }
#endif
}

template <int NT, bool kY>
void launch(const Walks& w, int64_t span, cudaStream_t stream) {
  const CudaProblem& p = w.walk[0].p;
  const auto kernel = warpgroup_y_kernel<NT, kY>;
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
  cuda::launch_dependent("ssd", kernel, grid, kBlock, kBytes, 1, stream, w, span, maps);
}

}  // namespace

void warpgroup_walk_y(const Walks& w, int64_t span, bool first_pass, cudaStream_t stream) {
  if (first_pass) {
    w.walk[0].p.N <= 64 ? launch<1, false>(w, span, stream) : launch<2, false>(w, span, stream);
  } else {
    w.walk[0].p.N <= 64 ? launch<1, true>(w, span, stream) : launch<2, true>(w, span, stream);
  }
}

}  // namespace krait::ops::ssd_gpu
