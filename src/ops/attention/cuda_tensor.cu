// attention in bfloat16 on tensor cores: scores, weights and all sums in float32 registers, weights and the
// gradients of scores rounded to bfloat16 where they are factors of the next product. A warp has 16 rows of
// a block's tile; what it multiplies them with passes by in shared memory.
#include "krait/ops/attention/cuda_tensor.cuh"

#include <type_traits>

#include "krait/tensor/cuda/mma.h"

namespace krait::cuda::attention {

namespace {

constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// Tiles of rows in shared memory: 16 bytes more than kHead elements keep eight rows in different banks.
template <int kHead>
struct Tile {
  static constexpr int kStep = kHead + 8, kChunks = kHead / 8;

  // to[row] = row(row), an address of P elements, for row < count; zeros elsewhere. Copies may be on their way.
  template <int kRows, int kThreads, class F>
  __device__ static void copy(bfloat16* to, int64_t count, int64_t P, const void* any,
                              const F& row) {
    for (int at = static_cast<int>(threadIdx.x); at < kRows * kChunks; at += kThreads) {
      const int r = at / kChunks, i = at % kChunks * 8;
      const bool there = r < count && i < P;
      copy_async(to + r * kStep + i, there ? static_cast<const void*>(row(r) + i) : any, there);
    }
  }

  // Keys or values from `position` on; cached ones are rounded on the way.
  template <int kRows, int kThreads>
  __device__ static void copy_keys(bfloat16* to, const KeysOf<bfloat16>& keys, int64_t position,
                                   int64_t count, int64_t P) {
    for (int at = static_cast<int>(threadIdx.x); at < kRows * kChunks; at += kThreads) {
      const int r = at / kChunks, i = at % kChunks * 8;
      const bool there = r < count && i < P;
      bfloat16* const place = to + r * kStep + i;
      const bool is_cached = there && keys.is_cached(position + r);
      if (is_cached && !keys.cached_bf16) {
        const float* const from = keys.cached_at<float>(position + r) + i;
        float left[4], right[4];
        load<4>(from, left);
        load<4>(from + 4, right);
        uint4 v;
        v.x = pack_bf16(left[0], left[1]);
        v.y = pack_bf16(left[2], left[3]);
        v.z = pack_bf16(right[0], right[1]);
        v.w = pack_bf16(right[2], right[3]);
        *reinterpret_cast<uint4*>(place) = v;
      } else {
        const bfloat16* const from = is_cached ? keys.cached_at<bfloat16>(position + r)
                                     : there   ? keys.own_at(position + r)
                                               : keys.own - i;
        copy_async(place, from + i, there);
      }
    }
  }

  // c (16, 8 kColumns) = a (16 rows) b (8 kColumns rows)ᵀ over kHead elements
  template <int kColumns>
  __device__ static void products(const bfloat16* a, const bfloat16* b, float (&c)[kColumns][4]) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0;
#pragma unroll
    for (int k = 0; k < kHead; k += 16) {
      uint32_t left[4];
      load_a(left, a + k, kStep);
#pragma unroll
      for (int n = 0; n < kColumns; n += 2) {
        uint32_t right[4];
        load_b(right, b + n * 8 * kStep + k, kStep);
        mma_bf16(c[n], left, right[0], right[1]);
        mma_bf16(c[n + 1], left, right[2], right[3]);
      }
    }
  }

