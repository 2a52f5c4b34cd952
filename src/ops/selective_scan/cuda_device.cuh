// Private to selective_scan: what both CUDA kernels are made of.
//
// A block takes kChannels channels of one sequence through time, tile after tile of kTile steps. Scanning
// warps hold the states in registers; helping warps bring the next tile into shared memory, discretised,
// and finish the one before; one barrier a tile. Warp i is taken to run on scheduler i % 4 of its
// multiprocessor: where few channels leave one warp a scheduler, helpers sit on the scheduler without a
// scanning warp.
#pragma once
#include <cuda_bf16.h>

#include <initializer_list>

#include "krait/ops/selective_scan/cuda.h"
#include "krait/tensor/cuda/exponentials.cuh"
#include "krait/tensor/cuda/hopper.cuh"
#include "krait/tensor/cuda/math.h"

namespace krait::ops::scan {
namespace {

// LPC lanes share a channel, NS states of it each; a thread has CPT channels side by side.
template <int LPC_, int NS_, int CPT_, int ScanWarps, int HelperWarps, bool OwnScheduler, int Tile>
struct Layout {
  static constexpr int LPC = LPC_, NS = NS_, CPT = CPT_, kTile = Tile;
  static constexpr int NP = LPC * NS;  // states, padded
  static constexpr int kScanWarps = ScanWarps, kHelpers = HelperWarps * 32;
  static constexpr int kChannels = ScanWarps * (32 / LPC) * CPT;
  static constexpr int kQuads = kChannels / 4;  // groups of four channels, moved at once
  static constexpr bool kOwnScheduler = OwnScheduler;
  static constexpr int kThreads = OwnScheduler ? HelperWarps * 128 : (ScanWarps + HelperWarps) * 32;
  static constexpr int kRow = 2 * NP;  // floats of B and C of a step
  static constexpr int kHelperRows = kHelpers / kQuads;
  static constexpr int kPasses =
      (Tile + kHelperRows - 1) / kHelperRows;  // of the helpers over the rows
  static_assert(kChannels % 4 == 0 && (!OwnScheduler || ScanWarps == 3));

  // Index among the scanning (>= 0) or helping warps (~index); kIdle: neither.
  static constexpr int kIdle = 1 << 20;
  static __device__ int role(int warp) {
    if constexpr (OwnScheduler)
      return warp < 3 ? warp : warp % 4 == 3 ? ~(warp / 4) : kIdle;
    else
      return warp < ScanWarps ? warp : ~(warp - ScanWarps);
  }
};

// Where a block's scanning and helping warps meet, each in its own place of the program: a barrier in shared memory.
struct Meeting {
  uint64_t* barrier;
  unsigned phase = 0;

