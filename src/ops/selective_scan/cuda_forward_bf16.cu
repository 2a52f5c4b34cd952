// selective_scan forward on NVIDIA GPUs for bfloat16 rows and up to 16 states; long sequences are cut into
// segments. The floor is the exponentials, 16 a cycle and multiprocessor: one for each (t, e, n), three for each
// (t, e).
#include "krait/ops/selective_scan/cuda_forward_bf16.cuh"
#include "krait/ops/selective_scan/cuda_forward_bf16.h"
#include "krait/ops/selective_scan/cuda_forward_few.cuh"
#include "krait/ops/selective_scan/cuda_forward_fewest.cuh"
#include "krait/ops/selective_scan/cuda_segments.h"

namespace krait::ops::scan {
namespace {

using cuda::ceil_div;

namespace many {

template <class S>
struct Tile {
  float4 rows[S::kTile / 2][S::kChannels];  // delta, delta u of two steps, at cell_of(channel)
  // Rows apart by a warp's channels, as banks: so many are written at once as lanes have a channel.
  float y[S::kTile][S::kChannels + 8];
  float bc[S::kTile * S::kRow];
};

template <class S>
struct Memory {
  Tile<S> tile[2];
  TileBarriers<S, 32> tiles;
  float bias[S::kChannels], D[S::kChannels];
};

// What a helping thread does: the next tile, from memory to where the tile before last was, and that one's y to
// memory.
template <class S>
struct Helper : HelperPlace<S> {
  using HelperPlace<S>::kQuads, HelperPlace<S>::kQuadBytes;
  using HelperPlace<S>::row, HelperPlace<S>::place;
  const CudaForward& w;
  Memory<S>& memory;
  const int helper;

  __device__ Helper(const CudaForward& w_, const Place& place_, Memory<S>& memory_, int helper_)
      : HelperPlace<S>(place_, helper_), w(w_), memory(memory_), helper(helper_) {
    const CudaProblem& p = w.p;
    for (int c = helper; c < S::kChannels; c += S::kHelpers) {
      const bool there = c < place.channels;
      memory.bias[c] = there && p.dt_bias ? p.dt_bias[place.first + c] : 0.0f;
      memory.D[c] = there && p.D ? p.D[place.first + c] : 0.0f;
    }
    for (int i = helper; !S::kWhole && i < S::kTile * S::kChannels; i += S::kHelpers) {
      const int c = i % S::kChannels;  // channels that do not exist
      if (c >= place.channels)
        memory.tile[i / (S::kTile / 2 * S::kChannels)]
            .rows[i / S::kChannels % (S::kTile / 2)][cell_of(c)] = {};
    }
    helpers_meet<S>();
  }

  __device__ void run(const Unit& u, int tiles) const {
    if (tiles == 0) return;
    const int begin = static_cast<int>(u.s.begin + u.from),
              last = static_cast<int>(u.s.tokens - u.from) - 1;
    AnyBC<S> bc_next;
    Inputs next;
    bc_next.load(w.p, place, u.s, u.from, helper);
    load(begin, row < last ? row : last, row < last ? row : last, next);
#pragma unroll 2
    for (int i = 0; i < tiles + 2; ++i) {
      Tile<S>& at = memory.tile[i & 1];
      const AnyBC<S> bc = bc_next;
      const Inputs now = next;
      // Asked for in this step, used in the next; what is not there to be read is read twice.
      const int t = i * S::kTile + row, after = min(t + S::kTile, last),
                before = max(t - S::kTile, row);
      if (i + 1 < tiles) bc_next.load(w.p, place, u.s, u.from + (i + 1) * S::kTile, helper);
      load(begin, after, min(before, last), next);
      if (i >= 2) memory.tiles.wait_until_done(i - 2);
      if (i >= 2 && t - 2 * S::kTile <= last) finish(begin + t - 2 * S::kTile, now, at);
      if (i < tiles) {
        bc.store(w.p, helper, at.bc);
        prepare(t <= last, now, at);
        memory.tiles.is_full(i);
      }
    }
  }

 private:
  using typename HelperPlace<S>::Quads;
  struct Inputs {
    Quads u, dt, u_before, z_before;  // of the next tile; of the tile before last
  };

  __device__ void load(int begin, int after, int before, Inputs& to) const {
    HelperPlace<S>::load(w.p.u, begin + after, to.u);
    HelperPlace<S>::load(w.p.dt, begin + after, to.dt);
    HelperPlace<S>::load(w.p.u, begin + before, to.u_before);
    if (w.p.z.data) HelperPlace<S>::load(w.p.z, begin + before, to.z_before);
  }