  // sums (16, kHead) += weights (16, 8 kColumns) x (8 kColumns rows of kHead)
  template <int kColumns>
  __device__ static void add_weighted(const float (&weights)[kColumns][4], const bfloat16* x,
                                      float (&sums)[kHead / 8][4]) {
#pragma unroll
    for (int k = 0; k < kColumns; k += 2) {
      uint32_t left[4];
      pack_a(left, weights[k], weights[k + 1]);
#pragma unroll
      for (int n = 0; n < kHead / 8; n += 2) {
        uint32_t right[4];
        load_b_rows(right, x + k * 8 * kStep + n * 8, kStep);
        mma_bf16(sums[n], left, right[0], right[1]);
        mma_bf16(sums[n + 1], left, right[2], right[3]);
      }
    }
  }
};

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

// A block: kWarps·16 queries of one head; tiles of 64 keys pass by, the next on its way during each.
template <int kHead>
__global__ void __launch_bounds__(256) forward_kernel(const AttentionCall c) {
  extern __shared__ uint4 shared[];
  using Rows = Tile<kHead>;
  constexpr int kWarps = 8, kQueries = 16 * kWarps, kKeys = 64, kThreads = 32 * kWarps;
  constexpr int kKeyTile = kKeys * Rows::kStep;
  bfloat16* const q = reinterpret_cast<bfloat16*>(shared);
  bfloat16* const k_tiles = q + kQueries * Rows::kStep;
  bfloat16* const v_tiles = k_tiles + 2 * kKeyTile;
  int64_t from;
  const int64_t h = blockIdx.x % c.H, head = h / c.group();
  const Sequence s =
      sequence(c, sequence_of_tile(c, tiles(c, kQueries) - 1 - blockIdx.x / c.H, kQueries, from));
  if (from >= s.tokens) return;
  const int64_t count = min(int64_t{kQueries}, s.tokens - from), first = s.first + from;
  const bfloat16* const q_rows =
      static_cast<const bfloat16*>(c.q.data) + (s.begin + from) * c.q.row + h * c.q.head;
  Rows::template copy<kQueries, kThreads>(q, count, c.P, q_rows,
                                          [&](int r) { return q_rows + r * c.q.row; });
  const KeysOf<bfloat16> k(c, s, c.k, c.from_k, head), v(c, s, c.v, c.from_v, head);
  const int64_t low = seen(c, s, first).low, high = seen(c, s, first + count - 1).high;
  const int n_tiles = static_cast<int>((high - low + kKeys - 1) / kKeys);
  const auto fetch = [&](int tile) {
    const int64_t key = low + int64_t{tile} * kKeys, keys = min(int64_t{kKeys}, high - key);
    Rows::template copy_keys<kKeys, kThreads>(k_tiles + tile % 2 * kKeyTile, k, key, keys, c.P);
    Rows::template copy_keys<kKeys, kThreads>(v_tiles + tile % 2 * kKeyTile, v, key, keys, c.P);
  };
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row0 = warp * 16 + lane / 4;  // and row0 + 8
  const Seen see[2] = {seen(c, s, first + row0), seen(c, s, first + row0 + 8)};
  // What every row of the warp sees.
  const int64_t all_low = seen(c, s, first + warp * 16 + 15).low,
                all_high = min(high, seen(c, s, first + warp * 16).high);
  const float scale = c.scale * kLog2e;
  float y[kHead / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  fetch(0);
  commit_copies();
  for (int tile = 0; tile < n_tiles; ++tile) {
    if (tile + 1 < n_tiles) fetch(tile + 1);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();
    const int64_t key = low + int64_t{tile} * kKeys;
    float scores[kKeys / 8][4];
    Rows::template products<kKeys / 8>(q + warp * 16 * Rows::kStep, k_tiles + tile % 2 * kKeyTile,
                                       scores);
    const bool all = key >= all_low && key + kKeys <= all_high;
    float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& x = scores[n][i];
        x *= scale;
        if (!all) {
          const int64_t at = key + n * 8 + lane % 4 * 2 + i % 2;
          if (at < see[i / 2].low || at >= see[i / 2].high || at >= high) x = -INFINITY;
        }
        most[i / 2] = fmaxf(most[i / 2], x);
      }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float now = fmaxf(largest[r], over_quad_max(most[r]));
      const float base = now == -INFINITY ? 0.0f : now;
      const float factor = exp2f(largest[r] - base);
      largest[r] = now;
      sum[r] *= factor;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i) sum[r] += scores[n][i] = exp2f(scores[n][i] - base);
#pragma unroll
      for (int n = 0; n < kHead / 8; ++n) y[n][2 * r] *= factor, y[n][2 * r + 1] *= factor;
    }
    Rows::template add_weighted<kKeys / 8>(scores, v_tiles + tile % 2 * kKeyTile, y);
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t row = row0 + 8 * r;
    const float over = 1.0f / over_quad_sum(sum[r]);
    if (row >= count) continue;
    const int64_t place = (s.begin + from + row) * c.H + h;
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n) {
      const int64_t at = n * 8 + lane % 4 * 2;
      if (at < c.P)
        put_pair(static_cast<bfloat16*>(c.y) + place * c.P + at, y[n][2 * r] * over,
                 y[n][2 * r + 1] * over, false);
    }
    if (c.norm && lane % 4 == 0) {
      c.norm[2 * place] = largest[r] * kLn2;
      c.norm[2 * place + 1] = over;
    }
  }
}

