// selective_scan forward on NVIDIA GPUs. The floor is the exponentials, 16 a cycle and multiprocessor: one for
// each (t, e, n), two for each (t, e). See cuda_device.cuh for who does what.
#include "krait/ops/selective_scan/cuda_device.cuh"
#include "krait/ops/selective_scan/cuda_forward_bf16.h"

namespace krait::ops::scan {
namespace {

using cuda::ceil_div;

template <class S>
struct ForwardTile {
  float2 row[S::kTile][S::kChannels];  // delta, delta u; then y in x
  float bc[S::kTile * S::kRow];
};

template <class S>
struct ForwardMemory {
  ForwardTile<S> tile[2];
  uint64_t meeting;
};

// What a helping thread does: the next tile, from memory to where the tile before last was, and that one's y to
// memory. Loads run ahead of their use: a whole tile where a thread has few rows, a few rows otherwise.
template <class S>
struct Helper {
  static constexpr int kBatch = S::kPasses < 2 ? S::kPasses : 2;
  using BC = StagedBC<S>;
  static constexpr bool kAhead = S::kPasses == kBatch && BC::kPasses == BC::kBatch;
  struct Rows4 {
    Quad u[kBatch], dt[kBatch], u_before[kBatch], z_before[kBatch];
  };
  const CudaForward& w;
  const Place& place;
  const Span& s;
  const int64_t tiles;
  const int helper, quad, first_row,
      valid;  // of four channels: index in the block; row of a tile; those that exist
  const int64_t column;
  float bias[4], D[4];

  __device__ Helper(const CudaForward& w_, const Place& place_, const Span& s_, int64_t tiles_,
                    int helper_)
      : w(w_),
        place(place_),
        s(s_),
        tiles(tiles_),
        helper(helper_),
        quad(helper_ % S::kQuads),
        first_row(helper_ / S::kQuads < S::kHelperRows ? helper_ / S::kQuads : S::kTile),
        valid(place_.channels - helper_ % S::kQuads * 4),
        column(place_.first + helper_ % S::kQuads * 4) {
    const CudaProblem& p = w.p;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool there = i < valid;
      bias[i] = there && p.dt_bias ? p.dt_bias[column + i] : 0.0f;
      D[i] = there && p.D ? p.D[column + i] : 0.0f;
    }
  }

  __device__ void run(ForwardTile<S>* tile, Meeting meeting) {
    Rows4 rows;
    BC bc;
    if constexpr (kAhead) {
      bc.load(w.p, place, s, 0, helper, 0);
      rows = load(0, 0);
    }
    for (int64_t i = 0; i < tiles + 2; ++i) {
      ForwardTile<S>& at = tile[i & 1];
      if constexpr (kAhead) {
        const BC bc_now = bc;
        const Rows4 now = rows;
        bc.load(w.p, place, s, (i + 1) * S::kTile, helper, 0);
        rows = load(i + 1, 0);
        bc_now.store(w.p, helper, 0, at.bc);
        process(i, 0, now, at);
      } else {
        for (int j = 0; j < BC::kPasses; j += BC::kBatch) {
          bc.load(w.p, place, s, i * S::kTile, helper, j);
          if (j == 0) rows = load(i, 0);
          bc.store(w.p, helper, j, at.bc);
        }
        for (int j = 0; j < S::kPasses; j += kBatch) {
          const Rows4 now = rows;
          if (j + kBatch < S::kPasses) rows = load(i, j + kBatch);
          process(i, j, now, at);
        }
      }
      if (i < tiles + 1) meeting.wait();
    }
  }

 private:
  // Rows of the tile that exist, counted from the row of pass `first` on.
  __device__ int rows_left(int64_t tile, int first) const {
    if (tile < 0) return 0;
    const int64_t left = s.tokens - tile * S::kTile;
    return static_cast<int>(left < S::kTile ? left : S::kTile) - first_row - first * S::kHelperRows;
  }
  __device__ char* row(const CudaRows& r, int64_t tile, int first) const {
    const int64_t token = s.begin + tile * S::kTile + first_row + first * S::kHelperRows;
    return element(r, r.bf16, token, column);
  }
  __device__ int64_t step(const CudaRows& r) const {
    return bytes_of_rows(r, r.bf16, S::kHelperRows);
  }

