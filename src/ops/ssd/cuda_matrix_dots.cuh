// Private to ssd: the dot products that the gradient of Δ is made of, on matrix units, and how they become that.
#pragma once
#include "krait/ops/ssd/cuda_gradient.cuh"
#include "krait/ops/ssd/cuda_matrix.cuh"

namespace krait::ops::ssd_gpu {
namespace {

// Warps of a block: four strips of 16 tokens, of which kParts warps each have a part of the columns.
constexpr int kParts = 4, kStripThreads = 32 * kParts, kBlock = 4 * kStripThreads;

struct alignas(16) HeadSteps {
  float delta[kQ], slope[kQ], log2[kQ];
  float before[kQ],
      after[kQ];  // decay from the chunk's begin through a token; from behind it to the end
  float through;
};

// The steps of one head after the other: threads of a token each have them ready a head ahead, in registers two. In
// shared memory there is room for three heads.
class HeadStepsReader {
 public:
  __device__ HeadStepsReader(const Gradient& w, int64_t first_head, int heads, int thread,
                             HeadSteps* three)
      : w_(w),
        three_(three),
        first_((blockIdx.x * w.p.H + first_head) * kQ),
        heads_(heads),
        thread_(thread) {
    load(0);
    take(0);
  }
  __device__ const HeadSteps& of(int head) const { return three_[head % 3]; }
  __device__ void take(int head) {
    if (thread_ >= kQ || head >= heads_) return;
    HeadSteps& to = three_[head % 3];
    to.delta[thread_] = next_.x, to.log2[thread_] = next_.y, to.slope[thread_] = next_slope_;
    to.before[thread_] = cuda::exp2_fast(next_.y);
    to.after[thread_] = cuda::exp2_fast(next_all_ - next_.y);
    if (thread_ == 0) to.through = cuda::exp2_fast(next_all_);
    load(head + 1);
  }

 private:
  __device__ void load(int head) {
    if (thread_ >= kQ || head >= heads_) return;
    const int64_t at = first_ + int64_t{head} * kQ;
    next_ = w_.steps[at + thread_], next_slope_ = w_.slopes[at + thread_];
    next_all_ = w_.steps[at + kQ - 1].y;
  }

  const Gradient& w_;
  HeadSteps* three_;
  int64_t first_;
  int heads_, thread_;
  float2 next_ = {};
  float next_slope_ = 0, next_all_ = 0;
};

// The dot products of a head that dΔ is made of; (kParts, kQ) where the warps of a strip have parts of them.
struct alignas(16) Dots {
  float start[kParts][kQ], end[kParts][kQ];  // e dy·S C; f x·dS B
  float u[kParts][kQ];                       // x·u
  // Sums of W[t, s] on either side of the strips: over s in strips before that of t; for each strip over its t,
  // s in strips before it; within a strip over the pairs that a step lies between.
  float left[kParts][kQ], below[4][kQ], diagonal[kQ];
  float across[kBlock / 32];  // Σ dS S
  float D[4];                 // Σ dy·x
};

// A warp's tokens, two a lane, in order: the sum over all before each; over each and all behind it.
__device__ inline void sum_before(float (&v)[2]) {
  const int lane = lane_of();
  float sum = v[0] + v[1];
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const float other = __shfl_up_sync(~0u, sum, d);
    if (lane >= d) sum += other;
  }
  const float before = __shfl_up_sync(~0u, sum, 1);
  v[1] = (lane > 0 ? before : 0.0f) + v[0];
  v[0] = lane > 0 ? before : 0.0f;
}
template <int kLanes>  // within groups of so many lanes
__device__ inline void sum_from(float (&v)[2]) {
  const int lane = lane_of() % kLanes;
  float sum = v[0] + v[1];
#pragma unroll
  for (int d = 1; d < kLanes; d *= 2) {
    const float other = __shfl_down_sync(~0u, sum, d);
    if (lane + d < kLanes) sum += other;
  }
  const float behind = __shfl_down_sync(~0u, sum, 1);
  v[1] += lane + 1 < kLanes ? behind : 0.0f;
  v[0] = sum;
}

__device__ inline void keep(float& to, float value, bool add) { to = add ? to + value : value; }

// Sum over the four lanes of a row.
__device__ inline float sum_of_row(float v) {
  v += __shfl_xor_sync(~0u, v, 1);
  return v + __shfl_xor_sync(~0u, v, 2);
}
__device__ inline float sum_of_warp(float v) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  return v;
}

// For each row k of a diagonal tile W (16 t, 16 s), two neighbours of 8 columns: Σ of W[t, s] over s < k <= t. A
// lane gets those of rows g and g + 8.
__device__ inline void sum_between(const float (&left)[4], const float (&right)[4],
                                   float (&sums)[2]) {
  const int lane = lane_of(), g = lane / 4, t2 = lane % 4 * 2;
  sums[0] = sums[1] = 0;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const int s = c / 2 * 8 + t2 + c % 2;
    float upper = c < 2 ? left[c] : right[c - 2], lower = c < 2 ? left[c + 2] : right[c];
#pragma unroll
    for (int d = 1; d < 8; d *= 2) {
      const float of_upper = __shfl_down_sync(~0u, upper, 4 * d);
      const float of_lower = __shfl_down_sync(~0u, lower, 4 * d);
      if (g + d < 8) upper += of_upper, lower += of_lower;
    }
    upper += __shfl_sync(~0u, lower, lane % 4);
    if (s < g) sums[0] += upper;
    if (s < g + 8) sums[1] += lower;
  }
  sums[0] = sum_of_row(sums[0]), sums[1] = sum_of_row(sums[1]);
}

