// Private to selective_scan: memory and warps of the forward kernel of bfloat16 rows in blocks of 32 channels, for few
// sequences: four scanning warps, one a scheduler. So instructions are spared where waiting cannot be hidden: a tile's
// rows come by cp.async, eight channels at once, and the scanning lanes leave their sums of y to the helping ones.
#pragma once
#include "krait/ops/selective_scan/cuda_forward_bf16.cuh"
#include "krait/tensor/cuda/mma.h"

namespace krait::ops::scan {
namespace {
namespace few {

// Where a channel lies in a row of a tile: what helpers reach at once is in banks of its own. Even and odd pairs of
// steps differ.
__device__ inline int place_in_row(int channel, int pair) {
  return channel ^ channel / 8 % 4 ^ pair % 2 * 4;
}

template <class S>
struct Tile {
  float4 rows[S::kTile / 2][S::kChannels];  // delta, delta u of two steps
  float4 y[S::kTile][S::kChannels];         // of each of the channel's lanes
  float bc[S::kTile * S::kRow];
};

template <class S>
struct Memory {
  Tile<S> tile[2];
  // Rows as they lie in memory, of each helping thread its own: of u and z until y is made, of others until their tile
  // is.
  struct {
    uint4 u[4][S::kHelpers], z[4][S::kHelpers], dt[2][S::kHelpers], bc[2][S::kHelpers];
  } ahead;
  TileBarriers<S, 32> tiles;
};

// Rows from a column on.
struct RowsFrom {
  char* first;
  int stride;  // bytes

  __device__ RowsFrom(const CudaRows& r, int64_t column)
      : first(static_cast<char*>(r.data) + column * 2), stride(static_cast<int>(r.stride) * 2) {}
  __device__ char* operator[](int token) const {
    char* at;  // one instruction, which the compiler does not find
    asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(at) : "r"(token), "r"(stride), "l"(first));
    return at;
  }
};

// Eight neighbouring elements of a row, those of the first `there` channels.
template <class S>
__device__ inline void copy_octet(uint4* to, const char* from, int there) {
  if (S::kWhole) return cuda::copy_async<16>(to, from);
  if (there > 0) cuda::copy_async<8>(&to->x, from);
  if (there > 4) cuda::copy_async<8>(&to->z, from + 8);
}
template <class S>
__device__ inline void store_octet(char* at, int there, const float (&x)[8]) {
  const uint4 bits = {pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7])};
  if (S::kWhole) {
    __stwb(reinterpret_cast<uint4*>(at), bits);
    return;
  }
  if (there > 0) __stwb(reinterpret_cast<uint2*>(at), {bits.x, bits.y});
  if (there > 4) __stwb(reinterpret_cast<uint2*>(at + 8), {bits.z, bits.w});
}
__device__ inline void to_floats(const uint4& bits, float (&x)[8]) {
  const unsigned of[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i)
    x[2 * i] = cuda::low_bf16(of[i]), x[2 * i + 1] = cuda::high_bf16(of[i]);
}

// Delta and delta u of a thread's eight channels of a row into a tile, each at its place in bytes. Steps beyond the end are
// not real and change nothing: their delta is zero.
__device__ inline void prepare_octet(const CudaProblem& p, const float (&bias)[8], bool real,
                                     const uint4& u_bits, uint4 dt_bits, void* tile,
                                     const int (&places)[8]) {
  float u[8], delta[8];
  to_floats(u_bits, u);
  constexpr unsigned kNothing = 0xff80ff80u;  // minus infinity, of which softplus makes zero
  if (!real) dt_bits = {kNothing, kNothing, kNothing, kNothing};
  to_floats(dt_bits, delta);
#pragma unroll
  for (int n = 0; n < 8; ++n) delta[n] += bias[n];
  if (p.softplus) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      float e;
      delta[n] = softplus<true>(delta[n], e);
    }
  } else if (!real) {
    asm("");  // rare: a branch costs others less than selecting would
#pragma unroll
    for (int n = 0; n < 8; ++n) delta[n] = 0;
  }
#pragma unroll
  for (int n = 0; n < 8; ++n)
    *reinterpret_cast<float2*>(static_cast<char*>(tile) + places[n]) = {delta[n], delta[n] * u[n]};
}

