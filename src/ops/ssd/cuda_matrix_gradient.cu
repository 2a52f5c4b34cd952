// The gradients of a chunk where products run on matrix units: the formulas of cuda_gradient.cu. A block takes the
// heads of a set one after the other. kParts warps share 16 tokens (a strip): of products over pairs of tokens each
// has every kParts-th 16 columns, of others a part of the columns. Σ over heads of D K Δ is kept, and multiplied with B
// and C once for all of them.
#include "krait/ops/ssd/cuda_matrix_dots.cuh"

namespace krait::ops::ssd_gpu {

namespace {

template <int NT>
struct Room {
  static constexpr int ldN = kLdN<NT>, kPart = 2 * kQ * kLdP + 2 * kP * ldN;
  bf16 *B, *C, *scores, *stages;
  HeadSteps* steps;
  Dots* dots;

  static constexpr size_t size(int stages) {
    return (2 * kQ * ldN + kQ * kLdQ + stages * kPart) * sizeof(bf16) + 3 * sizeof(HeadSteps) +
           2 * sizeof(Dots);
  }
  __device__ Room(unsigned char* memory, int count) {
    B = reinterpret_cast<bf16*>(memory);
    C = B + kQ * ldN, scores = C + kQ * ldN, stages = scores + kQ * kLdQ;
    steps = reinterpret_cast<HeadSteps*>(stages + count * kPart);
    dots = reinterpret_cast<Dots*>(steps + 3);
  }
};

// Of a warp: tiles of 16 tokens s, every kParts-th from its part on where not behind its strip; tiles of 8 channels; of 8
// states.
constexpr int kPairs = 4 / kParts, kU = kP / 8 / kParts;
template <int NT>
constexpr int kN = 8 * NT / kParts;

// A thread's place in its block. Its warp's rows are 16 tokens t from t0 on, its columns tiles of pairs from `part` on,
// channels from i0 on, or states from n0 on.
template <int NT>
struct Seat {
  int thread = static_cast<int>(threadIdx.x), warp = thread / 32, strip = warp / kParts;
  int lane = lane_of(), g = lane / 4, t2 = lane % 4 * 2;
  // The order spreads the pairs of tokens over the four units that a multiprocessor has.
  int part = (warp + (kParts - 1) * strip) % kParts;
  int t0 = 16 * strip, n0 = 64 * NT / kParts * part, i0 = kP / kParts * part;
};

// 64 channels of head h from p0 on: x, dy (tokens, channels); the state before the chunk and the gradient of that behind it
// (channels, states).
template <int NT>
struct Slice {
  const bf16 *x, *dy, *S, *dS;
  int64_t h;
  int p0, channels;  // how many of the 64 there are
  bool again;        // a head's further channels: sums go on
  float D;           // of the head, where channels have none of their own

  __device__ Slice(const CudaProblem& p, const bf16* stage, int64_t h_, int p0_)
      : x(stage),
        dy(x + kQ * kLdP),
        S(dy + kQ * kLdP),
        dS(S + kP * kLdN<NT>),
        h(h_),
        p0(p0_),
        channels(min(kP, static_cast<int>(p.P) - p0)),
        again(p0 > 0),
        D(p.D && !p.D_per_channel ? p.D[h] : 0.0f) {}
};

// Brings the slices of a set of heads, one after the other, into one stage or two.
template <int NT>
class SliceReader {
 public:
  __device__ SliceReader(const Gradient& w, bf16* stages, int count, int64_t first_head,
                         const Place& chunk, int thread)
      : w_(w),
        stages_(stages),
        count_(count),
        row_(chunk.begin),
        valid_(static_cast<int>(chunk.tokens)),
        thread_(thread),
        P_(static_cast<int>(w.p.P)),
        first_column_(static_cast<int>(first_head) * P_),
        first_state_((blockIdx.x * w.p.H + first_head) * w.p.P) {
    states_.data = const_cast<void*>(w.states), dstates_.data = const_cast<void*>(w.dstates);
    states_.stride = dstates_.stride = w.p.N;
    states_.bf16 = states_.runs = dstates_.bf16 = dstates_.runs = true;
  }
  __device__ bf16* stage(int slice) const {
    return stages_ + (count_ == 2 ? slice % 2 : 0) * Room<NT>::kPart;
  }
  __device__ void bring() {
    constexpr int NP = 64 * NT, ldN = kLdN<NT>;
    const int N = static_cast<int>(w_.p.N);
    bf16* const x = stage(coming_);
    bf16 *const dy = x + kQ * kLdP, *const S = dy + kQ * kLdP, *const dS = S + kP * ldN;
    const int of_head = head_ * P_ + p0_, channels = min(kP, P_ - p0_);
    const int column = first_column_ + of_head;
    const int64_t state = first_state_ + of_head;
    bring_async<kQ, kP, kBlock>(x, kLdP, w_.p.x, row_, valid_, column, channels, thread_);
    bring_async<kQ, kP, kBlock>(dy, kLdP, w_.dy, row_, valid_, column, channels, thread_);
    bring_async<kP, NP, kBlock>(S, ldN, states_, state, channels, 0, N, thread_);
    bring_async<kP, NP, kBlock>(dS, ldN, dstates_, state, channels, 0, N, thread_);
    cuda::commit_copies();
    ++coming_, p0_ += kP;
    if (p0_ >= P_) p0_ = 0, ++head_;
  }

