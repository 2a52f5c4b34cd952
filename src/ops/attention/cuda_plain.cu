// attention in float32 arithmetic, for any head size and layout. A block of 16 x 16 threads holds tiles of kTile
// rows in shared memory; thread (ty, tx) has the rows ty·kRows + i of a tile and the columns tx + 16·j.
#include "krait/ops/attention/cuda_plain.cuh"

namespace krait::cuda {

namespace attention {

// kHead: P rounded up.
template <int kHead, int kTile>
struct Plain {
  static constexpr int kRows = kTile / 16, kElements = kHead / 16;
  static constexpr int kStep = kHead + 4, kScoreStep = kTile + 4;  // floats between rows
  static constexpr int kRowsTile = kTile * kStep, kScoreTile = kTile * kScoreStep;

  using Scores = float[kRows][kRows];
  using Sums = float[kRows][kElements];

  int ty = static_cast<int>(threadIdx.x) / 16, tx = static_cast<int>(threadIdx.x) % 16;

  // to[row][i] = value(row, i) for every i < P, zeros behind and in rows from `count` on.
  template <class F>
  __device__ void fill(float* to, int64_t count, int64_t P, const F& value) const {
    for (int at = static_cast<int>(threadIdx.x); at < kTile * kHead; at += kPlainThreads) {
      const int row = at / kHead, i = at % kHead;
      to[row * kStep + i] = row < count && i < P ? value(row, i) : 0.0f;
    }
  }

  template <class T>
  __device__ void fill_keys(float* to, const KeysOf<T>& keys, int64_t position, int64_t count,
                            int64_t P) const {
    fill(to, count, P, [&](int row, int i) { return keys.value(position + row, i); });
  }

  // s[i][j] = Σ a[row i] b[row of column j]
  __device__ void products(const float* a, const float* b, Scores& s) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kRows; ++j) s[i][j] = 0;
#pragma unroll 4
    for (int k = 0; k < kHead; k += 4) {
      float x[kRows][4], y[kRows][4];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        load<4>(a + (ty * kRows + i) * kStep + k, x[i]);
        load<4>(b + (tx + 16 * i) * kStep + k, y[i]);
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int j = 0; j < kRows; ++j)
#pragma unroll
          for (int v = 0; v < 4; ++v) s[i][j] = fmaf(x[i][v], y[j][v], s[i][j]);
    }
  }

  __device__ void put(const Scores& s, float* to) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kRows; ++j) to[(ty * kRows + i) * kScoreStep + tx + 16 * j] = s[i][j];
  }

  // sums[i][e] += Σ_k weight(row i, k) x[k][e]; kTransposed: the weights stand by columns.
  template <bool kTransposed>
  __device__ void add_weighted(const float* weights, const float* x, Sums& sums) const {
#pragma unroll 4
    for (int k = 0; k < kTile; ++k) {
      float w[kRows], y[kElements];
#pragma unroll
      for (int i = 0; i < kRows; ++i)
        w[i] = weights[kTransposed ? k * kScoreStep + ty * kRows + i
                                   : (ty * kRows + i) * kScoreStep + k];
#pragma unroll
      for (int e = 0; e < kElements; ++e) y[e] = x[k * kStep + tx + 16 * e];
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int e = 0; e < kElements; ++e) sums[i][e] = fmaf(w[i], y[e], sums[i][e]);
    }
  }
};

// Over the 16 threads of a row.
template <class F>
__device__ float across_row(float x, const F& f) {
#pragma unroll
  for (int lane = 8; lane > 0; lane /= 2) x = f(x, __shfl_xor_sync(~0u, x, lane));
  return x;
}

