// attention of one token a sequence. Its keys are cut into pieces, so that one sequence fills the card. A warp has
// one piece for a head, or for some heads that share a head of keys, so that keys and values are read once; warps
// beside each other have the heads beside each other, whose rows lie side by side in the cache. A row takes as few
// lanes as 16 bytes each allow, and a warp has as many keys at once as that leaves room for; rows on their way lie in
// shared memory, each lane's own part of them. And the cache: what is appended to it.
#include <algorithm>
#include <type_traits>

#include "krait/ops/attention/cuda_plain.cuh"
#include "krait/ops/attention/cuda_tensor.cuh"
#include "krait/ops/attention/cuda_warpgroup.cuh"
#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/mma.h"

namespace krait::cuda {

namespace attention {
namespace {

constexpr int kWarps = 4;
constexpr int64_t kFewestPositions = 64, kWarpsWanted = 16384;

// The most positions that a token sees, by the shapes.
int64_t most_positions(const AttentionCall& c) {
  return (c.window > 0 ? std::min(c.from_C, c.window) : c.from_C) + 1;
}

// Positions of a piece: as many as leave warps enough for any card.
int64_t positions_of_a_piece(const AttentionCall& c) {
  const int64_t wanted = ceil_div(most_positions(c) * c.sequences * c.Hkv, kWarpsWanted);
  return std::max(kFewestPositions, ceil_div(wanted, kFewestPositions) * kFewestPositions);
}

int64_t pieces_of(const AttentionCall& c) {
  return ceil_div(most_positions(c), positions_of_a_piece(c));
}

// What a piece says of a head: the largest score, Σ exp(score - largest), and the values weighted so (P).
struct Parts {
  float *largest, *sum, *y;  // (sequences, pieces, H) twice, (sequences, pieces, H, P)
  int64_t pieces;
};

Parts parts_at(const AttentionCall& c, float* at) {
  const int64_t n = c.sequences * pieces_of(c) * c.H;
  return {at, at + n, at + 2 * n, pieces_of(c)};
}

// A lane's elements of a row of P: kPasses runs of kWidth, runs of one pass side by side over kLanes lanes.
template <int kWidthOf, int kLanes, int kPassesOf>
struct Lane {
  static constexpr int kWidth = kWidthOf, kPasses = kPassesOf;
  static constexpr int kElements = kWidth * kPasses, kSides = 32 / kLanes;
  int lane = static_cast<int>(threadIdx.x) % kLanes;
  int side =
      static_cast<int>(threadIdx.x) % 32 / kLanes;  // which of the rows that a warp has at once

  template <class T>
  struct Raw {  // as it lies in memory: half the registers of float32 until it is used
    Run<kWidth, T> of_pass[kPasses];
    __device__ float operator[](int e) const {
      return static_cast<float>(of_pass[e / kWidth].v[e % kWidth]);
    }
  };

  __device__ int at(int pass) const { return (pass * kLanes + lane) * kWidth; }
  template <class T>
  __device__ void read(const T* row, int64_t P, Raw<T>& to) const {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      to.of_pass[pass] = {};
      if (at(pass) < P) to.of_pass[pass] = *reinterpret_cast<const Run<kWidth, T>*>(row + at(pass));
    }
  }
  __device__ void write(const float (&from)[kElements], int64_t P, float* row) const {
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      if (at(e / kWidth) < P) row[at(e / kWidth) + e % kWidth] = from[e];
  }
  // Over the lanes of a row.
  __device__ float sum(float x) const {
#pragma unroll
    for (int other = kLanes / 2; other > 0; other /= 2) x += __shfl_xor_sync(~0u, x, other);
    return x;
  }
};

// The running softmax of a side over its keys, for kHeads heads of queries.
template <class Row, int kHeads>
struct Running {
  static constexpr int kElements = Row::kElements;
  float largest[kHeads], sum[kHeads], y[kHeads][kElements];