// scores -> weights, dscores = dy·v -> p (dy·v - delta), of one element. `seen`: whether the query sees the key.
__device__ inline void weigh(float& score, float& dscore, bool visible, float scale, float largest,
                             float over, float delta) {
  score = visible ? exp2f(score * scale - largest) * over : 0.0f;
  dscore = score * (dscore - delta);
}

// A block: 64 keys of one head of keys, a warp 16 of them; tiles of kQueries queries pass by, whose scores are
// held by keys: the weights are then factors of the products that sum over queries as they are.
template <int kHead, int kQueries>
__global__ void __launch_bounds__(128) keys_kernel(const AttentionBackward b) {
  extern __shared__ uint4 shared[];
  using Rows = Tile<kHead>;
  constexpr int kKeys = 64, kThreads = 128, kColumns = kQueries / 8;
  constexpr int kQueryTile = kQueries * Rows::kStep;
  const AttentionCall& c = b.c;
  bfloat16* const k = reinterpret_cast<bfloat16*>(shared);
  bfloat16* const v = k + kKeys * Rows::kStep;
  bfloat16* const q_tiles = v + kKeys * Rows::kStep;
  bfloat16* const dy_tiles = q_tiles + 2 * kQueryTile;
  float4* const numbers_of = reinterpret_cast<float4*>(dy_tiles + 2 * kQueryTile);
  int64_t from;
  const int64_t head = blockIdx.x % c.Hkv;
  const Sequence s = sequence(c, sequence_of_tile(c, blockIdx.x / c.Hkv, kKeys, from));
  if (from >= s.tokens) return;
  const int64_t count = min(int64_t{kKeys}, s.tokens - from), key = s.first + from;
  const KeysOf<bfloat16> keys(c, s, c.k, nullptr, head), values(c, s, c.v, nullptr, head);
  Rows::template copy_keys<kKeys, kThreads>(k, keys, key, count, c.P);
  Rows::template copy_keys<kKeys, kThreads>(v, values, key, count, c.P);
  const int64_t begin = c.causal ? from : 0;
  const int64_t end = !b.dy          ? begin
                      : c.window > 0 ? min(s.tokens, from + count - 1 + c.window)
                                     : s.tokens;
  const int64_t n_blocks = (end - begin + kQueries - 1) / kQueries;
  const int64_t n_tiles = n_blocks * c.group();
  const auto query_of = [&](int64_t tile) { return begin + tile % n_blocks * kQueries; };
  const auto fetch = [&](int64_t tile) {
    const int64_t h = head * c.group() + tile / n_blocks, t = query_of(tile);
    const int64_t n = min(int64_t{kQueries}, end - t);
    const auto* const q =
        static_cast<const bfloat16*>(c.q.data) + (s.begin + t) * c.q.row + h * c.q.head;
    const auto* const dy = static_cast<const bfloat16*>(b.dy) + ((s.begin + t) * c.H + h) * c.P;
    Rows::template copy<kQueries, kThreads>(q_tiles + tile % 2 * kQueryTile, n, c.P, q,
                                            [&](int r) { return q + r * c.q.row; });
    Rows::template copy<kQueries, kThreads>(dy_tiles + tile % 2 * kQueryTile, n, c.P, dy,
                                            [&](int r) { return dy + r * c.H * c.P; });
    for (int r = static_cast<int>(threadIdx.x); r < kQueries; r += kThreads) {
      const int64_t place = (s.begin + t + (r < n ? r : 0)) * c.H + h;
      numbers_of[tile % 2 * kQueries + r] =
          r < n ? make_float4(c.norm[2 * place] * kLog2e, c.norm[2 * place + 1], b.delta[place], 0)
                : make_float4(0, 0, 0, 0);
    }
  };
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const float scale = c.scale * kLog2e;
  float dk[kHead / 8][4] = {}, dv[kHead / 8][4] = {};
  if (n_tiles > 0) fetch(0);
  commit_copies();
  for (int64_t tile = 0; tile < n_tiles; ++tile) {
    if (tile + 1 < n_tiles) fetch(tile + 1);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();
    const bfloat16 *const q = q_tiles + tile % 2 * kQueryTile, *const dy =
                                                                   dy_tiles + tile % 2 * kQueryTile;
    float p[kColumns][4], dp[kColumns][4];
    Rows::template products<kColumns>(k + warp * 16 * Rows::kStep, q, p);
    Rows::template products<kColumns>(v + warp * 16 * Rows::kStep, dy, dp);
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int query = n * 8 + lane % 4 * 2 + i % 2, row = warp * 16 + lane / 4 + i / 2 * 8;
        const float4 of = numbers_of[tile % 2 * kQueries + query];
        const int64_t t = query_of(tile) + query;  // counted, as the key, from the call's first
        const bool visible = row < count && (!c.causal || t >= from + row) &&
                             (c.window == 0 || t < from + row + c.window);
        weigh(p[n][i], dp[n][i], visible, scale, of.x, of.y, of.z);
      }
    Rows::template add_weighted<kColumns>(p, dy, dv);
    Rows::template add_weighted<kColumns>(dp, q, dk);
    __syncthreads();
  }
  const auto hand_out = [&](const float(&sums)[kHead / 8][4], float factor, const HeadRows& to,
                            const float* d_out) {
    if (!to.data) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t row = warp * 16 + lane / 4 + 8 * r;
      if (row >= count) continue;
      auto* const at =
          static_cast<bfloat16*>(to.data) + (s.begin + from + row) * to.row + head * to.head;
#pragma unroll
      for (int n = 0; n < kHead / 8; ++n) {
        const int64_t i = n * 8 + lane % 4 * 2;
        if (i >= c.P) continue;
        put_pair(at + i, sums[n][2 * r] * factor + passed(c, s, d_out, key + row, head, i),
                 sums[n][2 * r + 1] * factor + passed(c, s, d_out, key + row, head, i + 1), to.add);
      }
    }
  };
  hand_out(dk, c.scale, b.dk, b.dk_out);
  hand_out(dv, 1, b.dv, b.dv_out);
}

