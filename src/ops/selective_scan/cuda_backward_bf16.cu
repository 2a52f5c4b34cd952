// selective_scan backward on NVIDIA GPUs for bfloat16 rows and up to 16 states: training. As cuda_backward.cu;
// the sums of dB and dC over channels are products on tensor cores, whose operands have 11 bits, and long
// sequences are cut into segments.
#include <algorithm>

#include "krait/ops/selective_scan/cuda_backward_bf16.cuh"
#include "krait/ops/selective_scan/cuda_backward_bf16.h"
#include "krait/ops/selective_scan/cuda_segments.h"

namespace krait::ops::scan {
namespace {

// The states before the next tile, on their way while a thread walks through one: in registers or, where those would be
// spilled, which waits for them, to its place in shared memory.
template <class S>
struct NextStates {
  static constexpr bool kShared = S::kMoreRegisters;
  float4* shared;
  float h[4];

  __device__ void load(const StatePlace& at, const float* from) {
    if (kShared && S::kWhole && from) {
      cuda::copy_async<16>(shared, from + at.at);
      cuda::commit_copies();
    } else {
      at.load(from, h);
      if constexpr (kShared) *shared = {h[0], h[1], h[2], h[3]};
    }
  }
  __device__ void take(float (&to)[4]) const {
    if constexpr (kShared) {
      cuda::wait_for_copies<0>();
      to_floats(*shared, to);
    } else {
#pragma unroll
      for (int n = 0; n < 4; ++n) to[n] = h[n];
    }
  }
};

template <class S, bool kExact>
__device__ inline void scan_states(const Work& k, const Place& place, int64_t piece, int role,
                                   int lane, BackwardMemory<S>& memory) {
  const CudaBackward& w = k.w;
  const CudaProblem& p = w.p;
  Adjoint<S, kExact> a;
  a.warp = role, a.lane = lane, a.channel = role * 8 + lane % 8;
  const StatePlace at(p, place, a.channel, lane / 8 * 4);
  const int64_t states = p.E * p.N;
  at.load(p.A, a.A);
#pragma unroll
  for (int n = 0; n < 4; ++n) a.A[n] = scaled_A(a.A[n], p.a_is_log);
  at.load(k.last ? nullptr : k.dA + piece * states, a.dA);
  unsigned count = 0;
  for (int64_t i = first_of(k, piece); i < k.units() && piece_of(k, i) == piece; ++i) {
    const Unit u = unit_of<S>(k, i);
    const int64_t first_tile = u.from / S::kTile;
    const auto before = [&](int64_t tile) -> const float* {  // the state before it
      if (first_tile + tile > 0)
        return w.saved + (u.s.begin / S::kTile + first_tile + tile - 1) * states;
      return p.state_in && u.s.in >= 0 ? p.state_in + u.s.in * states : nullptr;
    };
    const float* dstate_out =
        w.dstate_out && u.s.out >= 0 ? w.dstate_out + u.s.out * states : nullptr;
    at.load(k.adjoints ? k.adjoints + i * states
            : k.last   ? dstate_out
                       : k.dstates + u.n * states,
            a.dh);
    NextStates<S> next;
    if constexpr (NextStates<S>::kShared) next.shared = &memory.next[role * 32 + lane];
    if (u.tiles > 0) next.load(at, before(u.tiles - 1));
    for (int64_t tile = u.tiles - 1; tile >= 0; --tile) {
      next.take(a.h);
      if (tile > 0) next.load(at, before(tile - 1));
      a.tile(memory, count++);
    }
    if (k.dstates && u.segment == 0) at.store(a.dh, k.dstates + u.n * states);
  }
  at.store(a.dA, k.dA + piece * states);
}

// 96 a thread where the block starts, in all.
template <class S, bool kScanning>
__device__ inline void set_registers() {
#if KRAIT_HOPPER
  if constexpr (S::kMoreRegisters && kScanning)
    asm volatile("setmaxnreg.inc.sync.aligned.u32 112;");
  if constexpr (S::kMoreRegisters && !kScanning)
    asm volatile("setmaxnreg.dec.sync.aligned.u32 72;");
#endif
}

template <class S, bool kExact>
__global__ void __launch_bounds__(S::kThreads, 1)
    scan_backward_bf16(const __grid_constant__ Work k) {
  extern __shared__ float4 shared[];
  // The memory and the lane by shuffles, or the compiler finds them again in every loop.
  const unsigned here =
      __shfl_sync(~0u, static_cast<unsigned>(__cvta_generic_to_shared(shared)), 0);
  auto& memory = *static_cast<BackwardMemory<S>*>(__cvta_shared_to_generic(here));
  const CudaProblem& p = k.w.p;
  const int64_t all = k.blocks * p.G, of_all = blockIdx.x % all, piece = blockIdx.x / all;
  const int64_t block = of_all % k.blocks;
  const Place place = place_of<S>(p, of_all / k.blocks, block);
  const int warp = warp_index(),
            lane = __shfl_sync(~0u, static_cast<int>(threadIdx.x % 32), threadIdx.x % 32),
            role = S::role(warp);
  if (threadIdx.x == 0) memory.start_barriers();
  __syncthreads();
  if (role >= 0) {
    set_registers<S, true>();
    scan_states<S, kExact>(k, place, piece, role, lane, memory);
  } else {
    set_registers<S, false>();
    Helper<S> h(k, place, memory, ~role * 32 + lane, block);
    unsigned before = 0;
    for (int64_t i = first_of(k, piece); i < k.units() && piece_of(k, i) == piece; ++i) {
      const Unit u = unit_of<S>(k, i);
      for (int step = 0; u.tiles > 0 && step < u.tiles + 2; ++step) h.step(u, step, before);
      before += static_cast<unsigned>(u.tiles);
    }
    h.sum_over_rows(piece);
  }
}

template <class S>
Work plan(const CudaProblem& p, float* scratch, CudaSegments& segments, int64_t* floats) {
  Memory at{scratch};
  Work k = plan_spans<S>(p, at);
  segments = cuda_segments(p, k.span, p.sequences * p.G * k.blocks, S::kTile, kBackwardCosts);
  k.segments = segments.segments, k.segment = segments.segment;
  k.pieces = std::clamp<int64_t>(p.sequences * k.segments, 1, 64);
  take_sums(p, k, at);
  if (k.segments > 1) {
    float* const here = at.take(segments.floats(p));
    if (here) segments.place(p, here);
    k.adjoints = segments.at;
  }
  *floats = at.taken;
  return k;
}

template <class S>
void launch(const CudaBackward& w, void* stream) {
  int64_t floats = 0;
  CudaSegments segments;
  Work k = plan<S>(w.p, w.scratch, segments, &floats);
  k.w = w;
  if (S::kWhole && !w.y.data) k.w.y = w.dz;  // which is written after it: a branch costs more
  const auto narrow = [](const CudaRows& r) { return !r.data || r.bf16; };
  const auto kernel =
      narrow(w.dB) && narrow(w.dC) ? scan_backward_bf16<S, false> : scan_backward_bf16<S, true>;
  constexpr int bytes = sizeof(BackwardMemory<S>);
  static_assert(bytes <= 227 * 1024);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  in_spans<S>(k, stream, [&](const Work& span, cudaStream_t queue) {
    if (span.adjoints) {
      segments.from = span.from;
      cuda_adjoints_between(w.p, w.dy, segments, span.last ? w.dstate_out : span.dstates, span.last,
                            stream);
    }
    kernel<<<static_cast<unsigned>(span.pieces * w.p.G * span.blocks), S::kThreads, bytes, queue>>>(
        span);
  });
}

}  // namespace

// Whether a block may have the shared memory of one of Hopper.
static bool fits() {
  int device = 0, most = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return most >= static_cast<int>(sizeof(BackwardMemory<Shape16<12, true>>));
}

bool cuda_takes_bf16_backward(const CudaProblem& p) {
  return p.N <= 16 && p.softplus && p.z.data && fits();
}

int64_t cuda_backward_bf16_scratch(const CudaProblem& p) {
  return most_scratch([&]<class S>() {
    int64_t floats = 0;
    CudaSegments segments;
    plan<S>(p, nullptr, segments, &floats);
    return floats;
  });
}

void cuda_scan_backward_bf16(const CudaBackward& w, void* stream) {
  with_shape<8>(w.p, cuda_scan_channels(w.p, kBackwardCosts), !w.du.add && !w.ddt.add && !w.dz.add,
                [&]<class S>() { launch<S>(w, stream); });
}

}  // namespace krait::ops::scan
