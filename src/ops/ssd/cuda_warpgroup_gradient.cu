// The gradients of a chunk on a GPU whose warpgroups take products from shared memory (sm_90a), N up to 128: the formulas
// of cuda_gradient.cu. Each of a block's two warpgroups takes every other head of a set, all of its products, so that one
// computes while the other waits; their parts of dB and dC stay in registers and meet at the end. Pairs of tokens are
// rows s, columns t: as sums of products they are left operands, too. Σ over heads of D K Δ is kept, and multiplied with B
// and C once for all of them.
#include "krait/ops/ssd/cuda_matrix_dots.cuh"
#include "krait/ops/ssd/cuda_warpgroup.cuh"

namespace krait::ops::ssd_gpu {

namespace {

constexpr int kTeam = 128, kTeams = 2, kThreadsOfBlock = kTeams * kTeam;
constexpr int kTilesOfPairs = 10;  // of 16 s and 16 t, none of earlier t
__device__ inline int tile_of_pairs(int s16, int t16) {
  return 4 * s16 - s16 * (s16 + 1) / 2 + t16;
}

// Of a head, as they lie in memory.
struct alignas(16) RawSteps {
  float2 steps[kQ];  // Δ, log2 of the decay from the chunk's begin
  float slopes[kQ];
  float A, D;
};

// The dot products of a head that dΔ is made of.
struct alignas(16) HeadDots {
  float start[kQ], end[kQ], u[kQ];  // e dy·S C; f x·dS B; x·u
  float between
      [4][kQ];  // of each strip of 16 s, Σ of W[s, t] over s < k <= t for the k from the strip on
  float across[4], D[4];  // of each strip: Σ dS S, Σ dy·x
};

// Shared memory: B, C, C Bᵀ; for each team twice x, dy and the state, the gradient of the state; steps and dot products;
// for each team the barriers of what the copy engine brings: the state, in turns, and its gradient.
template <int NT>
struct Room {
  static constexpr int kState = NT * kTileBytes, kStage = 2 * kTileBytes + kState;
  static constexpr int kOfTeam = 2 * kStage + kState, kPairs = kTilesOfPairs * 2 * 32 * 16;
  static constexpr size_t kSize =
      2 * kState + kTeams * kOfTeam + kPairs +
      kTeams * (3 * sizeof(RawSteps) + 2 * sizeof(HeadDots) + 3 * sizeof(uint64_t));
  unsigned char *B, *C, *stages, *dS;
  float4* G;
  RawSteps* steps;
  HeadDots* dots;
  uint64_t *of_state, *of_dS;