  __device__ void prepare(bool there, const Inputs& in, Tile<S>& at) const {
    const CudaProblem& p = w.p;
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      if (!this->exists(j)) break;
      const int c = this->channel(j);
      float bias[4], u[4], delta[4];
      to_floats(*reinterpret_cast<const float4*>(&memory.bias[c]), bias);
      to_floats<true>(in.u[j], true, u);
      to_floats<true>(in.dt[j], true, delta);
#pragma unroll
      for (int n = 0; n < 4; ++n) delta[n] += bias[n];
      if (p.softplus) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          float e;
          delta[n] = softplus<true>(delta[n], e);
        }
      }
#pragma unroll
      for (int n = 0; n < 4; ++n)
        if (!there) delta[n] = 0;  // steps beyond the end change nothing
#pragma unroll
      for (int n = 0; n < 4; ++n)
        reinterpret_cast<float2*>(&at.rows[row / 2][c + (n ^ this->lane / 2)])[row % 2] = {
            delta[n], delta[n] * u[n]};
    }
  }

  __device__ void finish(int token, const Inputs& in, const Tile<S>& at) const {
    char* const to_y = this->at(w.y, token);
#pragma unroll
    for (int j = 0; j < kQuads; ++j) {
      if (!this->exists(j)) break;
      const int c = this->channel(j);
      float D[4], u[4], z[4], y[4];
      to_floats(*reinterpret_cast<const float4*>(&memory.D[c]), D);
      to_floats<true>(in.u_before[j], true, u);
      to_floats<true>(in.z_before[j], true, z);
      to_floats(*reinterpret_cast<const float4*>(&at.y[row][c]), y);
#pragma unroll
      for (int n = 0; n < 4; ++n) y[n] = fmaf(D[n], u[n], y[n]);
      if (w.p.z.data) {
#pragma unroll
        for (int n = 0; n < 4; ++n) y[n] *= z[n] * sigmoid<true>(z[n]);
      }
      store_quad<true>(w.y, to_y + j * kQuadBytes, 4, y);
    }
  }
};

// What a scanning thread does. A few steps at a time, whose sums over the states are taken while the next few are
// computed.
template <class S>
struct Scanner {
  static constexpr int kSteps = S::LPC, NS = S::NS;
  const int lane, l, channel;  // l: which of a channel's lanes; channel: of the block
  float A[NS], h[NS];          // A: A log2(e)

  __device__ Scanner(int role, int lane_)
      : lane(lane_), l(states_of(lane_)), channel(role * 8 + channel_of(lane_)) {}

  // Calls before(i) with the states before tile i.
  template <class F>
  __device__ void walk(Memory<S>& memory, int64_t tiles, const F& before) {
    for (int64_t i = 0; i < tiles; ++i) {
      before(i);
      memory.tiles.wait_until_full(static_cast<unsigned>(i));
      tile(memory.tile[i & 1]);
      memory.tiles.is_done(static_cast<unsigned>(i));
    }
  }

 private:
  // Steps beyond the end of the sequence change nothing.
  __device__ void tile(Tile<S>& at) {
    constexpr int kRounds = S::kTile / kSteps;
    float y[2][kSteps];
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      step(at, r * kSteps, y[r % 2]);
      if (r > 0) put(at, (r - 1) * kSteps, y[(r - 1) % 2]);
    }
    put(at, (kRounds - 1) * kSteps, y[(kRounds - 1) % 2]);
  }
  __device__ void step(const Tile<S>& at, int t0, float (&y)[kSteps]) {
    float b[kSteps][NS], c[kSteps][NS];
    float2 v[kSteps];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      load_bc<S>(at.bc, t0 + s, l, b[s], c[s]);
      if (s % 2 == 1) continue;
      const float4 two = at.rows[(t0 + s) / 2][cell_of(channel)];
      v[s] = {two.x, two.y}, v[s + 1] = {two.z, two.w};
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
#pragma unroll
      for (int n = 0; n < NS; ++n) {
        h[n] = fmaf(exp2_of<true>(v[s].x * A[n]), h[n], v[s].y * b[s][n]);
        y[s] = n == 0 ? c[s][n] * h[n] : fmaf(c[s][n], h[n], y[s]);
      }
  }
  // Sums over a channel's lanes, of which lane l is left with that of step l.
  __device__ void put(Tile<S>& at, int t0, float (&y)[kSteps]) const {
    sum_transposed<2, 16>(y, lane);
    float half[2] = {y[0], y[1]};
    sum_transposed<2, 2>(half, lane);
    at.y[t0 + l][channel] = half[0];
  }
};

}  // namespace many

// Whole blocks of 16 channels, of which a lane has two states.
struct Sixteen : Layout<8, 2, 1, 4, 4, false, 32> {
  static constexpr bool kWhole = true;
};

// Where sequences are few, blocks of 16 and of 32 channels have ways of their own.
template <class S, class Fewest, class Few, class Many>
using ByChannels = std::conditional_t<S::kChannels == 16, Fewest,
                                      std::conditional_t<S::kChannels == 32, Few, Many>>;
template <class S>
using Memory = ByChannels<S, fewest::Memory<S>, few::Memory<S>, many::Memory<S>>;
template <class S>
using Helper = ByChannels<S, fewest::Helper<S>, few::Helper<S>, many::Helper<S>>;
template <class S>
using Scanner = ByChannels<S, fewest::Scanner<S>, few::Scanner<S>, many::Scanner<S>>;