__device__ inline float sum_of_parts(const float (&parts)[kParts][kQ], int t) {
  float sum = 0;
#pragma unroll
  for (const auto& part : parts) sum += part[t];
  return sum;
}

// By one warp, a lane tokens 2 lane and the next: from d(log decay) and x·u of each dΔ and what follows from it.
__device__ void put_steps(const Gradient& w, float A, const float (&delta)[2],
                          const float (&slope)[2], int64_t h, int64_t row, int valid,
                          const float (&decay)[2], const float (&u)[2], const float (&D)[4],
                          float* sums) {
  float dA = 0, dbias = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int k = 2 * lane_of() + i;
    if (k >= valid) break;
    const float ddt = fmaf(A, decay[i], u[i]) * slope[i];
    dA = fmaf(delta[i], decay[i], dA);
    dbias += ddt;
    if (w.ddt.data) put(w.ddt, row + k, h, ddt);
  }
  dA = sum_of_warp(dA), dbias = sum_of_warp(dbias);
  if (lane_of() != 0 || !sums) return;
  sums[0] = dA, sums[1] = dbias;
  if (!w.p.D_per_channel) sums[2] = D[0] + D[1] + D[2] + D[3];
}

// 16 tokens from t0 on of `to`, columns from `column` on, of which `columns` are there: sums of products.
template <int kTiles>
__device__ inline void put_rows(const CudaRows& to, int64_t row, int valid, int t0, int column,
                                int columns, const float (&tiles)[kTiles][4]) {
  const int t = t0 + lane_of() / 4;
  const bool there[2] = {t < valid, t + 8 < valid};
  column += four_of_lane();
  if (to.runs && to.bf16 && !to.add) {
    bf16* const first = static_cast<bf16*>(to.data) + (row + t) * to.stride + column;
#pragma unroll
    for (int j = 0; j < kTiles; j += 2) {
      if (8 * j >= columns) break;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const Four<uint32_t> v =
            exchange_pairs(cuda::pack_bf16(tiles[j][2 * r], tiles[j][2 * r + 1]),
                           cuda::pack_bf16(tiles[j + 1][2 * r], tiles[j + 1][2 * r + 1]));
        if (there[r])
          *reinterpret_cast<uint2*>(first + 8 * r * to.stride + 8 * j) = make_uint2(v.low, v.high);
      }
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < kTiles; j += 2) {
    if (8 * j >= columns) break;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Four<float2> v = exchange_pairs(float2{tiles[j][2 * r], tiles[j][2 * r + 1]},
                                            float2{tiles[j + 1][2 * r], tiles[j + 1][2 * r + 1]});
      if (there[r]) put_four(to, row + t + 8 * r, column + 8 * j, v);
    }
  }
}

// dB or dC of a set: 16 tokens from t0 on, states from n0 on.
template <int kTiles>
__device__ inline void put_sums(const Gradient& w, const CudaRows& to, int64_t set, int64_t row,
                                int valid, int t0, int n0, const float (&tiles)[kTiles][4]) {
  if (to.data)
    put_rows(to, row_of_set(w, set, row), valid, t0, static_cast<int>(column_of_set(w, set)) + n0,
             static_cast<int>(w.p.N) - n0, tiles);
}

// dΔ of a head and what follows from it, by one warp.
__device__ void finish_head(const Gradient& w, const HeadSteps& steps, const Dots& dots, int64_t h,
                            int64_t row, int valid, float* sums) {
  const int lane = lane_of(), strip = lane / 8;
  float across = 0;
#pragma unroll
  for (const float part : dots.across) across += part;
  float start[2], end[2], left[2], sum[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 2 * lane + i;
    start[i] = sum_of_parts(dots.start, t);
    end[i] = steps.delta[t] * sum_of_parts(dots.end, t);
    left[i] = sum_of_parts(dots.left, t);
  }
  sum_from<32>(start);
  sum_before(end);
  sum_from<8>(left);
#pragma unroll
  for (int i = 0; i < 2; ++i)
    sum[i] = across * steps.through + start[i] + end[i] + left[i] + dots.diagonal[2 * lane + i];
#pragma unroll
  for (int r = 1; r < 4; ++r) {
    float below[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) below[i] = strip < r ? dots.below[r][2 * lane + i] : 0.0f;
    sum_before(below);
    if (strip < r) sum[0] += below[0], sum[1] += below[1];
  }
  const float u[2] = {sum_of_parts(dots.u, 2 * lane), sum_of_parts(dots.u, 2 * lane + 1)};
  const float delta[2] = {steps.delta[2 * lane], steps.delta[2 * lane + 1]};
  const float slope[2] = {steps.slope[2 * lane], steps.slope[2 * lane + 1]};
  put_steps(w, rate(w.p, h), delta, slope, h, row, valid, sum, u, dots.D, sums);
}

}  // namespace
}  // namespace krait::ops::ssd_gpu
