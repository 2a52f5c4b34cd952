// The walk on a GPU whose warpgroups take products from shared memory (sm_90a), N up to 128. A warpgroup takes a slice of
// 64 channels, mostly a head, with its states as sums of products; a block two slices of a group, for which B and C come
// once. C Bᵀ of a group is from a kernel before. Transposed throughout: rows are channels, columns tokens or states.
//
// A chunk's products are two lots: C times the state, then the scores times x, and what the chunk adds to the state.
// While the tensor cores are at the first the warps weight x; at the second, they make the scores of the next chunk.
#include "krait/ops/ssd/cuda_matrix_walk.cuh"
#include "krait/ops/ssd/cuda_warpgroup.cuh"

namespace krait::ops::ssd_gpu {

namespace {

// What a walk leaves of a chunk: y, the state before it, or as the first pass over pieces of sequences nothing.
enum class Leaves { y, states, nothing };

// Slices of a block. With y one: two that wait for each other would want the tensor cores at the same time.
constexpr int slices_of(Leaves leaves) { return leaves == Leaves::y ? 1 : 2; }

// Shared memory: x of the slices, B, and with y C, twice; with y the scores of each slice, twice; what leaves a slice; the
// steps, twice.
template <int NT, Leaves kLeaves>
struct Room {
  static constexpr bool kY = kLeaves == Leaves::y;
  static constexpr int kSlices = slices_of(kLeaves);
  static constexpr int kStage = (kSlices + (kY ? 2 : 1) * NT) * kTileBytes;
  static constexpr int kScores = kY ? 2 * kTileBytes : 0;
  static constexpr int kOut = kY ? 64 * kLdP * static_cast<int>(sizeof(bf16))
                              : kLeaves == Leaves::states ? NT * kTileBytes
                                                          : 0;
  static constexpr size_t kSize = 2 * kStage + kSlices * (kScores + kOut + 2 * sizeof(ChunkSteps));
  unsigned char *stages, *scores, *out;
  ChunkSteps* steps;

  __device__ Room(unsigned char* memory, int part) {
    stages = memory;
    scores = stages + 2 * kStage;
    unsigned char* const outs = scores + kSlices * kScores;
    scores += part * kScores;
    out = outs + part * kOut;
    steps = reinterpret_cast<ChunkSteps*>(outs + kSlices * kOut) + 2 * part;
  }
};

template <int NT, Leaves kLeaves>
__global__ void __launch_bounds__(slices_of(kLeaves) * kSliceThreads, 2)
    warpgroup_walk_kernel(const Walks walks, const int64_t span) {
#if KRAIT_HOPPER
  extern __shared__ __align__(1024) unsigned char memory[];
  constexpr int NP = 64 * NT, kSlices = slices_of(kLeaves), kBlock = kSlices * kSliceThreads;
  constexpr bool kY = kLeaves == Leaves::y, kFirstPass = kLeaves == Leaves::nothing;
  using R = Room<NT, kLeaves>;
  const Walk& w = walks.walk[blockIdx.z];
  const CudaProblem& p = w.p;
  const int thread = static_cast<int>(threadIdx.x), part = thread / kSliceThreads;
  const Course at = Course::of<kSlices>(w, span, part);
  if (!at.there(kFirstPass)) return cuda::wait_for_previous();
  const int t = at.t, warp = at.warp, lane = lane_of(), g = lane / 4, t2 = lane % 4 * 2;
  const int N = static_cast<int>(p.N);
  const R room(memory, part);

  const auto stage = [&](int c) { return room.stages + c % 2 * R::kStage; };
  TileReader<kP, kSliceThreads> of_x(p.x, at.row(0), at.column(), t);
  TileReader<NP, kBlock> of_B(p.B, at.row(0), at.group * N, thread);
  TileReader<NP, kBlock> of_C(p.C, at.row(0), at.group * N, thread);
  const int further = w.backwards ? -kQ : kQ;
  const auto bring_chunk = [&](int c) {
    unsigned char *const x = stage(c), *const B = x + kSlices * kTileBytes;
    const int valid = at.valid(c);
    of_x.bring(x + part * kTileBytes, valid, at.channels);
    of_B.bring(B, valid, N);
    if (kY) of_C.bring(B + NT * kTileBytes, valid, N);
    cuda::commit_copies();
    of_x.go(further), of_B.go(further), of_C.go(further);
  };
  // Of the scores of a chunk a warp makes every fourth tile of 16 by 16; C Bᵀ comes a chunk ahead.
  float4 pairs[3][2];
  const auto load_pairs = [&](int c) {
    const float4* const of_chunk = at.pairs(c);
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const int tile = min(warp + 4 * i, kTilesOfPairs - 1);
      const int first = pair_tile(column_of_tile(tile), 2 * row_of_tile(tile)) * 32;
      pairs[i][0] = of_chunk[first], pairs[i][1] = of_chunk[first + 32];
    }
  };
  const auto bring_scores = [&](int c) {
    unsigned char* const scores = room.scores + c % 2 * kTileBytes + 2 * t2;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const int tile = warp + 4 * i, m = row_of_tile(tile), k = column_of_tile(tile);
      if (tile >= kTilesOfPairs) break;
      uint32_t b[2][2];
      make_scores(room.steps[c % 2], m, k, pairs[i], b);
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          *reinterpret_cast<uint32_t*>(scores + in_tile(16 * m + 8 * j + g, 2 * k + half)) =
              b[j][half];
    }
  };
  // y of a chunk, from the slice's shared memory.
  const auto leave = [&](int c) {
    constexpr int kUnits = kP / 8, kStep = kSliceThreads / kUnits;
    const int first = t / kUnits, unit = 8 * (t % kUnits), rows = at.valid(c);
    if (unit >= at.channels) return;
    const bf16* const v = reinterpret_cast<const bf16*>(room.out) + first * kLdP + unit;
    bf16* to = static_cast<bf16*>(w.y.data) + (at.row(c) + first) * w.y.stride + at.column() + unit;
    const int64_t step = kStep * w.y.stride;
#pragma unroll
    for (int r = 0; r < kQ; r += kStep, to += step)
      if (first + r < rows)
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(v + r * kLdP);
  };
  // The state before a chunk, as tiles: a warp's channels, which it has put there itself.
  const auto leave_state = [&](int c) {
    const int64_t state = (int64_t{at.slot + at.number(c)} * p.H + at.h) * ceil_div(p.P, kP);
    const int first = 16 * warp * 128 + lane * 16;
    const unsigned char* const from = room.out + first;
    unsigned char* const to =
        static_cast<unsigned char*>(w.states) + (state + at.p0 / kP) * R::kOut + first;
#pragma unroll
    for (int i = 0; i < R::kOut; i += kTileBytes)
#pragma unroll
      for (int k = i; k < i + 16 * 128; k += 32 * 16)
        *reinterpret_cast<uint4*>(to + k) = *reinterpret_cast<const uint4*>(from + k);
  };