template <class T, int kHead, int kTile>
__global__ void __launch_bounds__(kPlainThreads) forward_kernel(const AttentionCall c) {
  extern __shared__ float shared[];
  using Tiles = Plain<kHead, kTile>;
  constexpr int kRows = Tiles::kRows;
  const Tiles tiles_of;
  float *const q = shared, *const kv = q + Tiles::kRowsTile, *const weights = kv + Tiles::kRowsTile;
  int64_t from;
  const int64_t h = blockIdx.x % c.H, head = h / c.group();
  const Sequence s =
      sequence(c, sequence_of_tile(c, tiles(c, kTile) - 1 - blockIdx.x / c.H, kTile, from));
  if (from >= s.tokens) return;
  const int64_t count = min(int64_t{kTile}, s.tokens - from);
  const T* const q_rows =
      static_cast<const T*>(c.q.data) + (s.begin + from) * c.q.row + h * c.q.head;
  tiles_of.fill(q, count, c.P, [&](int row, int i) {
    return c.scale * static_cast<float>(q_rows[row * c.q.row + i]);
  });
  const KeysOf<T> k(c, s, c.k, c.from_k, head), v(c, s, c.v, c.from_v, head);
  typename Tiles::Sums y = {};
  float largest[kRows], sum[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) largest[i] = -INFINITY, sum[i] = 0;
  const int64_t low = seen(c, s, s.first + from).low,
                high = seen(c, s, s.first + from + count - 1).high;
  for (int64_t key = low; key < high; key += kTile) {
    const int64_t keys = min(int64_t{kTile}, high - key);
    __syncthreads();
    tiles_of.fill_keys(kv, k, key, keys, c.P);
    __syncthreads();
    typename Tiles::Scores scores;
    tiles_of.products(q, kv, scores);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const Seen see = seen(c, s, s.first + from + tiles_of.ty * kRows + i);
      float most = -INFINITY;
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        const int64_t at = key + tiles_of.tx + 16 * j;
        if (at < see.low || at >= see.high || at >= high) scores[i][j] = -INFINITY;
        most = fmaxf(most, scores[i][j]);
      }
      most = across_row(most, [](float a, float b) { return fmaxf(a, b); });
      const float now = fmaxf(largest[i], most);
      float total = 0;
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        scores[i][j] = now == -INFINITY ? 0.0f : expf(scores[i][j] - now);
        total += scores[i][j];
      }
      total = across_row(total, [](float a, float b) { return a + b; });
      const float factor = now == largest[i] ? 1.0f : expf(largest[i] - now);
      sum[i] = sum[i] * factor + total;
      largest[i] = now;
#pragma unroll
      for (int e = 0; e < Tiles::kElements; ++e) y[i][e] *= factor;
    }
    tiles_of.put(scores, weights);
    __syncthreads();
    tiles_of.fill_keys(kv, v, key, keys, c.P);
    __syncthreads();
    tiles_of.template add_weighted<false>(weights, kv, y);
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = tiles_of.ty * kRows + i;
    if (row >= count) continue;
    const int64_t place = (s.begin + from + row) * c.H + h;
    const float over = 1.0f / sum[i];
#pragma unroll
    for (int e = 0; e < Tiles::kElements; ++e) {
      const int64_t at = tiles_of.tx + 16 * e;
      if (at < c.P) static_cast<T*>(c.y)[place * c.P + at] = static_cast<T>(y[i][e] * over);
    }
    if (c.norm && tiles_of.tx == 0) {
      c.norm[2 * place] = largest[i];
      c.norm[2 * place + 1] = over;
    }
  }
}

// A block of queries of one head, as backward reads them, and what becomes of their scores.
template <class T, class Tiles>
struct Queries {
  const AttentionBackward& b;
  const Sequence& s;
  int64_t h, from, count;

  __device__ void fill(const Tiles& tiles_of, float* q, float* dy) const {
    const AttentionCall& c = b.c;
    const T* const q_rows =
        static_cast<const T*>(c.q.data) + (s.begin + from) * c.q.row + h * c.q.head;
    tiles_of.fill(q, count, c.P, [&](int row, int i) {
      return c.scale * static_cast<float>(q_rows[row * c.q.row + i]);
    });
    const T* const dy_rows = static_cast<const T*>(b.dy) + ((s.begin + from) * c.H + h) * c.P;
    tiles_of.fill(dy, count, c.P,
                  [&](int row, int i) { return static_cast<float>(dy_rows[row * c.H * c.P + i]); });
  }