 private:
  const Gradient& w_;
  bf16* stages_;
  int count_;
  int64_t row_;
  int valid_, thread_, P_, first_column_;
  int64_t first_state_;
  CudaRows states_, dstates_;
  int coming_ = 0, head_ = 0, p0_ = 0;  // of the slice that is to be brought next
};

// G = C Bᵀ.
template <int NT>
__device__ inline void multiply_C_B(float (&G)[kPairs][2][4], const Room<NT>& room,
                                    const Seat<NT>& at) {
  constexpr int ldN = kLdN<NT>;
#pragma unroll 1
  for (int n = 0; n < 64 * NT; n += 16) {
    uint32_t a[4], b[4];
    cuda::load_a(a, room.C + at.t0 * ldN + n, ldN);
#pragma unroll
    for (int k = 0; k < kPairs; ++k) {
      cuda::load_b(b, room.B + 16 * (at.part + kParts * k) * ldN + n, ldN);
      cuda::mma_bf16(G[k][0], a, b[0], b[1]);
      cuda::mma_bf16(G[k][1], a, b[2], b[3]);
    }
  }
}

// K = dy xᵀ and what follows from it: D K Δ added to its sum over heads, D G into the scores, of W = G D K Δ the sums that
// dΔ is made of.
template <int NT>
__device__ inline void add_pairs(float (&sum_DK)[kPairs][2][4], const float (&G)[kPairs][2][4],
                                 const uint32_t (&of_dy)[4][4], const Slice<NT>& of,
                                 const HeadSteps& steps, Dots& dots, bf16* scores,
                                 const Seat<NT>& at) {
  float left[2] = {}, trace = 0;
  const float log2_t[2] = {steps.log2[at.t0 + at.g], steps.log2[at.t0 + at.g + 8]};
#pragma unroll
  for (int k = 0; k < kPairs; ++k) {
    const int s16 = at.part + kParts * k;
    if (s16 > at.strip) break;
    const bool diagonal = s16 == at.strip;
    float K[2][4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t b[4];
      cuda::load_b(b, of.x + 16 * s16 * kLdP + 16 * i, kLdP);
      cuda::mma_bf16(K[0], of_dy[i], b[0], b[1]);
      cuda::mma_bf16(K[1], of_dy[i], b[2], b[3]);
    }
    float W[2][4];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int s = 16 * s16 + 8 * j + at.t2;
      const float2 log2_s = *reinterpret_cast<const float2*>(steps.log2 + s);
      const float2 delta = *reinterpret_cast<const float2*>(steps.delta + s);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int t = at.t0 + at.g + 8 * r;
        float DG[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int e = 2 * r + c;
          if (s + c == t) trace += K[j][e];
          float decay = cuda::exp2_fast(log2_t[r] - (c ? log2_s.y : log2_s.x));
          if (s + c > t) decay = 0;
          DG[c] = decay * G[k][j][e];
          const float DK = decay * K[j][e] * (c ? delta.y : delta.x);
          sum_DK[k][j][e] += DK;
          W[j][e] = G[k][j][e] * DK;
        }
        *reinterpret_cast<uint32_t*>(scores + t * kLdQ + s) = cuda::pack_bf16(DG[0], DG[1]);
      }
    }
    if (diagonal) {
      float between[2];
      sum_between(W[0], W[1], between);
      trace = sum_of_warp(trace);
      if (at.lane % 4 == 0) {
        keep(dots.diagonal[at.t0 + at.g], between[0], of.again);
        keep(dots.diagonal[at.t0 + at.g + 8], between[1], of.again);
      }
      if (at.lane == 0) keep(dots.D[at.strip], trace, of.again);
      continue;
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      left[0] += W[j][0] + W[j][1];
      left[1] += W[j][2] + W[j][3];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float sum = W[j][c] + W[j][c + 2];
#pragma unroll
        for (int d = 4; d < 32; d *= 2) sum += __shfl_xor_sync(~0u, sum, d);
        if (at.g == 0) keep(dots.below[at.strip][16 * s16 + 8 * j + at.t2 + c], sum, of.again);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    left[r] = sum_of_row(left[r]);
    if (at.lane % 4 == 0) keep(dots.left[at.part][at.t0 + at.g + 8 * r], left[r], of.again);
  }
}

// d = a S: 64 channels of a warp's tokens, kGroup tiles of states from `column` on.
template <int NT, int kGroup>
__device__ inline void multiply_states(float (&d)[kGroup][4], const uint32_t (&a)[4][4],
                                       const bf16* S, int column) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < kGroup; j += 2) {
      uint32_t b[4];
      cuda::load_b_rows(b, S + 16 * i * kLdN<NT> + column + 8 * j, kLdN<NT>);
      cuda::mma_bf16(d[j], a[i], b[0], b[1]);
      cuda::mma_bf16(d[j + 1], a[i], b[2], b[3]);
    }
}