  bring_chunk(0);
  cuda::wait_for_previous();
  cuda::let_next_start();
  float S[NT][8][4] = {}, D[2] = {};
  auto& all_of_S = reinterpret_cast<float(&)[8 * NT][4]>(S);
  at.begin_state(kFirstPass, all_of_S);
  if (kY) at.skip(D);
  WalkSteps steps(at, room.steps);
  if (kY) {
    load_pairs(0);
    // Scores of later tokens stay zero.
    for (int i = t; i < R::kScores / 16; i += kSliceThreads)
      reinterpret_cast<uint4*>(room.scores)[i] = make_uint4(0, 0, 0, 0);
    cuda::sync_warpgroup(part);
    bring_scores(0);
    if (at.chunks > 1) load_pairs(1);
  }
  for (int c = 0; c < at.chunks; ++c) {
    cuda::wait_for_copies<0>();
    cuda::show_to_products();
    __syncthreads();
    if (c + 1 < at.chunks) bring_chunk(c + 1);
    if (kY && c > 0) leave(c - 1);
    steps.take(c + 1);
    const ChunkSteps& now = room.steps[c % 2];
    const unsigned char* const x = stage(c) + part * kTileBytes;
    const uint64_t B = cuda::tile_at(stage(c) + kSlices * kTileBytes);

    uint32_t of_S[4 * NT][4];
#pragma unroll
    for (int n = 0; n < 4 * NT; ++n) {
      float(&left)[4] = S[n / 4][2 * (n % 4)], (&right)[4] = S[n / 4][2 * (n % 4) + 1];
      if (!kFirstPass) cuda::pack_a(of_S[n], left, right);
      if constexpr (kLeaves == Leaves::states)
        cuda::store_matrices(
            room.out + n / 4 * kTileBytes + in_tile(16 * warp + lane % 16, n % 4 * 2 + lane / 16),
            of_S[n]);
#pragma unroll
      for (int e = 0; e < 4; ++e) left[e] *= now.through, right[e] *= now.through;
    }
    if constexpr (kLeaves ==
                  Leaves::states) {  // early: show_to_products() waits for what is written
      __syncwarp();
      if (at.channels > 0) leave_state(c);
    }
    float y[8][4];
    if constexpr (kY) {
      const uint64_t C = cuda::further(B, NT * kTileBytes);
      cuda::begin_products();
      cuda::product<false, false>(y, of_S[0], C);
#pragma unroll
      for (int n = 1; n < 4 * NT; ++n)
        cuda::product<true, false>(y, of_S[n], cuda::further(C, n / 4 * kTileBytes + n % 4 * 32));
      cuda::commit_products();
    }

    uint32_t channels[4][4], weighted[4][4];  // this warp's channels: its left operands, transposed
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      cuda::load_matrices_transposed(
          channels[k], x + in_tile(16 * k + lane / 16 * 8 + lane % 8, 2 * warp + lane / 8 % 2));
      const float2 w0 = *reinterpret_cast<const float2*>(now.weight + 16 * k + t2);
      const float2 w1 = *reinterpret_cast<const float2*>(now.weight + 16 * k + 8 + t2);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        weighted[k][i] = cuda::pack_bf16(low_of(channels[k][i]) * (i < 2 ? w0.x : w1.x),
                                         high_of(channels[k][i]) * (i < 2 ? w0.y : w1.y));
    }
    if constexpr (kY) {
      cuda::wait_for_products<0>(y);
#pragma unroll
      for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float2 e = *reinterpret_cast<const float2*>(now.before + 16 * m + 8 * j + t2);
          float(&v)[4] = y[2 * m + j];
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const uint32_t pair = channels[m][2 * j + r];
            v[2 * r] = fmaf(e.x, v[2 * r], D[r] * low_of(pair));
            v[2 * r + 1] = fmaf(e.y, v[2 * r + 1], D[r] * high_of(pair));
          }
        }
    }
    cuda::begin_products();
    if constexpr (kY) {
      const uint64_t X = cuda::tile_at(x);
      const uint64_t scores = cuda::tile_at(room.scores + c % 2 * kTileBytes);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        cuda::product<true, true, false>(y, cuda::further(X, k * 2048),
                                         cuda::further(scores, k * 32));
      cuda::commit_products();
    }
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int i = 0; i < NT; ++i)
        cuda::product<true, true>(S[i], weighted[k], cuda::further(B, i * kTileBytes + k * 2048));
    cuda::commit_products();

    if constexpr (kY) {
      cuda::sync_warpgroup(part);  // the steps are there, and the y before has left
      if (c + 1 < at.chunks) bring_scores(c + 1);
      if (c + 2 < at.chunks) load_pairs(c + 2);
      cuda::wait_for_products<1>(y);
#pragma unroll
      for (int j = 0; j < 8; j += 2) {  // rows become tokens
        const uint32_t v[4] = {cuda::pack_bf16(y[j][0], y[j][1]), cuda::pack_bf16(y[j][2], y[j][3]),
                               cuda::pack_bf16(y[j + 1][0], y[j + 1][1]),
                               cuda::pack_bf16(y[j + 1][2], y[j + 1][3])};
        cuda::store_matrices_transposed(reinterpret_cast<bf16*>(room.out) +
                                            (8 * (j + lane / 16) + lane % 8) * kLdP + 16 * warp +
                                            lane / 8 % 2 * 8,
                                        v);
      }
    }