  __device__ Running() {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      largest[h] = -INFINITY;
      sum[h] = 0;
#pragma unroll
      for (int e = 0; e < kElements; ++e) y[h][e] = 0;
    }
  }

  // kKeys more keys, of which `there` says whether they are.
  template <int kKeys, class Raw>
  __device__ void add(const Row& row, const float (&q)[kHeads][kElements], const Raw (&k)[kKeys],
                      const Raw (&v)[kKeys], const bool (&there)[kKeys]) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float score[kKeys], now = largest[h];
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        float dot = 0;
#pragma unroll
        for (int e = 0; e < kElements; ++e) dot = fmaf(q[h][e], k[j][e], dot);
        score[j] = row.sum(dot);
        if (there[j]) now = fmaxf(now, score[j]);
      }
      scale(h, now);
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        const float p = there[j] ? expf(score[j] - now) : 0.0f;
        sum[h] += p;
#pragma unroll
        for (int e = 0; e < kElements; ++e) y[h][e] = fmaf(p, v[j][e], y[h][e]);
      }
    }
  }

  // The sides of a warp together, in a fixed order; every side has the whole.
  __device__ void join_sides() {
#pragma unroll
    for (int other = 32 / Row::kSides; other < 32; other *= 2)
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        scale(h, fmaxf(largest[h], __shfl_xor_sync(~0u, largest[h], other)));
        sum[h] += __shfl_xor_sync(~0u, sum[h], other);
#pragma unroll
        for (int e = 0; e < kElements; ++e) y[h][e] += __shfl_xor_sync(~0u, y[h][e], other);
      }
  }

 private:
  __device__ void scale(int h, float now) {
    const float factor = now == largest[h] ? 1.0f : expf(largest[h] - now);
    largest[h] = now;
    sum[h] *= factor;
#pragma unroll
    for (int e = 0; e < kElements; ++e) y[h][e] *= factor;
  }
};

// Keys and values of a lane that are on their way: kStages times kKeys of each, the lane's 16 bytes of every pass.
template <class Row, class S>
struct Ring {
  static constexpr int kKeys = 4, kPasses = Row::kPasses, kStages = kPasses > 1 ? 2 : 3;
  static constexpr int kOfWarp = kStages * kKeys * 2 * kPasses * 32;  // of 16 bytes
  using Raw = typename Row::template Raw<S>;
  static_assert(sizeof(Run<Row::kWidth, S>) == 16);
  uint4* mine;

  __device__ explicit Ring(uint4* all)
      : mine(all + threadIdx.x / 32 * kOfWarp + threadIdx.x % 32) {}
  __device__ uint4* slot(int stage, int key, int value, int pass) const {
    return mine + (((stage * kKeys + key) * 2 + value) * kPasses + pass) * 32;
  }
  __device__ void fetch(const Row& row, int stage, int key, int value, const S* from,
                        int64_t P) const {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass)
      copy_async(slot(stage, key, value, pass), from + (row.at(pass) < P ? row.at(pass) : 0),
                 row.at(pass) < P);
  }
  __device__ void read(int stage, int key, int value, Raw& to) const {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass)
      to.of_pass[pass] =
          *reinterpret_cast<const Run<Row::kWidth, S>*>(slot(stage, key, value, pass));
  }
};

