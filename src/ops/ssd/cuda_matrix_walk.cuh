// Private to ssd: what walks on matrix units share: a slice of 64 channels, mostly a head, on its way through a piece of
// a sequence.
#pragma once
#include "krait/ops/ssd/cuda_matrix.cuh"
#include "krait/ops/ssd/cuda_matrix_parts.cuh"
#include "krait/ops/ssd/cuda_walk.cuh"

namespace krait::ops::ssd_gpu {
namespace {

constexpr int kSliceThreads = 128;

// What a chunk does with the state of a slice: log2 of the decay from the chunk's begin through each token, and
// the same less log2 of its Δ; the decay itself; what a token weighs in the state behind the chunk.
struct alignas(16) ChunkSteps {
  float log2[kQ], from[kQ], before[kQ], weight[kQ];
  float through;
};

// The scores of a chunk are tiles of 16 tokens by 16, none of later tokens.
constexpr int kTilesOfPairs = 10;
__device__ inline int row_of_tile(int tile) { return (tile >= 1) + (tile >= 3) + (tile >= 6); }
__device__ inline int column_of_tile(int tile) {
  const int m = row_of_tile(tile);
  return tile - m * (m + 1) / 2;
}

// Tile m, k of the scores from C Bᵀ of it (8 tokens t each): rows are t, columns pairs of s.
__device__ inline void make_scores(const ChunkSteps& steps, int m, int k, const float4 (&pairs)[2],
                                   uint32_t (&scores)[2][2]) {
  const int lane = lane_of(), g = lane / 4, t2 = lane % 4 * 2;
  const bool before = k < m;  // none of these 16 tokens is later than any of those
  const float2 s0 = *reinterpret_cast<const float2*>(steps.from + 16 * k + t2);
  const float2 s1 = *reinterpret_cast<const float2*>(steps.from + 16 * k + 8 + t2);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const float log2 = steps.log2[16 * m + 8 * j + g];
    const auto score = [&](float product, float from_s, bool there) {
      const float v = product * cuda::exp2_fast(log2 - from_s);
      return there ? v : 0.0f;
    };
    const bool low = before || j == 1;
    scores[j][0] = cuda::pack_bf16(score(pairs[j].x, s0.x, low || t2 <= g),
                                   score(pairs[j].y, s0.y, low || t2 < g));
    scores[j][1] = cuda::pack_bf16(score(pairs[j].z, s1.x, before || (j == 1 && t2 <= g)),
                                   score(pairs[j].w, s1.y, before || (j == 1 && t2 < g)));
  }
}

// What a block goes through, turn by turn: the chunks of its piece, with a first pass before them those of that, from the
// last to the first, as what a token weighs behind the piece is then known at once.
struct Turns {
  int first_pass, all;

  __device__ int chunk(int turn) const {
    return turn < first_pass ? first_pass - 1 - turn : turn - first_pass;
  }
};

// Where a block's slice is in a walk, as a thread of it sees it.
struct Course {
  const Walk& w;
  Place piece;
  bool first, last;            // piece of the sequence, in the order of the walk
  int group, h, p0, channels;  // channels 0: this part of the block has no slice
  int t, warp;                 // thread and warp of the slice
  int chunks, slot;