// A block: 64 queries of one head, a warp 16 of them; tiles of 64 keys pass by.
template <int kHead>
__global__ void __launch_bounds__(128) queries_kernel(const AttentionBackward b) {
  extern __shared__ uint4 shared[];
  using Rows = Tile<kHead>;
  constexpr int kQueries = 64, kKeys = 64, kThreads = 128, kColumns = kKeys / 8;
  constexpr int kKeyTile = kKeys * Rows::kStep;
  const AttentionCall& c = b.c;
  bfloat16* const q = reinterpret_cast<bfloat16*>(shared);
  bfloat16* const dy = q + kQueries * Rows::kStep;
  bfloat16* const k_tiles = dy + kQueries * Rows::kStep;
  bfloat16* const v_tiles = k_tiles + 2 * kKeyTile;
  int64_t from;
  const int64_t h = blockIdx.x % c.H, head = h / c.group();
  const Sequence s =
      sequence(c, sequence_of_tile(c, tiles(c, kQueries) - 1 - blockIdx.x / c.H, kQueries, from));
  if (from >= s.tokens) return;
  const int64_t count = min(int64_t{kQueries}, s.tokens - from), first = s.first + from;
  const KeysOf<bfloat16> k(c, s, c.k, c.from_k, head), v(c, s, c.v, c.from_v, head);
  const int64_t low = seen(c, s, first).low;
  const int64_t high = b.dy ? seen(c, s, first + count - 1).high : low;
  const int n_tiles = static_cast<int>((high - low + kKeys - 1) / kKeys);
  const auto fetch = [&](int tile) {
    const int64_t key = low + int64_t{tile} * kKeys, keys = min(int64_t{kKeys}, high - key);
    Rows::template copy_keys<kKeys, kThreads>(k_tiles + tile % 2 * kKeyTile, k, key, keys, c.P);
    Rows::template copy_keys<kKeys, kThreads>(v_tiles + tile % 2 * kKeyTile, v, key, keys, c.P);
  };
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  Seen see[2];
  float largest[2] = {}, over[2] = {}, delta[2] = {};
  if (b.dy) {
    const auto* const q_rows =
        static_cast<const bfloat16*>(c.q.data) + (s.begin + from) * c.q.row + h * c.q.head;
    const auto* const dy_rows =
        static_cast<const bfloat16*>(b.dy) + ((s.begin + from) * c.H + h) * c.P;
    Rows::template copy<kQueries, kThreads>(q, count, c.P, q_rows,
                                            [&](int r) { return q_rows + r * c.q.row; });
    Rows::template copy<kQueries, kThreads>(dy, count, c.P, dy_rows,
                                            [&](int r) { return dy_rows + r * c.H * c.P; });
    fetch(0);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t row = warp * 16 + lane / 4 + 8 * r;
      see[r] = seen(c, s, first + row);
      if (row >= count) continue;
      const int64_t place = (s.begin + from + row) * c.H + h;
      largest[r] = c.norm[2 * place] * kLog2e;
      over[r] = c.norm[2 * place + 1];
      delta[r] = b.delta[place];
    }
  }
  commit_copies();
  const float scale = c.scale * kLog2e;
  float dq[kHead / 8][4] = {};
  for (int tile = 0; tile < n_tiles; ++tile) {
    if (tile + 1 < n_tiles) fetch(tile + 1);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();
    const int64_t key = low + int64_t{tile} * kKeys;
    const bfloat16* const keys = k_tiles + tile % 2 * kKeyTile;
    float p[kColumns][4], dp[kColumns][4];
    Rows::template products<kColumns>(q + warp * 16 * Rows::kStep, keys, p);
    Rows::template products<kColumns>(dy + warp * 16 * Rows::kStep, v_tiles + tile % 2 * kKeyTile,
                                      dp);
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = i / 2;
        const int64_t at = key + n * 8 + lane % 4 * 2 + i % 2;
        const bool visible = at >= see[r].low && at < see[r].high && at < high;
        weigh(p[n][i], dp[n][i], visible, scale, largest[r], over[r], delta[r]);
      }
    Rows::template add_weighted<kColumns>(dp, keys, dq);
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t row = warp * 16 + lane / 4 + 8 * r;
    if (row >= count) continue;
    auto* const at =
        static_cast<bfloat16*>(b.dq.data) + (s.begin + from + row) * b.dq.row + h * b.dq.head;