  __device__ Room(unsigned char* memory, int team) {
    B = memory, C = B + kState;
    stages = C + kState + team * kOfTeam, dS = stages + 2 * kStage;
    unsigned char* const rest = C + kState + kTeams * kOfTeam;
    G = reinterpret_cast<float4*>(rest);
    steps = reinterpret_cast<RawSteps*>(rest + kPairs) + 3 * team;
    auto* const all_dots =
        reinterpret_cast<HeadDots*>(reinterpret_cast<RawSteps*>(rest + kPairs) + 3 * kTeams);
    dots = all_dots + 2 * team;
    of_state = reinterpret_cast<uint64_t*>(all_dots + 2 * kTeams) + 3 * team, of_dS = of_state + 2;
  }
};

__device__ inline int of_warp(int v) { return __shfl_sync(~0u, v, 0); }

// By a team.
template <int kColumns>
__device__ inline void bring_tiles(unsigned char* to, const CudaRows& r, int64_t row, int column,
                                   int valid, int columns, int thread) {
  TileReader<kColumns, kTeam>(r, row, column, thread).bring(to, valid, columns);
}

#if KRAIT_HOPPER
// d (64, 64) = a b: a by rows, K from one tile to the next of `kTiles`; b by rows, or with K as rows of one tile.
template <int kTiles>
__device__ inline void rows_times_rows(float (&d)[8][4], uint64_t a, uint64_t b) {
  cuda::product<false, false, false>(d, a, b);
#pragma unroll
  for (int k = 1; k < 4 * kTiles; ++k) {
    const int at = k / 4 * kTileBytes + k % 4 * 32;
    cuda::product<true, false, false>(d, cuda::further(a, at), cuda::further(b, at));
  }
}
__device__ inline void rows_times_columns(float (&d)[8][4], uint64_t a, uint64_t b) {
  cuda::product<false, false, true>(d, a, b);
#pragma unroll
  for (int k = 1; k < 4; ++k)
    cuda::product<true, false, true>(d, cuda::further(a, 32 * k), cuda::further(b, 2048 * k));
}

// d = a b, 64 columns of b at once; then sums += scale d, with a scale of rows g and of rows g + 8, and what is then to be
// done with d[i].
template <int NT>
__device__ inline void begin_rows_times_columns(float (&d)[NT][8][4], uint64_t a, uint64_t b) {
  cuda::begin_products();
#pragma unroll
  for (int i = 0; i < NT; ++i) {
    rows_times_columns(d[i], a, cuda::further(b, i * kTileBytes));
    cuda::commit_products();
  }
}
template <int NT, class Then>
__device__ inline void add_products(float (&sums)[NT][8][4], float (&d)[NT][8][4],
                                    const float (&scale)[2], Then then) {
  const auto add = [&](int i) {
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[i][j][e] = fmaf(scale[e / 2], d[i][j][e], sums[i][j][e]);
  };
  if constexpr (NT == 2) {
    cuda::wait_for_products<1>(d[0]);
    add(0), then(0);
  }
  cuda::wait_for_products<0>(d[NT - 1]);
  add(NT - 1), then(NT - 1);
}
#endif

// Rows t0 + g and + 8 of a tile, in the places of sums of products.
__device__ inline void load_rows(uint32_t (&v)[4][4], const unsigned char* tile, int t0) {
#pragma unroll
  for (int k = 0; k < 4; ++k)
    cuda::load_matrices(v[k], tile + in_tile(t0 + lane_of() % 16, 2 * k + lane_of() / 16));
}
// sums (+)= for both rows the dot product of v and w.
__device__ inline void dot_rows(float (&sums)[2], const float (&v)[8][4],
                                const uint32_t (&w)[4][4]) {
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint32_t pair = w[j / 2][j % 2 * 2 + r];
      sums[r] = fmaf(v[j][2 * r], low_bf16(pair), fmaf(v[j][2 * r + 1], high_bf16(pair), sums[r]));
    }
}
__device__ inline void keep_rows(float (&to)[kQ], int t0, float (&parts)[2], bool again) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float sum = sum_of_row(parts[r]);
    if (lane_of() % 4 == 0) keep(to[t0 + lane_of() / 4 + 8 * r], sum, again);
  }
}

// Of four columns' parts, v[i] of column 8 (i / 2) + 2 (lane % 4) + i % 2, the sums over the lanes of equal lane % 4: a lane
// gets that of column_of_sum().
__device__ inline int column_of_sum() {
  return lane_of() / 16 * 8 + lane_of() % 4 * 2 + lane_of() / 8 % 2;
}
__device__ inline float sum_of_columns(const float (&v)[4]) {
  const bool second = lane_of() / 16 != 0, odd = lane_of() / 8 % 2 != 0;
  float a = second ? v[2] : v[0], b = second ? v[3] : v[1];
  a += __shfl_xor_sync(~0u, second ? v[0] : v[2], 16);
  b += __shfl_xor_sync(~0u, second ? v[1] : v[3], 16);
  float sum = odd ? b : a;
  sum += __shfl_xor_sync(~0u, odd ? a : b, 8);
  return sum + __shfl_xor_sync(~0u, sum, 4);
}