  __device__ Rows4 load(int64_t tile, int first) const {
    const CudaProblem& p = w.p;
    Rows4 r;
    const char *u = row(p.u, tile, first), *dt = row(p.dt, tile, first);
    const char *u_before = row(p.u, tile - 2, first), *z_before = row(p.z, tile - 2, first);
    const int left = rows_left(tile, first), left_before = rows_left(tile - 2, first);
    const int valid_z = p.z.data ? valid : 0;
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const bool there = j * S::kHelperRows < left, there_before = j * S::kHelperRows < left_before;
      r.u[j] = load_quad<false>(p.u, u + j * step(p.u), there ? valid : 0);
      r.dt[j] = load_quad<false>(p.dt, dt + j * step(p.dt), there ? valid : 0);
      r.u_before[j] = load_quad<false>(p.u, u_before + j * step(p.u), there_before ? valid : 0);
      r.z_before[j] = load_quad<false>(p.z, z_before + j * step(p.z), there_before ? valid_z : 0);
    }
    if (!kAhead && quad % 4 == 0 && valid > 0) {  // one of a sector
      const int left_next = rows_left(tile + 1, first);
      const char *u_next = row(p.u, tile + 1, first), *dt_next = row(p.dt, tile + 1, first);
      const char* z = row(p.z, tile, first);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (j * S::kHelperRows >= left_next) break;
        prefetch(u_next + j * step(p.u));
        prefetch(dt_next + j * step(p.dt));
        if (p.z.data) prefetch(z + j * step(p.z));
      }
    }
    return r;
  }

  // Elements side by side, so that their chains of operations overlap.
  __device__ void process(int64_t tile, int first, const Rows4& r, ForwardTile<S>& at) const {
    const CudaProblem& p = w.p;
    const int t0 = first_row + first * S::kHelperRows, left = rows_left(tile, first);
    const int inside = S::kTile - t0;  // rows of any tile from t0 on
    if (inside <= 0) return;           // more helpers than rows
    float y[kBatch][4], u[kBatch][4], z[kBatch][4];
    if (tile >= 2) {
      const int left_before = rows_left(tile - 2, first);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int t = j * S::kHelperRows < inside ? t0 + j * S::kHelperRows : t0;
        const float4* slot = reinterpret_cast<const float4*>(&at.row[t][quad * 4]);
        const float4 a = slot[0], b = slot[1];
        y[j][0] = a.x, y[j][1] = a.z, y[j][2] = b.x, y[j][3] = b.z;
        to_floats<false>(r.u_before[j], p.u.bf16, u[j]);
        to_floats<false>(r.z_before[j], p.z.bf16, z[j]);
#pragma unroll
        for (int i = 0; i < 4; ++i) y[j][i] = fmaf(D[i], u[j][i], y[j][i]);
      }
      if (p.z.data) {
#pragma unroll
        for (int j = 0; j < kBatch; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i) y[j][i] *= z[j][i] * sigmoid<false>(z[j][i]);
      }
      char* to = row(w.y, tile - 2, first);
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
        store_quad<false>(w.y, to + j * step(w.y), j * S::kHelperRows < left_before ? valid : 0,
                          y[j]);
    }
    if (tile >= tiles) return;
    float(&delta)[kBatch][4] = z;
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      to_floats<false>(r.u[j], p.u.bf16, u[j]);
      to_floats<false>(r.dt[j], p.dt.bf16, delta[j]);
#pragma unroll
      for (int i = 0; i < 4; ++i) delta[j][i] += bias[i];
    }
    if (p.softplus) {
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float e;
          delta[j][i] = softplus<false>(delta[j][i], e);
        }
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (j * S::kHelperRows >= inside) return;
      const int there = j * S::kHelperRows < left ? valid : 0;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (i >= there) delta[j][i] = 0;  // steps beyond the end change nothing
      float4* slot = reinterpret_cast<float4*>(&at.row[t0 + j * S::kHelperRows][quad * 4]);
      slot[0] = {delta[j][0], delta[j][0] * u[j][0], delta[j][1], delta[j][1] * u[j][1]};
      slot[1] = {delta[j][2], delta[j][2] * u[j][2], delta[j][3], delta[j][3] * u[j][3]};
    }
  }
};

// Operands of a few steps.
template <class S, int kSteps>
struct Operands {
  float b[kSteps][S::NS], c[kSteps][S::NS], dx[kSteps][2 * S::CPT];

  __device__ void load(const ForwardTile<S>& at, int t0, int channel, int l) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      load_bc<S>(at.bc, t0 + s, l, b[s], c[s]);
      if constexpr (S::CPT == 2) {
        const float4 v = *reinterpret_cast<const float4*>(&at.row[t0 + s][channel]);
        dx[s][0] = v.x, dx[s][1] = v.y, dx[s][2] = v.z, dx[s][3] = v.w;
      } else {
        const float2 v = at.row[t0 + s][channel];
        dx[s][0] = v.x, dx[s][1] = v.y;
      }
    }
  }
};

