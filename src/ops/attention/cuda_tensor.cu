// attention in bfloat16 on tensor cores: scores, weights and all sums in float32 registers, weights and the
// gradients of scores rounded to bfloat16 where they are factors of the next product. A warp has 32 rows of a block's
// tile forward, 16 backward; what it multiplies them with passes by in shared memory.
#include "krait/ops/attention/cuda_tensor.cuh"

#include <type_traits>

#include "krait/tensor/cuda/exponentials.cuh"
#include "krait/tensor/cuda/mma.h"

namespace krait::cuda::attention {

namespace {

// Tiles of rows in shared memory: 16 bytes more than kHead elements keep eight rows in different banks.
template <int kHead>
struct Tile {
  static constexpr int kStep = kHead + 8, kChunks = kHead / 8;

  // f(row, element) for each chunk of kRows rows that is this thread's.
  template <int kRows, int kThreads, class F>
  __device__ static void each_chunk(const F& f) {
#pragma unroll
    for (int i = 0; i < kRows * kChunks; i += kThreads) {
      const int at = i + static_cast<int>(threadIdx.x);
      if (i + kThreads <= kRows * kChunks || at < kRows * kChunks)
        f(at / kChunks, at % kChunks * 8);
    }
  }

  // to[row] = the P elements at row(row), for row < count; zeros elsewhere. Copies may be on their way.
  template <int kRows, int kThreads, class F>
  __device__ static void copy(bfloat16* to, int64_t count, int64_t P, const void* any,
                              const F& row) {
    each_chunk<kRows, kThreads>([&](int r, int i) {
      const bool there = r < count && i < P;
      copy_async(to + r * kStep + i, there ? static_cast<const void*>(row(r) + i) : any, there);
    });
  }

  // Keys or values from `position` on; cached ones of float32 are rounded on the way.
  template <int kRows, int kThreads>
  __device__ static void copy_keys(bfloat16* to, const KeysOf<bfloat16>& keys, int64_t position,
                                   int64_t count, int64_t P) {
    const int64_t end = position + count;
    const bool own = !keys.is_cached(position),
               cached = keys.cached_bf16 && end <= keys.first &&
                        (position >= keys.wrap || end <= keys.wrap);
    if (own || cached) {  // all at one distance
      const bfloat16* const first =
          own ? keys.own_at(position) : keys.template cached_at<bfloat16>(position);
      const int64_t distance = own ? keys.own_row : keys.cached_row;
      copy<kRows, kThreads>(to, count, P, first, [&](int r) { return first + r * distance; });
      return;
    }
    each_chunk<kRows, kThreads>([&](int r, int i) {
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
    });
  }

  // c (16 kM, 8 kColumns) = a (16 kM rows) b (8 kColumns rows)ᵀ over kHead elements
  template <int kM, int kColumns>
  __device__ static void products(const bfloat16* a, const bfloat16* b,
                                  float (&c)[kM][kColumns][4]) {
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int n = 0; n < kColumns; ++n) c[m][n][0] = c[m][n][1] = c[m][n][2] = c[m][n][3] = 0;
#pragma unroll
    for (int k = 0; k < kHead; k += 16) {
      uint32_t left[kM][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) load_a(left[m], a + m * 16 * kStep + k, kStep);
#pragma unroll
      for (int n = 0; n < kColumns; n += 2) {
        uint32_t right[4];
        load_b(right, b + n * 8 * kStep + k, kStep);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          mma_bf16(c[m][n], left[m], right[0], right[1]);
          mma_bf16(c[m][n + 1], left[m], right[2], right[3]);
        }
      }
    }
  }

  // sums (16 kM, kHead) += weights (16 kM, 8 kColumns) x (8 kColumns rows of kHead)
  template <int kM, int kColumns>
  __device__ static void add_weighted(const float (&weights)[kM][kColumns][4], const bfloat16* x,
                                      float (&sums)[kM][kHead / 8][4]) {
#pragma unroll
    for (int k = 0; k < kColumns; k += 2) {
      uint32_t left[kM][4];
#pragma unroll
      for (int m = 0; m < kM; ++m) pack_a(left[m], weights[m][k], weights[m][k + 1]);
#pragma unroll
      for (int n = 0; n < kHead / 8; n += 2) {
        uint32_t right[4];
        load_b_rows(right, x + k * 8 * kStep + n * 8, kStep);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          mma_bf16(sums[m][n], left[m], right[0], right[1]);
          mma_bf16(sums[m][n + 1], left[m], right[2], right[3]);
        }
      }
    }
  }
};

// In backward a warp has one tile of 16 rows: with two, too few warps would be there to hide each other's latency.
// So many blocks are on a multiprocessor at once.
constexpr int backward_blocks(int head) { return head <= 64 ? 4 : 1; }