// dΔ of a head and what follows from it, by one warp.
__device__ void finish(const Gradient& w, const RawSteps& steps, const HeadDots& dots, int64_t h,
                       int64_t row, int valid, float* sums) {
  const int lane = lane_of(), strip = lane / 8;
  const float across = (dots.across[0] + dots.across[1] + dots.across[2] + dots.across[3]) *
                       cuda::exp2_fast(steps.steps[kQ - 1].y);
  float start[2], end[2], sum[2], u[2], delta[2], slope[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 2 * lane + i;
    delta[i] = steps.steps[t].x, slope[i] = steps.slopes[t];
    start[i] = dots.start[t], end[i] = delta[i] * dots.end[t], u[i] = dots.u[t];
  }
  sum_from<32>(start);
  sum_before(end);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum[i] = across + start[i] + end[i];
#pragma unroll
    for (int s16 = 0; s16 < 4; ++s16)
      if (s16 <= strip) sum[i] += dots.between[s16][2 * lane + i];
  }
  put_steps(w, rate_of(w.p, steps.A), delta, slope, h, row, valid, sum, u, dots.D, sums);
}

template <int NT>
__global__ void __launch_bounds__(kThreadsOfBlock, 1) warpgroup_gradient_kernel(const Gradient w) {
#if KRAIT_HOPPER
  extern __shared__ __align__(1024) unsigned char memory[];
  using R = Room<NT>;
  constexpr int NP = 64 * NT;
  const CudaProblem& p = w.p;
  const int team = of_warp(static_cast<int>(threadIdx.x) / kTeam);
  const int thread = static_cast<int>(threadIdx.x) % kTeam, strip = of_warp(thread / 32);
  const int lane = lane_of(), g = lane / 4, t2 = lane % 4 * 2, t0 = 16 * strip;
  const R room(memory, team);
  const int N = static_cast<int>(p.N), P = static_cast<int>(p.P), tiles = (P + kP - 1) / kP;
  const int heads_of_group = static_cast<int>(p.H) / static_cast<int>(p.G);
  const int set = static_cast<int>(blockIdx.y), of_group = static_cast<int>(w.sets);
  const int group = set / of_group, of_set = static_cast<int>(w.heads);
  const int64_t first_head = group * heads_of_group + set % of_group * of_set;
  const int heads = min(of_set, (group + 1) * heads_of_group - static_cast<int>(first_head));
  const int slices = (heads - team + kTeams - 1) / kTeams * tiles;
  const Place chunk = place_of(p, blockIdx.x, kQ);
  const auto sums_of = [&](int head) {
    return w.sums ? w.sums + (blockIdx.x * p.H + first_head + head) * sums_size(p) : nullptr;
  };
  if (!chunk.there) {
    cuda::wait_for_previous();
    for (int64_t i = threadIdx.x; w.sums && i < heads * sums_size(p); i += kThreadsOfBlock)
      sums_of(0)[i] = 0;
    return;
  }
  const int64_t row = chunk.begin;
  const int valid = static_cast<int>(chunk.tokens);

  // The team's slices: of every other head 64 channels after the other.
  int coming_head = team, coming_p0 = 0;
  const auto column_of = [&](int head, int p0) {
    return (static_cast<int>(first_head) + head) * P + p0;
  };
  const auto stage = [&](int slice) { return room.stages + slice % 2 * R::kStage; };
  // Of a slice, as the walks leave them, 64 channels.
  const auto bring_state = [&](unsigned char* to, const void* states, uint64_t* barrier) {
    if (thread > 0) return;
    const int64_t at = (blockIdx.x * p.H + first_head + coming_head) * tiles + coming_p0 / kP;
    cuda::arrive_expecting(barrier, R::kState);
    cuda::copy_run(to, static_cast<const unsigned char*>(states) + at * R::kState, R::kState,
                   barrier);
  };
  const auto steps_of = [&](int head) -> RawSteps& { return room.steps[head / kTeams % 3]; };
  const auto bring_steps = [&](int head) {
    RawSteps& to = steps_of(head);
    const int64_t h = first_head + head, at = (blockIdx.x * p.H + h) * kQ;
    if (thread < kQ / 2) {
      cuda::copy_async(to.steps + 2 * thread, w.steps + at + 2 * thread, true);
    } else if (thread < kQ / 2 + kQ / 4) {
      const int t = 4 * (thread - kQ / 2);
      cuda::copy_async(to.slopes + t, w.slopes + at + t, true);
    } else if (thread == kTeam - 1) {
      cuda::copy_async<4>(&to.A, p.A + h);
      if (p.D && !p.D_per_channel) cuda::copy_async<4>(&to.D, p.D + h);
    }
  };
  const auto bring_slice = [&](int slice) {
    if (coming_p0 == 0) bring_steps(coming_head);
    unsigned char* const x = stage(slice);
    const int channels = min(kP, P - coming_p0), column = column_of(coming_head, coming_p0);
    bring_tiles<kP>(x, p.x, row, column, valid, channels, thread);
    bring_tiles<kP>(x + kTileBytes, w.dy, row, column, valid, channels, thread);
    cuda::commit_copies();
    bring_state(x + 2 * kTileBytes, w.states, room.of_state + slice % 2);
  };
  const auto bring_dS = [&] {  // of the same slice, and on to the next
    bring_state(room.dS, w.dstates, room.of_dS);
    coming_p0 += kP;
    if (coming_p0 >= P) coming_p0 = 0, coming_head += kTeams;
  };
  const auto finish_head = [&](int head) {
    finish(w, steps_of(head), room.dots[head / kTeams % 2], first_head + head, row, valid,
           sums_of(head));
  };

  if (thread == 0) {
    for (int i = 0; i < 3; ++i) cuda::start_barrier(room.of_state + i, 1);
    cuda::fence_barriers();
  }
  __syncthreads();
  const int column_B = group * N;
  (team == 0 ? bring_tiles<NP>(room.B, p.B, row, column_B, valid, N, thread)
             : bring_tiles<NP>(room.C, p.C, row, column_B, valid, N, thread));
  cuda::commit_copies();
  cuda::wait_for_previous();
  if (slices > 0) {
    bring_slice(0), bring_dS();
    cuda::wait_for_copies<1>();
  } else {
    cuda::wait_for_copies<0>();
  }
  cuda::show_to_products();
  __syncthreads();
  const uint64_t of_B = cuda::tile_at(room.B), of_C = cuda::tile_at(room.C);
  if (team == 0) {
    float G[8][4];
    cuda::begin_products();
    rows_times_rows<NT>(G, of_B, of_C);
    cuda::commit_products();
    cuda::wait_for_products<0>(G);
#pragma unroll
    for (int t16 = 0; t16 < 4; ++t16) {
      if (t16 < strip) continue;
      float4* const to = room.G + tile_of_pairs(strip, t16) * 64 + lane;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float(&v)[4] = G[2 * t16 + j];
        to[32 * j] = make_float4(v[0], v[1], v[2], v[3]);
      }
    }
  }
  __syncthreads();

  float sum_DK[8][4] = {}, dB[NT][8][4] = {}, dC[NT][8][4] = {};
  const uint32_t ones = 0x3f803f80,  // pairs of t, one where not before k = g
      triangle = (t2 >= g ? 0x3f80 : 0) | (t2 + 1 >= g ? 0x3f800000 : 0);

