// The walk with y on a GPU whose warpgroups take products from shared memory (sm_90a), N up to 128. A block takes a slice
// of 64 channels, mostly a head, and has two warpgroups. One has the states as sums of products, and multiplies: C times
// the state, what the chunk adds to the state, and the scores times x. The other weights x and makes the scores; the copy
// engine brings the chunks and takes y away. C Bᵀ of a group is from a kernel before. Transposed throughout: rows are
// channels, columns tokens or states.
#include "krait/ops/ssd/cuda_matrix_walk.cuh"
#include "krait/ops/ssd/cuda_warpgroup.cuh"
#include "krait/tensor/cuda/tensor_map.h"

namespace krait::ops::ssd_gpu {

namespace {

constexpr int kMultiplies = 0, kPrepares = 1;  // the warpgroups
constexpr int kWarps = kSliceThreads / 32;     // of each
constexpr int kRowStep = kSliceThreads / 8;    // a thread has 16 bytes of every so many rows

// Shared memory: x, B and C, twice; weighted x, whose place y of the chunk takes, twice; the scores; the steps, twice.
template <int NT>
struct Room {
  static constexpr int kStage = (1 + 2 * NT) * kTileBytes, kBarriers = 7;
  static constexpr size_t kSize =
      2 * kStage + 3 * kTileBytes + 2 * sizeof(ChunkSteps) + kBarriers * sizeof(uint64_t);
  unsigned char *stages, *of_weighted, *scores;
  ChunkSteps* steps;
  uint64_t *ready, *done, *scores_ready, *arrived;  // of chunks, in turns but the third