// What a scanning thread does. The sums over lanes of a few steps are taken while the next few are computed.
template <class S, bool kConstant>
struct Scanner {
  static constexpr int kSteps = S::LPC < 8 ? S::LPC : 8;  // summed over lanes together
  static constexpr int kSharers = S::LPC / kSteps;        // lanes that hold the same sum then
  static constexpr bool kAhead = S::kOwnScheduler;        // operands are loaded one round ahead
  int channel, lane;
  bool constant_B, constant_C;
  float A[S::CPT][S::NS], B[S::CPT][S::NS], C[S::CPT][S::NS], h[S::CPT][S::NS];

  // All of kCount steps, which a tile has also where the sequence ends before: those change nothing.
  template <int kCount>
  __device__ void part(ForwardTile<S>& at, int first) {
    constexpr int kRounds = kCount / kSteps;
    const int l = lane % S::LPC;
    Operands<S, kSteps> o[2];
    float y[2][kSteps * S::CPT];
    o[0].load(at, first, channel, l);
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      if (kAhead && r + 1 < kRounds) o[(r + 1) % 2].load(at, first + (r + 1) * kSteps, channel, l);
      step(o[r % 2], y[r % 2]);
      if (r > 0) put(at, first + (r - 1) * kSteps, y[(r - 1) % 2]);
      if (!kAhead && r + 1 < kRounds) o[(r + 1) % 2].load(at, first + (r + 1) * kSteps, channel, l);
    }
    put(at, first + (kRounds - 1) * kSteps, y[(kRounds - 1) % 2]);
  }

 private:
  __device__ void step(const Operands<S, kSteps>& o, float (&y)[kSteps * S::CPT]) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
#pragma unroll
      for (int i = 0; i < S::CPT; ++i) {
        float sum = 0;
#pragma unroll
        for (int k = 0; k < S::NS; ++k) {
          const float bk = kConstant && constant_B ? B[i][k] : o.b[s][k];
          const float ck = kConstant && constant_C ? C[i][k] : o.c[s][k];
          const float a = exp2_of<false>(o.dx[s][2 * i] * A[i][k]);
          h[i][k] = fmaf(a, h[i][k], o.dx[s][2 * i + 1] * bk);
          sum = k == 0 ? ck * h[i][k] : fmaf(ck, h[i][k], sum);
        }
        y[s * S::CPT + i] = sum;
      }
  }
  __device__ void put(ForwardTile<S>& at, int t0, float (&y)[kSteps * S::CPT]) const {
    const int l = lane % S::LPC;
    sum_transposed<S::LPC, 1>(y, lane);
    __syncwarp();  // y takes the place of what the warp's lanes have read; shuffles do not order memory
    if (kSharers == 1 || l % kSharers == 0) {
#pragma unroll
      for (int i = 0; i < S::CPT; ++i) at.row[t0 + l / kSharers][channel + i].x = y[i];
    }
  }
};