  // Part `part` of a block that has kSlices.
  template <int kSlices>
  __device__ static Course of(const Walk& w, int64_t span, int part) {
    const CudaProblem& p = w.p;
    Course a{w, place_of(p, blockIdx.x, span)};
    const bool at_end = a.piece.i + 1 == a.piece.units, at_begin = a.piece.i == 0;
    a.first = w.backwards ? at_end : at_begin, a.last = w.backwards ? at_begin : at_end;
    a.go_to<kSlices>(part);
    a.t = static_cast<int>(threadIdx.x) % kSliceThreads, a.warp = a.t / 32;
    a.chunks = static_cast<int>(ceil_div(a.piece.tokens, kQ));
    a.slot = static_cast<int>(first_slot(p, a.piece.s, kQ) + a.piece.i * (span / kQ));
    return a;
  }
  template <int kSlices>
  __device__ void go_to(int part) {
    const CudaProblem& p = w.p;
    const int P = static_cast<int>(p.P), tiles = (P + kP - 1) / kP;
    const int heads = static_cast<int>(p.H / p.G), of_group = heads * tiles;
    const int blocks = (of_group + kSlices - 1) / kSlices, block = static_cast<int>(blockIdx.y);
    const int slice = block % blocks * kSlices + part;
    group = block / blocks;
    h = group * heads + min(slice, of_group - 1) / tiles;
    p0 = slice % tiles * kP;
    channels = slice < of_group ? min(kP, P - p0) : 0;
  }
  __device__ bool there(bool first_pass) const {
    if (!piece.there || (first_pass && last)) return false;
    return !w.skip_short || begin_of(w.p, piece.s + 1) - begin_of(w.p, piece.s) > kShort;
  }
  // Whether this warp has channels, of which P has a multiple of 16.
  __device__ bool mine() const { return 16 * warp < channels; }
  __device__ int column() const { return h * static_cast<int>(w.p.P) + p0; }  // of x and y

  // Chunk c in the order of the walk: which of the piece it is, its first token, its tokens.
  __device__ int number(int c) const { return w.backwards ? chunks - 1 - c : c; }
  __device__ int64_t row(int c) const { return piece.begin + number(c) * kQ; }
  __device__ int valid(int c) const {
    return static_cast<int>(min(int64_t{kQ}, piece.tokens - number(c) * kQ));
  }

  // A state (P, N): this lane's rows are channel() + g and + 8, its columns 8 j + 2 (lane % 4) and the next.
  __device__ int channel() const { return p0 + 16 * warp; }
  __device__ int64_t of_lane(int64_t row) const {
    const int lane = lane_of();
    return ((row * w.p.H + h) * w.p.P + channel() + lane / 4) * w.p.N + lane % 4 * 2;
  }
  // What is there, or with kAdd decay S and what is there.
  template <bool kAdd, int kTiles>
  __device__ void take_state(const float* from, float decay, float (&S)[kTiles][4]) const {
    if (!from || !mine()) return;
    const int N = static_cast<int>(w.p.N);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      if (8 * j >= N) break;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float2 v = __ldcg(reinterpret_cast<const float2*>(from + 8 * r * N + 8 * j));
        S[j][2 * r] = kAdd ? fmaf(decay, S[j][2 * r], v.x) : v.x;
        S[j][2 * r + 1] = kAdd ? fmaf(decay, S[j][2 * r + 1], v.y) : v.y;
      }
    }
  }
  // Null: zeros.
  __device__ const float* begin_of_sequence() const {
    if (!w.start) return nullptr;
    const int64_t row = w.start_row ? w.start_row[piece.s] : piece.s;
    return row >= 0 ? w.start + of_lane(row) : nullptr;
  }
  template <int kTiles>
  __device__ void begin_state(bool first_pass, float (&S)[kTiles][4]) const {
    const float* from = nullptr;
    if (!first_pass && w.pieces) {
      from = w.pieces + of_lane(blockIdx.x);
    } else if (!first_pass && first) {
      from = begin_of_sequence();
    }
    take_state<false>(from, 0, S);
  }
  // In a walk forwards that joins its pieces: what they have left before this one.
  template <int kTiles>
  __device__ void add_piece(int i, float decay, float (&S)[kTiles][4]) const {
    take_state<true>(w.pieces + of_lane(blockIdx.x - i), decay, S);
  }
  template <int kTiles>
  __device__ void end_state(bool first_pass, const float (&S)[kTiles][4]) const {
    float* to = nullptr;
    if (first_pass) {
      to = w.pieces + of_lane(blockIdx.x);
    } else if (last && w.end) {
      const int64_t row = w.end_row ? w.end_row[piece.s] : piece.s;
      if (row >= 0) to = w.end + of_lane(row);
    }
    if (!to || !mine()) return;
    const int N = static_cast<int>(w.p.N);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      if (8 * j >= N) break;
#pragma unroll
      for (int r = 0; r < 2; ++r)
        *reinterpret_cast<float2*>(to + 8 * r * N + 8 * j) =
            make_float2(S[j][2 * r], S[j][2 * r + 1]);
    }
  }

  // By warpgroups: the tiles of the state before chunk c.
  __device__ unsigned char* state(int c) const {
    const int64_t first = (int64_t{slot + number(c)} * w.p.H + h) * ceil_div(w.p.P, kP) + p0 / kP;
    return static_cast<unsigned char*>(w.states) + first * kP * w.p.N * int64_t{sizeof(bf16)};
  }

  // The decay of this slice over the piece `i` before this one.
  __device__ float* decay(int i) const {
    const int64_t tiles = ceil_div(w.p.P, kP);
    return w.kept + ((int64_t{blockIdx.x} - i) * w.p.H + h) * tiles + p0 / kP;
  }
  // Of a first pass, by a thread that has it: the decay over the piece.
  __device__ void end_decay(float kept) const {
    if (mine() && t == 0 && p0 == 0) w.kept[blockIdx.x * w.p.H + h] = kept;
  }

  // D of this lane's two channels.
  __device__ void skip(float (&D)[2]) const {
    if (!w.p.D || !mine()) return;
#pragma unroll
    for (int r = 0; r < 2; ++r)
      D[r] =
          w.p.D[w.p.D_per_channel ? h * static_cast<int>(w.p.P) + channel() + lane_of() / 4 + 8 * r
                                  : h];
  }
  // C Bᵀ of a chunk, for this lane.
  __device__ const float4* pairs(int c) const {
    return reinterpret_cast<const float4*>(w.pairs + (int64_t{slot + number(c)} * w.p.G + group) *
                                                         kPairsSize) +
           lane_of();
  }
};

