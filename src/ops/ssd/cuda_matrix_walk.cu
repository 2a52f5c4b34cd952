// The walk where products run on matrix units. A block of four warps takes a slice of 64 channels, mostly a
// head; a warp keeps the states of 16 channels in registers, as sums of products and, rounded, as their left operand:
// no more blocks at once than leave it those registers, since beside so much shared memory spills are slow. C Bᵀ of a
// group is from a kernel before. Transposed throughout: rows are channels, columns tokens or states.
#include "krait/ops/ssd/cuda_matrix_walk.cuh"

namespace krait::ops::ssd_gpu {

namespace {

constexpr int kBlock = kSliceThreads, kScores = kTilesOfPairs * 32;

// Shared memory: x of the slice and B, once or twice; with y, C and the scores; the steps, twice.
template <int NT, bool kY>
struct Room {
  static constexpr int kStage = kQ * kLdP + kQ * kLdN<NT>;
  bf16 *stages, *C;
  uint4* scores;
  ChunkSteps* steps;

  static constexpr size_t size(int stages) {
    return (stages * kStage + (kY ? kQ * kLdN<NT> : 0)) * sizeof(bf16) +
           (kY ? kScores * sizeof(uint4) : 0) + 2 * sizeof(ChunkSteps);
  }
  __device__ Room(unsigned char* memory, int count) {
    stages = reinterpret_cast<bf16*>(memory);
    C = stages + count * kStage;
    scores = reinterpret_cast<uint4*>(C + (kY ? kQ * kLdN<NT> : 0));
    steps = reinterpret_cast<ChunkSteps*>(scores + (kY ? kScores : 0));
  }
};

template <int NT, bool kY, bool kFirstPass>
__global__ void __launch_bounds__(kBlock, (NT <= 2 ? 2 : 1) + (kY ? 0 : 1))
    matrix_walk_kernel(const Walks walks, const int64_t span, const int stages) {
  extern __shared__ __align__(16) unsigned char memory[];
  constexpr int NP = 64 * NT, ldN = kLdN<NT>, kTiles = NP / 8;
  const Walk& w = walks.walk[blockIdx.z];
  const CudaProblem& p = w.p;
  const Course at = Course::of<1>(w, span, 0);
  if (!at.there(kFirstPass)) return;
  const int lane = lane_of(), g = lane / 4, t2 = lane % 4 * 2, N = static_cast<int>(p.N);
  const bool mine = at.mine();
  const Room<NT, kY> room(memory, stages);
  float S[kTiles][4] = {}, D[2] = {};
  at.begin_state(kFirstPass, S);
  if (kY) at.skip(D);

  const auto stage = [&](int c) {
    return room.stages + (stages == 2 ? c % 2 : 0) * Room<NT, kY>::kStage;
  };
  const auto bring_chunk = [&](int c) {
    bf16* const x = stage(c);
    bring_async<kQ, kP, kBlock>(x, kLdP, p.x, at.row(c), at.valid(c), at.column(), at.channels,
                                at.t);
    bring_async<kQ, NP, kBlock>(x + kQ * kLdP, ldN, p.B, at.row(c), at.valid(c), at.group * N, N,
                                at.t);
    cuda::commit_copies();
  };
  const auto bring_C = [&](int c) {
    bring_async<kQ, NP, kBlock>(room.C, ldN, p.C, at.row(c), at.valid(c), at.group * N, N, at.t);
    cuda::commit_copies();
  };

  bring_chunk(0);
  if (kY) bring_C(0);
  WalkSteps steps(at, room.steps, {0, at.chunks});
  for (int c = 0; c < at.chunks; ++c) {
    cuda::wait_for_copies<0>();
    __syncthreads();
    if (stages == 2 && c + 1 < at.chunks) bring_chunk(c + 1);
    steps.take(c + 1);
    const ChunkSteps& now = room.steps[c % 2];
    const bf16 *const x = stage(c), *const B = x + kQ * kLdP;

    if (!kFirstPass && w.states && mine) {
      bf16* const to = static_cast<bf16*>(w.states) + at.of_lane(at.slot + at.number(c)) - t2;
#pragma unroll
      for (int j = 0; j < kTiles; j += 2) {
        if (8 * j >= N) break;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const Four<uint32_t> v =
              exchange_pairs(cuda::pack_bf16(S[j][2 * r], S[j][2 * r + 1]),
                             cuda::pack_bf16(S[j + 1][2 * r], S[j + 1][2 * r + 1]));
          *reinterpret_cast<uint2*>(to + 8 * r * N + 8 * j + four_of_lane()) =
              make_uint2(v.low, v.high);
        }
      }
    }

    const bf16* const x_t =
        x + 16 * at.warp;  // this warp's channels: its left operands, transposed
    if constexpr (kY) {
      const float4* const of_chunk = at.pairs(c);
#pragma unroll
      for (int i = 0; i < 3; ++i) {  // of the scores a warp makes every fourth tile
        const int tile = at.warp + 4 * i, m = row_of_tile(tile), k = column_of_tile(tile);
        if (tile >= kTilesOfPairs) break;
        const float4 pairs[2] = {of_chunk[pair_tile(k, 2 * m) * 32],
                                 of_chunk[pair_tile(k, 2 * m + 1) * 32]};
        uint32_t b[2][2];
        make_scores(now, m, k, pairs, b);
        room.scores[tile * 32 + lane] = make_uint4(b[0][0], b[0][1], b[1][0], b[1][1]);
      }
      const int64_t row = at.row(c);
      const int valid = at.valid(c);
      __syncthreads();
      float y[4][2][4] = {};  // 16 tokens each
#pragma unroll
      for (int n = 0; n < NP / 16; ++n) {
        uint32_t a[4], b[4];
        cuda::pack_a(a, S[2 * n], S[2 * n + 1]);
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          cuda::load_b(b, room.C + 16 * m * ldN + 16 * n, ldN);
          cuda::mma_bf16(y[m][0], a, b[0], b[1]);
          cuda::mma_bf16(y[m][1], a, b[2], b[3]);
        }
      }
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        uint32_t xs[4];
        cuda::load_a_columns(xs, x_t + 16 * m * kLdP, kLdP);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float2 e = *reinterpret_cast<const float2*>(now.before + 16 * m + 8 * j + t2);
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const uint32_t pair = xs[2 * j + r];
            y[m][j][2 * r] = fmaf(e.x, y[m][j][2 * r], D[r] * low_bf16(pair));
            y[m][j][2 * r + 1] = fmaf(e.y, y[m][j][2 * r + 1], D[r] * high_bf16(pair));
          }
        }
        const uint4* const of_row = room.scores + m * (m + 1) / 2 * 32 + lane;
#pragma unroll
        for (int k = 0; k <= m; ++k) {
          cuda::load_a_columns(xs, x_t + 16 * k * kLdP, kLdP);
          const uint4 b = of_row[k * 32];
          cuda::mma_bf16(y[m][0], xs, b.x, b.y);
          cuda::mma_bf16(y[m][1], xs, b.z, b.w);
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {  // rows become tokens
          const uint32_t left = cuda::transpose_matrix(cuda::pack_bf16(y[m][j][0], y[m][j][1]));
          const uint32_t right = cuda::transpose_matrix(cuda::pack_bf16(y[m][j][2], y[m][j][3]));
          const Four<uint32_t> v = exchange_pairs(left, right);
          const int token = 16 * m + 8 * j + g;
          if (mine && token < valid)
            put_four(w.y, row + token, at.column() + 16 * at.warp + four_of_lane(), v);
        }
      }
      __syncthreads();
      if (c + 1 < at.chunks) bring_C(c + 1);
    }

    const float through = now.through;
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) S[j][i] *= through;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float2 w0 = *reinterpret_cast<const float2*>(now.weight + 16 * k + t2);
      const float2 w1 = *reinterpret_cast<const float2*>(now.weight + 16 * k + 8 + t2);
      uint32_t xs[4];
      cuda::load_a_columns(xs, x_t + 16 * k * kLdP, kLdP);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        xs[i] = cuda::pack_bf16(low_bf16(xs[i]) * (i < 2 ? w0.x : w1.x),
                                high_bf16(xs[i]) * (i < 2 ? w0.y : w1.y));