// Warps: pieces of sequences, for kHeads heads of one head of keys. S: type of the cache.
template <class T, class S, int kHeads, int kWidth, int kLanes, int kPasses>
__global__ void __launch_bounds__(32 * kWarps, kHeads == 1 && kWidth > 1 ? 4 : 1)
    step_kernel(const AttentionCall c, const Parts parts, int64_t positions) {
  extern __shared__ uint4 shared[];
  using Row = Lane<kWidth, kLanes, kPasses>;
  using Cached = typename Row::template Raw<S>;
  using Own = typename Row::template Raw<T>;
  constexpr int kElements = Row::kElements, kKeys = 4;  // of a side at once
  let_next_start();
  const int64_t blocks_of_head = (c.group() + kHeads - 1) / kHeads, blocks = c.Hkv * blocks_of_head;
  const int64_t unit = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int64_t place = unit / blocks, index = place / parts.pieces, piece = place % parts.pieces;
  if (index >= c.sequences) return;
  const int64_t head = unit % blocks / blocks_of_head,
                h0 = head * c.group() + unit % blocks_of_head * kHeads,
                h1 = min(h0 + kHeads, (head + 1) * c.group());
  const Sequence s = sequence(c, index);
  const Row row;
  const Seen see = seen(c, s, s.first);
  const int64_t begin = see.low + piece * positions, end = min(begin + positions, s.total());
  Running<Row, kHeads> running;
  if (s.tokens > 0 && begin < end) {
    const KeysOf<T> k_rows(c, s, c.k, c.from_k, head), v_rows(c, s, c.v, c.from_v, head);
    const int64_t cached_end = min(end, s.first);
    const auto key_at = [&](int64_t key) { return k_rows.template cached_at<S>(key); };
    const auto value_at = [&](int64_t key) { return v_rows.template cached_at<S>(key); };
    const auto load_queries = [&](float(&q)[kHeads][kElements]) {
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        Own raw;
        row.read(
            static_cast<const T*>(c.q.data) + s.begin * c.q.row + min(h0 + h, h1 - 1) * c.q.head,
            c.P, raw);
#pragma unroll
        for (int e = 0; e < kElements; ++e) q[h][e] = raw[e] * c.scale;
      }
    };
    float q[kHeads][kElements];
    constexpr int kRun = kKeys * Row::kSides;  // keys of a warp at once
    const int runs = static_cast<int>((cached_end - begin + kRun - 1) / kRun);
    const auto add = [&](int run, const Cached(&k)[kKeys], const Cached(&v)[kKeys]) {
      bool there[kKeys];
#pragma unroll
      for (int j = 0; j < kKeys; ++j)
        there[j] = begin + int64_t{run} * kRun + j * Row::kSides + row.side < cached_end;
      running.template add<kKeys>(row, q, k, v, there);
    };
    const auto position = [&](int run, int j) {
      return min(begin + int64_t{run} * kRun + j * Row::kSides + row.side, cached_end - 1);
    };
    if constexpr (kWidth > 1) {
      const Ring<Row, S> ring(shared);
      constexpr int kStages = Ring<Row, S>::kStages;
      const auto fetch = [&](int run) {
        if (run < runs) {
#pragma unroll
          for (int j = 0; j < kKeys; ++j) {
            ring.fetch(row, run % kStages, j, 0, key_at(position(run, j)), c.P);
            ring.fetch(row, run % kStages, j, 1, value_at(position(run, j)), c.P);
          }
        }
        commit_copies();
      };
      for (int run = 0; run < kStages - 1; ++run) fetch(run);
      load_queries(q);
      for (int run = 0; run < runs; ++run) {
        fetch(run + kStages - 1);
        wait_for_copies<kStages - 1>();
        Cached k[kKeys], v[kKeys];
#pragma unroll
        for (int j = 0; j < kKeys; ++j) {
          ring.read(run % kStages, j, 0, k[j]);
          ring.read(run % kStages, j, 1, v[j]);
        }
        add(run, k, v);
      }
    } else {
      load_queries(q);
      for (int run = 0; run < runs; ++run) {
        Cached k[kKeys], v[kKeys];
#pragma unroll
        for (int j = 0; j < kKeys; ++j) {
          row.read(key_at(position(run, j)), c.P, k[j]);
          row.read(value_at(position(run, j)), c.P, v[j]);
        }
        add(run, k, v);
      }
    }
    if (end > s.first) {  // its own key
      Own k[1], v[1];
      const bool there[1] = {row.side == 0};
      row.read(k_rows.own_at(s.first), c.P, k[0]);
      row.read(v_rows.own_at(s.first), c.P, v[0]);
      running.template add<1>(row, q, k, v, there);
    }
  }
  running.join_sides();
  if (row.side > 0) return;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (h0 + h >= h1) continue;
    const int64_t at = place * c.H + h0 + h;
    if (row.lane == 0) {
      parts.largest[at] = running.largest[h];
      parts.sum[at] = running.sum[h];
    }
    row.write(running.y[h], c.P, parts.y + at * c.P);
  }
}

