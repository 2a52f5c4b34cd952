// The walk where products run on matrix units. A block of four warps takes a slice of 64 channels, mostly a
// head; a warp keeps the states of 16 channels in registers, as sums of products and, rounded, as their left operand:
// no more blocks at once than leave it those registers, since beside so much shared memory spills are slow. C Bᵀ of a
// group is from a kernel before. Transposed throughout: rows are channels, columns tokens or states.
#include "krait/ops/ssd/cuda_matrix.cuh"
#include "krait/ops/ssd/cuda_matrix_parts.cuh"
#include "krait/ops/ssd/cuda_walk.cuh"

namespace krait::ops::ssd_gpu {

namespace {

constexpr int kSlices = 1, kSliceThreads = 128, kBlock = kSlices * kSliceThreads;

// What a chunk does with the state of a slice: log2 of the decay from the chunk's begin through each token, and
// the same less log2 of its Δ; the decay itself; what a token weighs in the state behind the chunk.
struct alignas(16) ChunkSteps {
  float log2[kQ], from[kQ], before[kQ], weight[kQ];
  float through;
};

constexpr int kTilesOfPairs = 10, kScores = kTilesOfPairs * 32;  // 16 tokens by 16

// Shared memory: x of the slices and B, once or twice; with y, C and the scores; the steps, twice.
template <int NT, bool kY>
struct Room {
  static constexpr int kStage = kSlices * kQ * kLdP + kQ * kLdN<NT>;
  bf16 *stages, *C;
  uint4* scores;
  ChunkSteps* steps;

  static constexpr size_t size(int stages) {
    return (stages * kStage + (kY ? kQ * kLdN<NT> : 0)) * sizeof(bf16) +
           kSlices * ((kY ? kScores * sizeof(uint4) : 0) + 2 * sizeof(ChunkSteps));
  }
  __device__ Room(unsigned char* memory, int count, int part) {
    stages = reinterpret_cast<bf16*>(memory);
    C = stages + count * kStage;
    scores = reinterpret_cast<uint4*>(C + (kY ? kQ * kLdN<NT> : 0));
    steps = reinterpret_cast<ChunkSteps*>(scores + (kY ? kSlices * kScores : 0)) + 2 * part;
    scores += part * kScores;
  }
};

// What a block walks for.
struct Slice {
  int group, h, p0, channels;  // 0: this half of the block has none
};

__device__ inline Slice slice_of(const CudaProblem& p, int block, int part) {
  const int P = static_cast<int>(p.P), tiles = (P + kP - 1) / kP;
  const int heads = static_cast<int>(p.H / p.G), of_group = heads * tiles;
  const int blocks = (of_group + kSlices - 1) / kSlices, slice = block % blocks * kSlices + part;
  Slice s;
  s.group = block / blocks;
  s.h = s.group * heads + min(slice, of_group - 1) / tiles;
  s.p0 = slice % tiles * kP;
  s.channels = slice < of_group ? min(kP, P - s.p0) : 0;
  return s;
}

template <int NT, bool kY, bool kFirstPass>
__global__ void __launch_bounds__(kBlock, NT <= 2 ? 2 : 1)
    matrix_walk_kernel(const Walks walks, const int64_t span, const int stages) {
  extern __shared__ __align__(16) unsigned char memory[];
  constexpr int NP = 64 * NT, ldN = kLdN<NT>, kTiles = NP / 8;
  const Walk& w = walks.walk[blockIdx.z];
  const CudaProblem& p = w.p;
  const Place piece = place_of(p, blockIdx.x, span);
  if (!piece.there) return;
  if (w.skip_short && begin_of(p, piece.s + 1) - begin_of(p, piece.s) <= kShort) return;
  const bool backwards = w.backwards;
  const bool at_end = piece.i + 1 == piece.units, at_begin = piece.i == 0;
  const bool first = backwards ? at_end : at_begin, last = backwards ? at_begin : at_end;
  if (kFirstPass && last) return;
  const int thread = static_cast<int>(threadIdx.x), part = thread / kSliceThreads;
  const int warp = thread % kSliceThreads / 32, lane = lane_of(), g = lane / 4, t2 = lane % 4 * 2;
  const Slice slice = slice_of(p, static_cast<int>(blockIdx.y), part);
  const int h = slice.h, N = static_cast<int>(p.N), channel = slice.p0 + 16 * warp;
  const bool mine =
      16 * warp < slice.channels;  // this warp has channels, of which P has a multiple of 16
  const Room<NT, kY> room(memory, stages, part);

  // A state (P, N): this lane's rows are channel + g and + 8, its columns 8 j + t2 and the next.
  const auto of_lane = [&](int64_t row) {
    return ((row * p.H + h) * p.P + channel + g) * p.N + t2;
  };
  float S[kTiles][4] = {};
  const float* from = nullptr;
  if (!kFirstPass && w.pieces) {
    from = w.pieces + of_lane(blockIdx.x);
  } else if (!kFirstPass && first && w.start) {
    const int64_t row = w.start_row ? w.start_row[piece.s] : piece.s;
    if (row >= 0) from = w.start + of_lane(row);
  }
  if (from && mine)
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      if (8 * j >= N) break;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float2 v = *reinterpret_cast<const float2*>(from + 8 * r * N + 8 * j);
        S[j][2 * r] = v.x, S[j][2 * r + 1] = v.y;
      }
    }