  // scores -> weights p, dscores = dy·v -> p (dy·v - delta), for the keys from position `key` on.
  __device__ void weigh(const Tiles& tiles_of, int64_t key, int64_t keys,
                        typename Tiles::Scores& scores, typename Tiles::Scores& dscores) const {
#pragma unroll
    for (int i = 0; i < Tiles::kRows; ++i) {
      const int64_t row = tiles_of.ty * Tiles::kRows + i;
      const bool there = row < count;
      const int64_t place = (s.begin + from + (there ? row : 0)) * b.c.H + h;
      const float largest = b.c.norm[2 * place], over = b.c.norm[2 * place + 1],
                  delta = b.delta[place];
      const Seen see = seen(b.c, s, s.first + from + row);
#pragma unroll
      for (int j = 0; j < Tiles::kRows; ++j) {
        const int64_t n = tiles_of.tx + 16 * j, at = key + n;
        const bool visible = there && n < keys && at >= see.low && at < see.high;
        const float p = visible ? expf(scores[i][j] - largest) * over : 0.0f;
        scores[i][j] = p;
        dscores[i][j] = p * (dscores[i][j] - delta);
      }
    }
  }
};

// Gradients of a tile of keys and values: own ones of a sequence, or cached ones of a row, which several
// sequences may have started from.
template <class T, int kHead, int kTile, bool kCached>
__global__ void __launch_bounds__(kPlainThreads) keys_kernel(const AttentionBackward b) {
  extern __shared__ float shared[];
  using Tiles = Plain<kHead, kTile>;
  const Tiles tiles_of;
  const AttentionCall& c = b.c;
  float *const k = shared, *const v = k + Tiles::kRowsTile, *const q = v + Tiles::kRowsTile,
               *const dy = q + Tiles::kRowsTile, *const weights = dy + Tiles::kRowsTile,
               *const dscores = weights + Tiles::kScoreTile;
  const int64_t head = blockIdx.x % c.Hkv, tile = blockIdx.x / c.Hkv;
  Sequence owner;  // as far as keys are concerned
  int64_t key = 0, count = 0, first_sequence = 0, end_sequence = 0;
  if (kCached) {
    const int64_t tiles_of_row = (c.from_C + kTile - 1) / kTile;
    owner.in = tile / tiles_of_row;
    owner.first = static_cast<int64_t>(c.from_length[owner.in]);
    owner.wrap = owner.first - owner.first % c.from_C;
    key = max(int64_t{0}, owner.first - c.from_C) + tile % tiles_of_row * kTile;
    count = owner.first - key;
    first_sequence = c.begin ? 0 : owner.in;
    end_sequence = c.begin ? c.sequences : owner.in + 1;
  } else {
    int64_t from;
    first_sequence = sequence_of_tile(c, tile, kTile, from);
    end_sequence = first_sequence + 1;
    owner = sequence(c, first_sequence);
    key = owner.first + from;
    count = owner.tokens - from;
  }
  if (count <= 0) return;
  count = min(count, int64_t{kTile});
  const KeysOf<T> keys(c, owner, c.k, c.from_k, head), values(c, owner, c.v, c.from_v, head);
  tiles_of.fill_keys(k, keys, key, count, c.P);
  tiles_of.fill_keys(v, values, key, count, c.P);
  typename Tiles::Sums dk = {}, dv = {};
  for (int64_t i = first_sequence; b.dy && i < end_sequence; ++i) {
    const Sequence s = sequence(c, i);
    if (kCached && s.in != owner.in) continue;
    const int64_t begin = c.causal ? max(int64_t{0}, key - s.first) : 0;
    const int64_t end =
        c.window > 0 ? min(s.tokens, key + count - 1 + c.window - s.first) : s.tokens;
    for (int64_t h = head * c.group(); h < (head + 1) * c.group(); ++h)
      for (int64_t from = begin; from < end; from += kTile) {
        const Queries<T, Tiles> queries{b, s, h, from, min(int64_t{kTile}, end - from)};
        __syncthreads();
        queries.fill(tiles_of, q, dy);
        __syncthreads();
        typename Tiles::Scores p, dp;
        tiles_of.products(q, k, p);
        tiles_of.products(dy, v, dp);
        queries.weigh(tiles_of, key, count, p, dp);
        tiles_of.put(p, weights);
        tiles_of.put(dp, dscores);
        __syncthreads();
        tiles_of.template add_weighted<true>(weights, dy, dv);
        tiles_of.template add_weighted<true>(dscores, q, dk);
      }
  }
  const auto hand_out = [&](const typename Tiles::Sums& sums, const HeadRows& own, float* cached,
                            const float* d_out) {
#pragma unroll
    for (int i = 0; i < Tiles::kRows; ++i) {
      const int64_t row = tiles_of.ty * Tiles::kRows + i, position = key + row;
      if (row >= count) continue;
#pragma unroll
      for (int e = 0; e < Tiles::kElements; ++e) {
        const int64_t at = tiles_of.tx + 16 * e;
        if (at >= c.P) continue;
        float sum = sums[i][e];
        for (int64_t n = first_sequence; d_out && n < end_sequence; ++n) {
          const Sequence s = sequence(c, n);
          if (!kCached || s.in == owner.in) sum += passed(c, s, d_out, position, head, at);
        }
        if (kCached) {
          if (cached) {
            const int64_t place = owner.in * c.from_C + position % c.from_C;
            cached[(place * c.Hkv + head) * c.P + at] += sum;
          }
        } else if (own.data) {
          T& to = static_cast<T*>(
              own.data)[(owner.begin + position - owner.first) * own.row + head * own.head + at];
          to = static_cast<T>(own.add ? static_cast<float>(to) + sum : sum);
        }
      }
    }
  };
  hand_out(dk, b.dk, b.dk_in, b.dk_out);
  hand_out(dv, b.dv, b.dv_in, b.dv_out);
}