// x - from, cut off far outside of any tile.
__device__ inline int distance(int64_t x, int64_t from) {
  return static_cast<int>(max(int64_t{-4096}, min(int64_t{4096}, x - from)));
}

// A block: 128 queries of one head; tiles of keys pass by, the next on its way during each.
constexpr int kForwardQueries = 128, kForwardThreads = 128;
constexpr int forward_keys(int head) { return head <= 64 ? 64 : 32; }  // as registers allow

template <int kHead>
__global__ void __launch_bounds__(kForwardThreads) forward_kernel(const AttentionCall c) {
  extern __shared__ uint4 shared[];
  using Rows = Tile<kHead>;
  constexpr int kThreads = kForwardThreads, kQueries = kForwardQueries, kM = 2, kOfWarp = 16 * kM,
                kKeys = forward_keys(kHead), kKeyTile = kKeys * Rows::kStep;
  static_assert(kThreads / 32 * kOfWarp == kQueries);
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
  // What every row of the warp sees.
  const int64_t all_low = seen(c, s, first + (warp + 1) * kOfWarp - 1).low,
                all_high = min(high, seen(c, s, first + warp * kOfWarp).high);
  const float scale = c.scale * kLog2e;
  float y[kM][kHead / 8][4] = {}, largest[kM][2], sum[kM][2] = {};
#pragma unroll
  for (int m = 0; m < kM; ++m) largest[m][0] = largest[m][1] = -INFINITY;
  fetch(0);
  commit_copies();
  for (int tile = 0; tile < n_tiles; ++tile) {
    if (tile + 1 < n_tiles) fetch(tile + 1);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();
    const int64_t key = low + int64_t{tile} * kKeys;
    float scores[kM][kKeys / 8][4];
    Rows::products(q + warp * kOfWarp * Rows::kStep, k_tiles + tile % 2 * kKeyTile, scores);
    const bool all = key >= all_low && key + kKeys <= all_high;
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (!all) {
          const Seen see = seen(c, s, first + warp * kOfWarp + m * 16 + lane / 4 + r * 8);
          const int begin = distance(see.low, key) - lane % 4 * 2,
                    end = distance(min(see.high, high), key) - lane % 4 * 2;
#pragma unroll
          for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
            for (int i = 0; i < 2; ++i)
              if (n * 8 + i < begin || n * 8 + i >= end) scores[m][n][2 * r + i] = -INFINITY;
        }
        float most = -INFINITY;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
          for (int i = 2 * r; i < 2 * r + 2; ++i) most = fmaxf(most, scores[m][n][i] *= scale);
        const float now = fmaxf(largest[m][r], over_quad_max(most));
        const float base = now == -INFINITY ? 0.0f : now;
        const float factor = exp2_fast(largest[m][r] - base);
        largest[m][r] = now;
        sum[m][r] *= factor;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
          for (int i = 2 * r; i < 2 * r + 2; ++i)
            sum[m][r] += scores[m][n][i] = exp2_fast(scores[m][n][i] - base);
#pragma unroll
        for (int n = 0; n < kHead / 8; ++n) y[m][n][2 * r] *= factor, y[m][n][2 * r + 1] *= factor;
      }
    Rows::add_weighted(scores, v_tiles + tile % 2 * kKeyTile, y);
    __syncthreads();
  }
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t row = warp * kOfWarp + m * 16 + lane / 4 + r * 8;
      const float over = 1.0f / over_quad_sum(sum[m][r]);
      if (row >= count) continue;
      const int64_t place = (s.begin + from + row) * c.H + h;
#pragma unroll
      for (int n = 0; n < kHead / 8; ++n) {
        const int64_t at = n * 8 + lane % 4 * 2;
        if (at < c.P)
          put_pair(static_cast<bfloat16*>(c.y) + place * c.P + at, y[m][n][2 * r] * over,
                   y[m][n][2 * r + 1] * over, false);
      }
      if (c.norm && lane % 4 == 0) {
        c.norm[2 * place] = largest[m][r] * kLn2;
        c.norm[2 * place + 1] = over;
      }
    }
}

// What backward needs of a query: log2 of its sum of exponentials, and delta. Of none: no weight.
struct OfQuery {
  float log_sum, delta;
};

__device__ inline OfQuery of_query(const AttentionBackward& b, int64_t place, bool there) {
  if (!there) return {INFINITY, 0};
  return {fmaf(b.c.norm[2 * place], kLog2e, -log2f(b.c.norm[2 * place + 1])), b.delta[place]};
}

// scores -> weights, dscores = dy·v -> p (dy·v - delta), of one element.
__device__ inline void weigh(float& score, float& dscore, bool visible, float scale,
                             const OfQuery& of) {
  score = visible ? exp2_fast(fmaf(score, scale, -of.log_sum)) : 0.0f;
  dscore = score * (dscore - of.delta);
}

