// attention backward on warpgroups (sm_90a), in one walk. A block has 128 keys and values of one head, 64 for each of two
// warpgroups that multiply, and walks the tiles of queries that see them. Scores and their gradients have rows of keys: the
// weights are then registers of the products that sum over queries. Of the tile's dq, which sums over keys, a block has a
// part, added to those of the blocks of later keys: these see the tile one step earlier each. A counter a tile says whose
// turn it is, and blocks take their work from a counter, such that who is waited for runs already. The third warpgroup
// brings tiles and takes dq away.
#include <type_traits>

#include "krait/ops/attention/cuda_warpgroup_device.cuh"

namespace krait::cuda::attention {

namespace {

constexpr int kBox = kKeys * kBoxRow;  // of keys, or of gradients of scores: 64 queries
constexpr int kWarps = 8;              // that multiply

template <int kHead>
struct Shape {
  static constexpr int kQueries = 8192 / kHead, kBoxes = kHead / 64, kStages = 2,
                       kTile = kQueries * kHead * 2, kNumbers = kQueries * 2 * sizeof(float),
                       kScores = kQueries * kKeys * 2, kSums = kQueries * kHead * 4,
                       kBarriers = 4 * kStages + 4;
  static constexpr size_t kBytes = 2 * kBoxes * kBox + 2 * kStages * kTile + 2 * kScores + kSums +
                                   kStages * kNumbers + kBarriers * sizeof(uint64_t);
};

// Scratch: each tile of queries of each head has a place.
struct Parts {
  float* dq;  // sums, as a warpgroup's threads hold them: (place, warpgroup, 8, 128 threads, 4)
  float*
      numbers;  // log2 of the sum of exponentials, and delta, of two queries: (place, pairs, 2, 2)
  int* turn;    // key tiles that have added to it: (place)
  int* next_work;  // one, behind them
};

int64_t query_size(const AttentionCall& c) { return c.P <= 64 ? 128 : 64; }

Parts parts_of(const AttentionCall& c, float* scratch) {
  const int64_t places = tiles(c, query_size(c)) * c.H;
  Parts p;
  p.dq = scratch;
  p.numbers = p.dq + places * 8192;
  p.turn = reinterpret_cast<int*>(p.numbers + places * 2 * query_size(c));
  p.next_work = p.turn + places;
  return p;
}

// The place of a block: heads of the same tokens lie side by side in memory, and run side by side.
template <int kSize>
__device__ inline unsigned place_of_block(const AttentionCall& c) {
  const auto heads = static_cast<unsigned>(c.H);
  return blockIdx.x % heads * static_cast<unsigned>(tiles(c, kSize)) + blockIdx.x / heads;
}

// A block: a tile of queries of a head, 8 threads a query.
template <int kHead>
__global__ void __launch_bounds__(256)
    numbers_kernel(const AttentionBackward b, const Parts parts) {
  constexpr int kQueries = Shape<kHead>::kQueries;
  const AttentionCall& c = b.c;
  const unsigned place = place_of_block<kQueries>(c);
  const Work work = work_of<kQueries>(c, place);
  const Sequence s = sequence(c, work.sequence);
  if (threadIdx.x == 0) {
    parts.turn[place] = 0;
    if (place == 0) *parts.next_work = 0;
  }
#pragma unroll
  for (int first = 0; first < kQueries; first += 32) {
    const int i = first + static_cast<int>(threadIdx.x) / 8;
    const bool there = work.from + i < s.tokens;
    const int64_t row = (s.begin + work.from + i) * c.H + work.head;
    float delta = 0;
#pragma unroll
    for (int box = 0; box < kHead; box += 64) {
      const int64_t at = box + threadIdx.x % 8 * 8;
      if (!there || at >= c.P) continue;
      float y[8], dy[8];
      load<8>(static_cast<const bfloat16*>(c.y) + row * c.P + at, y);
      load<8>(static_cast<const bfloat16*>(b.dy) + row * c.P + at, dy);
#pragma unroll
      for (int j = 0; j < 8; ++j) delta = fmaf(y[j], dy[j], delta);
    }
#pragma unroll
    for (int lane = 4; lane > 0; lane /= 2) delta += __shfl_xor_sync(~0u, delta, lane);
    if (threadIdx.x % 8 > 0) continue;
    float* const to = parts.numbers + (int64_t{place} * kQueries + i / 2 * 2) * 2 + i % 2;
    // Of no query: no weight.
    to[0] = there ? fmaf(c.norm[2 * row], kLog2e, -log2f(c.norm[2 * row + 1])) : INFINITY;
    to[2] = delta;
  }
}

// What lane i of four has in of[j] it has in of[i] of lane j behind this.
__device__ inline void exchange_in_quad(uint32_t (&of)[4]) {
#pragma unroll
  for (int other = 1; other <= 2; ++other)  // the bit of the lane, and of the place
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & other) continue;
      uint32_t &low = of[i], &high = of[i + other];
      const bool upper = threadIdx.x & static_cast<unsigned>(other);
      const uint32_t got = __shfl_xor_sync(~0u, upper ? low : high, other);
      low = upper ? got : low;
      high = upper ? high : got;
    }
}