  template <class S>
  __device__ void start() const {
    if (threadIdx.x == 0) cuda::start_barrier(barrier, S::kScanWarps * 32 + S::kHelpers);
    __syncthreads();
  }
  __device__ void wait() {
    cuda::warp_arrives<32>(barrier);
    cuda::wait_for_phase(barrier, phase++ & 1);
  }
};

using cuda::prefetch, cuda::exp2_of, cuda::reciprocal, cuda::softplus, cuda::sigmoid,
    cuda::scaled_A, cuda::kLn2;

// Four neighbouring elements of a row as they lie in memory, so that loads can be in flight together.
struct Quad {
  uint4 bits = {};
};

// Element (token, column) of r. Where loads follow each other by whole rows, only the first is found this way.
__device__ inline char* element(const CudaRows& r, bool bf16, int64_t token, int64_t column) {
  return static_cast<char*>(r.data) + (token * r.stride + column) * (bf16 ? 2 : 4);
}

__device__ inline int64_t bytes_of_rows(const CudaRows& r, bool bf16, int rows) {
  return r.stride * (rows * (bf16 ? 2 : 4));
}

// The first `valid` of four, zero beyond. kFast: bfloat16, moved by fours, none or all of the four valid.
template <bool kFast>
__device__ inline Quad load_quad(const CudaRows& r, const char* at, int valid) {
  Quad q;
  if (valid <= 0) return q;
  if (kFast || (r.by4 && r.bf16 && valid >= 4)) {
    const uint2 v = __ldg(reinterpret_cast<const uint2*>(at));
    q.bits.x = v.x, q.bits.y = v.y;
  } else if (r.by4 && valid >= 4) {
    q.bits = __ldg(reinterpret_cast<const uint4*>(at));
  } else if (r.bf16) {
    const auto* p = reinterpret_cast<const unsigned short*>(at);
    q.bits.x = p[0];
    if (valid > 1) q.bits.x |= static_cast<unsigned>(p[1]) << 16;
    if (valid > 2) q.bits.y = p[2];
    if (valid > 3) q.bits.y |= static_cast<unsigned>(p[3]) << 16;
  } else {
    const auto* p = reinterpret_cast<const unsigned*>(at);
    q.bits.x = p[0];
    if (valid > 1) q.bits.y = p[1];
    if (valid > 2) q.bits.z = p[2];
    if (valid > 3) q.bits.w = p[3];
  }
  return q;
}

template <bool kFast>
__device__ inline void to_floats(const Quad& q, bool bf16, float (&x)[4]) {
  if (kFast || bf16) {
    x[0] = cuda::low_bf16(q.bits.x), x[1] = cuda::high_bf16(q.bits.x);
    x[2] = cuda::low_bf16(q.bits.y), x[3] = cuda::high_bf16(q.bits.y);
  } else {
    x[0] = __uint_as_float(q.bits.x), x[1] = __uint_as_float(q.bits.y);
    x[2] = __uint_as_float(q.bits.z), x[3] = __uint_as_float(q.bits.w);
  }
}

__device__ inline unsigned pack(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&v);
}

// kPlain: to rows that are there, in the place of what was.
template <bool kFast, bool kPlain = false>
__device__ inline void store_quad(const CudaRows& r, char* at, int valid, float (&x)[4]) {
  if (!kPlain && (!r.data || valid <= 0)) return;
  if (!kPlain && r.add) {
    float old[4];
    to_floats<kFast>(load_quad<kFast>(r, at, valid), r.bf16, old);
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] += old[i];
  }
  if (kFast || (r.by4 && r.bf16 && valid >= 4)) {
    *reinterpret_cast<uint2*>(at) = {pack(x[0], x[1]), pack(x[2], x[3])};
  } else if (r.by4 && valid >= 4) {
    *reinterpret_cast<float4*>(at) = {x[0], x[1], x[2], x[3]};
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i >= valid) break;
      if (r.bf16)
        reinterpret_cast<__nv_bfloat16*>(at)[i] = __float2bfloat16_rn(x[i]);
      else
        reinterpret_cast<float*>(at)[i] = x[i];
    }
  }
}

// Sums V values over the lanes that differ in the bits [Low, Low * Lanes): each lane is left with V / Lanes of
// the sums, from number (place of the lane) * V / Lanes on; with all of one sum where V < Lanes: number
// place / (Lanes / V).
template <int Lanes, int Low, int V>
__device__ inline void sum_transposed(float (&v)[V], int lane) {
  int n = V;
#pragma unroll
  for (int m = Lanes * Low / 2; m >= Low; m /= 2) {
    if (n > 1) {
      n /= 2;
      const bool upper = lane & m;
#pragma unroll
      for (int i = 0; i < V / 2; ++i)
        if (i < n) {
          const float send = upper ? v[i] : v[i + n], keep = upper ? v[i + n] : v[i];
          v[i] = keep + __shfl_xor_sync(~0u, send, m);
        }
    } else {
      v[0] += __shfl_xor_sync(~0u, v[0], m);
    }
  }
}