  const int chunks = static_cast<int>(ceil_div(piece.tokens, kQ));
  const int slot = static_cast<int>(first_slot(p, piece.s, kQ) + piece.i * (span / kQ));
  const int64_t begin = piece.begin, tokens = piece.tokens;
  const auto number = [&](int c) { return backwards ? chunks - 1 - c : c; };
  const auto row_of = [&](int c) { return begin + number(c) * kQ; };
  const auto valid_of = [&](int c) {
    return static_cast<int>(min(int64_t{kQ}, tokens - number(c) * kQ));
  };
  const int t = thread % kSliceThreads;
  const auto stage = [&](int c) {
    return room.stages + (stages == 2 ? c % 2 : 0) * Room<NT, kY>::kStage;
  };
  const auto bring_chunk = [&](int c) {
    bf16* const x = stage(c);
    bring_async<kQ, kP, kSliceThreads>(x + part * kQ * kLdP, kLdP, p.x, row_of(c), valid_of(c),
                                       h * static_cast<int>(p.P) + slice.p0, slice.channels, t);
    bring_async<kQ, NP, kBlock>(x + kSlices * kQ * kLdP, ldN, p.B, row_of(c), valid_of(c),
                                slice.group * N, N, thread);
    cuda::commit_copies();
  };
  const auto bring_C = [&](int c) {
    bring_async<kQ, NP, kBlock>(room.C, ldN, p.C, row_of(c), valid_of(c), slice.group * N, N,
                                thread);
    cuda::commit_copies();
  };
  // Half of a slice's threads have a token each, and have the steps ready one chunk ahead, in registers two.
  const auto* const all_steps = w.steps + (int64_t{slot} * p.H + h) * kQ;
  float2 next = {};
  float next_all = 0, kept = 1;
  const auto load_steps = [&](int c) {
    const float2* const of_chunk = all_steps + number(c) * p.H * kQ;
    next = of_chunk[t];
    next_all = of_chunk[kQ - 1].y;
  };
  const auto take_steps = [&](int c) {
    ChunkSteps& to = room.steps[c % 2];
    const float before = cuda::exp2_fast(next.y), through = cuda::exp2_fast(next_all);
    to.log2[t] = next.y;
    to.from[t] = next.y - __log2f(next.x);
    to.before[t] = before;
    to.weight[t] = backwards ? before : next.x * cuda::exp2_fast(next_all - next.y);
    kept *= through;
    if (t == 0) to.through = through;
    if (c + 1 < chunks) load_steps(c + 1);
  };

