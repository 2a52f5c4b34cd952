// attention forward on warpgroups (sm_90a). A block has one head's queries, 64 for each of two or three warpgroups that
// multiply, and one more warpgroup that brings tiles of 128 keys and values, from the last that is seen to the first: own
// ones by the copy engine, cached ones by its threads. A warpgroup that multiplies has the next scores made while it makes
// weights of the last, and these are registers of the product with the values.
#include "krait/ops/attention/cuda_warpgroup_device.cuh"
#include "krait/tensor/cuda/one_pass.h"

namespace krait::cuda::attention {

namespace {

template <int kHead>
struct Shape {
  static constexpr int kBoxes = kHead / 64, kGroups = kHead == 64 ? 3 : 2, kQueries = 64 * kGroups,
                       kStages = kHead == 64 ? 4 : 2, kThreads = 128 * (1 + kGroups),
                       kQueryBytes = kQueries * kHead * 2, kTile = kKeys * kHead * 2,
                       kBarriers = 1 + 4 * kStages;
  static constexpr size_t kBytes = kQueryBytes + 2 * kStages * kTile + kBarriers * sizeof(uint64_t);
  // Registers of a thread that multiplies, and of one that brings: 512 threads' 128, or 384 threads' 168.
  static constexpr int kMultiplying = kHead == 64 ? 160 : 232, kBringing = kHead == 64 ? 32 : 40;
};

struct Maps {
  CUtensorMap q, k, v;
};

#if KRAIT_HOPPER

// Shared memory: queries, then keys and values in stages, then barriers.
template <int kHead>
struct Room : Stages<Shape<kHead>::kStages> {
  using S = Shape<kHead>;
  unsigned char *q, *tiles;
  uint64_t *q_ready, *k_ready, *v_ready, *k_done, *v_done;

  __device__ explicit Room(unsigned char* memory) : q(memory), tiles(q + S::kQueryBytes) {
    q_ready = reinterpret_cast<uint64_t*>(tiles + 2 * S::kStages * S::kTile);
    k_ready = q_ready + 1, v_ready = k_ready + S::kStages;
    k_done = v_ready + S::kStages, v_done = k_done + S::kStages;
  }
  __device__ unsigned char* k(int n) const { return tiles + n % S::kStages * 2 * S::kTile; }
  __device__ unsigned char* v(int n) const { return k(n) + S::kTile; }
};

// What a block does. Tokens are counted from the first of the call, those of the cache below zero; tile n has the keys
// from key(n) on.
struct Course {
  Sequence s;
  int h, head, from, tokens, first, top, n_tiles;