template <class S>
__device__ inline void scan_states(const Work& k, const Place& place, const Unit& u, int64_t unit,
                                   int64_t tiles, int role, int lane, Memory<S>& memory) {
  const CudaForward& w = k.w;
  const CudaProblem& p = w.p;
  Scanner<S> scan(role, lane);
  const StatePlace at(p, place, scan.channel, scan.l * S::NS);
  const int64_t states = p.E * p.N;
  at.load(p.A, scan.A);
#pragma unroll
  for (int n = 0; n < S::NS; ++n) scan.A[n] = scaled_A(scan.A[n], p.a_is_log);
  const float* state_in = p.state_in && u.s.in >= 0 ? p.state_in + u.s.in * states : nullptr;
  at.load(k.states ? k.states + unit * states : state_in, scan.h);
  float* saved = w.saved ? w.saved + (u.s.begin / S::kTile + u.from / S::kTile) * states : nullptr;
  scan.walk(memory, tiles, [&](int64_t i) {
    if (saved && u.from + i > 0) at.store(scan.h, saved + (i - 1) * states);
  });
  if (w.state_out && u.s.out >= 0 && u.from + u.tokens == u.s.tokens &&
      (tiles > 0 || u.segment == 0))
    at.store(scan.h, w.state_out + u.s.out * states);
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    scan_forward_bf16(const __grid_constant__ Work k) {
  extern __shared__ float4 shared[];
  auto& memory = *reinterpret_cast<Memory<S>*>(shared);
  const CudaProblem& p = k.w.p;
  const int64_t of_group = blocks_of_group<S>(p), blocks = of_group * p.G;
  const int64_t block = blockIdx.x % blocks, index = blockIdx.x / blocks;
  const Unit u(k, index);
  const Place place = place_of<S>(p, block / of_group, block % of_group);
  const int64_t tiles = ceil_div(u.tokens, S::kTile);
  const int warp = warp_index(), lane = threadIdx.x % 32, role = S::role(warp);
  if (threadIdx.x == 0) memory.tiles.start();
  __syncthreads();
  if (role < 0)
    Helper<S>(k.w, place, memory, ~role * 32 + lane).run(u, static_cast<int>(tiles));
  else
    scan_states<S>(k, place, u, index, tiles, role, lane, memory);
}

// Whether all rows can be moved by eights.
bool by8(const CudaForward& w) {
  const CudaProblem& p = w.p;
  const auto can = [](const CudaRows& r) {
    return reinterpret_cast<uintptr_t>(r.data) % 16 == 0 && r.stride % 8 == 0 && r.group % 8 == 0;
  };
  return can(p.u) && can(p.dt) && can(p.z) && can(p.B) && can(p.C) && can(w.y);
}

template <class S>
CudaSegments cut(const CudaProblem& p) {
  if (S::kChannels == 16) return {};
  return cuda_segments(p, p.L, p.sequences * p.G * blocks_of_group<S>(p), S::kTile, kForwardCosts);
}

template <class S>
void launch(const CudaForward& w, void* stream) {
  const CudaProblem& p = w.p;
  CudaSegments segments = cut<S>(p);
  Work k{w, segments.segments, segments.segment, nullptr};
  if (k.segments == 1) k.segment = p.tokens;
  if (k.segments > 1) {
    segments.place(p, w.scratch);
    cuda_states_between(p, segments, stream);
    k.states = segments.at;
  }
  constexpr int bytes = sizeof(Memory<S>);
  cudaFuncSetAttribute(scan_forward_bf16<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  scan_forward_bf16<S>
      <<<static_cast<unsigned>(p.sequences * k.segments * p.G * blocks_of_group<S>(p)), S::kThreads,
         bytes, static_cast<cudaStream_t>(stream)>>>(k);
  cuda::check_launch("selective_scan");
}

}  // namespace

int64_t cuda_forward_bf16_scratch(const CudaProblem& p) {
  return most_scratch([&]<class S>() {
    const CudaSegments k = cut<S>(p);
    return k.segments > 1 ? k.floats(p) : 0;
  });
}

// Whether blocks of 16 channels, one a multiprocessor, walk through a sequence sooner than it takes to find what enters
// segments, as measured: 2,048 tokens of 1,536 or 2,048 channels.
static bool short_of_few(const CudaForward& w) {
  const CudaProblem& p = w.p;
  const int64_t blocks = p.sequences * p.E / 16;
  return p.L <= 2560 && blocks > 88 && blocks <= 132 && p.E / p.G % 16 == 0 && p.N == 16 &&
         p.B.bf16 && p.C.bf16 && by8(w);
}

void cuda_scan_forward_bf16(const CudaForward& w, void* stream) {
  if (short_of_few(w)) return launch<Sixteen>(w, stream);
  const int channels = cuda_scan_channels(w.p, kForwardCosts);
  with_shape<4>(w.p, channels, channels > 32 || by8(w), [&]<class S>() { launch<S>(w, stream); });
}

}  // namespace krait::ops::scan
