// Pieces of the sampler on the GPU: keys in the order of logits, weights as integers, and the selection among
// all of a row that blocks of a cluster share out.
#pragma once
#include "krait/ops/sampler/cuda.h"
#include "krait/tensor/cuda/cluster.cuh"
#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

using Weight = unsigned long long;  // in units of 2^-40

// Two blocks on a multiprocessor.
constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kMostBlocks = 8;  // of a row
constexpr float kUnits = 0x1p40f;

// Larger for larger numbers.
__device__ inline unsigned key_of(float x) {
  const unsigned b = __float_as_uint(x);
  return b & 0x80000000u ? ~b : b | 0x80000000u;
}
__device__ inline float of_key(unsigned key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// x · 2^40, x of [0, 1], rounded towards 0: 20 bits and 20 more, each the mantissa of a sum. Conversions to 64 bits
// are a quarter as fast as these sums.
__device__ inline Weight units_of(float x) {
  constexpr float kBig = 0x1p23f;
  const float scaled = x * 0x1p20f, upper = __fadd_rz(scaled, kBig),
              lower = __fadd_rz((scaled - (upper - kBig)) * 0x1p20f, kBig);
  const auto bits = [](float y) { return __float_as_uint(y) - 0x4b000000u; };
  return (Weight{bits(upper)} << 20) + bits(lower);
}

// Σ over a warp, in every lane.
__device__ inline Weight warp_sum(Weight x) {
  constexpr unsigned kPart = (1u << 27) - 1;
  const Weight low = __reduce_add_sync(~0u, static_cast<unsigned>(x) & kPart),
               middle = __reduce_add_sync(~0u, static_cast<unsigned>(x >> 27) & kPart),
               high = __reduce_add_sync(~0u, static_cast<unsigned>(x >> 54));
  return low + (middle << 27) + (high << 54);
}

// Σ of the lanes up to this one.
__device__ inline Weight warp_sum_upto(Weight x) {
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const Weight other = __shfl_up_sync(~0u, x, d);
    if (threadIdx.x % 32 >= static_cast<unsigned>(d)) x += other;
  }
  return x;
}