// A block: a tile of queries of a head, its sums to dq, whose rows begin at multiples of 16 bytes.
template <int kHead>
__global__ void __launch_bounds__(256) sums_kernel(const AttentionBackward b, const Parts parts) {
  constexpr int kQueries = Shape<kHead>::kQueries;
  const AttentionCall& c = b.c;
  const unsigned place = place_of_block<kQueries>(c);
  const Work work = work_of<kQueries>(c, place);
  const Sequence s = sequence(c, work.sequence);
  if (work.from >= s.tokens) return;
  const int group = static_cast<int>(threadIdx.x) / 128, t = static_cast<int>(threadIdx.x) % 128;
  const int row = work.from + (kHead == 64 ? 64 * group : 0) + t / 32 * 16 + t % 32 / 4;
  const int first = kHead == 64 ? 0 : 64 * group, lane = t % 4;
  const auto* const sums =
      reinterpret_cast<const float4*>(parts.dq) + (int64_t{place} * 2 + group) * 8 * 128 + t;
  auto* const to =
      static_cast<bfloat16*>(b.dq.data) + (s.begin + row) * b.dq.row + work.head * b.dq.head;
  float4 v[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = __ldcs(sums + i * 128);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    auto* const of_row = to + 8 * r * b.dq.row;
    const bool there = row + 8 * r < s.tokens;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t pairs[4];  // of a row, columns that lie 8 apart; then 8 neighbouring ones
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4& of = v[4 * half + i];
        float left = (r == 0 ? of.x : of.z) * c.scale, right = (r == 0 ? of.y : of.w) * c.scale;
        const int column = first + 8 * (4 * half + i);
        if (b.dq.add && there && column < c.P) {
          const auto old = *reinterpret_cast<const uint32_t*>(of_row + column + 2 * lane);
          left += low_bf16(old), right += high_bf16(old);
        }
        pairs[i] = pack_bf16(left, right);
      }
      exchange_in_quad(pairs);
      const int column = first + 8 * (4 * half + lane);
      if (there && column < c.P)
        *reinterpret_cast<uint4*>(of_row + column) =
            make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }
}

struct Maps {
  CUtensorMap q, dy, k, v;
};

#if KRAIT_HOPPER

// Shared memory of a block.
template <int kHead>
struct Room : Stages<Shape<kHead>::kStages> {
  using S = Shape<kHead>;
  unsigned char *k, *v, *tiles, *dscores, *dq, *numbers;
  uint64_t *keys_ready, *q_ready, *dy_ready, *q_done, *dy_done, *dq_ready, *dq_done, *stored;