template <class T, int kHead, int kTile>
__global__ void __launch_bounds__(kPlainThreads) queries_kernel(const AttentionBackward b) {
  extern __shared__ float shared[];
  using Tiles = Plain<kHead, kTile>;
  const Tiles tiles_of;
  const AttentionCall& c = b.c;
  float *const k = shared, *const v = k + Tiles::kRowsTile, *const q = v + Tiles::kRowsTile,
               *const dy = q + Tiles::kRowsTile, *const dscores = dy + Tiles::kRowsTile;
  int64_t from;
  const int64_t h = blockIdx.x % c.H, head = h / c.group();
  const Sequence s =
      sequence(c, sequence_of_tile(c, tiles(c, kTile) - 1 - blockIdx.x / c.H, kTile, from));
  if (from >= s.tokens) return;
  const int64_t count = min(int64_t{kTile}, s.tokens - from);
  const Queries<T, Tiles> queries{b, s, h, from, count};
  typename Tiles::Sums dq = {};
  if (b.dy) {
    queries.fill(tiles_of, q, dy);
    const KeysOf<T> keys(c, s, c.k, c.from_k, head), values(c, s, c.v, c.from_v, head);
    const int64_t low = seen(c, s, s.first + from).low,
                  high = seen(c, s, s.first + from + count - 1).high;
    for (int64_t key = low; key < high; key += kTile) {
      const int64_t n = min(int64_t{kTile}, high - key);
      __syncthreads();
      tiles_of.fill_keys(k, keys, key, n, c.P);
      tiles_of.fill_keys(v, values, key, n, c.P);
      __syncthreads();
      typename Tiles::Scores p, dp;
      tiles_of.products(q, k, p);
      tiles_of.products(dy, v, dp);
      queries.weigh(tiles_of, key, n, p, dp);
      tiles_of.put(dp, dscores);
      __syncthreads();
      tiles_of.template add_weighted<false>(dscores, k, dq);
    }
  }
#pragma unroll
  for (int i = 0; i < Tiles::kRows; ++i) {
    const int64_t row = tiles_of.ty * Tiles::kRows + i;
    if (row >= count) continue;
#pragma unroll
    for (int e = 0; e < Tiles::kElements; ++e) {
      const int64_t at = tiles_of.tx + 16 * e;
      if (at >= c.P) continue;
      T& to = static_cast<T*>(b.dq.data)[(s.begin + from + row) * b.dq.row + h * b.dq.head + at];
      const float value = dq[i][e] * c.scale;
      to = static_cast<T>(b.dq.add ? static_cast<float>(to) + value : value);
    }
  }
}