// The steps of a slice's chunks: half of its threads have a token each. Ready a chunk ahead, in registers two.
class WalkSteps {
 public:
  // Into two[0] for even turns, two[1] for odd ones, in shared memory.
  __device__ WalkSteps(const Course& at, ChunkSteps* two, const Turns& turns)
      : at_(at),
        two_(two),
        turns_(turns),
        from_(at.w.steps + (int64_t{at.slot + at.number(turns.chunk(0))} * at.w.p.H + at.h) * kQ),
        further_((at.w.backwards != (turns.first_pass > 0) ? -kQ : kQ) * at.w.p.H) {
    if (at.t >= kQ) return;
    load(0);
    take(0);
  }
  __device__ void take(int turn) {
    if (at_.t >= kQ || turn >= turns_.all) return;
    ChunkSteps& to = two_[turn % 2];
    const float before = cuda::exp2_fast(next_.y), through = cuda::exp2_fast(next_all_);
    to.log2[at_.t] = next_.y;
    to.from[at_.t] = next_.y - __log2f(next_.x);
    to.before[at_.t] = before;
    float weight = at_.w.backwards ? before : next_.x * cuda::exp2_fast(next_all_ - next_.y);
    if (turn < turns_.first_pass) weight *= kept_;
    to.weight[at_.t] = weight;
    kept_ *= through;
    if (at_.t == 0) to.through = through;
    if (turn + 1 < turns_.all) load(turn + 1);
  }
  // The decay over all that was taken, where a thread has tokens.
  __device__ float kept() const { return kept_; }

 private:
  __device__ void load(int turn) {
    if (turn > 0 && turn == turns_.first_pass) {  // at its end is the first chunk of all
      from_ -= further_;
      further_ = -further_;
    }
    next_ = __ldcg(from_ + at_.t);
    next_all_ = __ldcg(&from_[kQ - 1].y);
    from_ += further_;
  }

  const Course& at_;
  ChunkSteps* two_;
  const Turns turns_;
  const float2* from_;
  int64_t further_;
  float2 next_ = {};
  float next_all_ = 0, kept_ = 1;
};

template <int kSlices>
int64_t blocks_of_slices(const CudaProblem& p) {
  return p.G * ceil_div(p.H / p.G * ceil_div(p.P, kP), kSlices);
}

}  // namespace
}  // namespace krait::ops::ssd_gpu