#pragma unroll
    for (int i = 0; i < NT; ++i) cuda::wait_for_products<0>(S[i]);
  }

  if (kY) {
    cuda::sync_warpgroup(part);
    leave(at.chunks - 1);
  }
  at.end_state(kFirstPass, all_of_S, steps.kept());
#endif
}

template <int NT>
struct Launch {
  const Walks& w;
  int64_t span;
  cudaStream_t stream;

  template <Leaves kLeaves>
  void walk() const {
    const CudaProblem& p = w.walk[0].p;
    const auto kernel = warpgroup_walk_kernel<NT, kLeaves>;
    constexpr size_t kBytes = Room<NT, kLeaves>::kSize;
    constexpr int kSlices = slices_of(kLeaves);
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(kBytes));
    const dim3 grid(static_cast<unsigned>(slots(p, span)),
                    static_cast<unsigned>(blocks_of_slices<kSlices>(p)),
                    static_cast<unsigned>(w.count));
    // With y in order: C Bᵀ read past the first-level cache, as an early kernel would, is waited for longer.
    cuda::launch("ssd", kLeaves != Leaves::y, kernel, grid, kSlices * kSliceThreads, kBytes, 1,
                 stream, w, span);
  }
  void run(bool first_pass) const {
    if (first_pass) return walk<Leaves::nothing>();
    w.walk[0].y.data ? walk<Leaves::y>() : walk<Leaves::states>();
  }
};

}  // namespace

bool warpgroup_walk(const Walks& w, int64_t span, bool first_pass, cudaStream_t stream) {
  for (int i = 0; i < w.count; ++i)
    if (!warpgroups_fit(w.walk[i].p) || (w.walk[i].y.data && !w.walk[i].y.runs)) return false;
  w.walk[0].p.N <= 64 ? Launch<1>{w, span, stream}.run(first_pass)
                      : Launch<2>{w, span, stream}.run(first_pass);
  return true;
}

}  // namespace krait::ops::ssd_gpu