// Sequences are counted in the order of the rows.
__device__ inline int64_t begin_of(const CudaProblem& p, int64_t s) {
  if (!p.begin) return s * p.L;
  return p.reverse ? p.tokens - p.begin[p.sequences - s] : p.begin[s];
}

// Known to the compiler to be the same in all lanes.
__device__ inline int warp_index() {
  return __shfl_sync(~0u, static_cast<int>(threadIdx.x / 32), 0);
}

struct Span {
  int64_t begin, tokens;
  int64_t in, out;  // rows of the states, -1: none
};

__device__ inline Span sequence(const CudaProblem& p, int64_t s) {
  const int64_t row = p.row_of(s), begin = begin_of(p, s);
  if (!p.begin) return {begin, p.L, row, row};
  return {begin, begin_of(p, s + 1) - begin, p.row_in[row], p.row_out[row]};
}

// The channels of a block, of one group of B and C.
struct Place {
  int64_t group, first;
  int channels;
};

template <class S>
__host__ __device__ inline int64_t blocks_of_group(const CudaProblem& p) {
  return cuda::ceil_div(p.E / p.G, S::kChannels);
}

template <class S>
__device__ inline Place place_of(const CudaProblem& p, int64_t group, int64_t block) {
  const int64_t in_group = p.E / p.G, at = block * S::kChannels, left = in_group - at;
  return {group, group * in_group + at,
          static_cast<int>(left < 0              ? 0
                           : left < S::kChannels ? left
                                                 : S::kChannels)};
}

// Four of B or C of a step, from state n on, in shared memory: rows [lane of the channel][B: NS, C: NS].
template <class S>
__device__ inline void put_bc(float* row, int n, bool of_C, const float (&x)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i += S::NS < 4 ? S::NS : 4) {
    float* at = row + (n + i) / S::NS * 2 * S::NS + of_C * S::NS + (n + i) % S::NS;
    if constexpr (S::NS >= 4)
      *reinterpret_cast<float4*>(at) = {x[0], x[1], x[2], x[3]};
    else
      *reinterpret_cast<float2*>(at) = {x[i], x[i + 1]};
  }
}

// B and C of a tile on their way to shared memory, zero beyond the sequence and beyond N.
template <class S>
struct StagedBC {
  static constexpr int kQuadsOfN = S::NP / 4, kStep = S::kHelpers / kQuadsOfN;  // steps of one pass
  static_assert(S::kHelpers % kQuadsOfN == 0);
  static constexpr int kPasses = (S::kTile + kStep - 1) / kStep;
  static constexpr int kBatch = kPasses < 4 ? kPasses : 4;
  Quad b[kBatch], c[kBatch];

  __device__ void load(const CudaProblem& p, const Place& place, const Span& s, int64_t t0,
                       int helper, int first) {
    const int t = helper / kQuadsOfN + first * kStep, n = helper % kQuadsOfN * 4;
    const int left = static_cast<int>(s.tokens - t0 < S::kTile ? s.tokens - t0 : S::kTile) - t;
    const int valid = p.N > n ? static_cast<int>(p.N) - n : 0;
    const int64_t token = s.begin + t0 + t;
    const char* at_b = element(p.B, p.B.bf16, token, place.group * p.B.group + n);
    const char* at_c = element(p.C, p.C.bf16, token, place.group * p.C.group + n);
    const int64_t step_b = bytes_of_rows(p.B, p.B.bf16, kStep),
                  step_c = bytes_of_rows(p.C, p.C.bf16, kStep);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int there = j * kStep < left ? valid : 0;
      b[j] = load_quad<false>(p.B, at_b + j * step_b, p.constant_B ? 0 : there);
      c[j] = load_quad<false>(p.C, at_c + j * step_c, p.constant_C ? 0 : there);
    }
  }
  __device__ void store(const CudaProblem& p, int helper, int first, float* to) const {
    const int t = helper / kQuadsOfN + first * kStep, n = helper % kQuadsOfN * 4;
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (t + j * kStep >= S::kTile) return;
      float x[4];
      to_floats<false>(b[j], p.B.bf16, x);
      put_bc<S>(to + (t + j * kStep) * S::kRow, n, false, x);
      to_floats<false>(c[j], p.C.bf16, x);
      put_bc<S>(to + (t + j * kStep) * S::kRow, n, true, x);
    }
  }
};