  __device__ int key(int n) const { return (top - n) * kKeys; }
  __device__ int high(const AttentionCall& c, int row) const { return c.causal ? row + 1 : tokens; }
  __device__ int low(const AttentionCall& c, int row) const {
    return c.window > 0 ? max(-first, row + 1 - static_cast<int>(min(c.window, int64_t{1} << 30)))
                        : -first;
  }
};

template <int kHead>
__device__ void bring(const AttentionCall& c, const Course& at, const Room<kHead>& room,
                      const Maps& maps) {
  using S = Shape<kHead>;
  const int t = static_cast<int>(threadIdx.x) % 128, row = static_cast<int>(at.s.begin);
  const int own = min(at.n_tiles, at.top + 1);  // tiles that are not of the cache
  const auto wait_until_free = [&](uint64_t* done, int n) {
    if (n >= S::kStages) Room<kHead>::wait(done, n - S::kStages);
  };
  if (t == 0) {
    arrive_expecting(room.q_ready, S::kQueryBytes);
#pragma unroll
    for (int i = 0; i < S::kBoxes; ++i)
      copy_box(room.q + i * S::kQueries * kBoxRow, maps.q, 64 * i, at.h, row + at.from,
               room.q_ready);
    for (int n = 0; n < own; ++n) {
      const auto copy = [&](unsigned char* to, const CUtensorMap& map, uint64_t* ready,
                            uint64_t* done) {
        wait_until_free(done, n);
        uint64_t* const barrier = ready + n % S::kStages;
        arrive_expecting(barrier, S::kTile);
#pragma unroll
        for (int i = 0; i < S::kBoxes; ++i)
          copy_box(to + i * kKeys * kBoxRow, map, 64 * i, at.head, row + at.key(n), barrier);
      };
      copy(room.k(n), maps.k, room.k_ready, room.k_done);
      copy(room.v(n), maps.v, room.v_ready, room.v_done);
    }
  }
  const int low = at.low(c, at.from);
  for (int n = own; n < at.n_tiles; ++n) {
    const auto copy = [&](unsigned char* to, const HeadRows& rows, const void* cache,
                          uint64_t* ready, uint64_t* done) {
      const KeysOf<bfloat16> keys(c, at.s, rows, cache, at.head);
      wait_until_free(done, n);
#pragma unroll 1
      for (int i = t; i < kKeys * kHead / 8; i += 128) {
        const int r = i / (kHead / 8), unit = i % (kHead / 8);
        uint4 v = make_uint4(0, 0, 0, 0);
        if (at.key(n) + r >= low && 8 * unit < c.P) {
          const int64_t position = at.first + at.key(n) + r;
          if (keys.cached_bf16) {
            v = *reinterpret_cast<const uint4*>(keys.template cached_at<bfloat16>(position) +
                                                8 * unit);
          } else {
            const float* const from = keys.template cached_at<float>(position) + 8 * unit;
            float left[4], right[4];
            load<4>(from, left);
            load<4>(from + 4, right);
            v.x = pack_bf16(left[0], left[1]);
            v.y = pack_bf16(left[2], left[3]);
            v.z = pack_bf16(right[0], right[1]);
            v.w = pack_bf16(right[2], right[3]);
          }
        }
        *reinterpret_cast<uint4*>(to + unit / 8 * kKeys * kBoxRow + in_tile(r, unit % 8)) = v;
      }
      show_to_products();
      sync_warpgroup(0);
      if (t == 0) arrive(ready + n % S::kStages);
    };
    copy(room.k(n), c.k, c.from_k, room.k_ready, room.k_done);
    copy(room.v(n), c.v, c.from_v, room.v_ready, room.v_done);
  }
}

// Zeros where the first tile has rows behind the sequence's last token: their weights are zero, but what lies there may not
// be a number.
template <int kHead>
__device__ void clear_tail(const Course& at, const Room<kHead>& room, int thread) {
  using S = Shape<kHead>;
  const int valid = at.tokens - at.key(0);
  if (valid >= kKeys) return;
  Room<kHead>::wait(room.v_ready, 0);
  constexpr int kUnits = kHead / 8;
  for (int i = max(valid, 0) * kUnits + thread; i < kKeys * kUnits; i += S::kThreads - 128) {
    const int r = i / kUnits, unit = i % kUnits;
    *reinterpret_cast<uint4*>(room.v(0) + unit / 8 * kKeys * kBoxRow + in_tile(r, unit % 8)) =
        make_uint4(0, 0, 0, 0);
  }
  show_to_products();
  asm volatile("bar.sync %0, %1;" ::"n"(1 + S::kGroups + 1), "n"(S::kThreads - 128) : "memory");
}

template <int kHead>
__device__ void multiply(const AttentionCall& c, const Course& at, const Room<kHead>& room) {
  using S = Shape<kHead>;
  using R = Room<kHead>;
  const int group = same_in_warp(static_cast<int>(threadIdx.x) / 128 - 1);
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4,
            lane = static_cast<int>(threadIdx.x) % 32;
  const int first_row = at.from + 64 * group, last_row = min(first_row + 63, at.tokens - 1);
  const int row = first_row + 16 * warp + lane / 4, t2 = lane % 4 * 2;
  // Tiles of which some query of the warpgroup sees a key; none where it has no query.
  const bool there = first_row < at.tokens;
  const int begin = same_in_warp(there ? max(0, at.top - floor_div(at.high(c, last_row) - 1, kKeys))
                                       : at.n_tiles);
  const int end = same_in_warp(
      there ? min(at.n_tiles, at.top - floor_div(at.low(c, first_row), kKeys) + 1) : at.n_tiles);
  // Keys that every query sees.
  const int all_low = at.low(c, last_row), all_high = at.high(c, first_row);
  const float scale = c.scale * kLog2e;
  float y[kHead / 8][4] = {}, scores[16][4], largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  uint32_t weights[8][4];

  const auto pass_by = [&](int n) {
    R::wait(room.k_ready, n);
    R::release(room.k_done, n);
    R::wait(room.v_ready, n);
    R::release(room.v_done, n);
  };
  const auto make_scores = [&](int n) {
    const uint64_t q = tile_at(room.q + group * 64 * kBoxRow), k = tile_at(room.k(n));
    product<false, false, false>(scores, q, k);
#pragma unroll
    for (int i = 1; i < kHead / 16; ++i)
      product<true, false, false>(scores, further(q, i / 4 * S::kQueries * kBoxRow + i % 4 * 32),
                                  further(k, i / 4 * kKeys * kBoxRow + i % 4 * 32));
    commit_products();
  };
  const auto add_weighted = [&](int n) {
    const uint64_t v = tiles_at(room.v(n), kKeys * kBoxRow);
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k)
      product<true, true>(y, weights[k], further(v, k * 16 * kBoxRow));
    commit_products();
  };
  // scores -> weights in float32, and what older sums are multiplied by.
  const auto weigh = [&](int n, float(&factor)[2]) {
    const int key = at.key(n);
    if (key < all_low || key + kKeys > all_high) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int low = at.low(c, row + 8 * r) - key - t2,
                  high = at.high(c, row + 8 * r) - key - t2;
#pragma unroll
        for (int i = 0; i < 16; ++i)
#pragma unroll
          for (int j = 0; j < 2; ++j)
            if (8 * i + j < low || 8 * i + j >= high) scores[i][2 * r + j] = -INFINITY;
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = fmaxf(scores[0][2 * r], scores[0][2 * r + 1]);
#pragma unroll
      for (int i = 1; i < 16; ++i)
        most = fmaxf(most, fmaxf(scores[i][2 * r], scores[i][2 * r + 1]));
      const float now = fmaxf(largest[r], over_quad_max(most));
      const float base = now == -INFINITY ? 0.0f : now * scale;
      factor[r] = exp2_fast(fmaf(largest[r], scale, -base));
      largest[r] = now;
      float added = 0;
#pragma unroll
      for (int i = 0; i < 16; ++i)
#pragma unroll
        for (int j = 2 * r; j < 2 * r + 2; ++j)
          added += scores[i][j] = exp2_fast(fmaf(scores[i][j], scale, -base));
      sum[r] = fmaf(sum[r], factor[r], added);
    }
  };
  const auto pack = [&] {
#pragma unroll
    for (int k = 0; k < 8; ++k) pack_a(weights[k], scores[2 * k], scores[2 * k + 1]);
  };