// y of eight channels of a row: what the channels' four lanes have left in a tile, each at its place in bytes, with skip
// and gate.
__device__ inline void finish_octet(const CudaProblem& p, const float (&D)[8], const uint4& u_bits,
                                    const uint4& z_bits, const void* tile, const int (&places)[8],
                                    float (&y)[8]) {
  float u[8], z[8];
  to_floats(u_bits, u);
  to_floats(z_bits, z);
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float4 of_lane =
        *reinterpret_cast<const float4*>(static_cast<const char*>(tile) + places[n]);
    y[n] = fmaf(D[n], u[n], (of_lane.x + of_lane.z) + (of_lane.y + of_lane.w));
  }
  if (p.z.data) {
#pragma unroll
    for (int n = 0; n < 8; ++n) y[n] *= z[n] * sigmoid<true>(z[n]);
  }
}

// What a helping thread does: the next tile, from memory to where the tile before last was, and that one's y to
// memory. What it reads from memory it asks for a tile ahead.
template <class S>
struct Helper {
  static constexpr int kLanes = 4;
  static_assert(S::kHelpers == S::kTile * kLanes && S::kChannels == kLanes * 8);
  const CudaForward& w;
  const Place& place;
  Memory<S>& memory;
  const int helper, row, first,
      there;  // first: of its eight channels, the first `there` of which exist
  // Bytes from the beginning of a tile to its channels, and to half a row of B or C.
  int in_rows[8], in_y[8], in_bc;
  float bias[8], D[8];
  const RowsFrom of_u, of_dt, of_z, of_y, of_bc;

  __device__ Helper(const CudaForward& w_, const Place& place_, Memory<S>& memory_, int helper_)
      : w(w_),
        place(place_),
        memory(memory_),
        helper(helper_),
        row(helper_ / 16 * 4 + helper_ / 8 % 2 + helper_ / 4 % 2 * 2),
        first(helper_ % kLanes * 8),
        there(place_.channels - first),
        of_u(w_.p.u, place_.first + first),
        of_dt(w_.p.dt, place_.first + first),
        of_z(w_.p.z, place_.first + first),
        of_y(w_.y, place_.first + first),
        of_bc(first < 16 ? w_.p.B : w_.p.C,
              place_.group * (first < 16 ? w_.p.B : w_.p.C).group + first % 16) {
    const CudaProblem& p = w.p;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      bias[n] = n < there && p.dt_bias ? p.dt_bias[place.first + first + n] : 0.0f;
      D[n] = n < there && p.D ? p.D[place.first + first + n] : 0.0f;
      const int at = place_in_row(first + n, row / 2);
      in_rows[n] = static_cast<int>(offsetof(Tile<S>, rows)) +
                   ((row / 2 * S::kChannels + at) * 2 + row % 2) * static_cast<int>(sizeof(float2));
      in_y[n] = static_cast<int>(offsetof(Tile<S>, y)) +
                (row * S::kChannels + at) * static_cast<int>(sizeof(float4));
      asm("" : "+r"(in_rows[n]), "+r"(in_y[n]));  // else they are made again for each use
    }
    in_bc = static_cast<int>(offsetof(Tile<S>, bc)) +
            (row * S::kRow + first % 16 * S::NS / 2 + first / 16 * S::NS) *
                static_cast<int>(sizeof(float));
    if (!S::kWhole) {  // of channels that do not exist
      for (int i = helper; i < static_cast<int>(sizeof(memory.ahead) / sizeof(uint4));
           i += S::kHelpers)
        reinterpret_cast<uint4*>(&memory.ahead)[i] = {};
    }
  }

  __device__ void run(const Unit& u, int tiles) const {
    if (tiles == 0) return;
    const int begin = static_cast<int>(u.s.begin + u.from),
              last = static_cast<int>(u.s.tokens - u.from) - 1;
    // Of what is not there to be read the last row is.
    const auto fetch = [&](int i) {
      const int token = begin + min(i * S::kTile + row, last);
      auto& to = memory.ahead;
      copy_octet<S>(&to.u[i % 4][helper], of_u[token], there);
      copy_octet<S>(&to.dt[i % 2][helper], of_dt[token], there);
      if (w.p.z.data) copy_octet<S>(&to.z[i % 4][helper], of_z[token], there);
      if (S::kWhole) cuda::copy_async<16>(&to.bc[i % 2][helper], of_bc[token]);
    };
    StagedBC<S> bc;  // where B and C cannot be moved by eights
    if (!S::kWhole) bc.load(w.p, place, u.s, u.from, helper, 0);
    fetch(0);
    cuda::commit_copies();
#pragma unroll 2
    for (int i = 0; i < tiles + 2; ++i) {
      Tile<S>& at = memory.tile[i & 1];
      const auto& rows = memory.ahead;
      const int t = i * S::kTile + row, done = t - 2 * S::kTile;
      if (i + 1 < tiles) fetch(i + 1);
      cuda::commit_copies();
      cuda::wait_for_copies<1>();
      if (i >= 2) memory.tiles.wait_until_done(i - 2);
      if (i >= 2 && done <= last) {
        float y[8];
        finish_octet(w.p, D, rows.u[(i - 2) % 4][helper], rows.z[(i - 2) % 4][helper], &at, in_y,
                     y);
        store_octet<S>(of_y[begin + done], there, y);
      }
      if (i >= tiles) continue;
      if (S::kWhole) {
        put_bc(rows.bc[i % 2][helper], at);
      } else {
        bc.store(w.p, helper, 0, at.bc);
        bc.load(w.p, place, u.s, u.from + (i + 1) * S::kTile, helper, 0);
      }
      prepare_octet(w.p, bias, t <= last, rows.u[i % 4][helper], rows.dt[i % 2][helper], &at,
                    in_rows);
      memory.tiles.is_full(i);
    }
  }

 private:
  // Half a row of B or C.
  __device__ void put_bc(const uint4& bits, Tile<S>& at) const {
    float x[8];
    to_floats(bits, x);
#pragma unroll
    for (int i = 0; i < 2; ++i)
      *reinterpret_cast<float4*>(reinterpret_cast<char*>(&at) + in_bc + i * 2 * S::NS * 4) = {
          x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]};
  }
};