// From the state before the chunk: dC, and its part of dΔ, `start`.
template <int NT>
__device__ inline void add_dC(float (&dC)[kN<NT>][4], float (&start)[2],
                              const uint32_t (&of_dy)[4][4], const Slice<NT>& of,
                              const float (&before)[2], const bf16* C, const Seat<NT>& at) {
  constexpr int kGroup = kN<NT> < 4 ? kN<NT> : 4;
#pragma unroll
  for (int m = 0; m < kN<NT>; m += kGroup) {
    float d[kGroup][4] = {};
    multiply_states<NT>(d, of_dy, of.S, at.n0 + 8 * m);
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint32_t pair = *reinterpret_cast<const uint32_t*>(
            C + (at.t0 + at.g + 8 * r) * kLdN<NT> + at.n0 + 8 * (m + j) + at.t2);
        const float v0 = before[r] * d[j][2 * r], v1 = before[r] * d[j][2 * r + 1];
        start[r] = fmaf(v0, low_bf16(pair), fmaf(v1, high_bf16(pair), start[r]));
        dC[m + j][2 * r] += v0, dC[m + j][2 * r + 1] += v1;
      }
  }
}

// To the state behind the chunk: dB.
template <int NT>
__device__ inline void add_dB(float (&dB)[kN<NT>][4], const Slice<NT>& of, const float (&delta)[2],
                              const float (&after)[2], const Seat<NT>& at) {
  constexpr int kGroup = kN<NT> < 4 ? kN<NT> : 4;
  uint32_t of_x[4][4];
#pragma unroll
  for (int i = 0; i < 4; ++i) cuda::load_a(of_x[i], of.x + at.t0 * kLdP + 16 * i, kLdP);
  const float weight[2] = {delta[0] * after[0], delta[1] * after[1]};
#pragma unroll
  for (int m = 0; m < kN<NT>; m += kGroup) {
    float d[kGroup][4] = {};
    multiply_states<NT>(d, of_x, of.dS, at.n0 + 8 * m);
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) dB[m + j][e] = fmaf(weight[e / 2], d[j][e], dB[m + j][e]);
  }
}

// u = after B dSᵀ: to the state behind the chunk.
template <int NT>
__device__ inline void multiply_B_dS(float (&u)[kU][4], const Slice<NT>& of,
                                     const float (&after)[2], const bf16* B, const Seat<NT>& at) {
  constexpr int ldN = kLdN<NT>;
#pragma unroll
  for (int n = 0; n < 64 * NT; n += 16) {
    uint32_t a[4];
    cuda::load_a(a, B + at.t0 * ldN + n, ldN);
#pragma unroll
    for (int j = 0; j < kU; j += 2) {
      uint32_t b[4];
      cuda::load_b(b, of.dS + (at.i0 + 8 * j) * ldN + n, ldN);
      cuda::mma_bf16(u[j], a, b[0], b[1]);
      cuda::mma_bf16(u[j + 1], a, b[2], b[3]);
    }
  }
#pragma unroll
  for (int j = 0; j < kU; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e) u[j][e] *= after[e / 2];
}