constexpr int kCacheRun = 8;  // bfloat16 elements in 16 bytes

// Whether what a token appends lies in the cache's type, dense, in runs of 16 bytes.
__device__ bool in_runs_of_cache(const AttentionCall& c) {
  const auto fits = [&](const HeadRows& r) {
    return r.head == c.P && r.row % kCacheRun == 0 && reinterpret_cast<uintptr_t>(r.data) % 16 == 0;
  };
  return c.bf16 && c.cache_bf16 && c.Hkv * c.P % kCacheRun == 0 && fits(c.k) && fits(c.v) &&
         reinterpret_cast<uintptr_t>(c.to_k) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(c.to_v) % 16 == 0;
}

// One position of a sequence, of those that the cache handed out is to get: the i-th.
__device__ void append_row(const AttentionCall& c, const Sequence& s, int64_t i) {
  if (s.out < 0) return;
  const int64_t oldest = max(int64_t{0}, s.total() - c.to_C);
  const int64_t first =
      c.in_place ? max(oldest, s.first) : max(oldest, c.from_k ? s.first - c.from_C : int64_t{0});
  const int64_t position = first + i, width = c.Hkv * c.P;
  if (position >= s.total()) return;
  const int64_t to = (s.out * c.to_C + position % c.to_C) * width;
  const auto value = [](const void* p, bool bf16, int64_t i) {
    return bf16 ? static_cast<float>(static_cast<const bfloat16*>(p)[i])
                : static_cast<const float*>(p)[i];
  };
  const auto put = [&](void* p, int64_t i, float v) {
    if (c.cache_bf16) {
      static_cast<bfloat16*>(p)[i] = static_cast<bfloat16>(v);
    } else {
      static_cast<float*>(p)[i] = v;
    }
  };
  if (position >= s.first && in_runs_of_cache(c)) {  // as it is
    const int64_t token = s.begin + position - s.first;
    const int runs = static_cast<int>(width / kCacheRun);
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < runs; i += static_cast<int>(blockDim.x)) {
      const auto copy = [&](void* p, const HeadRows& from) {
        reinterpret_cast<uint4*>(static_cast<bfloat16*>(p) + to)[i] =
            __ldcg(reinterpret_cast<const uint4*>(static_cast<const bfloat16*>(from.data) +
                                                  token * from.row) +
                   i);
      };
      copy(c.to_k, c.k);
      copy(c.to_v, c.v);
    }
    return;
  }
#pragma unroll 4
  for (int64_t at = threadIdx.x; at < width; at += blockDim.x) {
    if (position < s.first) {
      const int64_t from = (s.in * c.from_C + position % c.from_C) * width + at;
      put(c.to_k, to + at, value(c.from_k, c.cache_bf16, from));
      put(c.to_v, to + at, value(c.from_v, c.cache_bf16, from));
    } else {
      const int64_t token = s.begin + position - s.first, head = at / c.P, e = at % c.P;
      put(c.to_k, to + at, value(c.k.data, c.bf16, token * c.k.row + head * c.k.head + e));
      put(c.to_v, to + at, value(c.v.data, c.bf16, token * c.v.row + head * c.v.head + e));
    }
  }
}

__global__ void append_kernel(const AttentionCall c, int64_t rows) {
  append_row(c, sequence(c, blockIdx.x / rows), blockIdx.x % rows);
}