#pragma unroll 1
  for (int slice = 0, head = team, p0 = 0; slice < slices; ++slice) {
    cuda::wait_for_copies<0>();
    cuda::show_to_products();
    cuda::sync_warpgroup(team);
    if (slice + 1 < slices) bring_slice(slice + 1);
    cuda::wait_for_phase(room.of_state + slice % 2, slice / 2 % 2);
    cuda::wait_for_phase(room.of_dS, slice % 2);
    const bool again = p0 > 0;  // a head's further channels
    const int channels = min(kP, P - p0);
    const unsigned char *const x = stage(slice), *const dy = x + kTileBytes;
    const unsigned char* const S = dy + kTileBytes;
    const uint64_t of_x = cuda::tile_at(x), of_dy = cuda::tile_at(dy), of_S = cuda::tile_at(S);
    const uint64_t of_dS = cuda::tile_at(room.dS);
    const RawSteps& steps = steps_of(head);
    HeadDots& dots = room.dots[head / kTeams % 2];

    // K = dy xᵀ; beside it Σ dS S of 16 channels a warp, the diagonal of a product.
    float K[8][4];
    cuda::begin_products();
    rows_times_rows<1>(K, of_x, of_dy);
    cuda::commit_products();
    if (!again && strip == 3 && head >= kTeams) finish_head(head - kTeams);
    const float2 step[2] = {steps.steps[t0 + g], steps.steps[t0 + g + 8]};
    const float delta[2] = {step[0].x, step[1].x}, log2_s[2] = {step[0].y, step[1].y};
    // Those of a strip with fewer pairs take more of it.
    const int first_across = strip < 2 ? 0 : 2 * strip - 3;
    const int end_across = first_across + (strip < 3 ? strip : 1);
#pragma unroll 1
    for (int i = first_across; i < end_across; ++i) {
      float c[2][4] = {};
#pragma unroll
      for (int n = 0; n < 4 * NT; ++n) {
        const int at = n / 4 * kTileBytes + in_tile(16 * i + lane % 16, n % 4 * 2 + lane / 16);
        uint32_t a[4], b[4];
        cuda::load_matrices(a, S + at);
        cuda::load_matrices(b, room.dS + at);
        cuda::mma_bf16(c[0], a, b[0], b[2]);
        cuda::mma_bf16(c[1], a, b[1], b[3]);
      }
      const float sum = sum_of_warp(g == t2       ? c[0][0] + c[1][2]
                                    : g == t2 + 1 ? c[0][1] + c[1][3]
                                                  : 0.0f);
      if (lane == 0) keep(dots.across[i], sum, again);
    }
    uint32_t scores[4][4];  // D G
    cuda::wait_for_products<0>(K);
    {
      float behind[4] = {};  // sums of W[s, t] over the tiles of later t
#pragma unroll
      for (int t16 = 3; t16 >= 0; --t16) {
        if (t16 < strip) {
#pragma unroll
          for (uint32_t& none : scores[t16]) none = 0;
          continue;
        }
        const bool diagonal = t16 == strip;
        float W[2][4], DG[2][4];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float4 of_t = *reinterpret_cast<const float4*>(steps.steps + 16 * t16 + 8 * j + t2);
          const float4 v = room.G[tile_of_pairs(strip, t16) * 64 + 32 * j + lane];
          const float G[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            float decay = cuda::exp2_fast((e % 2 ? of_t.w : of_t.y) - log2_s[e / 2]);
            if (diagonal && 8 * j + t2 + e % 2 < g + e / 2 * 8) decay = 0;
            DG[j][e] = decay * G[e];
            const float DK = decay * (K[2 * t16 + j][e] * delta[e / 2]);
            sum_DK[2 * t16 + j][e] += DK;
            W[j][e] = G[e] * DK;
          }
        }
        cuda::pack_a(scores[t16], DG[0], DG[1]);
        uint32_t a[4];
        cuda::pack_a(a, W[0], W[1]);
        float from[2][4];  // sums of W[s, t] over t >= k
#pragma unroll
        for (int e = 0; e < 4; ++e) from[0][e] = from[1][e] = behind[e];
        cuda::mma_bf16(from[0], a, triangle, ones);
        cuda::mma_bf16(from[1], a, 0, triangle);
        cuda::mma_bf16(behind, a, ones, ones);
        float sums[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int k = i / 2 * 8 + t2 + i % 2;
          const float upper = from[i / 2][i % 2], lower = from[i / 2][2 + i % 2];
          sums[i] = (diagonal && k <= g ? 0.0f : upper) + (diagonal && k <= g + 8 ? 0.0f : lower);
        }
        const float sum = sum_of_columns(sums);
        if (g % 2 == 0) keep(dots.between[strip][16 * t16 + column_of_sum()], sum, again);
        if (diagonal) {
          const float(&left)[4] = K[2 * t16], (&right)[4] = K[2 * t16 + 1];
          const float trace = sum_of_warp(g == t2       ? left[0] + right[2]
                                          : g == t2 + 1 ? left[1] + right[3]
                                                        : 0.0f);
          if (lane == 0) keep(dots.D[strip], trace, again);
        }
      }
    }

    // u: to the state behind the chunk, and to y within it; with it dx.
    const float all = steps.steps[kQ - 1].y;
    const float after[2] = {cuda::exp2_fast(all - log2_s[0]), cuda::exp2_fast(all - log2_s[1])};
    {
      float u[8][4];
      cuda::begin_products();
      rows_times_rows<NT>(u, of_B, of_dS);
      cuda::commit_products();
      uint32_t of_token[4][4];
      load_rows(of_token, x, t0);
      cuda::wait_for_products<0>(u);
#pragma unroll
      for (auto& tile : u)
#pragma unroll
        for (int e = 0; e < 4; ++e) tile[e] *= after[e / 2];
      float end[2] = {}, whole[2] = {};
      dot_rows(end, u, of_token);
      cuda::begin_products();
#pragma unroll
      for (int k = 0; k < 4; ++k)
        cuda::product<true, true>(u, scores[k], cuda::further(of_dy, 2048 * k));
      cuda::commit_products();
      keep_rows(dots.end, t0, end, again);
      cuda::wait_for_products<0>(u);
      dot_rows(whole, u, of_token);
      keep_rows(dots.u, t0, whole, again);
      if (w.dx.data) {
        load_rows(of_token, dy, t0);
        const float D = p.D && !p.D_per_channel ? steps.D : 0.0f;
        const float* const of_channels =
            p.D_per_channel ? p.D + (first_head + head) * P + p0 + t2 : nullptr;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          float2 skip = {D, D};
          if (of_channels && 8 * j < channels)
            skip = *reinterpret_cast<const float2*>(of_channels + 8 * j);
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const uint32_t of_y = of_token[j / 2][j % 2 * 2 + r];
            u[j][2 * r] = fmaf(delta[r], u[j][2 * r], skip.x * low_bf16(of_y));
            u[j][2 * r + 1] = fmaf(delta[r], u[j][2 * r + 1], skip.y * high_bf16(of_y));
          }
        }
        put_rows(w.dx, row, valid, t0, column_of(head, p0), channels, u);
      }
    }
    if (p.D_per_channel && w.sums && thread < channels) {
      float sum = 0;
      for (int t = 0; t < kQ; ++t) {
        const int at = in_tile(t, thread / 8) + thread % 8 * 2;
        sum = fmaf(static_cast<float>(*reinterpret_cast<const bf16*>(dy + at)),
                   static_cast<float>(*reinterpret_cast<const bf16*>(x + at)), sum);
      }
      sums_of(head)[2 + p0 + thread] = sum;
    }

    // To the state behind the chunk: dB, 64 states at once. From the state before it: dC, and of dΔ `start`.
    const float weight[2] = {delta[0] * after[0], delta[1] * after[1]};
    const float before[2] = {cuda::exp2_fast(log2_s[0]), cuda::exp2_fast(log2_s[1])};
    float d[NT][8][4];
    begin_rows_times_columns(d, of_x, of_dS);
    add_products(dB, d, weight, [](int) {});
    cuda::sync_warpgroup(team);  // the gradient of the state was read
    if (slice + 1 < slices) bring_dS();
    begin_rows_times_columns(d, of_dy, of_S);
    {
      float start[2] = {};  // dy·S C as C·(Sᵀ dy)
      uint32_t of_token[4][4];
      load_rows(of_token, room.C, t0);
      add_products(dC, d, before, [&](int i) {
        dot_rows(start, d[i], of_token);
        if (i + 1 < NT) load_rows(of_token, room.C + (i + 1) * kTileBytes, t0);
      });
      start[0] *= before[0], start[1] *= before[1];
      keep_rows(dots.start, t0, start, again);
    }
    p0 += kP;
    if (p0 >= P) p0 = 0, head += kTeams;
  }

  // The first team finishes dC, the second dB.
  __syncthreads();
  if (slices > 0 && strip == 3) finish_head((heads - 1 - team) / kTeams * kTeams + team);
  unsigned char* const meeting = room.C + R::kState;
  auto* const parts = reinterpret_cast<float4*>(meeting) + thread;
  constexpr int kOfDC = 8 * NT + 8;
  unsigned char* const all_DK = meeting + (kOfDC + 8 * NT) * kTeam * sizeof(float4);
  const auto put = [&](int to, const float(&tiles)[8][4]) {
#pragma unroll
    for (int j = 0; j < 8; ++j)
      parts[(to + j) * kTeam] = make_float4(tiles[j][0], tiles[j][1], tiles[j][2], tiles[j][3]);
  };
  const auto take = [&](int from, float(&tiles)[8][4]) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float4 v = parts[(from + j) * kTeam];
      tiles[j][0] += v.x, tiles[j][1] += v.y, tiles[j][2] += v.z, tiles[j][3] += v.w;
    }
  };
