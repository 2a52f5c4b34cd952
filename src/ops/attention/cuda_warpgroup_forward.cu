// attention forward on warpgroups (sm_90a). A block takes tiles of one head's queries, 64 for each of two or three
// warpgroups that multiply, one after another until none is left; one more warpgroup brings queries and tiles of 128 keys and
// values, from the last that is seen to the first, those of the next queries while the last are worked on. A warpgroup that
// multiplies has the next scores made while it makes weights of the last, and these are registers of the product with the
// values.
#include <algorithm>

#include "krait/ops/attention/cuda_warpgroup_device.cuh"
#include "krait/tensor/cuda/one_pass.h"

namespace krait::cuda::attention {

namespace {

constexpr int kCourses = 2;  // that a block knows: of the queries it works on, and of the next

// What a block does with a tile of queries. Tokens are counted from the first of the call, those of the cache below zero. Tile
// n has the keys from key(n) on: own ones, then those of the cache's last round, then of the one before it, which end where the
// ring does.
struct Course {
  int begin, tokens;  // of the sequence
  int h, head, from, first, recent, in, C, top, n_tiles;

  __device__ int high(const AttentionCall& c, int row) const { return c.causal ? row + 1 : tokens; }
  __device__ int low(const AttentionCall& c, int row) const {
    return c.window > 0 ? max(-first, row + 1 - static_cast<int>(min(c.window, int64_t{1} << 30)))
                        : -first;
  }
  __device__ int tiles_of(int keys) const { return (keys + kKeys - 1) / kKeys; }
  __device__ int tiles_down_to(int low) const {
    return low >= 0         ? top - low / kKeys + 1
           : low >= -recent ? top + 1 + tiles_of(-low)
                            : top + 1 + tiles_of(recent) + tiles_of(-low - recent);
  }
  // Whether tile n is of the round before the last.
  __device__ bool is_of_round_before(int n) const { return n > top + tiles_of(recent); }
  __device__ int key(int n) const {
    return is_of_round_before(n) ? (top + tiles_of(recent) - n) * kKeys - recent
                                 : (top - n) * kKeys;
  }
  // The lowest key of tile n that is one.
  __device__ int floor(int n) const { return is_of_round_before(n) ? -first : -recent; }
  // Where tile n of the cache begins; below zero there are zeros.
  __device__ int cached_row(int n) const {
    return key(n) + recent + (is_of_round_before(n) ? C : 0);
  }
};

// Keys and values of wide heads are read from the second-level cache only where the blocks of a head follow each other;
// else the last queries of all heads come first, as they see most.
template <int kHead>
__device__ inline Work work_at_place(const AttentionCall& c, unsigned place) {
  constexpr int kQueries = kHead == 64 ? 192 : 128;
  if constexpr (kHead > 64) return work_of<kQueries>(c, place);
  const auto heads = static_cast<unsigned>(c.H);
  int64_t from;
  Work w;
  w.head = static_cast<int>(place % heads);
  w.sequence =
      static_cast<int>(sequence_of_tile(c, tiles(c, kQueries) - 1 - place / heads, kQueries, from));
  w.from = static_cast<int>(from);
  return w;
}

// Behind the first work of each block. Where all have one the counter is not asked.
__device__ inline unsigned next_of(int* next_work, unsigned works) {
  if (gridDim.x >= works) return works;
  return gridDim.x + static_cast<unsigned>(atomicAdd(next_work, 1));
}

template <int kHead>
struct Shape {
  static constexpr int kBoxes = kHead / 64, kGroups = kHead == 64 ? 3 : 2, kQueries = 64 * kGroups,
                       kStages = kHead == 64 ? 4 : 2, kThreads = 128 * (1 + kGroups),
                       kQueryBytes = kQueries * kHead * 2, kTile = kKeys * kHead * 2,
                       kBarriers = 2 * kCourses + 4 * kStages;
  static constexpr size_t kBytes = kCourses * kQueryBytes + 2 * kStages * kTile +
                                   kBarriers * sizeof(uint64_t) + kCourses * sizeof(Course);
  // Registers of a thread that multiplies, and of one that brings: 512 threads' 128, or 384 threads' 168.
  static constexpr int kMultiplying = kHead == 64 ? 160 : 232, kBringing = kHead == 64 ? 32 : 40;
};

struct Maps {
  CUtensorMap q, k, v, cached_k, cached_v;
};

#if KRAIT_HOPPER

// Shared memory: queries, then keys and values in stages, then barriers, then courses.
template <int kHead>
struct Room : Stages<Shape<kHead>::kStages> {
  using S = Shape<kHead>;
  using Courses = Stages<kCourses>;
  unsigned char *queries, *tiles;
  uint64_t *q_ready, *k_ready, *v_ready, *q_done, *k_done, *v_done;
  Course* courses;