// After the rows: nobody reads the old lengths any more.
__global__ void lengths_kernel(const AttentionCall c) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= c.sequences) return;
  const Sequence s = sequence(c, i);
  if (s.out >= 0) c.to_length[s.out] = static_cast<float>(s.total());
}

constexpr int kJoinThreads = 512;  // at most

// Enough to read the pieces of a head side by side, at least one an element.
int join_threads(const AttentionCall& c) {
  const int64_t wanted = ceil_div(c.P, 32) * 32 * ceil_div(pieces_of(c), 8);
  return static_cast<int>(std::clamp<int64_t>(wanted, 128, kJoinThreads));
}

// Appends what a step's sequence read to the cache in place.
__device__ void append_in_place(const AttentionCall& c, int64_t index) {
  const Sequence s = sequence(c, index);
  append_row(c, s, 0);
  __syncthreads();
  if (threadIdx.x == 0 && s.out >= 0) c.to_length[s.out] = static_cast<float>(s.total());
}

bool appends(const AttentionCall& c) { return c.to_k && c.in_place; }

// The pieces of a head together, at most 32 of them: a warp a head. The first block of a sequence appends to the cache
// where there is one to be appended to.
__global__ void __launch_bounds__(32 * kWarps)
    join_few_kernel(const AttentionCall c, const Parts parts, const int appending) {
  wait_for_previous();
  const int64_t index = blockIdx.x;
  const int block = static_cast<int>(blockIdx.y) - appending;
  if (block < 0) return append_in_place(c, index);
  const int64_t h = int64_t{block} * kWarps + threadIdx.x / 32;
  const int64_t token = c.begin ? c.begin[index] : index;
  if (h >= c.H || (c.begin && c.begin[index + 1] == token)) return;
  const int lane = static_cast<int>(threadIdx.x) % 32, pieces = static_cast<int>(parts.pieces);
  const int64_t first = index * parts.pieces * c.H + h;  // of its pieces, c.H apart
  float largest = -INFINITY, sum = 0;
  if (lane < pieces) {
    largest = __ldcg(parts.largest + first + lane * c.H);
    sum = __ldcg(parts.sum + first + lane * c.H);
  }
  float most = largest;
#pragma unroll
  for (int other = 16; other > 0; other /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, other));
  const float weight = lane < pieces ? expf(largest - most) : 0.0f;
  sum *= weight;
#pragma unroll
  for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(~0u, sum, other);
  const float over = 1.0f / sum;
  for (int e0 = 0; e0 < c.P; e0 += 32) {
    const int e = e0 + lane;
    float y = 0;
#pragma unroll 4
    for (int i = 0; i < pieces; ++i) {
      const float w = __shfl_sync(~0u, weight, i);
      if (e < c.P) y = fmaf(w, __ldcg(parts.y + (first + i * c.H) * c.P + e), y);
    }
    const int64_t to = (token * c.H + h) * c.P + e;
    if (e >= c.P) continue;
    if (c.bf16) {
      static_cast<bfloat16*>(c.y)[to] = static_cast<bfloat16>(y * over);
    } else {
      static_cast<float*>(c.y)[to] = y * over;
    }
  }
  if (c.norm && lane == 0) {
    c.norm[2 * (token * c.H + h)] = most;
    c.norm[2 * (token * c.H + h) + 1] = over;
  }
}