#pragma unroll
  for (int i = 0; i < NT; ++i) team == 0 ? put(8 * i, dB[i]) : put(kOfDC + 8 * i, dC[i]);
  if (team == 0) put(8 * NT, sum_DK);
  __syncthreads();
  uint32_t of_DK[4][4];
  if (team == 1) {
#pragma unroll
    for (int i = 0; i < NT; ++i) take(8 * i, dB[i]);
    take(8 * NT, sum_DK);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      cuda::pack_a(of_DK[k], sum_DK[2 * k], sum_DK[2 * k + 1]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        *reinterpret_cast<uint32_t*>(all_DK + in_tile(t0 + g + i % 2 * 8, 2 * k + i / 2) + 2 * t2) =
            of_DK[k][i];
    }
    cuda::show_to_products();
  } else {
#pragma unroll
    for (int i = 0; i < NT; ++i) take(kOfDC + 8 * i, dC[i]);
  }
  __syncthreads();
  if (team == 1) {
    cuda::begin_products();
#pragma unroll
    for (int i = 0; i < NT; ++i)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        cuda::product<true, true>(dB[i], of_DK[k], cuda::further(of_C, i * kTileBytes + 2048 * k));
    cuda::commit_products();
#pragma unroll
    for (int i = 0; i < NT; ++i) cuda::wait_for_products<0>(dB[i]);
    put_sums(w, w.dB, set, row, valid, t0, 0, reinterpret_cast<float(&)[8 * NT][4]>(dB));
  } else {
    const uint64_t columns_of_DK = cuda::tile_at(all_DK);
    cuda::begin_products();
#pragma unroll
    for (int i = 0; i < NT; ++i)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        cuda::product<true, true, true>(dC[i], cuda::further(columns_of_DK, 2048 * k),
                                        cuda::further(of_B, i * kTileBytes + 2048 * k));
    cuda::commit_products();
#pragma unroll
    for (int i = 0; i < NT; ++i) cuda::wait_for_products<0>(dC[i]);
    put_sums(w, w.dC, set, row, valid, t0, 0, reinterpret_cast<float(&)[8 * NT][4]>(dC));
  }
#endif
}

template <int NT>
void launch(const Gradient& w, cudaStream_t stream) {
  const CudaProblem& p = w.p;
  const auto kernel = warpgroup_gradient_kernel<NT>;
  constexpr size_t kBytes = Room<NT>::kSize;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(kBytes));
  const dim3 grid(static_cast<unsigned>(slots(p, kQ)), static_cast<unsigned>(p.G * w.sets));
  cuda::launch_dependent("ssd gradients", kernel, grid, kThreadsOfBlock, kBytes, 1, stream, w);
}

}  // namespace

bool warpgroup_gradient(const Gradient& w, cudaStream_t stream) {
  if (!warpgroups_fit(w.p) || !w.dy.runs || !states_are_tiles(w.p)) return false;
  w.p.N <= 64 ? launch<1>(w, stream) : launch<2>(w, stream);
  return true;
}

}  // namespace krait::ops::ssd_gpu