// B and C of a step, from where put_bc puts them.
template <class S>
__device__ inline void load_bc(const float* rows, int t, int l, float (&b)[S::NS],
                               float (&c)[S::NS]) {
  const float* bc = rows + t * S::kRow + l * 2 * S::NS;
  if constexpr (S::NS == 2) {
    const float4 v = *reinterpret_cast<const float4*>(bc);
    b[0] = v.x, b[1] = v.y, c[0] = v.z, c[1] = v.w;
  } else {
#pragma unroll
    for (int k = 0; k < S::NS; k += 4) {
      const float4 v = *reinterpret_cast<const float4*>(bc + k);
      const float4 r = *reinterpret_cast<const float4*>(bc + S::NS + k);
      b[k] = v.x, b[k + 1] = v.y, b[k + 2] = v.z, b[k + 3] = v.w;
      c[k] = r.x, c[k + 1] = r.y, c[k + 2] = r.z, c[k + 3] = r.w;
    }
  }
}

// A number a (channel, state) pair of the thread, from a contiguous (E, N); zero beyond.
template <class S>
__device__ inline void load_states(const float* from, int64_t N, int64_t first_channel,
                                   int channels_left, int n0, float (&to)[S::CPT][S::NS]) {
#pragma unroll
  for (int c = 0; c < S::CPT; ++c)
#pragma unroll
    for (int k = 0; k < S::NS; ++k)
      to[c][k] =
          from && c < channels_left && n0 + k < N ? from[(first_channel + c) * N + n0 + k] : 0.0f;
}

template <class S>
__device__ inline void store_states(const float (&from)[S::CPT][S::NS], int64_t N,
                                    int64_t first_channel, int channels_left, int n0, float* to) {
#pragma unroll
  for (int c = 0; c < S::CPT; ++c)
#pragma unroll
    for (int k = 0; k < S::NS; ++k)
      if (c < channels_left && n0 + k < N) to[(first_channel + c) * N + n0 + k] = from[c][k];
}

inline bool by4(const CudaRows& r) {
  const int64_t bytes = r.bf16 ? 8 : 16;
  return reinterpret_cast<uintptr_t>(r.data) % bytes == 0 && r.stride % 4 == 0 && r.group % 4 == 0;
}

// Which of the rows can be moved by fours. True where all but B and C are bfloat16 and can.
inline bool align(CudaProblem& p, std::initializer_list<CudaRows*> others) {
  const bool channels = p.E / p.G % 4 == 0;
  bool fast = !p.constant_B && !p.constant_C;
  const auto look = [&](CudaRows& r) {
    r.by4 = channels && by4(r);
    if (r.data) fast = fast && r.by4 && r.bf16;
  };
  for (CudaRows* r : {&p.u, &p.dt, &p.z}) look(*r);
  for (CudaRows* r : others) look(*r);
  p.B.by4 = by4(p.B), p.C.by4 = by4(p.C);
  return fast;
}

constexpr int64_t kSchedulers = 528;  // of an H100 or H200

// Time of a kernel whose scanning warps hold S::NS * S::CPT states a lane, in units of one state: whole rounds.
template <class S>
int64_t rounds(const CudaProblem& p, int64_t sequences) {
  const int64_t warps = sequences * p.G * blocks_of_group<S>(p) * S::kScanWarps;
  return cuda::ceil_div(warps, kSchedulers) * S::NS * S::CPT;
}

}  // namespace
}  // namespace krait::ops::scan