#pragma unroll
      for (int j = 0; j < kTiles; j += 2) {
        uint32_t b[4];
        cuda::load_b_rows(b, B + 16 * k * ldN + 8 * j, ldN);
        cuda::mma_bf16(S[j], xs, b[0], b[1]);
        cuda::mma_bf16(S[j + 1], xs, b[2], b[3]);
      }
    }
    if (stages == 1 && c + 1 < at.chunks) {
      __syncthreads();
      bring_chunk(c + 1);
    }
  }

  at.end_state(kFirstPass, S);
  if (kFirstPass) at.end_decay(steps.kept());
}

template <int NT>
struct Launch {
  const Walks& w;
  int64_t span;
  cudaStream_t stream;

  template <bool kY, bool kFirstPass>
  void walk() const {
    const CudaProblem& p = w.walk[0].p;
    const auto kernel = matrix_walk_kernel<NT, kY, kFirstPass>;
    const int stages = Room<NT, kY>::size(2) <= shared_memory_of_block() ? 2 : 1;
    const size_t bytes = Room<NT, kY>::size(stages);
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(bytes));
    const dim3 grid(static_cast<unsigned>(slots(p, span)),
                    static_cast<unsigned>(blocks_of_slices<1>(p)), static_cast<unsigned>(w.count));
    kernel<<<grid, kBlock, bytes, stream>>>(w, span, stages);
    cuda::check_launch("ssd");
  }
  void run(bool first_pass) const {
    if (first_pass) return walk<false, true>();
    w.walk[0].y.data ? walk<true, false>() : walk<false, false>();
  }
};

}  // namespace

void matrix_walk(const Walks& w, int64_t span, bool first_pass, cudaStream_t stream) {
  if (warpgroup_walk(w, span, first_pass, stream)) return;
  if (w.walk[0].p.N <= 64) {
    Launch<1>{w, span, stream}.run(first_pass);
  } else if (w.walk[0].p.N <= 128) {
    Launch<2>{w, span, stream}.run(first_pass);
  } else {
    Launch<4>{w, span, stream}.run(first_pass);
  }
}

}  // namespace krait::ops::ssd_gpu
