// The gradients of a chunk on a GPU whose warpgroups take products from shared memory (sm_90a), N up to 128: the formulas
// of cuda_gradient.cu. Each of a block's two warpgroups takes every other head of a set, all of its products, so that one
// computes while the other waits; their parts of dB and dC stay in registers and meet at the end. Pairs of tokens are
// rows s, columns t: as sums of products they are left operands, too. Σ over heads of D K Δ is kept, and multiplied with B
// and C once for all of them.
#include "krait/ops/ssd/cuda_warpgroup_dots.cuh"

namespace krait::ops::ssd_gpu {

namespace {

constexpr int kTeam = 128, kTeams = 2, kThreadsOfBlock = kTeams * kTeam;

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

// 64 channels of head `head` of a set from p0 on: x, dy (tokens, channels); the state before the chunk and the gradient of
// that behind it (channels, states).
struct Slice {
  const unsigned char *x, *dy, *S, *dS;
  int head, p0, channels;  // how many of the 64 there are
  bool again;              // a head's further channels: sums go on
};

// Brings a team's slices: of every other head of a set 64 channels after the other.
template <int NT>
class SliceReader {
 public:
  __device__ SliceReader(const Gradient& w, const Room<NT>& room, const Place& chunk,
                         int64_t first_head, int team, int thread)
      : w_(w),
        room_(room),
        row_(chunk.begin),
        valid_(static_cast<int>(chunk.tokens)),
        first_head_(first_head),
        thread_(thread),
        P_(static_cast<int>(w.p.P)),
        tiles_((P_ + kP - 1) / kP),
        head_(team) {}

  __device__ int column_of(int head, int p0) const {
    return (static_cast<int>(first_head_) + head) * P_ + p0;
  }
  __device__ RawSteps& steps_of(int head) const { return room_.steps[head / kTeams % 3]; }
  __device__ Slice at(int slice, int head, int p0) const {
    const unsigned char *const x = stage(slice), *const dy = x + kTileBytes;
    return {x, dy, dy + kTileBytes, room_.dS, head, p0, min(kP, P_ - p0), p0 > 0};
  }
  // All but dS of the next slice, which is number `slice`.
  __device__ void bring(int slice) const {
    if (p0_ == 0) bring_steps();
    unsigned char* const x = stage(slice);
    const int channels = min(kP, P_ - p0_), column = column_of(head_, p0_);
    bring_tiles<kP>(x, w_.p.x, row_, column, valid_, channels, thread_);
    bring_tiles<kP>(x + kTileBytes, w_.dy, row_, column, valid_, channels, thread_);
    cuda::commit_copies();
    bring_state(x + 2 * kTileBytes, w_.states, room_.of_state + slice % 2);
  }
  __device__ void bring_dS() {  // of the same slice, and on to the next
    bring_state(room_.dS, w_.dstates, room_.of_dS);
    p0_ += kP;
    if (p0_ >= P_) p0_ = 0, head_ += kTeams;
  }

 private:
  __device__ unsigned char* stage(int slice) const {
    return room_.stages + slice % 2 * Room<NT>::kStage;
  }
  // As the walks leave it.
  __device__ void bring_state(unsigned char* to, const void* states, uint64_t* barrier) const {
    if (thread_ > 0) return;
    constexpr int kBytes = Room<NT>::kState;
    const int64_t at = (blockIdx.x * w_.p.H + first_head_ + head_) * tiles_ + p0_ / kP;
    cuda::arrive_expecting(barrier, kBytes);
    cuda::copy_run(to, static_cast<const unsigned char*>(states) + at * kBytes, kBytes, barrier);
  }
  __device__ void bring_steps() const {
    RawSteps& to = steps_of(head_);
    const int64_t h = first_head_ + head_, at = (blockIdx.x * w_.p.H + h) * kQ;
    if (thread_ < kQ / 2) {
      cuda::copy_async(to.steps + 2 * thread_, w_.steps + at + 2 * thread_, true);
    } else if (thread_ < kQ / 2 + kQ / 4) {
      const int t = 4 * (thread_ - kQ / 2);
      cuda::copy_async(to.slopes + t, w_.slopes + at + t, true);
    } else if (thread_ == kTeam - 1) {
      cuda::copy_async<4>(&to.A, w_.p.A + h);
      if (w_.p.D && !w_.p.D_per_channel) cuda::copy_async<4>(&to.D, w_.p.D + h);
    }
  }

