// Private to selective_scan: what the kernels for bfloat16 rows and up to 16 states share. One block a
// multiprocessor, of scanning and helping warps.
#pragma once
#include <algorithm>
#include <type_traits>

#include "krait/ops/selective_scan/cuda_device.cuh"
#include "krait/ops/selective_scan/cuda_segments.h"

namespace krait::ops::scan {
namespace {

// kWarps scanning warps of eight channels, of which a lane has four states of one. kWhole: every block has all of its
// channels, and they have 16 states; backward, gradients are not added to what was.
template <int kWarps, bool Whole, int kHelperWarps = 8>
struct Shape16 : Layout<4, 4, 1, kWarps, kHelperWarps, false, 32> {
  static constexpr bool kWhole = Whole;
  static constexpr bool kMoreRegisters =
      kWarps == 12;  // backward: helping warps leave some to the scanning ones
};

// Where a channel lies in a tile: those of a scanning warp stay together; each fourth of 32, which helpers reach at
// once, is in banks of its own.
__device__ inline int cell_of(int channel) { return channel ^ (channel / 8 % 4); }

// How a helping thread lies on a tile: a row, and of its channels every eighth group of four. What it reads from
// memory it asks for long before: the functions take all its groups at once.
template <class S>
struct HelperPlace {
  static constexpr int kLanes = 8, kQuads = S::kChannels / (4 * kLanes);
  static constexpr int kQuadBytes = kLanes * 4 * 2;  // from one group to the thread's next
  static_assert(S::kHelpers == S::kTile * kLanes);
  const Place& place;
  const int row, lane;
  const int64_t column;  // of the first group, in bytes

  __device__ HelperPlace(const Place& place_, int helper)
      : place(place_),
        row(helper / kLanes),
        lane(helper % kLanes),
        column((place_.first + lane * 4) * 2) {}
  __device__ int channel(int quad) const { return (lane + quad * kLanes) * 4; }
  __device__ bool exists(int quad) const { return S::kWhole || channel(quad) < place.channels; }
  __device__ char* at(const CudaRows& r, int token) const {
    int64_t bytes;  // one instruction, which the compiler does not find
    asm("mad.wide.s32 %0, %1, %2, %3;"
        : "=l"(bytes)
        : "r"(token), "r"(static_cast<int>(r.stride) * 2), "l"(column));
    return static_cast<char*>(r.data) + bytes;
  }
  using Quads = Quad[kQuads];
  // What softplus makes steps of zero of: such change nothing.
  static __device__ void put_minus_infinity(Quads& dt) {
#pragma unroll
    for (int j = 0; j < kQuads; ++j) dt[j].bits.x = dt[j].bits.y = 0xff80ff80u;
  }
  __device__ void load(const CudaRows& r, int token, Quads& to) const {
    const char* from = at(r, token);
#pragma unroll
    for (int j = 0; j < kQuads; ++j)
      to[j] = load_quad<true>(r, from + j * kQuadBytes, exists(j) ? 4 : 0);
  }
};

// B and C of a tile on their way to shared memory, as StagedBC, but of rows that can be moved by fours and have
// all 16 states. Rows beyond the end are those of the last token.
template <class S>
struct WholeBC {
  static constexpr int kEach = S::kTile * 4 * 2 / S::kHelpers;  // quads a thread
  uint2 bits[kEach];

  // Quad i of the thread: of C in the second half.
  static __device__ int index(int helper, int i) { return helper + i * S::kHelpers; }
  static __device__ bool of_C(int index) { return index >= S::kTile * 4; }
  static __device__ int step(int index) { return index / 4 % S::kTile; }

  __device__ void load(const CudaProblem& p, const Place& place, int begin, int t0, int last,
                       int helper) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = index(helper, i), t = t0 + step(at);
      const CudaRows& r = of_C(at) ? p.C : p.B;
      const int64_t column = place.group * r.group + at % 4 * 4;
      bits[i] = __ldg(reinterpret_cast<const uint2*>(
          static_cast<const char*>(r.data) +
          (int64_t{begin + (t < last ? t : last)} * static_cast<int>(r.stride) + column) * 2));
    }
  }
  __device__ void store(int helper, float* to) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = index(helper, i);
      Quad q;
      q.bits.x = bits[i].x, q.bits.y = bits[i].y;
      float x[4];
      to_floats<true>(q, true, x);
      put_bc<S>(to + step(at) * S::kRow, at % 4 * 4, of_C(at), x);
    }
  }
};