// u += (D G)ᵀ dy: to y within the chunk.
template <int NT>
__device__ inline void add_scores_dy(float (&u)[kU][4], const Slice<NT>& of, const bf16* scores,
                                     const Seat<NT>& at) {
#pragma unroll
  for (int t16 = 0; t16 < 4; ++t16) {
    if (t16 < at.strip) continue;
    uint32_t a[4];
    cuda::load_a_columns(a, scores + 16 * t16 * kLdQ + at.t0, kLdQ);
#pragma unroll
    for (int j = 0; j < kU; j += 2) {
      uint32_t b[4];
      cuda::load_b_rows(b, of.dy + 16 * t16 * kLdP + at.i0 + 8 * j, kLdP);
      cuda::mma_bf16(u[j], a, b[0], b[1]);
      cuda::mma_bf16(u[j + 1], a, b[2], b[3]);
    }
  }
}

// sums += x·u for each of two rows.
template <int NT>
__device__ inline void dot_x(float (&sums)[2], const float (&u)[kU][4], const Slice<NT>& of,
                             const Seat<NT>& at) {
#pragma unroll
  for (int j = 0; j < kU; ++j)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint32_t pair = *reinterpret_cast<const uint32_t*>(
          of.x + (at.t0 + at.g + 8 * r) * kLdP + at.i0 + 8 * j + at.t2);
      sums[r] = fmaf(u[j][2 * r], low_bf16(pair), fmaf(u[j][2 * r + 1], high_bf16(pair), sums[r]));
    }
}

// A thread's part of Σ dS S.
template <int NT>
__device__ inline float dot_states(const Slice<NT>& of, int thread) {
  constexpr int NP = 64 * NT;
  float sum = 0;
#pragma unroll 4
  for (int i = thread; i < kP * NP / 8; i += kBlock) {
    const int at = i / (NP / 8) * kLdN<NT> + i % (NP / 8) * 8;
    const uint4 a = *reinterpret_cast<const uint4*>(of.S + at);
    const uint4 b = *reinterpret_cast<const uint4*>(of.dS + at);
    sum += low_bf16(a.x) * low_bf16(b.x) + high_bf16(a.x) * high_bf16(b.x) +
           low_bf16(a.y) * low_bf16(b.y) + high_bf16(a.y) * high_bf16(b.y) +
           low_bf16(a.z) * low_bf16(b.z) + high_bf16(a.z) * high_bf16(b.z) +
           low_bf16(a.w) * low_bf16(b.w) + high_bf16(a.w) * high_bf16(b.w);
  }
  return sum;
}

// dx = Δ u + D dy, in columns from `column` on.
template <int NT>
__device__ inline void put_dx(const Gradient& w, const float (&u)[kU][4], const Slice<NT>& of,
                              const float (&delta)[2], int64_t row, int valid, int column,
                              const Seat<NT>& at) {
  const CudaProblem& p = w.p;
#pragma unroll
  for (int j = 0; j < kU; j += 2) {
    if (at.i0 + 8 * j >= of.channels) break;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int t = at.t0 + at.g + 8 * r;
      float2 pair[2];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const int i = at.i0 + 8 * (j + k) + at.t2;
        const uint32_t of_y = *reinterpret_cast<const uint32_t*>(of.dy + t * kLdP + i);
        float2 skip = {of.D, of.D};
        if (p.D_per_channel) skip = *reinterpret_cast<const float2*>(p.D + of.h * p.P + of.p0 + i);
        pair[k].x = fmaf(delta[r], u[j + k][2 * r], skip.x * low_bf16(of_y));
        pair[k].y = fmaf(delta[r], u[j + k][2 * r + 1], skip.y * high_bf16(of_y));
      }
      const Four<float2> four = exchange_pairs(pair[0], pair[1]);
      if (t < valid) put_four(w.dx, row + t, column + at.i0 + 8 * j + four_of_lane(), four);
    }
  }
}