  __device__ explicit Room(unsigned char* memory) : k(memory), v(k + S::kBoxes * kBox) {
    tiles = v + S::kBoxes * kBox;
    dscores = tiles + 2 * S::kStages * S::kTile;
    dq = dscores + 2 * S::kScores;
    numbers = dq + S::kSums;
    keys_ready = reinterpret_cast<uint64_t*>(numbers + S::kStages * S::kNumbers);
    q_ready = keys_ready + 1, dy_ready = q_ready + S::kStages, dq_done = dy_ready + S::kStages;
    q_done = dq_done + 1, dy_done = q_done + S::kStages, dq_ready = dy_done + S::kStages;
    stored = dq_ready + 1;
  }
  __device__ unsigned char* q(int n) const { return tiles + n % S::kStages * 2 * S::kTile; }
  __device__ unsigned char* dy(int n) const { return q(n) + S::kTile; }
  __device__ unsigned char* dscores_of(int n) const { return dscores + n % 2 * S::kScores; }
  __device__ unsigned char* numbers_of(int n) const {
    return numbers + n % S::kStages * S::kNumbers;
  }
};

// What a block does: tiles of queries [begin, end) of every head that shares its keys. Tokens are counted from the
// sequence's first.
struct Course {
  Sequence s;
  int sequence, head, first_head, tokens, from, begin, end, n_tiles, window;
};

template <int kHead>
__device__ void bring(const AttentionCall& c, const Course& at, const Room<kHead>& room,
                      const Maps& maps, const Parts& parts) {
  using S = Shape<kHead>;
  const int row = static_cast<int>(at.s.begin);
  arrive_expecting(room.keys_ready, 2 * S::kBoxes * kBox);
#pragma unroll
  for (int i = 0; i < S::kBoxes; ++i) {
    copy_box(room.k + i * kBox, maps.k, 64 * i, at.head, row + at.from, room.keys_ready);
    copy_box(room.v + i * kBox, maps.v, 64 * i, at.head, row + at.from, room.keys_ready);
  }
  int h = at.first_head;
  for (int n = 0, tile = at.begin; n < at.n_tiles; ++n) {
    const int64_t place = work_at<S::kQueries>(c, h, at.sequence, tile);
    const auto copy = [&](unsigned char* to, const CUtensorMap& map, uint64_t* barrier) {
#pragma unroll
      for (int i = 0; i < S::kBoxes; ++i)
        copy_box(to + i * S::kQueries * kBoxRow, map, 64 * i, h, row + tile * S::kQueries, barrier);
    };
    uint64_t* const q_ready = room.q_ready + n % S::kStages;
    if (n >= S::kStages) Room<kHead>::wait(room.q_done, n - S::kStages);
    arrive_expecting(q_ready, S::kTile + S::kNumbers);
    copy(room.q(n), maps.q, q_ready);
    copy_run(room.numbers_of(n), parts.numbers + place * 2 * S::kQueries, S::kNumbers, q_ready);
    uint64_t* const dy_ready = room.dy_ready + n % S::kStages;
    if (n >= S::kStages) Room<kHead>::wait(room.dy_done, n - S::kStages);
    arrive_expecting(dy_ready, S::kTile);
    copy(room.dy(n), maps.dy, dy_ready);
    if (++tile == at.end) tile = at.begin, ++h;
  }
}

__device__ inline void add_run(void* to, const void* from, unsigned bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
      "r"(shared_address(from)), "r"(bytes)
      : "memory");
}

template <int kHead>
__device__ void take_dq_away(const AttentionCall& c, const Course& at, const Room<kHead>& room,
                             const Parts& parts) {
  using S = Shape<kHead>;
  int h = at.first_head;
  for (int n = 0, tile = at.begin; n < at.n_tiles; ++n) {
    const int64_t place = work_at<S::kQueries>(c, h, at.sequence, tile);
    // Blocks of later keys that see the tile.
    const int last = c.causal ? (tile + 1) * S::kQueries - 1 : at.tokens - 1;
    const int before = last / kKeys - at.from / kKeys;
    int* const turn = parts.turn + place;
    for (int now = 0; now != before;)
      asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(now) : "l"(turn) : "memory");
    asm volatile("fence.proxy.async;" ::: "memory");
    wait_for_phase(room.dq_ready, n % 2);
    float* const to = parts.dq + place * 8192;
    before > 0 ? add_run(to, room.dq, S::kSums) : send_run(to, room.dq, S::kSums);
    commit_sent();
    wait_for_sent_reads<0>();
    arrive(room.dq_done);
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    asm volatile("fence.proxy.async;" ::: "memory");
    asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(turn), "r"(before + 1) : "memory");
    if (++tile == at.end) tile = at.begin, ++h;
  }
}