#pragma unroll
    for (int n = 0; n < kHead / 8; ++n) {
      const int64_t i = n * 8 + lane % 4 * 2;
      if (i < c.P) put_pair(at + i, dq[n][2 * r] * c.scale, dq[n][2 * r + 1] * c.scale, b.dq.add);
    }
  }
}

// Calls f(kHead): P rounded up.
template <class F>
void with_head(int64_t P, const F& f) {
  if (P <= 64) {
    f(std::integral_constant<int, 64>());
  } else if (P <= 80) {
    f(std::integral_constant<int, 80>());
  } else if (P <= 96) {
    f(std::integral_constant<int, 96>());
  } else {
    f(std::integral_constant<int, 128>());
  }
}

template <class Kernel, class Call>
void launch(Kernel kernel, int64_t blocks, unsigned threads, int64_t rows, int step, int64_t extra,
            const Call& call, void* stream, const char* what) {
  if (blocks == 0) return;
  const auto bytes = static_cast<size_t>(rows * step * 2 + extra);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(bytes));
  kernel<<<static_cast<unsigned>(blocks), threads, bytes, static_cast<cudaStream_t>(stream)>>>(
      call);
  check_launch(what);
}

bool in_chunks(const HeadRows& r) { return in_runs(r.data, r.row, 2, 8) && r.head % 8 == 0; }

}  // namespace

bool fits_tensor_cores(const AttentionCall& c) {
  return c.bf16 && c.P % 8 == 0 && c.P <= 128 && in_chunks(c.q) && in_chunks(c.k) &&
         in_chunks(c.v) && in_runs(c.y, 0, 2, 8) && in_runs(c.from_k, 0, 2, 8) &&
         in_runs(c.from_v, 0, 2, 8);
}

void tensor_forward(const AttentionCall& c, void* stream) {
  with_head(c.P, [&](auto head) {
    launch(forward_kernel<head>, tiles(c, 128) * c.H, 256, 128 + 4 * 64, Tile<head>::kStep, 0, c,
           stream, "attention");
  });
}

void tensor_backward(const AttentionBackward& b, void* stream) {
  const AttentionCall& c = b.c;
  with_head(c.P, [&](auto head) {
    constexpr int kStep = Tile<head>::kStep, kQueries = head <= 64 ? 64 : 32;
    if (b.dk.data || b.dv.data)
      launch(keys_kernel<head, kQueries>, tiles(c, 64) * c.Hkv, 128, 2 * 64 + 4 * kQueries, kStep,
             2 * kQueries * 16, b, stream, "attention backward, keys");
    if (b.dq.data)
      launch(queries_kernel<head>, tiles(c, 64) * c.H, 128, 2 * 64 + 4 * 64, kStep, 0, b, stream,
             "attention backward, queries");
  });
}

}  // namespace krait::cuda::attention