  clear_tail(at, room, static_cast<int>(threadIdx.x) - 128);
  for (int n = 0; n < begin; ++n) pass_by(n);
  if (begin < end) {
    float factor[2];
    wait_for_phase(room.q_ready, 0);
    R::wait(room.k_ready, begin);
    begin_products();
    make_scores(begin);
    wait_for_products<0>(scores);
    R::release(room.k_done, begin);
    weigh(begin, factor);
    pack();
    R::wait(room.k_ready, min(begin + 1, end - 1));
#pragma unroll 1
    for (int n = begin + 1; n < end; ++n) {
      begin_products();
      make_scores(n);
      R::wait(room.v_ready, n - 1);
      begin_products();
      add_weighted(n - 1);
      wait_for_products<1>(scores);
      R::release(room.k_done, n);
      weigh(n, factor);
      // Here, as ptxas does not move weights over it: they are made while values are multiplied.
      R::wait(room.k_ready, min(n + 1, end - 1));
      wait_for_products<0>(y);
      R::release(room.v_done, n - 1);
#pragma unroll
      for (int i = 0; i < kHead / 8; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) y[i][j] *= factor[j / 2];
      pack();
    }
    R::wait(room.v_ready, end - 1);
    begin_products();
    add_weighted(end - 1);
    wait_for_products<0>(y);
    R::release(room.v_done, end - 1);
  }
  for (int n = end; n < at.n_tiles; ++n) pass_by(n);

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float over = 1.0f / over_quad_sum(sum[r]);
    if (row + 8 * r >= at.tokens) continue;
    const int64_t place = (at.s.begin + row + 8 * r) * c.H + at.h;
#pragma unroll
    for (int i = 0; i < kHead / 8; ++i) {
      const int64_t column = 8 * i + t2;
      const float(&of)[4] = y[i];
      if (column < c.P)
        put_pair(static_cast<bfloat16*>(c.y) + place * c.P + column, of[2 * r] * over,
                 of[2 * r + 1] * over, false);
    }
    if (c.norm && t2 == 0) {
      c.norm[2 * place] = largest[r] * c.scale;
      c.norm[2 * place + 1] = over;
    }
  }
}