// What a scanning thread does, two steps at a time. Decays of the next two are made meanwhile.
template <class S>
struct Scanner {
  static constexpr int kRounds = S::kTile / 2;
  const int l, channel;  // which of a channel's lanes; of the block
  float A[4], h[4];      // A: A log2(e)

  __device__ Scanner(int role, int lane)
      : l(states_of(lane)), channel(role * 8 + channel_of(lane)) {}

  // Calls before(i) with the states before tile i.
  template <class F>
  __device__ void walk(Memory<S>& memory, int tiles, const F& before) {
    if (tiles > 0) memory.tiles.wait_until_full(0), begin(memory.tile[0]);
#pragma unroll 1
    for (int i = 0; i < tiles; ++i) {
      before(i);
      tile(memory.tile[i & 1], memory.tile[~i & 1], [&] {
        if (i + 1 < tiles) memory.tiles.wait_until_full(i + 1);
      });
      memory.tiles.is_done(i);
    }
  }

 private:
  float4 v[4];
  float b[2][2][4], c[2][2][4], decay[2][2][4];

  __device__ void begin(const Tile<S>& at) {
    fetch_v(at, 0), fetch_v(at, 1), fetch_bc(at, 0);
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int n = 0; n < 4; ++n) decay[0][s][n] = decay_of(0, s, n);
  }
  // `after`: the next tile, whose first rounds are fetched once it is there.
  template <class F>
  __device__ void tile(Tile<S>& at, const Tile<S>& after, const F& wait_for_after) {
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      if (r + 2 == kRounds) wait_for_after();
      fetch_v(r + 2 < kRounds ? at : after, r + 2), fetch_bc(r + 1 < kRounds ? at : after, r + 1);
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        float y;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          decay[(r + 1) % 2][s][n] = decay_of(r + 1, s, n);
          h[n] =
              fmaf(decay[r % 2][s][n], h[n], (s == 0 ? v[r % 4].y : v[r % 4].w) * b[r % 2][s][n]);
          y = n == 0 ? c[r % 2][s][n] * h[n] : fmaf(c[r % 2][s][n], h[n], y);
        }
        reinterpret_cast<float*>(&at.y[2 * r + s][place_in_row(channel, r)])[l] = y;
      }
    }
  }
  __device__ void fetch_v(const Tile<S>& at, int r) {
    v[r % 4] = at.rows[r % kRounds][place_in_row(channel, r)];
  }
  __device__ void fetch_bc(const Tile<S>& at, int r) {
#pragma unroll
    for (int s = 0; s < 2; ++s) load_bc<S>(at.bc, r % kRounds * 2 + s, l, b[r % 2][s], c[r % 2][s]);
  }
  __device__ float decay_of(int r, int s, int n) const {
    return exp2_of<true>((s == 0 ? v[r % 4].x : v[r % 4].z) * A[n]);
  }
};

}  // namespace few
}  // namespace
}  // namespace krait::ops::scan