  __device__ explicit Room(unsigned char* memory) {
    stages = memory;
    of_weighted = stages + 2 * kStage;
    scores = of_weighted + 2 * kTileBytes;
    steps = reinterpret_cast<ChunkSteps*>(scores + kTileBytes);
    ready = reinterpret_cast<uint64_t*>(steps + 2);
    done = ready + 2, scores_ready = ready + 4, arrived = ready + 5;
  }
  __device__ unsigned char* x(int c) const { return stages + c % 2 * kStage; }
  __device__ unsigned char* B(int c) const { return x(c) + kTileBytes; }
  __device__ unsigned char* C(int c) const { return B(c) + NT * kTileBytes; }
  __device__ unsigned char* weighted(int c) const { return of_weighted + c % 2 * kTileBytes; }
};

// How the copy engine finds heads of x and y, and groups of B and C.
struct Maps {
  CUtensorMap x, B, C, y;
};

#if KRAIT_HOPPER

template <int NT>
__device__ void multiply(const Course& at, const Room<NT>& room) {
  const int warp = at.warp, lane = lane_of(), t2 = lane % 4 * 2;
  float S[NT][8][4] = {}, D[2] = {};
  auto& all_of_S = reinterpret_cast<float(&)[8 * NT][4]>(S);
  at.begin_state(false, all_of_S);
  at.skip(D);
#pragma unroll 1
  for (int c = 0; c < at.chunks; ++c) {
    cuda::wait_for_phase(room.ready + c % 2, c / 2 % 2);
    __syncwarp();
    const ChunkSteps& now = room.steps[c % 2];
    uint32_t of_S[4 * NT][4];
#pragma unroll
    for (int n = 0; n < 4 * NT; ++n) {
      float(&left)[4] = S[n / 4][2 * (n % 4)], (&right)[4] = S[n / 4][2 * (n % 4) + 1];
      cuda::pack_a(of_S[n], left, right);
#pragma unroll
      for (int e = 0; e < 4; ++e) left[e] *= now.through, right[e] *= now.through;
    }
    float y[8][4];
    cuda::begin_products();
    const uint64_t C = cuda::tile_at(room.C(c));
    cuda::product<false, false>(y, of_S[0], C);
#pragma unroll
    for (int n = 1; n < 4 * NT; ++n)
      cuda::product<true, false>(y, of_S[n], cuda::further(C, n / 4 * kTileBytes + n % 4 * 32));
    cuda::commit_products();
    const uint64_t B = cuda::tile_at(room.B(c)), weighted = cuda::tile_at(room.weighted(c));
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int i = 0; i < NT; ++i)
        cuda::product<true, true, true>(S[i], cuda::further(weighted, k * 2048),
                                        cuda::further(B, i * kTileBytes + k * 2048));
    cuda::commit_products();

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
#pragma unroll
    for (int i = 0; i < NT; ++i) cuda::wait_for_products<0>(S[i]);
    cuda::sync_warpgroup(kMultiplies);  // weighted x was read
#pragma unroll
    for (int j = 0; j < 8; j += 2) {  // rows become tokens
      const uint32_t v[4] = {cuda::pack_bf16(y[j][0], y[j][1]), cuda::pack_bf16(y[j][2], y[j][3]),
                             cuda::pack_bf16(y[j + 1][0], y[j + 1][1]),
                             cuda::pack_bf16(y[j + 1][2], y[j + 1][3])};
      cuda::store_matrices_transposed(
          room.weighted(c) + in_tile(8 * (j + lane / 16) + lane % 8, 2 * warp + lane / 8 % 2), v);
    }
    cuda::show_to_products();  // and to the copy engine
    cuda::warp_arrives<cuda::kArriving>(room.done + c % 2);
  }
  at.end_state(false, all_of_S, 1);
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

template <int NT>
__device__ void prepare(const Course& at, const Room<NT>& room, const Maps& maps) {
  const int t = at.t, warp = at.warp, lane = lane_of();
  const auto bring_chunk = [&](int c) {
    if (t > 0) return;
    uint64_t* const barrier = room.arrived + c % 2;
    const int row = static_cast<int>(at.row(c));
    cuda::arrive_expecting(barrier, Room<NT>::kStage);
    cuda::copy_box(room.x(c), maps.x, at.p0, at.h, row, barrier);
#pragma unroll
    for (int i = 0; i < NT; ++i) {
      const int of_tile = i * kTileBytes;
      cuda::copy_box(room.B(c) + of_tile, maps.B, 64 * i, at.group, row, barrier);
      cuda::copy_box(room.C(c) + of_tile, maps.C, 64 * i, at.group, row, barrier);
    }
  };
  const auto leave_y = [&](int c) {
    if (t > 0) return;
    cuda::send_box(maps.y, at.p0, at.h, static_cast<int>(at.row(c)), room.weighted(c));
    cuda::commit_sent();
  };
  const auto wait_until_done = [&](int c) { cuda::wait_for_phase(room.done + c % 2, c / 2 % 2); };
  // Of the scores a warp makes every fourth tile of 16 by 16, the two warps that have no steps one more; C Bᵀ comes a chunk
  // ahead.
  const int first_tile = kWarps - 1 - warp;
  float4 pairs[3][2];
  uint32_t of_tile[3][2][2];
  const auto load_pairs = [&](int c) {
    const float4* const of_chunk = at.pairs(c);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const int tile = first_tile + kWarps * i;
      if (tile >= kTilesOfPairs) break;
      const int first = pair_tile(column_of_tile(tile), 2 * row_of_tile(tile)) * 32;
      pairs[i][0] = __ldcg(of_chunk + first), pairs[i][1] = __ldcg(of_chunk + first + 32);
    }
  };
  const auto make_tiles = [&](const ChunkSteps& steps) {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const int tile = first_tile + kWarps * i;
      if (tile >= kTilesOfPairs) break;
      make_scores(steps, row_of_tile(tile), column_of_tile(tile), pairs[i], of_tile[i]);
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

  bring_chunk(0);
  cuda::wait_for_previous();
  WalkSteps steps(at, room.steps);
  load_pairs(0);
  // Scores of later tokens stay zero.
  for (int i = t; i < kTileBytes / 16; i += kSliceThreads)
    reinterpret_cast<uint4*>(room.scores)[i] = make_uint4(0, 0, 0, 0);
#pragma unroll 1
  for (int c = 0; c < at.chunks; ++c) {
    const ChunkSteps& now = room.steps[c % 2];
    if (c > 0) steps.take(c);
    cuda::wait_for_phase(room.arrived + c % 2, c / 2 % 2);
    if (at.valid(c) < kQ)
      for (int i = 0; i < 1 + NT; ++i) clear_rows(at, c, room.x(c) + i * kTileBytes);
    if (t == 0) cuda::wait_for_sent_reads<0>();  // from where weighted x goes
    cuda::sync_warpgroup(kPrepares);
    weight(at, now, room.x(c), room.weighted(c));
    cuda::show_to_products();
    cuda::warp_arrives<cuda::kArriving>(room.ready + c % 2);
    make_tiles(now);
    if (c > 0) wait_until_done(c - 1);
    if (c + 1 < at.chunks) bring_chunk(c + 1);
    store_tiles();
    cuda::show_to_products();  // before loads set out, for which it would wait
    cuda::warp_arrives<cuda::kArriving>(room.scores_ready);
    if (c > 0) leave_y(c - 1);
    if (c + 1 < at.chunks) load_pairs(c + 1);
  }
  const int last = at.chunks - 1;
  wait_until_done(last);
  if (at.valid(last) < kQ) {
    leave(at, last, room.weighted(last));
  } else {
    leave_y(last);
  }
  if (t == 0) cuda::wait_for_sent_reads<0>();
}

#endif

template <int NT>
__global__ void __launch_bounds__(2 * kSliceThreads, 2)
    warpgroup_y_kernel(const Walk w, const int64_t span, const __grid_constant__ Maps maps) {
#if KRAIT_HOPPER
  extern __shared__ __align__(1024) unsigned char memory[];
  cuda::let_next_start();
  const Course at = Course::of<1>(w, span, 0);
  if (!at.there(false)) return cuda::wait_for_previous();
  using R = Room<NT>;
  const R room(memory);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 5; ++i) cuda::start_barrier(room.ready + i, kWarps * cuda::kArriving);
    for (int i = 0; i < 2; ++i) cuda::start_barrier(room.arrived + i, 1);
    cuda::fence_barriers();
  }
  __syncthreads();
  // 128 a thread where the block starts, in all.
  if (threadIdx.x / kSliceThreads == kMultiplies) {
    cuda::take_registers<160>();
    cuda::wait_for_previous();
    multiply(at, room);
  } else {
    cuda::leave_registers<96>();
    prepare(at, room, maps);
  }
#endif
}

template <int NT>
void launch(const Walk& w, int64_t span, cudaStream_t stream) {
  const CudaProblem& p = w.p;
  const auto kernel = warpgroup_y_kernel<NT>;
  constexpr size_t kBytes = Room<NT>::kSize;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(kBytes));
  const auto map = [&](const CudaRows& r, int64_t parts, int64_t columns) {
    return cuda::map_of_parts(r.data, p.tokens, parts, columns, r.stride, kQ);
  };
  const Maps maps = {map(p.x, p.H, p.P), map(p.B, p.G, p.N), map(p.C, p.G, p.N),
                     map(w.y, p.H, p.P)};
  const dim3 grid(static_cast<unsigned>(slots(p, span)),
                  static_cast<unsigned>(blocks_of_slices<1>(p)));
  cuda::launch_dependent("ssd", kernel, grid, 2 * kSliceThreads, kBytes, 1, stream, w, span, maps);
}

}  // namespace

void warpgroup_walk_y(const Walk& w, int64_t span, cudaStream_t stream) {
  w.p.N <= 64 ? launch<1>(w, span, stream) : launch<2>(w, span, stream);
}

}  // namespace krait::ops::ssd_gpu