  const Gradient& w_;
  const Room<NT>& room_;
  int64_t row_;
  int valid_;
  int64_t first_head_;
  int thread_, P_, tiles_;
  int head_, p0_ = 0;  // of the slice that is to be brought next
};

// G = B Cᵀ, by one team for both.
template <int NT>
__device__ inline void put_G(float4* all, uint64_t of_B, uint64_t of_C, int strip) {
  float G[8][4];
  cuda::begin_products();
  rows_times_rows<NT>(G, of_B, of_C);
  cuda::commit_products();
  cuda::wait_for_products<0>(G);
#pragma unroll
  for (int t16 = 0; t16 < 4; ++t16) {
    if (t16 < strip) continue;
    float4* const to = all + tile_of_pairs(strip, t16) * 64 + lane_of();
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float(&v)[4] = G[2 * t16 + j];
      to[32 * j] = make_float4(v[0], v[1], v[2], v[3]);
    }
  }
}

// u = Δ u + D dy: dx of channels from `first` on of all.
__device__ inline void add_skip(float (&u)[8][4], const uint32_t (&of_dy)[4][4],
                                const float (&delta)[2], const CudaProblem& p, float D_of_head,
                                int64_t first, int channels) {
  const float D = p.D && !p.D_per_channel ? D_of_head : 0.0f;
  const float* const of_channels = p.D_per_channel ? p.D + first + lane_of() % 4 * 2 : nullptr;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    float2 skip = {D, D};
    if (of_channels && 8 * j < channels)
      skip = *reinterpret_cast<const float2*>(of_channels + 8 * j);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint32_t of_y = of_dy[j / 2][j % 2 * 2 + r];
      u[j][2 * r] = fmaf(delta[r], u[j][2 * r], skip.x * low_bf16(of_y));
      u[j][2 * r + 1] = fmaf(delta[r], u[j][2 * r + 1], skip.y * high_bf16(of_y));
    }
  }
}

// The teams' parts of dB and dC meet, and pairs of tokens are added: the first team finishes dC, the second dB.
template <int NT>
__device__ inline void finish_set(const Gradient& w, const Room<NT>& room, float (&dB)[NT][8][4],
                                  float (&dC)[NT][8][4], float (&sum_DK)[8][4], int64_t set,
                                  int64_t row, int valid, int team, int thread, int t0) {
  const int lane = lane_of(), g = lane / 4, t2 = lane % 4 * 2;
  unsigned char* const meeting = room.C + Room<NT>::kState;
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
        cuda::product<true, true>(dB[i], of_DK[k],
                                  cuda::further(cuda::tile_at(room.C), i * kTileBytes + 2048 * k));
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
        cuda::product<true, true, true>(
            dC[i], cuda::further(columns_of_DK, 2048 * k),
            cuda::further(cuda::tile_at(room.B), i * kTileBytes + 2048 * k));
    cuda::commit_products();
#pragma unroll
    for (int i = 0; i < NT; ++i) cuda::wait_for_products<0>(dC[i]);
    put_sums(w, w.dC, set, row, valid, t0, 0, reinterpret_cast<float(&)[8 * NT][4]>(dC));
  }
}
#endif