// A block: the pieces of a head together, an element of y a thread, and as many threads an element as there
// are. The first block of a sequence appends as above.
__global__ void __launch_bounds__(kJoinThreads)
    join_kernel(const AttentionCall c, const Parts parts, const int appending) {
  extern __shared__ float weights[];  // (pieces), then one a thread
  wait_for_previous();
  const int64_t index = blockIdx.x, h = int64_t{blockIdx.y} - appending;
  if (h < 0) return append_in_place(c, index);
  const int64_t token = c.begin ? c.begin[index] : index;
  if (c.begin && c.begin[index + 1] == token) return;
  const auto place = [&](int64_t piece) { return (index * parts.pieces + piece) * c.H + h; };
  float most = -INFINITY, sum = 0;
  for (int64_t i = threadIdx.x; i < parts.pieces; i += blockDim.x)
    most = fmaxf(most, __ldcg(parts.largest + place(i)));
  most = block_max(most);
  for (int64_t i = threadIdx.x; i < parts.pieces; i += blockDim.x) {
    weights[i] = expf(__ldcg(parts.largest + place(i)) - most);
    sum += weights[i] * __ldcg(parts.sum + place(i));
  }
  const float over = 1.0f / block_sum(sum);  // with a barrier: the weights are there
  float* const shares = weights + parts.pieces;
  const int width = static_cast<int>(c.P), of_element = static_cast<int>(blockDim.x) / width;
  const int e = static_cast<int>(threadIdx.x) % width, part = static_cast<int>(threadIdx.x) / width;
  float y = 0;
#pragma unroll 4
  for (int64_t i = part; part < of_element && i < parts.pieces; i += of_element)
    y = fmaf(weights[i], __ldcg(parts.y + place(i) * c.P + e), y);
  shares[threadIdx.x] = y;
  __syncthreads();
  if (part == 0) {
    for (int i = 1; i < of_element; ++i) y += shares[i * width + e];
    const int64_t to = (token * c.H + h) * c.P + e;
    if (c.bf16) {
      static_cast<bfloat16*>(c.y)[to] = static_cast<bfloat16>(y * over);
    } else {
      static_cast<float*>(c.y)[to] = y * over;
    }
  }
  if (c.norm && threadIdx.x == 0) {
    c.norm[2 * (token * c.H + h)] = most;
    c.norm[2 * (token * c.H + h) + 1] = over;
  }
}

bool in_width(const AttentionCall& c, int64_t V) {
  const int64_t bytes = c.bf16 ? 2 : 4;
  const auto fits = [&](const HeadRows& r) {
    return in_runs(r.data, r.row, bytes, V) && r.head % V == 0;
  };
  const int64_t of_cache = c.cache_bf16 ? 2 : 4;
  return c.P % V == 0 && fits(c.q) && fits(c.k) && fits(c.v) && in_runs(c.from_k, 0, of_cache, V) &&
         in_runs(c.from_v, 0, of_cache, V);
}

template <class T, class S, int kHeads>
void launch_step(const AttentionCall& c, const Parts& parts, cudaStream_t stream) {
  constexpr int kWidth = 16 / sizeof(S);
  const int64_t units = c.sequences * parts.pieces * c.Hkv * ceil_div(c.group(), kHeads);
  const int64_t positions = positions_of_a_piece(c);
  const auto launch = [&](auto kernel, int of_warp) {
    const int bytes = kWarps * of_warp * 16;
    if (bytes > 48 << 10)
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    kernel<<<static_cast<unsigned>(ceil_div(units, kWarps)), 32 * kWarps, bytes, stream>>>(
        c, parts, positions);
  };
  const auto wide = [&](auto lanes, auto passes) {
    launch(step_kernel<T, S, kHeads, kWidth, lanes, passes>,
           Ring<Lane<kWidth, lanes, passes>, S>::kOfWarp);
  };
  using std::integral_constant;
  constexpr integral_constant<int, 1> one;
  if (!in_width(c, kWidth)) {
    launch(step_kernel<T, S, kHeads, 1, 32, 8>, 0);
  } else if (c.P <= 8 * kWidth) {
    wide(integral_constant<int, 8>(), one);
  } else if (c.P <= 16 * kWidth) {
    wide(integral_constant<int, 16>(), one);
  } else {
    wide(integral_constant<int, 32>(), integral_constant<int, 8 / kWidth>());
  }
}

}  // namespace
}  // namespace attention

int64_t attention_step_floats(const AttentionCall& c) {
  return c.sequences * attention::pieces_of(c) * c.H * (c.P + 2);
}