template <int kHead>
__device__ void multiply(const AttentionBackward& b, const Course& at, const Room<kHead>& room) {
  using S = Shape<kHead>;
  using R = Room<kHead>;
  constexpr int kColumns = S::kQueries / 8;
  const AttentionCall& c = b.c;
  const int group = same_in_warp(static_cast<int>(threadIdx.x) / 128 - 1);
  const int thread = static_cast<int>(threadIdx.x) % 128, warp = thread / 32, lane = thread % 32;
  const int t2 = lane % 4 * 2, first_key = at.from + 64 * group;
  const int key = first_key + 16 * warp + lane / 4;  // and the one 8 further
  const int n_tiles = same_in_warp(at.n_tiles);
  const float scale = c.scale * kLog2e;
  float scores[kColumns][4], dscores[kColumns][4], dk[kHead / 8][4] = {}, dv[kHead / 8][4] = {},
                                                              dq[8][4];
  uint32_t weights[kColumns / 2][4], dweights[kColumns / 2][4];

  // How products find a tile, found out again each time: kept for all their steps, it would take too many registers.
  const auto found = [](uint64_t at) {
    asm volatile("" : "+l"(at));
    return at;
  };
  // rows of keys or values, by tokens
  const auto scores_of = [&](float(&to)[kColumns][4], const unsigned char* keys,
                             const unsigned char* tile) {
    const uint64_t left = found(tile_at(keys + group * 64 * kBoxRow)), right = found(tile_at(tile));
    product<false, false, false>(to, left, right);
#pragma unroll
    for (int i = 1; i < kHead / 16; ++i)
      product<true, false, false>(to, further(left, i / 4 * kBox + i % 4 * 32),
                                  further(right, i / 4 * S::kQueries * kBoxRow + i % 4 * 32));
    commit_products();
  };
  const auto add_weighted = [&](float(&to)[kHead / 8][4], const uint32_t(&by)[kColumns / 2][4],
                                const unsigned char* tile) {
    const uint64_t right = found(tiles_at(tile, S::kQueries * kBoxRow));
#pragma unroll
    for (int k = 0; k < S::kQueries / 16; ++k)
      product<true, true>(to, by[k], further(right, k * 16 * kBoxRow));
    commit_products();
  };

  // scores -> weights, of tile n of the walk, `tile` of the sequence's queries.
  const auto weigh = [&](int n, int tile) {
    const int query = tile * S::kQueries;
    if ((c.causal && query < first_key + 63) || query + S::kQueries - 1 >= first_key + at.window ||
        (!c.causal && first_key + 64 > at.tokens)) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int of = key + 8 * r - query - t2;  // the key, as a column
        const int low = c.causal ? of : key + 8 * r < at.tokens ? -kKeys : kKeys;
        const int high = of + at.window;
#pragma unroll
        for (int i = 0; i < kColumns; ++i)
#pragma unroll
          for (int j = 0; j < 2; ++j)
            if (8 * i + j < low || 8 * i + j >= high) scores[i][2 * r + j] = -INFINITY;
      }
    }
    const auto* const numbers = reinterpret_cast<const float2*>(room.numbers_of(n)) + t2;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const float2 log_sum = numbers[8 * i];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        scores[i][j] = exp2_fast(fmaf(scores[i][j], scale, -(j % 2 == 0 ? log_sum.x : log_sum.y)));
    }
    // It has come long since, but ptxas moves no exponentials over it: they are made while dscores are multiplied.
    wait_for_phase(room.keys_ready, 0);
  };
  // From weights and dscores: what they add to dv and dk, and what dq is made of.
  const auto add = [&](int n) {
    const auto* const numbers = reinterpret_cast<const float2*>(room.numbers_of(n)) + t2;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const float2 delta = numbers[8 * i + 1];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        dscores[i][j] = scores[i][j] * (dscores[i][j] - (j % 2 == 0 ? delta.x : delta.y));
    }