// A block: keys of one head of keys; tiles of queries pass by, whose scores are held by keys: the weights are then
// factors of the products that sum over queries as they are.
template <int kHead>
struct KeysBlock {
  static constexpr int kM = 1, kOfWarp = 16 * kM, kKeys = 4 * kOfWarp, kQueries = 32,
                       kRows = 2 * kKeys + 4 * kQueries;  // in shared memory
};

template <int kHead>
__global__ void __launch_bounds__(128, backward_blocks(kHead))
    keys_kernel(const AttentionBackward b) {
  extern __shared__ uint4 shared[];
  using Rows = Tile<kHead>;
  using Block = KeysBlock<kHead>;
  constexpr int kM = Block::kM, kOfWarp = Block::kOfWarp, kKeys = Block::kKeys,
                kQueries = Block::kQueries, kThreads = 128, kColumns = kQueries / 8,
                kQueryTile = kQueries * Rows::kStep;
  const AttentionCall& c = b.c;
  bfloat16* const k = reinterpret_cast<bfloat16*>(shared);
  bfloat16* const v = k + kKeys * Rows::kStep;
  bfloat16* const q_tiles = v + kKeys * Rows::kStep;
  bfloat16* const dy_tiles = q_tiles + 2 * kQueryTile;
  OfQuery* const numbers_of = reinterpret_cast<OfQuery*>(dy_tiles + 2 * kQueryTile);
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
    for (int r = static_cast<int>(threadIdx.x); r < kQueries; r += kThreads)
      numbers_of[tile % 2 * kQueries + r] = of_query(b, (s.begin + t + r) * c.H + h, r < n);
  };
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const float scale = c.scale * kLog2e;
  float dk[kM][kHead / 8][4] = {}, dv[kM][kHead / 8][4] = {};
  if (n_tiles > 0) fetch(0);
  commit_copies();
  for (int64_t tile = 0; tile < n_tiles; ++tile) {
    if (tile + 1 < n_tiles) fetch(tile + 1);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();
    const bfloat16 *const q = q_tiles + tile % 2 * kQueryTile, *const dy =
                                                                   dy_tiles + tile % 2 * kQueryTile;
    float p[kM][kColumns][4], dp[kM][kColumns][4];
    Rows::products(k + warp * kOfWarp * Rows::kStep, q, p);
    Rows::products(v + warp * kOfWarp * Rows::kStep, dy, dp);
    // Queries are counted, as keys, from the call's first; here from the warp's first key.
    const int64_t ahead = query_of(tile) - from - warp * kOfWarp;
    const bool all =
        (!c.causal || ahead >= kOfWarp - 1) && (c.window == 0 || ahead + kQueries - 1 < c.window);
    const int at = distance(ahead, 0),
              window = c.window == 0 ? 1 << 20 : distance(c.window, ahead) + at;
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int query = n * 8 + lane % 4 * 2 + j;
        const OfQuery of = numbers_of[tile % 2 * kQueries + query];
#pragma unroll
        for (int m = 0; m < kM; ++m)
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int past = at + query - (m * 16 + lane / 4 + r * 8);  // the key
            const bool visible = all || ((!c.causal || past >= 0) && past < window);
            weigh(p[m][n][2 * r + j], dp[m][n][2 * r + j], visible, scale, of);
          }
      }
    Rows::add_weighted(p, dy, dv);
    Rows::add_weighted(dp, q, dk);
    __syncthreads();
  }
  const auto hand_out = [&](const float(&sums)[kM][kHead / 8][4], float factor, const HeadRows& to,
                            const float* d_out) {
    if (!to.data) return;
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int64_t row = warp * kOfWarp + m * 16 + lane / 4 + 8 * r;
        if (row >= count) continue;
        auto* const place =
            static_cast<bfloat16*>(to.data) + (s.begin + from + row) * to.row + head * to.head;
#pragma unroll
        for (int n = 0; n < kHead / 8; ++n) {
          const int64_t i = n * 8 + lane % 4 * 2;
          if (i >= c.P) continue;
          put_pair(place + i, sums[m][n][2 * r] * factor + passed(c, s, d_out, key + row, head, i),
                   sums[m][n][2 * r + 1] * factor + passed(c, s, d_out, key + row, head, i + 1),
                   to.add);
        }
      }
  };
  hand_out(dk, c.scale, b.dk, b.dk_out);
  hand_out(dv, 1, b.dv, b.dv_out);
}

// A block: queries of one head; tiles of keys pass by.
template <int kHead>
struct QueriesBlock {
  static constexpr int kM = 1, kOfWarp = 16 * kM, kQueries = 4 * kOfWarp,
                       kKeys = kHead <= 64 ? 32 : 64,
                       kRows = 2 * kQueries + 4 * kKeys;  // in shared memory
};