  __device__ explicit Room(unsigned char* memory)
      : queries(memory), tiles(queries + kCourses * S::kQueryBytes) {
    q_ready = reinterpret_cast<uint64_t*>(tiles + 2 * S::kStages * S::kTile);
    k_ready = q_ready + kCourses, v_ready = k_ready + S::kStages, q_done = v_ready + S::kStages;
    k_done = q_done + kCourses, v_done = k_done + S::kStages;
    courses = reinterpret_cast<Course*>(v_done + S::kStages);
  }
  __device__ unsigned char* q(int course) const {
    return queries + course % kCourses * S::kQueryBytes;
  }
  __device__ unsigned char* k(int n) const { return tiles + n % S::kStages * 2 * S::kTile; }
  __device__ unsigned char* v(int n) const { return k(n) + S::kTile; }
};

template <int kHead>
__device__ Course course_of(const AttentionCall& c, const Work& work) {
  Course at;
  const Sequence s = sequence(c, work.sequence);
  at.begin = static_cast<int>(s.begin), at.tokens = static_cast<int>(s.tokens);
  at.h = work.head, at.head = key_head_of(c, work.head), at.from = work.from;
  at.first = static_cast<int>(s.first), at.recent = static_cast<int>(s.first - s.wrap);
  at.in = static_cast<int>(s.in), at.C = static_cast<int>(c.from_C);
  const int last_row = min(at.from + Shape<kHead>::kQueries, at.tokens) - 1;
  at.top = (at.high(c, last_row) - 1) / kKeys;
  at.n_tiles = at.tiles_down_to(at.low(c, at.from));
  return at;
}

// One thread: queries and tiles of each work, which blocks take from a counter behind their first, and where there is none
// any more an empty course.
template <int kHead>
__device__ void bring(const AttentionCall& c, const Room<kHead>& room, const Maps& maps,
                      int* next_work, unsigned works) {
  using S = Shape<kHead>;
  using R = Room<kHead>;
  unsigned w = blockIdx.x;
  for (int course = 0, base = 0;; ++course) {
    Work work{};
    for (; w < works; w = next_of(next_work, works)) {
      work = work_at_place<kHead>(c, w);
      if (work.from < sequence(c, work.sequence).tokens) break;
    }
    if (course >= kCourses) R::Courses::wait(room.q_done, course - kCourses);
    uint64_t* const q_ready = room.q_ready + course % kCourses;
    if (w >= works) {
      room.courses[course % kCourses].n_tiles = 0;
      arrive(q_ready);
      return;
    }
    const Course at = course_of<kHead>(c, work);
    room.courses[course % kCourses] = at;
    arrive_expecting(q_ready, S::kQueryBytes);
#pragma unroll
    for (int i = 0; i < S::kBoxes; ++i)
      copy_box(room.q(course) + i * S::kQueries * kBoxRow, maps.q, 64 * i, at.h, at.begin + at.from,
               q_ready);
    for (int n = 0; n < at.n_tiles; ++n) {
      const auto copy = [&](unsigned char* to, const CUtensorMap& own, const CUtensorMap& cached,
                            uint64_t* ready, uint64_t* done) {
        if (base + n >= S::kStages) R::wait(done, base + n - S::kStages);
        uint64_t* const barrier = ready + (base + n) % S::kStages;
        arrive_expecting(barrier, S::kTile);
#pragma unroll
        for (int i = 0; i < S::kBoxes; ++i) {
          if (n <= at.top) {
            copy_box(to + i * kKeys * kBoxRow, own, 64 * i, at.head, at.begin + at.key(n), barrier);
          } else {
            copy_cached_box(to + i * kKeys * kBoxRow, cached, 64 * i, at.head, at.cached_row(n),
                            at.in, barrier);
          }
        }
      };
      copy(room.k(base + n), maps.k, maps.cached_k, room.k_ready, room.k_done);
      copy(room.v(base + n), maps.v, maps.cached_v, room.v_ready, room.v_done);
    }
    base += at.n_tiles;
    w = next_of(next_work, works);
  }
}

// Zeros where the first tile has rows behind the sequence's last token: their weights are zero, but what lies there may not
// be a number.
template <int kHead>
__device__ void clear_tail(const Course& at, const Room<kHead>& room, int base, int thread) {
  using S = Shape<kHead>;
  const int valid = at.tokens - at.key(0);
  if (valid >= kKeys) return;
  Room<kHead>::wait(room.v_ready, base);
  constexpr int kUnits = kHead / 8;
  for (int i = max(valid, 0) * kUnits + thread; i < kKeys * kUnits; i += S::kThreads - 128) {
    const int r = i / kUnits, unit = i % kUnits;
    *reinterpret_cast<uint4*>(room.v(base) + unit / 8 * kKeys * kBoxRow + in_tile(r, unit % 8)) =
        make_uint4(0, 0, 0, 0);
  }
  show_to_products();
  asm volatile("bar.sync %0, %1;" ::"n"(1 + S::kGroups + 1), "n"(S::kThreads - 128) : "memory");
}

template <int kHead>
__device__ void multiply(const AttentionCall& c, const Course& at, const Room<kHead>& room,
                         int course, int base) {
  using S = Shape<kHead>;
  using R = Room<kHead>;
  const int group = same_in_warp(static_cast<int>(threadIdx.x) / 128 - 1);
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4,
            lane = static_cast<int>(threadIdx.x) % 32;
  const int first_row = at.from + 64 * group, last_row = min(first_row + 63, at.tokens - 1);
  const int row = first_row + 16 * warp + lane / 4, t2 = lane % 4 * 2;
  // Tiles of which some query of the warpgroup sees a key; none where it has no query. Counted as stages are.
  const bool there = first_row < at.tokens;
  const int all = base + at.n_tiles;
  const int begin =
      same_in_warp(there ? base + max(0, at.top - (at.high(c, last_row) - 1) / kKeys) : all);
  const int end = same_in_warp(there ? base + at.tiles_down_to(at.low(c, first_row)) : all);
  // Keys that every query sees.
  const int all_low = at.low(c, last_row), all_high = at.high(c, first_row);
  const float scale = c.scale * kLog2e;
  constexpr float kSlack = 8;
  float y[kHead / 8][4] = {}, scores[16][4], largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  uint32_t weights[8][4];

  const auto pass_by = [&](int n) {
    R::wait(room.k_ready, n);
    R::release(room.k_done, n);
    R::wait(room.v_ready, n);
    R::release(room.v_done, n);
  };
  const auto make_scores = [&](int n) {
    const uint64_t q = tile_at(room.q(course) + group * 64 * kBoxRow), k = tile_at(room.k(n));
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
  // scores -> weights in float32, and what older sums are multiplied by: mostly 1, as the score that weights are relative to
  // stays while none is above it by more than a factor of 2^kSlack.
  const auto weigh = [&](int n, float(&factor)[2]) {
    const int key = at.key(n - base), floor = at.floor(n - base);
    if (key < max(all_low, floor) || key + kKeys > all_high) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int low = max(at.low(c, row + 8 * r), floor) - key - t2,
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
      most = over_quad_max(most);
      const float now = (most - largest[r]) * scale > kSlack ? most : largest[r];
      const float offset = now == -INFINITY ? 0.0f : now * scale;
      factor[r] = now == largest[r] ? 1.0f : exp2_fast(fmaf(largest[r], scale, -offset));
      largest[r] = now;
      float added = 0;
#pragma unroll
      for (int i = 0; i < 16; ++i)
#pragma unroll
        for (int j = 2 * r; j < 2 * r + 2; ++j)
          added += scores[i][j] = exp2_fast(fmaf(scores[i][j], scale, -offset));
      sum[r] = fmaf(sum[r], factor[r], added);
    }
  };
  const auto pack = [&] {
#pragma unroll
    for (int k = 0; k < 8; ++k) pack_a(weights[k], scores[2 * k], scores[2 * k + 1]);
  };

  // For what comes after n, never for a tile that was released: its stage may have been filled again, and again be waited for.
  const auto wait_ahead = [&](int n) {
    n + 1 < end ? R::wait(room.k_ready, n + 1) : R::wait(room.v_ready, n);
  };

  clear_tail(at, room, base, static_cast<int>(threadIdx.x) - 128);
  for (int n = base; n < begin; ++n) pass_by(n);
  if (begin < end) {
    float factor[2];
    R::wait(room.k_ready, begin);
    begin_products();
    make_scores(begin);
    wait_for_products<0>(scores);
    R::release(room.k_done, begin);
    weigh(begin, factor);
    pack();
    wait_ahead(begin);
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
      wait_ahead(n);
      wait_for_products<0>(y);
      R::release(room.v_done, n - 1);
      if (__any_sync(~0u, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
        for (int i = 0; i < kHead / 8; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) y[i][j] *= factor[j / 2];
      }
      pack();
    }
    R::Courses::release(room.q_done, course);
    R::wait(room.v_ready, end - 1);
    begin_products();
    add_weighted(end - 1);
    wait_for_products<0>(y);
    R::release(room.v_done, end - 1);
  } else {
    R::Courses::release(room.q_done, course);
  }
  for (int n = end; n < all; ++n) pass_by(n);

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float over = 1.0f / over_quad_sum(sum[r]);
    if (row + 8 * r >= at.tokens) continue;
    const int64_t place = int64_t{at.begin + row + 8 * r} * c.H + at.h;
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

template <int kHead>
__global__ void __launch_bounds__(Shape<kHead>::kThreads, 1)
    warpgroup_forward_kernel(const AttentionCall c, const __grid_constant__ Maps maps,
                             int* next_work, unsigned works) {
#if KRAIT_HOPPER
  extern __shared__ __align__(1024) unsigned char memory[];
  using S = Shape<kHead>;
  using R = Room<kHead>;
  const R room(memory);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kCourses + 2 * S::kStages; ++i) start_barrier(room.q_ready + i, 1);
    for (int i = 0; i < kCourses + 2 * S::kStages; ++i)
      start_barrier(room.q_done + i, S::kGroups * 4 * kArriving);
    fence_barriers();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    leave_registers<S::kBringing>();
    if (threadIdx.x == 0) bring(c, room, maps, next_work, works);
  } else {
    take_registers<S::kMultiplying>();
    int base = 0;
    for (int course = 0;; ++course) {
      R::Courses::wait(room.q_ready, course);
      const Course at = room.courses[course % kCourses];
      if (at.n_tiles == 0) break;
      multiply(c, at, room, course, base);
      base += at.n_tiles;
    }
  }
#endif
}

template <int kHead>
void forward(const AttentionCall& c, int* next_work, cudaStream_t stream) {
  using S = Shape<kHead>;
  const int64_t works = tiles(c, S::kQueries) * c.H, blocks = std::min(works, kOnePassProcessors);
  if (works == 0) return;
  const auto kernel = warpgroup_forward_kernel<kHead>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(S::kBytes));
  Maps maps = {map_of_heads(c, c.q, c.H, S::kQueries), map_of_heads(c, c.k, c.Hkv, kKeys),
               map_of_heads(c, c.v, c.Hkv, kKeys)};
  if (c.from_k) {
    const auto cached = [&](const void* p) {
      return map_of_matrices(p, c.from_rows, c.from_C, c.Hkv, c.P, kKeys);
    };
    maps.cached_k = cached(c.from_k), maps.cached_v = cached(c.from_v);
  }
  if (works > blocks) cudaMemsetAsync(next_work, 0, sizeof(int), stream);
  kernel<<<static_cast<unsigned>(blocks), S::kThreads, S::kBytes, stream>>>(
      c, maps, next_work, static_cast<unsigned>(works));
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

void warpgroup_forward(const AttentionCall& c, float* scratch, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  const auto next_work = reinterpret_cast<int*>(scratch);
  c.P <= 64 ? forward<64>(c, next_work, s) : forward<128>(c, next_work, s);
}

}  // namespace krait::cuda::attention