// dy · y of each token and head, a warp each.
template <class T>
__global__ void delta_kernel(const T* dy, const T* y, int64_t rows, int64_t P, float* delta) {
  const int64_t row = int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  float sum = 0;
  for (int64_t i = threadIdx.x % 32; i < P; i += 32)
    sum = fmaf(static_cast<float>(dy[row * P + i]), static_cast<float>(y[row * P + i]), sum);
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(~0u, sum, lane);
  if (threadIdx.x % 32 == 0) delta[row] = sum;
}

// Calls f(type of q, kHead, kTile).
template <class F>
void with_sizes(const AttentionCall& c, const F& f) {
  const auto of_type = [&](auto type) {
    using std::integral_constant;
    if (c.P <= 64) {
      f(type, integral_constant<int, 64>(), integral_constant<int, 64>());
    } else if (c.P <= 128) {
      f(type, integral_constant<int, 128>(), integral_constant<int, 64>());
    } else {
      f(type, integral_constant<int, 256>(), integral_constant<int, 32>());
    }
  };
  c.bf16 ? of_type(bfloat16()) : of_type(0.0f);
}

template <class Kernel, class Call>
void launch(Kernel kernel, int64_t blocks, int64_t floats, const Call& call, void* stream,
            const char* what) {
  if (blocks == 0) return;
  const size_t bytes = static_cast<size_t>(floats) * sizeof(float);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(bytes));
  kernel<<<static_cast<unsigned>(blocks), kPlainThreads, bytes,
           static_cast<cudaStream_t>(stream)>>>(call);
  check_launch(what);
}

void plain_forward(const AttentionCall& c, void* stream) {
  with_sizes(c, [&](auto type, auto head, auto tile) {
    using Tiles = Plain<head, tile>;
    launch(forward_kernel<decltype(type), head, tile>, tiles(c, tile) * c.H,
           2 * Tiles::kRowsTile + Tiles::kScoreTile, c, stream, "attention");
  });
}

void add_up_dy_y(const AttentionBackward& b, void* stream) {
  const int64_t rows = b.c.tokens * b.c.H;
  const auto run = [&](auto type) {
    using T = decltype(type);
    delta_kernel<T>
        <<<static_cast<unsigned>(ceil_div(rows, 8)), 256, 0, static_cast<cudaStream_t>(stream)>>>(
            static_cast<const T*>(b.dy), static_cast<const T*>(b.c.y), rows, b.c.P, b.delta);
  };
  b.c.bf16 ? run(bfloat16()) : run(0.0f);
  check_launch("attention delta");
}

void plain_backward(const AttentionBackward& b, void* stream) {
  const AttentionCall& c = b.c;
  with_sizes(c, [&](auto type, auto head, auto tile) {
    using T = decltype(type);
    using Tiles = Plain<head, tile>;
    if (b.dk.data || b.dv.data)
      launch(keys_kernel<T, head, tile, false>, tiles(c, tile) * c.Hkv,
             4 * Tiles::kRowsTile + 2 * Tiles::kScoreTile, b, stream, "attention backward, keys");
    if (b.dq.data)
      launch(queries_kernel<T, head, tile>, tiles(c, tile) * c.H,
             4 * Tiles::kRowsTile + Tiles::kScoreTile, b, stream, "attention backward, queries");
  });
}

void cache_backward(const AttentionBackward& b, void* stream) {
  const AttentionCall& c = b.c;
  with_sizes(c, [&](auto type, auto head, auto tile) {
    using Tiles = Plain<head, tile>;
    launch(keys_kernel<decltype(type), head, tile, true>,
           c.from_rows * ceil_div(c.from_C, tile) * c.Hkv,
           4 * Tiles::kRowsTile + 2 * Tiles::kScoreTile, b, stream, "attention backward, cache");
  });
}

}  // namespace attention
}  // namespace krait::cuda