// Either of the two.
template <class S>
struct AnyBC : std::conditional_t<S::kWhole, WholeBC<S>, StagedBC<S>> {
  using Base = std::conditional_t<S::kWhole, WholeBC<S>, StagedBC<S>>;
  __device__ void load(const CudaProblem& p, const Place& place, const Span& s, int64_t t0,
                       int helper) {
    if constexpr (S::kWhole)
      Base::load(p, place, static_cast<int>(s.begin), static_cast<int>(t0),
                 static_cast<int>(s.tokens) - 1, helper);
    else
      Base::load(p, place, s, t0, helper, 0);
  }
  __device__ void store(const CudaProblem& p, int helper, float* to) const {
    if constexpr (S::kWhole)
      Base::store(helper, to);
    else
      Base::store(p, helper, 0, to);
  }
};

// Calls f with the shape of so many channels, where there are so few as 32 with kHelperWarps.
template <int kHelperWarps, class F>
void with_shape(const CudaProblem& p, int channels, bool plain, const F& f) {
  const auto with = [&]<int kWarps, int kHelping>() {
    const bool whole = plain && p.E / p.G % channels == 0 && p.N == 16 && p.B.bf16 && p.B.by4 &&
                       p.C.bf16 && p.C.by4;
    whole ? f.template operator()<Shape16<kWarps, true, kHelping>>()
          : f.template operator()<Shape16<kWarps, false, kHelping>>();
  };
  channels == 32   ? with.template operator()<4, kHelperWarps>()
  : channels == 64 ? with.template operator()<8, 8>()
                   : with.template operator()<12, 8>();
}

// The most floats of scratch that any of the shapes needs.
template <class F>
int64_t most_scratch(const F& of_shape) {
  return std::max({of_shape.template operator()<Shape16<4, true>>(),
                   of_shape.template operator()<Shape16<8, true>>(),
                   of_shape.template operator()<Shape16<12, true>>()});
}

__device__ inline void to_floats(const float4& v, float (&x)[4]) {
  x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}

// Helping warps prepare a tile, scanning warps walk through it; warps of either kind do not wait for each other. A
// phase is a tile, one of two in turn. kLanes of each warp arrive.
template <class S, int kLanes>
struct TileBarriers {
  uint64_t full[2], done[2];

  __device__ void start() {
    for (int i = 0; i < 2; ++i)
      cuda::start_barrier(&full[i], S::kHelpers / 32 * kLanes),
          cuda::start_barrier(&done[i], S::kScanWarps * kLanes);
  }
  __device__ void is_full(unsigned count) { cuda::warp_arrives<kLanes>(&full[count & 1]); }
  __device__ void is_done(unsigned count) { cuda::warp_arrives<kLanes>(&done[count & 1]); }
  // The count-th tile of the block.
  __device__ void wait_until_full(unsigned count) {
    cuda::wait_for_phase(&full[count & 1], count / 2 & 1);
  }
  __device__ void wait_until_done(unsigned count) {
    cuda::wait_for_phase(&done[count & 1], count / 2 & 1);
  }
};

// A barrier of the helping warps.
template <class S>
__device__ inline void helpers_meet() {
  asm volatile("bar.sync 2, %0;" ::"n"(S::kHelpers) : "memory");
}

// States of a channel, from or to a contiguous (E, N); zero where they do not exist.
struct StatePlace {
  int64_t at;
  int there;  // of them
  __device__ StatePlace(const CudaProblem& p, const Place& place, int channel, int n0)
      : at((place.first + channel) * p.N + n0),
        there(channel < place.channels ? static_cast<int>(p.N) - n0 : 0) {}
  template <int kStates>
  __device__ void load(const float* from, float (&to)[kStates]) const {
#pragma unroll
    for (int n = 0; n < kStates; ++n) to[n] = from && n < there ? from[at + n] : 0.0f;
  }
  template <int kStates>
  __device__ void store(const float (&from)[kStates], float* to) const {
#pragma unroll
    for (int n = 0; n < kStates; ++n)
      if (n < there) to[at + n] = from[n];
  }
};

}  // namespace
}  // namespace krait::ops::scan