void attention_step(const AttentionCall& c, float* parts, void* stream) {
  if (c.sequences == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  const attention::Parts at = attention::parts_at(c, parts);
  const auto step = [&](auto type, auto of_cache) {
    using T = decltype(type);
    using S = decltype(of_cache);
    c.group() == 1 ? attention::launch_step<T, S, 1>(c, at, s)
                   : attention::launch_step<T, S, 4>(c, at, s);
  };
  if (c.cache_bf16) {
    step(__nv_bfloat16(), __nv_bfloat16());
  } else {
    c.bf16 ? step(__nv_bfloat16(), 0.0f) : step(0.0f, 0.0f);
  }
  check_launch("attention step");
  const int appending = attention::appends(c) ? 1 : 0;
  const auto join = [&](auto kernel, int64_t blocks, int threads, int64_t floats) {
    launch_dependent(
        "attention step, pieces together", kernel,
        dim3(static_cast<unsigned>(c.sequences), static_cast<unsigned>(blocks + appending)),
        static_cast<unsigned>(threads), static_cast<size_t>(floats) * sizeof(float), 1, s, c, at,
        appending);
  };
  if (at.pieces <= 32) {
    join(attention::join_few_kernel, ceil_div(c.H, attention::kWarps), 32 * attention::kWarps, 0);
  } else {
    const int threads = attention::join_threads(c);
    join(attention::join_kernel, c.H, threads, at.pieces + threads);
  }
}

void attention_append(const AttentionCall& c, void* stream) {
  if (c.sequences == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  const int64_t rows =
      std::min(c.to_C, c.longest + (c.in_place || !c.from_k ? int64_t{0} : c.from_C));
  const auto width = static_cast<unsigned>(std::min<int64_t>(256, c.Hkv * c.P));
  if (rows > 0)
    attention::append_kernel<<<static_cast<unsigned>(c.sequences * rows), width, 0, s>>>(c, rows);
  attention::lengths_kernel<<<static_cast<unsigned>(ceil_div(c.sequences, 128)), 128, 0, s>>>(c);
  check_launch("attention cache");
}

// Warpgroups read cached keys at half the speed of tensor cores alone, and new ones at twice it (H200: 65,536 tokens of
// transformerpp-125m, 4,096 at a time, 791 ms against 419). Cached are at most as many as the call hands on, or has room for.
static bool has_mostly_new_keys(const AttentionCall& c) {
  const int64_t cached = !c.from_k ? 0 : c.to_k && c.window == 0 ? c.to_C - c.longest : c.from_C;
  return 4 * cached <= c.longest;
}

void attention_forward(const AttentionCall& c, void* stream) {
  if (c.tokens == 0 || c.sequences == 0) return;
  const bool by_warpgroups = attention::fits_warpgroups(c) && has_mostly_new_keys(c);
  by_warpgroups                     ? attention::warpgroup_forward(c, stream)
  : attention::fits_tensor_cores(c) ? attention::tensor_forward(c, stream)
                                    : attention::plain_forward(c, stream);
}

int64_t attention_backward_floats(const AttentionCall& c) {
  return attention::may_fit_warpgroups(c) && !c.from_k ? attention::warpgroup_backward_floats(c)
                                                       : c.tokens * c.H;
}

void attention_backward(AttentionBackward b, float* scratch, void* stream) {
  const AttentionCall& c = b.c;
  b.delta = scratch;
  if (b.dy && !c.from_k && c.tokens > 0 && attention::fits_warpgroups(c)) {
    attention::warpgroup_backward(b, scratch, stream);
  } else if (c.sequences > 0 && c.tokens > 0) {
    if (b.dy) attention::add_up_dy_y(b, stream);
    attention::fits_tensor_cores(c) ? attention::tensor_backward(b, stream)
                                    : attention::plain_backward(b, stream);
  }
  if ((b.dk_in || b.dv_in) && c.from_rows > 0) attention::cache_backward(b, stream);
}

}  // namespace krait::cuda
