// attention of one token a sequence. Its keys are cut into pieces, so that one sequence fills the card. A warp has
// one piece for a head, or for some heads that share a head of keys, so that keys and values are read once; warps
// beside each other have the heads beside each other, whose rows lie side by side in the cache. A row takes as few
// lanes as 16 bytes each allow, and a warp has as many keys at once as that leaves room for; rows on their way lie in
// shared memory, each lane's own part of them. The first cached ones, which are older than the token, are asked for while
// the kernel before this one runs. Then the pieces come together (cuda_join.cu).
#include <algorithm>
#include <type_traits>

#include "krait/ops/attention/cuda_step.cuh"
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
      if (at(pass) < P)
        to.of_pass[pass] = load_past(reinterpret_cast<const Run<kWidth, T>*>(row + at(pass)));
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

// What becomes of lines in the second-level cache: given up first where nobody reads them again.
__device__ inline uint64_t policy_of(bool read_once) {
  uint64_t policy;
  if (read_once) {
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  } else {
    asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  }
  return policy;
}

__device__ inline void copy_async(void* shared, const void* global, bool there, uint64_t policy) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(at),
               "l"(global), "r"(there ? 16 : 0), "l"(policy)
               : "memory");
}

// Keys and values of a lane that are on their way: kStages times kKeys of each, the lane's 16 bytes of every pass.
template <class Row, class S>
struct Ring {
  static constexpr int kKeys = 4, kPasses = Row::kPasses, kStages = kPasses > 1 ? 2 : 3;
  static constexpr int kOfWarp = kStages * kKeys * 2 * kPasses * 32;  // of 16 bytes
  using Raw = typename Row::template Raw<S>;
  static_assert(sizeof(Run<Row::kWidth, S>) == 16);
  uint4* mine;
  uint64_t policy;

  __device__ Ring(uint4* all, bool read_once)
      : mine(all + threadIdx.x / 32 * kOfWarp + threadIdx.x % 32), policy(policy_of(read_once)) {}
  __device__ uint4* slot(int stage, int key, int value, int pass) const {
    return mine + (((stage * kKeys + key) * 2 + value) * kPasses + pass) * 32;
  }
  __device__ void fetch(const Row& row, int stage, int key, int value, const S* from,
                        int64_t P) const {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass)
      copy_async(slot(stage, key, value, pass), from + (row.at(pass) < P ? row.at(pass) : 0),
                 row.at(pass) < P, policy);
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
      const Ring<Row, S> ring(shared, c.group() <= kHeads);
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
      wait_for_previous();
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
      wait_for_previous();
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
  wait_for_previous();  // where there were no keys
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
    launch_dependent("attention step", kernel, dim3(static_cast<unsigned>(ceil_div(units, kWarps))),
                     32 * kWarps, static_cast<size_t>(bytes), 1, stream, c, parts, positions);
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
  attention::join_pieces(c, at, stream);
}

}  // namespace krait::cuda