// dB += (Σ D K Δ)ᵀ C, dC += (Σ D K Δ) B.
template <int NT>
__device__ inline void add_sums_of_pairs(float (&dB)[kN<NT>][4], float (&dC)[kN<NT>][4],
                                         const float (&sum_DK)[kPairs][2][4], const Room<NT>& room,
                                         const Seat<NT>& at) {
  constexpr int ldN = kLdN<NT>;
#pragma unroll
  for (int k = 0; k < kPairs; ++k) {
    if (at.part + kParts * k > at.strip) break;
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        *reinterpret_cast<uint32_t*>(room.scores + (at.t0 + at.g + 8 * r) * kLdQ +
                                     16 * (at.part + kParts * k) + 8 * j + at.t2) =
            cuda::pack_bf16(sum_DK[k][j][2 * r], sum_DK[k][j][2 * r + 1]);
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t a[4], b[4];
    if (k <= at.strip) {
      cuda::load_a(a, room.scores + at.t0 * kLdQ + 16 * k, kLdQ);
#pragma unroll
      for (int j = 0; j < kN<NT>; j += 2) {
        cuda::load_b_rows(b, room.B + 16 * k * ldN + at.n0 + 8 * j, ldN);
        cuda::mma_bf16(dC[j], a, b[0], b[1]);
        cuda::mma_bf16(dC[j + 1], a, b[2], b[3]);
      }
    }
    if (k >= at.strip) {
      cuda::load_a_columns(a, room.scores + 16 * k * kLdQ + at.t0, kLdQ);
#pragma unroll
      for (int j = 0; j < kN<NT>; j += 2) {
        cuda::load_b_rows(b, room.C + 16 * k * ldN + at.n0 + 8 * j, ldN);
        cuda::mma_bf16(dB[j], a, b[0], b[1]);
        cuda::mma_bf16(dB[j + 1], a, b[2], b[3]);
      }
    }
  }
}