template <int kHead>
__global__ void __launch_bounds__(128, backward_blocks(kHead))
    queries_kernel(const AttentionBackward b) {
  extern __shared__ uint4 shared[];
  using Rows = Tile<kHead>;
  using Block = QueriesBlock<kHead>;
  constexpr int kM = Block::kM, kOfWarp = Block::kOfWarp, kQueries = Block::kQueries,
                kKeys = Block::kKeys, kThreads = 128, kColumns = kKeys / 8,
                kKeyTile = kKeys * Rows::kStep;
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
  // What every row of the warp sees.
  const int64_t all_low = seen(c, s, first + (warp + 1) * kOfWarp - 1).low,
                all_high = min(high, seen(c, s, first + warp * kOfWarp).high);
  OfQuery of[kM][2];
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
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int64_t row = warp * kOfWarp + m * 16 + lane / 4 + 8 * r;
        of[m][r] = of_query(b, (s.begin + from + row) * c.H + h, row < count);
      }
  }
  commit_copies();
  const float scale = c.scale * kLog2e;
  float dq[kM][kHead / 8][4] = {};
  for (int tile = 0; tile < n_tiles; ++tile) {
    if (tile + 1 < n_tiles) fetch(tile + 1);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();
    const int64_t key = low + int64_t{tile} * kKeys;
    const bfloat16* const keys = k_tiles + tile % 2 * kKeyTile;
    float p[kM][kColumns][4], dp[kM][kColumns][4];
    Rows::products(q + warp * kOfWarp * Rows::kStep, keys, p);
    Rows::products(dy + warp * kOfWarp * Rows::kStep, v_tiles + tile % 2 * kKeyTile, dp);
    const bool all = key >= all_low && key + kKeys <= all_high;
#pragma unroll
    for (int m = 0; m < kM; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const Seen see = seen(c, s, first + warp * kOfWarp + m * 16 + lane / 4 + r * 8);
        const int begin = distance(see.low, key) - lane % 4 * 2,
                  end = distance(min(see.high, high), key) - lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < kColumns; ++n)
#pragma unroll
          for (int j = 0; j < 2; ++j)
            weigh(p[m][n][2 * r + j], dp[m][n][2 * r + j],
                  all || (n * 8 + j >= begin && n * 8 + j < end), scale, of[m][r]);
      }
    Rows::add_weighted(dp, keys, dq);
    __syncthreads();
  }
#pragma unroll
  for (int m = 0; m < kM; ++m)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t row = warp * kOfWarp + m * 16 + lane / 4 + 8 * r;
      if (row >= count) continue;
      auto* const at =
          static_cast<bfloat16*>(b.dq.data) + (s.begin + from + row) * b.dq.row + h * b.dq.head;
#pragma unroll
      for (int n = 0; n < kHead / 8; ++n) {
        const int64_t i = n * 8 + lane % 4 * 2;
        if (i < c.P)
          put_pair(at + i, dq[m][n][2 * r] * c.scale, dq[m][n][2 * r + 1] * c.scale, b.dq.add);
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

}  // namespace

bool fits_tensor_cores(const AttentionCall& c) {
  return c.bf16 && c.P % 8 == 0 && c.P <= 128 && in_chunks(c.q) && in_chunks(c.k) &&
         in_chunks(c.v) && in_runs(c.y, 0, 2, 8) && in_runs(c.from_k, 0, 2, 8) &&
         in_runs(c.from_v, 0, 2, 8);
}

void tensor_forward(const AttentionCall& c, void* stream) {
  with_head(c.P, [&](auto head) {
    launch(forward_kernel<head>, tiles(c, kForwardQueries) * c.H, kForwardThreads,
           kForwardQueries + 4 * forward_keys(head), Tile<head>::kStep, 0, c, stream, "attention");
  });
}

void tensor_backward(const AttentionBackward& b, void* stream) {
  const AttentionCall& c = b.c;
  with_head(c.P, [&](auto head) {
    using Keys = KeysBlock<head>;
    using Queries = QueriesBlock<head>;
    constexpr int kStep = Tile<head>::kStep;
    if (b.dk.data || b.dv.data)
      launch(keys_kernel<head>, tiles(c, Keys::kKeys) * c.Hkv, 128, Keys::kRows, kStep,
             2 * Keys::kQueries * sizeof(OfQuery), b, stream, "attention backward, keys");
    if (b.dq.data)
      launch(queries_kernel<head>, tiles(c, Queries::kQueries) * c.H, 128, Queries::kRows, kStep, 0,
             b, stream, "attention backward, queries");
  });
}

}  // namespace krait::cuda::attention