  bring_chunk(0);
  if (kY) bring_C(0);
  if (t < kQ) {
    load_steps(0);
    take_steps(0);
  }
  for (int c = 0; c < chunks; ++c) {
    cuda::wait_for_copies<0>();
    __syncthreads();
    if (stages == 2 && c + 1 < chunks) bring_chunk(c + 1);
    if (t < kQ && c + 1 < chunks) take_steps(c + 1);
    const ChunkSteps& now = room.steps[c % 2];
    const bf16* const x = stage(c) + part * kQ * kLdP;
    const bf16* const B = stage(c) + kSlices * kQ * kLdP;

    if (!kFirstPass && w.states && mine) {
      bf16* const to = static_cast<bf16*>(w.states) + of_lane(slot + number(c)) - t2;
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

    const bf16* const x_t = x + 16 * warp;  // this warp's channels: its left operands, transposed
    if constexpr (kY) {
      const auto* const pairs =
          reinterpret_cast<const float4*>(
              w.pairs + (int64_t{slot + number(c)} * p.G + slice.group) * kPairsSize) +
          lane;
#pragma unroll
      for (int i = 0; i < 3; ++i) {  // of the scores a warp makes every fourth tile
        const int tile = warp + 4 * i, m = (tile >= 1) + (tile >= 3) + (tile >= 6);
        const int k = tile - m * (m + 1) / 2;
        if (tile >= kTilesOfPairs) break;
        const bool before = k < m;  // none of these 16 tokens is later than any of those
        const float2 s0 = *reinterpret_cast<const float2*>(now.from + 16 * k + t2);
        const float2 s1 = *reinterpret_cast<const float2*>(now.from + 16 * k + 8 + t2);
        uint32_t b[2][2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float log2 = now.log2[16 * m + 8 * j + g];
          const float4 pair = pairs[pair_tile(k, 2 * m + j) * 32];
          const auto score = [&](float product, float from_s, bool there) {
            const float v = product * cuda::exp2_fast(log2 - from_s);
            return there ? v : 0.0f;
          };
          const bool low = before || j == 1;
          b[j][0] = cuda::pack_bf16(score(pair.x, s0.x, low || t2 <= g),
                                    score(pair.y, s0.y, low || t2 < g));
          b[j][1] = cuda::pack_bf16(score(pair.z, s1.x, before || (j == 1 && t2 <= g)),
                                    score(pair.w, s1.y, before || (j == 1 && t2 < g)));
        }
        room.scores[tile * 32 + lane] = make_uint4(b[0][0], b[0][1], b[1][0], b[1][1]);
      }
      float D[2] = {};
      if (p.D && mine)
#pragma unroll
        for (int r = 0; r < 2; ++r)
          D[r] = p.D[p.D_per_channel ? h * static_cast<int>(p.P) + channel + g + 8 * r : h];
      const int64_t row = row_of(c);
      const int valid = valid_of(c);
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
            y[m][j][2 * r] = fmaf(e.x, y[m][j][2 * r], D[r] * low_of(pair));
            y[m][j][2 * r + 1] = fmaf(e.y, y[m][j][2 * r + 1], D[r] * high_of(pair));
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
            put_four(w.y, row + token, h * static_cast<int>(p.P) + channel + four_of_lane(), v);
        }
      }
      __syncthreads();
      if (c + 1 < chunks) bring_C(c + 1);
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
        xs[i] = cuda::pack_bf16(low_of(xs[i]) * (i < 2 ? w0.x : w1.x),
                                high_of(xs[i]) * (i < 2 ? w0.y : w1.y));
#pragma unroll
      for (int j = 0; j < kTiles; j += 2) {
        uint32_t b[4];
        cuda::load_b_rows(b, B + 16 * k * ldN + 8 * j, ldN);
        cuda::mma_bf16(S[j], xs, b[0], b[1]);
        cuda::mma_bf16(S[j + 1], xs, b[2], b[3]);
      }
    }
    if (stages == 1 && c + 1 < chunks) {
      __syncthreads();
      bring_chunk(c + 1);
    }
  }

  float* to = nullptr;
  if (kFirstPass) {
    to = w.pieces + of_lane(blockIdx.x);
    if (mine && t == 0 && slice.p0 == 0) w.kept[blockIdx.x * p.H + h] = kept;
  } else if (last && w.end) {
    const int64_t row = w.end_row ? w.end_row[piece.s] : piece.s;
    if (row >= 0) to = w.end + of_lane(row);
  }
  if (to && mine)
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      if (8 * j >= N) break;
#pragma unroll
      for (int r = 0; r < 2; ++r)
        *reinterpret_cast<float2*>(to + 8 * r * N + 8 * j) =
            make_float2(S[j][2 * r], S[j][2 * r + 1]);
    }
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
                    static_cast<unsigned>(matrix_walk_blocks(p)), static_cast<unsigned>(w.count));
    kernel<<<grid, kBlock, bytes, stream>>>(w, span, stages);
    cuda::check_launch("ssd");
  }
  void run(bool first_pass) const {
    if (first_pass) return walk<false, true>();
    w.walk[0].y.data ? walk<true, false>() : walk<false, false>();
  }
};

}  // namespace

int64_t matrix_walk_blocks(const CudaProblem& p) {
  return p.G * ceil_div(p.H / p.G * ceil_div(p.P, kP), kSlices);
}

void matrix_walk(const Walks& w, int64_t span, bool first_pass, cudaStream_t stream) {
  if (w.walk[0].p.N <= 64) {
    Launch<1>{w, span, stream}.run(first_pass);
  } else if (w.walk[0].p.N <= 128) {
    Launch<2>{w, span, stream}.run(first_pass);
  } else {
    Launch<4>{w, span, stream}.run(first_pass);
  }
}

}  // namespace krait::ops::ssd_gpu