#pragma unroll
    for (int k = 0; k < kColumns / 2; ++k) {
      pack_a(weights[k], scores[2 * k], scores[2 * k + 1]);
      pack_a(dweights[k], dscores[2 * k], dscores[2 * k + 1]);
    }
    begin_products();
    add_weighted(dv, weights, room.dy(n));
    add_weighted(dk, dweights, room.q(n));
    unsigned char* const to = room.dscores_of(n);
#pragma unroll
    for (int k = 0; k < kColumns / 2; ++k)
      store_matrices(
          to + k / 4 * kBox + in_tile(64 * group + 16 * warp + lane % 16, k % 4 * 2 + lane / 16),
          dweights[k]);
    show_to_products();
    warp_arrives<kArriving>(room.stored);
  };
  const auto wait_for_sums = [&](auto open) {
    wait_for_products<open>(dv);
    wait_for_products<open>(dk);
  };
  // Of what both have stored. Behind the last of them both have also made dq of the tile before.
  const auto make_dq = [&](int n) {
    wait_for_phase(room.stored, n % 2);
    const uint64_t by_keys = found(tile_at(room.dscores_of(n) + (kHead == 64 ? group * kBox : 0))),
                   keys = found(tile_at(room.k + (kHead == 64 ? 0 : group * kBox)));
    begin_products();
    product<false, true, true>(dq, by_keys, keys);
#pragma unroll
    for (int k = 1; k < kKeys / 16; ++k)
      product<true, true, true>(dq, further(by_keys, k * 16 * kBoxRow),
                                further(keys, k * 16 * kBoxRow));
    commit_products();
  };
  const auto hand_over_dq = [&](int n) {
    if (n > 0) wait_for_phase(room.dq_done, (n - 1) % 2);
    auto* const to = reinterpret_cast<float4*>(room.dq) + group * 8 * 128 + thread;
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i * 128] = make_float4(dq[i][0], dq[i][1], dq[i][2], dq[i][3]);
    fence_for_copies();
    warp_arrives<kArriving>(room.dq_ready);
  };

  wait_for_phase(room.keys_ready, 0);
  R::wait(room.q_ready, 0);
  R::wait(room.dy_ready, 0);
  begin_products();
  scores_of(scores, room.k, room.q(0));
  scores_of(dscores, room.v, room.dy(0));
  wait_for_products<1>(scores);
  weigh(0, at.begin);
  wait_for_products<0>(dscores);
  int tile = at.begin;
#pragma unroll 1
  for (int n = 0; n + 1 < n_tiles; ++n) {
    add(n);
    R::wait(room.q_ready, n + 1);
    begin_products();
    scores_of(scores, room.k, room.q(n + 1));
    wait_for_sums(std::integral_constant<int, 1>());
    R::release(room.dy_done, n);
    R::release(room.q_done, n);
    make_dq(n);
    wait_for_products<0>(dq);
    hand_over_dq(n);
    R::wait(room.dy_ready, n + 1);
    begin_products();
    scores_of(dscores, room.v, room.dy(n + 1));
    wait_for_products<1>(scores);  // done, as ptxas does not know
    if (++tile == at.end) tile = at.begin;
    weigh(n + 1, tile);
    wait_for_products<0>(dscores);
  }
  add(n_tiles - 1);
  make_dq(n_tiles - 1);
  wait_for_sums(std::integral_constant<int, 0>());
  wait_for_products<0>(dq);
  hand_over_dq(n_tiles - 1);

  const auto hand_out = [&](const float(&sums)[kHead / 8][4], float factor, const HeadRows& to,
                            const float* d_out) {
    if (!to.data) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = key + 8 * r;
      if (row >= at.tokens) continue;
      auto* const place =
          static_cast<bfloat16*>(to.data) + (at.s.begin + row) * to.row + at.head * to.head;
      const float* const more = passed_row(c, at.s, d_out, at.s.first + row, at.head);
#pragma unroll
      for (int i = 0; i < kHead / 8; ++i) {
        const int column = 8 * i + t2;
        if (column >= c.P) break;
        const float(&of)[4] = sums[i];
        const float2 v = more ? make_float2(more[column], more[column + 1]) : make_float2(0, 0);
        put_pair(place + column, fmaf(of[2 * r], factor, v.x), fmaf(of[2 * r + 1], factor, v.y),
                 to.add);
      }
    }
  };
  hand_out(dk, c.scale, b.dk, b.dk_out);
  hand_out(dv, 1, b.dv, b.dv_out);
}