#endif

// Keys and values of wide heads are read from the second-level cache only where the blocks of a head follow each other;
// else the last queries of all heads come first, as they see most.
template <int kHead>
__device__ inline Work work_of_block(const AttentionCall& c) {
  constexpr int kQueries = Shape<kHead>::kQueries;
  if constexpr (kHead > 64) return work_of<kQueries>(c, blockIdx.x);
  const auto heads = static_cast<unsigned>(c.H);
  int64_t from;
  Work w;
  w.head = static_cast<int>(blockIdx.x % heads);
  w.sequence = static_cast<int>(
      sequence_of_tile(c, tiles(c, kQueries) - 1 - blockIdx.x / heads, kQueries, from));
  w.from = static_cast<int>(from);
  return w;
}

template <int kHead>
__global__ void __launch_bounds__(Shape<kHead>::kThreads, 1)
    warpgroup_forward_kernel(const AttentionCall c, const __grid_constant__ Maps maps) {
#if KRAIT_HOPPER
  extern __shared__ __align__(1024) unsigned char memory[];
  using S = Shape<kHead>;
  Course at;
  const Work work = work_of_block<kHead>(c);
  at.s = sequence(c, work.sequence);
  if (work.from >= at.s.tokens) return;
  at.h = work.head;
  at.head = key_head_of(c, work.head);
  at.from = work.from;
  at.tokens = static_cast<int>(at.s.tokens);
  at.first = static_cast<int>(at.s.first);
  const int last_row = min(at.from + S::kQueries, at.tokens) - 1;
  at.top = (at.high(c, last_row) - 1) / kKeys;
  at.n_tiles = at.top - floor_div(at.low(c, at.from), kKeys) + 1;
  const Room<kHead> room(memory);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 1 + 2 * S::kStages; ++i) start_barrier(room.q_ready + i, 1);
    for (int i = 0; i < 2 * S::kStages; ++i)
      start_barrier(room.k_done + i, S::kGroups * 4 * kArriving);
    fence_barriers();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    leave_registers<S::kBringing>();
    bring(c, at, room, maps);
  } else {
    take_registers<S::kMultiplying>();
    multiply(c, at, room);
  }
#endif
}

template <int kHead>
void forward(const AttentionCall& c, cudaStream_t stream) {
  using S = Shape<kHead>;
  const int64_t blocks = tiles(c, S::kQueries) * c.H;
  if (blocks == 0) return;
  const auto kernel = warpgroup_forward_kernel<kHead>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(S::kBytes));
  const Maps maps = {map_of_heads(c, c.q, c.H, S::kQueries), map_of_heads(c, c.k, c.Hkv, kKeys),
                     map_of_heads(c, c.v, c.Hkv, kKeys)};
  kernel<<<static_cast<unsigned>(blocks), S::kThreads, S::kBytes, stream>>>(c, maps);
  check_launch("attention");
}

}  // namespace

bool may_fit_warpgroups(const AttentionCall& c) {
  return c.bf16 && c.P % 8 == 0 && c.P <= 128 && on_hopper();
}

bool fits_warpgroups(const AttentionCall& c) {
  const auto apart = [](const HeadRows& r) { return r.row > 0 && r.head > 0; };
  return may_fit_warpgroups(c) && fits_tensor_cores(c) && c.scale > 0 && apart(c.q) && apart(c.k) &&
         apart(c.v);
}

void warpgroup_forward(const AttentionCall& c, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  c.P <= 64 ? forward<64>(c, s) : forward<128>(c, s);
}

}  // namespace krait::cuda::attention