template <int NT>
__global__ void __launch_bounds__(kBlock, 1)
    matrix_gradient_kernel(const Gradient w, const int stages) {
  extern __shared__ __align__(16) unsigned char memory[];
  constexpr int NP = 64 * NT, ldN = kLdN<NT>;
  const CudaProblem& p = w.p;
  const Room<NT> room(memory, stages);
  const int N = static_cast<int>(p.N);
  const Seat<NT> at;
  const int64_t of_group = w.sets, set = blockIdx.y, group = set / of_group;
  const int64_t first_head = group * (p.H / p.G) + set % of_group * w.heads;
  const int heads = static_cast<int>(min(w.heads, (group + 1) * (p.H / p.G) - first_head));
  const int tiles = static_cast<int>(ceil_div(p.P, kP)), slices = heads * tiles;
  const Place chunk = place_of(p, blockIdx.x, kQ);
  float* const block_sums =
      w.sums ? w.sums + (blockIdx.x * p.H + first_head) * sums_size(p) : nullptr;
  if (!chunk.there) {
    for (int64_t i = at.thread; block_sums && i < heads * sums_size(p); i += kBlock)
      block_sums[i] = 0;
    return;
  }
  const int64_t row = chunk.begin;
  const int valid = static_cast<int>(chunk.tokens);
  const auto sums_of = [&](int head) {
    return block_sums ? block_sums + head * sums_size(p) : nullptr;
  };

  SliceReader<NT> reader(w, room.stages, stages, first_head, chunk, at.thread);
  const int P = static_cast<int>(p.P);
  const bool keeps_books = at.warp == kParts - 1;  // one warp finishes the head before
  const int column_B = static_cast<int>(group) * N;
  bring_async<kQ, NP, kBlock>(room.B, ldN, p.B, row, valid, column_B, N, at.thread);
  bring_async<kQ, NP, kBlock>(room.C, ldN, p.C, row, valid, column_B, N, at.thread);
  reader.bring();
  HeadStepsReader all_steps(w, first_head, heads, at.thread, room.steps);
  float G[kPairs][2][4] = {}, sum_DK[kPairs][2][4] = {};
  float dB[kN<NT>][4] = {}, dC[kN<NT>][4] = {};

  for (int slice = 0, head = 0, p0 = 0; slice < slices; ++slice) {
    cuda::wait_for_copies<0>();
    __syncthreads();
    if (stages == 2 && slice + 1 < slices) reader.bring();
    const Slice<NT> of(p, reader.stage(slice), first_head + head, p0);
    const HeadSteps& steps = all_steps.of(head);
    Dots& dots = room.dots[head % 2];
    if (slice == 0) multiply_C_B(G, room, at);
    if (keeps_books && !of.again && head > 0)
      finish_head(w, all_steps.of(head - 1), room.dots[(head - 1) % 2], of.h - 1, row, valid,
                  sums_of(head - 1));
    if (!of.again) all_steps.take(head + 1);

    uint32_t of_dy[4][4];  // (16 tokens, 64 channels)
#pragma unroll
    for (int i = 0; i < 4; ++i) cuda::load_a(of_dy[i], of.dy + at.t0 * kLdP + 16 * i, kLdP);
    add_pairs(sum_DK, G, of_dy, of, steps, dots, room.scores, at);

    const float before[2] = {steps.before[at.t0 + at.g], steps.before[at.t0 + at.g + 8]};
    const float after[2] = {steps.after[at.t0 + at.g], steps.after[at.t0 + at.g + 8]};
    const float delta[2] = {steps.delta[at.t0 + at.g], steps.delta[at.t0 + at.g + 8]};
    float start[2] = {}, end[2] = {}, whole[2] = {}, u[kU][4] = {};
    add_dC(dC, start, of_dy, of, before, room.C, at);
    add_dB(dB, of, delta, after, at);
    multiply_B_dS(u, of, after, room.B, at);
    dot_x(end, u, of, at);
    const float across = sum_of_warp(dot_states(of, at.thread));
    if (at.lane == 0) keep(dots.across[at.warp], across, of.again);
    if (p.D_per_channel && block_sums && at.thread < of.channels) {
      float sum = 0;
      for (int t = 0; t < kQ; ++t)
        sum = fmaf(static_cast<float>(of.dy[t * kLdP + at.thread]),
                   static_cast<float>(of.x[t * kLdP + at.thread]), sum);
      sums_of(head)[2 + p0 + at.thread] = sum;
    }
    __syncthreads();

    add_scores_dy(u, of, room.scores, at);
    dot_x(whole, u, of, at);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int t = at.t0 + at.g + 8 * r;
      start[r] = sum_of_row(start[r]), end[r] = sum_of_row(end[r]), whole[r] = sum_of_row(whole[r]);
      if (at.lane % 4 == 0) {
        keep(dots.start[at.part][t], start[r], of.again);
        keep(dots.end[at.part][t], end[r], of.again);
        keep(dots.u[at.part][t], whole[r], of.again);
      }
    }
    if (w.dx.data)
      put_dx(w, u, of, delta, row, valid, static_cast<int>(first_head) * P + head * P + p0, at);
    if (stages == 1 && slice + 1 < slices) {
      __syncthreads();
      reader.bring();
    }
    p0 += kP;
    if (p0 >= P) p0 = 0, ++head;
  }

  __syncthreads();
  if (keeps_books)
    finish_head(w, all_steps.of(heads - 1), room.dots[(heads - 1) % 2], first_head + heads - 1, row,
                valid, sums_of(heads - 1));
  add_sums_of_pairs(dB, dC, sum_DK, room, at);
  put_sums(w, w.dB, set, row, valid, at.t0, at.n0, dB);
  put_sums(w, w.dC, set, row, valid, at.t0, at.n0, dC);
}

template <int NT>
void launch(const Gradient& w, cudaStream_t stream) {
  const CudaProblem& p = w.p;
  const auto kernel = matrix_gradient_kernel<NT>;
  const int stages = Room<NT>::size(2) <= shared_memory_of_block() ? 2 : 1;
  const size_t bytes = Room<NT>::size(stages);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(bytes));
  const dim3 grid(static_cast<unsigned>(slots(p, kQ)), static_cast<unsigned>(p.G * w.sets));
  kernel<<<grid, kBlock, bytes, stream>>>(w, stages);
  cuda::check_launch("ssd gradients");
}

}  // namespace

bool matrix_units_fit(int64_t N) {
  return (N <= 64    ? Room<1>::size(1)
          : N <= 128 ? Room<2>::size(1)
                     : Room<4>::size(1)) <= shared_memory_of_block();
}

void matrix_gradient(const Gradient& w, cudaStream_t stream) {
  if (warpgroup_gradient(w, stream)) return;
  if (w.p.N <= 64) {
    launch<1>(w, stream);
  } else if (w.p.N <= 128) {
    launch<2>(w, stream);
  } else {
    launch<4>(w, stream);
  }
}

}  // namespace krait::ops::ssd_gpu