#endif

template <int kHead>
__global__ void __launch_bounds__(384, 1)
    walk_kernel(const AttentionBackward b, const __grid_constant__ Maps maps, const Parts parts) {
#if KRAIT_HOPPER
  extern __shared__ __align__(1024) unsigned char memory[];
  using S = Shape<kHead>;
  const AttentionCall& c = b.c;
  const Room<kHead> room(memory);
  __shared__ int work;
  if (threadIdx.x == 0) {
    work = atomicAdd(parts.next_work, 1);
    for (int i = 0; i < 2 + 2 * S::kStages; ++i) start_barrier(room.keys_ready + i, 1);
    for (int i = 0; i < 2 + 2 * S::kStages; ++i) start_barrier(room.q_done + i, kWarps * kArriving);
    fence_barriers();
  }
  __syncthreads();
  Course at;
  const Work of_block = work_of<kKeys>(c, static_cast<unsigned>(work));
  at.s = sequence(c, of_block.sequence);
  if (of_block.from >= at.s.tokens) return;
  at.head = of_block.head;
  at.sequence = of_block.sequence;
  at.from = of_block.from;
  const int heads = static_cast<int>(c.H) / static_cast<int>(c.Hkv);
  at.first_head = at.head * heads;
  at.tokens = static_cast<int>(at.s.tokens);
  at.window = static_cast<int>(c.window > 0 ? min(c.window, int64_t{1} << 30) : 1 << 30);
  at.begin = c.causal ? at.from / S::kQueries : 0;
  at.end = (at.tokens + S::kQueries - 1) / S::kQueries;
  if (c.window > 0) at.end = min(at.end, (at.from + kKeys - 2 + at.window) / S::kQueries + 1);
  at.n_tiles = (at.end - at.begin) * heads;
  if (threadIdx.x < 128) {
    leave_registers<24>();
    if (threadIdx.x == 0) bring(c, at, room, maps, parts);
    if (threadIdx.x == 32) take_dq_away(c, at, room, parts);
  } else {
    take_registers<240>();
    multiply(b, at, room);
  }
#endif
}

template <int kHead>
void backward(const AttentionBackward& b, const Parts& parts, cudaStream_t stream) {
  using S = Shape<kHead>;
  const AttentionCall& c = b.c;
  const auto places = static_cast<unsigned>(tiles(c, S::kQueries) * c.H),
             blocks = static_cast<unsigned>(tiles(c, kKeys) * c.Hkv);
  if (places == 0) return;
  numbers_kernel<kHead><<<places, 256, 0, stream>>>(b, parts);
  check_launch("attention backward, sums of exponentials");
  const HeadRows dy{const_cast<void*>(b.dy), c.H * c.P, c.P};
  const Maps maps = {map_of_heads(c, c.q, c.H, S::kQueries), map_of_heads(c, dy, c.H, S::kQueries),
                     map_of_heads(c, c.k, c.Hkv, kKeys), map_of_heads(c, c.v, c.Hkv, kKeys)};
  const auto kernel = walk_kernel<kHead>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(S::kBytes));
  kernel<<<blocks, 384, S::kBytes, stream>>>(b, maps, parts);
  check_launch("attention backward");
  if (b.dq.data) {
    sums_kernel<kHead><<<places, 256, 0, stream>>>(b, parts);
    check_launch("attention backward, queries");
  }
}

}  // namespace

int64_t warpgroup_backward_floats(const AttentionCall& c) {
  const int64_t places = tiles(c, query_size(c)) * c.H;
  return places * (8192 + 2 * query_size(c) + 1) + 1;
}

void warpgroup_backward(const AttentionBackward& b, float* scratch, void* stream) {
  const Parts parts = parts_of(b.c, scratch);
  const auto s = static_cast<cudaStream_t>(stream);
  b.c.P <= 64 ? backward<64>(b, parts, s) : backward<128>(b, parts, s);
}

}  // namespace krait::cuda::attention