template <int NT>
__global__ void __launch_bounds__(kThreadsOfBlock, 1) warpgroup_gradient_kernel(const Gradient w) {
#if KRAIT_HOPPER
  extern __shared__ __align__(1024) unsigned char memory[];
  constexpr int NP = 64 * NT;
  const CudaProblem& p = w.p;
  const int team = of_warp(static_cast<int>(threadIdx.x) / kTeam);
  const int thread = static_cast<int>(threadIdx.x) % kTeam, strip = of_warp(thread / 32);
  const int lane = lane_of(), g = lane / 4, t0 = 16 * strip;
  const Room<NT> room(memory, team);
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
  SliceReader<NT> reader(w, room, chunk, first_head, team, thread);
  const auto finish_head = [&](int head) {
    finish(w, reader.steps_of(head), room.dots[head / kTeams % 2], first_head + head, row, valid,
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
    reader.bring(0), reader.bring_dS();
    cuda::wait_for_copies<1>();
  } else {
    cuda::wait_for_copies<0>();
  }
  cuda::show_to_products();
  __syncthreads();
  const uint64_t of_B = cuda::tile_at(room.B), of_C = cuda::tile_at(room.C);
  if (team == 0) put_G<NT>(room.G, of_B, of_C, strip);
  __syncthreads();

  float sum_DK[8][4] = {}, dB[NT][8][4] = {}, dC[NT][8][4] = {};
#pragma unroll 1
  for (int slice = 0, head = team, p0 = 0; slice < slices; ++slice) {
    cuda::wait_for_copies<0>();
    cuda::show_to_products();
    cuda::sync_warpgroup(team);
    if (slice + 1 < slices) reader.bring(slice + 1);
    cuda::wait_for_phase(room.of_state + slice % 2, slice / 2 % 2);
    cuda::wait_for_phase(room.of_dS, slice % 2);
    const Slice of = reader.at(slice, head, p0);
    const uint64_t of_x = cuda::tile_at(of.x), of_dy = cuda::tile_at(of.dy);
    const uint64_t of_S = cuda::tile_at(of.S), of_dS = cuda::tile_at(of.dS);
    const RawSteps& steps = reader.steps_of(head);
    HeadDots& dots = room.dots[head / kTeams % 2];

    float K[8][4];  // (dy xᵀ)ᵀ
    cuda::begin_products();
    rows_times_rows<1>(K, of_x, of_dy);
    cuda::commit_products();
    if (!of.again && strip == 3 && head >= kTeams) finish_head(head - kTeams);
    const float2 step[2] = {steps.steps[t0 + g], steps.steps[t0 + g + 8]};
    const float delta[2] = {step[0].x, step[1].x}, log2_s[2] = {step[0].y, step[1].y};
    dot_states<NT>(dots, of.S, of.dS, strip, of.again);
    uint32_t scores[4][4];  // D G
    cuda::wait_for_products<0>(K);
    add_pairs(sum_DK, scores, K, room.G, steps, delta, log2_s, dots, strip, of.again);

    const float all = steps.steps[kQ - 1].y;
    const float after[2] = {cuda::exp2_fast(all - log2_s[0]), cuda::exp2_fast(all - log2_s[1])};
    {
      float u[8][4];  // to the state behind the chunk, and to y within it; with it dx
      cuda::begin_products();
      rows_times_rows<NT>(u, of_B, of_dS);
      cuda::commit_products();
      uint32_t of_token[4][4];
      load_rows(of_token, of.x, t0);
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
      keep_rows(dots.end, t0, end, of.again);
      cuda::wait_for_products<0>(u);
      dot_rows(whole, u, of_token);
      keep_rows(dots.u, t0, whole, of.again);
      if (w.dx.data) {
        load_rows(of_token, of.dy, t0);
        add_skip(u, of_token, delta, p, steps.D, (first_head + head) * P + p0, of.channels);
        put_rows(w.dx, row, valid, t0, reader.column_of(head, p0), of.channels, u);
      }
    }
    if (p.D_per_channel && w.sums && thread < of.channels) {
      float sum = 0;
      for (int t = 0; t < kQ; ++t) {
        const int at = in_tile(t, thread / 8) + thread % 8 * 2;
        sum = fmaf(static_cast<float>(*reinterpret_cast<const bf16*>(of.dy + at)),
                   static_cast<float>(*reinterpret_cast<const bf16*>(of.x + at)), sum);
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
    if (slice + 1 < slices) reader.bring_dS();
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
      keep_rows(dots.start, t0, start, of.again);
    }
    p0 += kP;
    if (p0 >= P) p0 = 0, head += kTeams;
  }

  __syncthreads();
  if (slices > 0 && strip == 3) finish_head((heads - 1 - team) / kTeams * kTeams + team);
  finish_set(w, room, dB, dC, sum_DK, set, row, valid, team, thread, t0);
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
