// Private to this room: what the kernels of attention share. A key is named by its position in its sequence;
// positions before the first token lie in the cache.
#pragma once
#include "krait/ops/attention/cuda.h"
#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

using bfloat16 = __nv_bfloat16;

namespace attention {

struct Sequence {
  int64_t begin = 0, tokens = 0, in = -1, out = -1;
  int64_t first = 0;  // the position of its first token: tokens that the cache holds
  int64_t wrap = 0;   // the first cached position of the ring's last round

  __device__ int64_t total() const { return first + tokens; }
};

__device__ inline Sequence sequence(const AttentionCall& c, int64_t s) {
  Sequence q;
  q.begin = c.begin ? c.begin[s] : s * c.L;
  q.tokens = (c.begin ? c.begin[s + 1] : q.begin + c.L) - q.begin;
  q.in = c.begin ? c.row_in[s] : s;
  q.out = c.begin ? c.row_out[s] : s;
  if (c.from_k && q.in >= 0) {
    q.first = static_cast<int64_t>(c.from_length[q.in]);
    q.wrap = q.first - q.first % c.from_C;
  }
  return q;
}

// Rows of keys or values by position, of one head: own ones of type T, cached ones of that or float32.
template <class T>
struct KeysOf {
  const T* own;        // of position `first`
  const void* cached;  // row 0 of the ring
  bool cached_bf16;
  int64_t own_row, cached_row, first, wrap, C;

  __device__ KeysOf(const AttentionCall& c, const Sequence& s, const HeadRows& rows,
                    const void* cache, int64_t head)
      : own(static_cast<const T*>(rows.data) + s.begin * rows.row + head * rows.head),
        cached(nullptr),
        cached_bf16(c.cache_bf16),
        own_row(rows.row),
        cached_row(c.Hkv * c.P),
        first(s.first),
        wrap(s.wrap),
        C(c.from_C) {
    if (cache && s.in >= 0)
      cached =
          static_cast<const char*>(cache) + (s.in * C * c.Hkv + head) * c.P * (cached_bf16 ? 2 : 4);
  }

  __device__ bool is_cached(int64_t position) const { return position < first; }
  __device__ const T* own_at(int64_t position) const { return own + (position - first) * own_row; }
  template <class S>
  __device__ const S* cached_at(int64_t position) const {
    return static_cast<const S*>(cached) +
           (position >= wrap ? position - wrap : position - wrap + C) * cached_row;
  }
  __device__ float value(int64_t position, int i) const {
    if (!is_cached(position)) return static_cast<float>(own_at(position)[i]);
    return cached_bf16 ? static_cast<float>(cached_at<bfloat16>(position)[i])
                       : cached_at<float>(position)[i];
  }
};

// The positions that the token at position t sees: [low, high).
struct Seen {
  int64_t low, high;
};

__device__ inline Seen seen(const AttentionCall& c, const Sequence& s, int64_t t) {
  return {c.window > 0 ? max(int64_t{0}, t + 1 - c.window) : 0, c.causal ? t + 1 : s.total()};
}

// Tiles of `size` tokens, no sequence twice in one. Of packed sequences s has those from begin[s] / size + s on,
// which is room enough; the last may be empty.
constexpr int64_t tiles(const AttentionCall& c, int64_t size) {
  return c.begin ? c.tokens / size + c.sequences : ceil_div(c.L, size) * c.sequences;
}

// The sequence of a tile; `from` becomes its first token there.
__device__ inline int64_t sequence_of_tile(const AttentionCall& c, int64_t tile, int64_t size,
                                           int64_t& from) {
  if (!c.begin) {
    from = tile / c.sequences * size;
    return tile % c.sequences;
  }
  int64_t low = 0, high = c.sequences;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (c.begin[middle] / size + middle <= tile ? low : high) = middle;
  }
  from = (tile - c.begin[low] / size - low) * size;
  return low;
}

// Over the four lanes that share a row of a product.
__device__ inline float over_quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ inline float over_quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// Two neighbouring elements of a row of bfloat16.
__device__ inline void put_pair(bfloat16* to, float low, float high, bool add) {
  auto& pair = *reinterpret_cast<__nv_bfloat162*>(to);
  if (add) {
    low += __low2float(pair);
    high += __high2float(pair);
  }
  pair = __floats2bfloat162_rn(low, high);
}

// What the gradient of the cache handed out says of a position's key or value, or null.
__device__ inline const float* passed_row(const AttentionCall& c, const Sequence& s,
                                          const float* d_out, int64_t position, int64_t head) {
  if (!d_out || s.out < 0 || position < s.total() - c.to_C) return nullptr;
  return d_out + ((s.out * c.to_C + position % c.to_C) * c.Hkv + head) * c.P;
}

// Of one of its elements; zero where there is none.
__device__ inline float passed(const AttentionCall& c, const Sequence& s, const float* d_out,
                               int64_t position, int64_t head, int64_t i) {
  const float* const row = passed_row(c, s, d_out, position, head);
  return row ? row[i] : 0;
}

}  // namespace attention
}  // namespace krait::cuda