template <class S, bool kConstant, int kBlocks>
__global__ void __launch_bounds__(S::kThreads, kBlocks)
    scan_forward(const __grid_constant__ CudaForward w) {
  extern __shared__ float4 shared[];
  auto& memory = *reinterpret_cast<ForwardMemory<S>*>(shared);
  const CudaProblem& p = w.p;
  const int64_t of_group = blocks_of_group<S>(p), blocks = of_group * p.G;
  const int64_t block = blockIdx.x % blocks;
  const Span s = sequence(p, blockIdx.x / blocks);
  const Place place = place_of<S>(p, block / of_group, block % of_group);
  const int64_t tiles = ceil_div(s.tokens, S::kTile);
  const int warp = warp_index(), lane = threadIdx.x % 32, role = S::role(warp);
  Meeting meeting{&memory.meeting};
  meeting.start<S>();
  if (role == S::kIdle) return;
  if (role < 0) {
    Helper<S>(w, place, s, tiles, ~role * 32 + lane).run(memory.tile, meeting);
    return;
  }
  Scanner<S, kConstant> scan;
  scan.lane = lane, scan.channel = (role * (32 / S::LPC) + lane / S::LPC) * S::CPT;
  scan.constant_B = p.constant_B, scan.constant_C = p.constant_C;
  const int n0 = lane % S::LPC * S::NS, left = place.channels - scan.channel;
  const int64_t e = place.first + scan.channel, states = p.E * p.N;
  load_states<S>(p.A, p.N, e, left, n0, scan.A);
#pragma unroll
  for (int c = 0; c < S::CPT; ++c)
#pragma unroll
    for (int k = 0; k < S::NS; ++k) scan.A[c][k] = scaled_A(scan.A[c][k], p.a_is_log);
  if constexpr (kConstant) {
    load_states<S>(p.constant_B ? static_cast<const float*>(p.B.data) : nullptr, p.N, e, left, n0,
                   scan.B);
    load_states<S>(p.constant_C ? static_cast<const float*>(p.C.data) : nullptr, p.N, e, left, n0,
                   scan.C);
  }
  load_states<S>(p.state_in && s.in >= 0 ? p.state_in + s.in * states : nullptr, p.N, e, left, n0,
                 scan.h);
  constexpr int kInterval = static_cast<int>(cuda_saved_interval(S::NP));
  static_assert(kInterval % S::kTile == 0 || S::kTile % kInterval == 0);
  constexpr int kShortest = 8;  // steps, where so few are left
  constexpr int kPart = kInterval < S::kTile ? kInterval : S::kTile;
  float* saved = w.saved ? w.saved + (s.begin / kInterval) * states : nullptr;
  meeting.wait();
  for (int64_t i = 0; i < tiles; ++i) {
    for (int part = 0; part < S::kTile; part += kPart) {
      const int64_t t = i * S::kTile + part;
      if (t >= s.tokens) break;
      if (saved && t > 0 && t % kInterval == 0)
        store_states<S>(scan.h, p.N, e, left, n0, saved + (t / kInterval - 1) * states);
      if (s.tokens - t > kShortest) {
        scan.template part<kPart>(memory.tile[i & 1], part);
      } else {
        scan.template part<kShortest>(memory.tile[i & 1], part);
      }
    }
    meeting.wait();
  }
  if (w.state_out && s.out >= 0)
    store_states<S>(scan.h, p.N, e, left, n0, w.state_out + s.out * states);
}

template <class S, bool kConstant, int kBlocks>
void launch(const CudaForward& w, void* stream) {
  const int64_t grid = w.p.sequences * w.p.G * blocks_of_group<S>(w.p);
  constexpr int bytes = sizeof(ForwardMemory<S>);
  static_assert(kBlocks * bytes <= 227 * 1024);
  cudaFuncSetAttribute(scan_forward<S, kConstant, kBlocks>,
                       cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  scan_forward<S, kConstant, kBlocks>
      <<<static_cast<unsigned>(grid), S::kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(w);
  cuda::check_launch("selective_scan");
}

// Lanes a channel, states a lane, channels a thread; scanning and helping warps; steps of a tile.
using Few = Layout<8, 2, 1, 3, 3, true, 64>;
using Some = Layout<4, 4, 1, 4, 4, false, 32>;
using Many = Layout<4, 4, 2, 4, 4, false, 32>;

template <bool kConstant>
void launch_any(const CudaForward& w, void* stream) {
  if (w.p.N <= 16) return launch<Some, kConstant, 2>(w, stream);
  if (w.p.N <= 32) return launch<Layout<8, 4, 1, 4, 4, false, 32>, kConstant, 2>(w, stream);
  if (w.p.N <= 64) return launch<Layout<16, 4, 1, 4, 2, false, 32>, kConstant, 2>(w, stream);
  if (w.p.N <= 128) return launch<Layout<32, 4, 1, 4, 2, false, 16>, kConstant, 2>(w, stream);
  return launch<Layout<32, 8, 1, 4, 2, false, 16>, kConstant, 1>(w, stream);
}

void launch_for_16(const CudaForward& w, void* stream) {
  const CudaProblem& p = w.p;
  const int64_t few = rounds<Few>(p, p.sequences), some = rounds<Some>(p, p.sequences),
                many = rounds<Many>(p, p.sequences);
  if (many <= some && many <= few) return launch<Many, false, 3>(w, stream);
  if (some <= few) return launch<Some, false, 3>(w, stream);
  launch<Few, false, 1>(w, stream);
}

}  // namespace

int64_t cuda_forward_scratch(const CudaProblem& p) {
  return p.N <= 16 ? cuda_forward_bf16_scratch(p) : 0;
}

void cuda_scan_forward(const CudaForward& unaligned, void* stream) {
  CudaForward w = unaligned;
  const bool fast = align(w.p, {&w.y});
  const CudaProblem& p = w.p;
  if (p.sequences == 0 || p.E == 0 || p.N == 0) return;
  if (!p.begin && p.L == 1) return cuda_scan_step(w, stream);
  if (p.constant_B || p.constant_C) return launch_any<true>(w, stream);
  if (p.N > 16) return launch_any<false>(w, stream);
  fast ? cuda_scan_forward_bf16(w, stream) : launch_for_16(w, stream);
}

}  // namespace krait::ops::scan