// Σ of the threads before this one, in blocks before this one too, and of all.
template <class T>
__device__ T sum_before(T x, int blocks, T& total) {
  __shared__ T of_warps[32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const T sum = static_cast<T>(warp_sum_upto(static_cast<Weight>(x)));
  __syncthreads();  // an earlier call may still be reading
  if (lane == 31) of_warps[warp] = sum;
  __syncthreads();
  T before = 0;
  total = 0;
  for (unsigned w = 0; w < kWarps; ++w) {
    if (w < warp) before += of_warps[w];
    total += of_warps[w];
  }
  before += sum - x;
  if (blocks == 1) return before;
  __shared__ T of_this_block;
  synchronize_cluster();
  if (threadIdx.x == 0) of_this_block = total;
  synchronize_cluster();
  total = 0;
  const unsigned rank = rank_in_cluster();
  for (unsigned r = 0; r < static_cast<unsigned>(blocks); ++r) {
    const T of_other = of_block(&of_this_block, r);
    if (r < rank) before += of_other;
    total += of_other;
  }
  return before;
}

// Where a row's candidates end, in the order of falling logits: keys above `key`, and of those equal to it
// the first `ties`.
struct Cut {
  unsigned key = 0;
  int64_t ties = INT64_MAX;
};

// What weights are made of.
struct Scale {
  float most, sharpness;

  __device__ Weight weight(float logit) const { return units_of(expf((logit - most) * sharpness)); }
};

// A block's part of a row in selections. What is counted is how far keys are from the largest, in digits of kDigits; of
// a sum of weights 11 bits a word, the last one the rest, as words are added to memory in one instruction.
constexpr int kDigits = 256, kWords = 4, kWordBits = 11;
constexpr int kFirstShift = 16;  // 1/16 for logits from 8 to 16
struct Digits {
  unsigned of_block[kWords][kDigits];
  Weight of_row[kDigits];
  unsigned found;
  Weight left;
};
__shared__ Digits digits;

struct Row {
  const float* x;  // after the penalty; of ids outside of the block's there is nothing
  int block_begin, block_end, begin, end;  // the block's, the thread's
  int blocks;
  unsigned most_key;
  Scale scale;

  // What digits.of_row becomes: a measure of the ids whose distance from the largest key is base + (d << shift) and more
  // for each digit d; further ones are left out, or count for the last digit where `clip`. The measure is one for each id
  // where `by_count`, else its weight. Keys below `least` are left out.
  __device__ void measure(bool by_count, unsigned base, int shift, bool clip,
                          unsigned least) const {
    const int words = by_count ? 1 : kWords;
    __syncthreads();
    for (int d = threadIdx.x; d < words * kDigits; d += kThreads) (&digits.of_block[0][0])[d] = 0;
    __syncthreads();
    for (int first = block_begin; first < block_end; first += kThreads) {
      const int i = first + static_cast<int>(threadIdx.x);
      const float logit = i < block_end ? x[i] : 0;
      const unsigned key = key_of(logit), distance = most_key - key;
      const unsigned d = min((distance - base) >> shift, clip ? kDigits - 1u : ~0u);
      const bool counts = i < block_end && key >= least && distance >= base && d < kDigits;
      if (by_count) {
        if (counts) atomicAdd(&digits.of_block[0][d], 1u);
        continue;
      }
      Weight w = counts ? scale.weight(logit) : 0;
      bool adds = w > 0;
      // All of a warp in one place would wait for each other.
      const unsigned of_first = __shfl_sync(~0u, d, 0);
      if (__all_sync(~0u, !counts || d == of_first)) w = warp_sum(w), adds = threadIdx.x % 32 == 0;
      if (!adds || d >= kDigits) continue;
#pragma unroll
      for (int k = 0; k < kWords; ++k) {
        const auto word = static_cast<unsigned>(w >> (k * kWordBits));
        if (word)
          atomicAdd(&digits.of_block[k][d], k + 1 < kWords ? word & ((1u << kWordBits) - 1) : word);
      }
    }
    blocks > 1 ? synchronize_cluster() : __syncthreads();
    if (threadIdx.x < kDigits) {
      Weight sum = 0;
      for (int k = 0; k < words; ++k) {
        const unsigned* const word = digits.of_block[k] + threadIdx.x;
        Weight of_blocks = blocks > 1 ? 0 : *word;
#pragma unroll
        for (int r = 0; r < kMostBlocks; ++r)
          if (blocks > 1 && r < blocks) of_blocks += of_block(word, static_cast<unsigned>(r));
        sum += of_blocks << (k * kWordBits);
      }
      digits.of_row[threadIdx.x] = sum;
    }
    blocks > 1 ? synchronize_cluster() : __syncthreads();
  }

  // The first digit with which the measure reaches `wanted`, or the last; digits.left is what is wanted of it.
  __device__ unsigned reach(Weight wanted) const {
    if (threadIdx.x < 32) {
      constexpr int kOfLane = kDigits / 32;
      const int lane = static_cast<int>(threadIdx.x), first = lane * kOfLane;
      Weight mine = 0;
      for (int i = 0; i < kOfLane; ++i) mine += digits.of_row[first + i];
      const Weight upto = warp_sum_upto(mine);
      const unsigned reached = __ballot_sync(~0u, upto >= wanted) | 1u << 31;
      if (lane == __ffs(static_cast<int>(reached)) - 1) {
        Weight left = wanted - (upto - mine);
        int d = first;
        for (; d < first + kOfLane - 1 && digits.of_row[d] < left; ++d) left -= digits.of_row[d];
        digits.found = static_cast<unsigned>(d), digits.left = left;
      }
    }
    __syncthreads();
    return digits.found;
  }

  // The smallest set of largest logits, within `inside`, whose measure reaches `wanted`. Digit by digit, from the coarsest
  // that tells near ones apart.
  __device__ Cut select(bool by_count, Weight wanted, const Cut& inside) const {
    unsigned base = 0;
    bool first = true;
    for (int shift = kFirstShift; shift >= 0;) {
      measure(by_count, base, shift, first, inside.key);
      const unsigned d = reach(wanted);
      wanted = digits.left;
      base += d << shift;
      shift = first && d == kDigits - 1 ? 24 : shift - 8;
      first = false;
    }
    Cut cut{most_key - base, 0};
    const Weight each = by_count ? 1 : scale.weight(of_key(cut.key));
    cut.ties = each > 0 ? static_cast<int64_t>((wanted + each - 1) / each) : INT64_MAX;
    if (cut.key == inside.key && inside.ties < cut.ties) cut.ties = inside.ties;
    return cut;
  }

  // Calls f(i, weight) for the thread's ids within the cut whose weight is at least `least`.
  template <class F>
  __device__ void for_chosen(const Cut& cut, Weight least, int64_t ties_before, const F& f) const {
    for (int i = begin; i < end; ++i) {
      const unsigned key = key_of(x[i]);
      if (key < cut.key || (key == cut.key && ties_before++ >= cut.ties)) continue;
      const Weight w = scale.weight(x[i]);
      if (w >= least && w > 0) f(i, w);
    }
  }

  __device__ int64_t ties_before(const Cut& cut) const {
    if (cut.ties == INT64_MAX) return 0;  // all of them are inside
    int64_t mine = 0, total;
    for (int i = begin; i < end; ++i) mine += key_of(x[i]) == cut.key;
    return sum_before(mine, blocks, total);
  }

  // Of those that for_chosen calls; what threads before this one have of it goes to `before`.
  __device__ Weight sum(const Cut& cut, Weight least, int64_t ties_before, Weight& before) const {
    Weight mine = 0, total;
    for_chosen(cut, least, ties_before, [&](int, Weight w) { mine += w; });
    before = sum_before(mine, blocks, total);
    return total;
  }
};

}  // namespace krait::cuda
