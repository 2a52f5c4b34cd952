// Private to selective_scan: memory and warps of the forward kernel of bfloat16 rows in whole blocks of 16 channels, where
// so few channels have a multiprocessor each: a step is short where a lane has two states. One scanning warp a scheduler,
// of four channels; warps that prepare tiles and warps that finish them.
#pragma once
#include "krait/ops/selective_scan/cuda_forward_few.cuh"

namespace krait::ops::scan {
namespace {

namespace fewest {

using few::RowsFrom;

// Of those that prepare, and of those that finish: a thread has eight channels of a row.
constexpr int kLanes = 2;
template <class S>
constexpr int kEach = S::kTile* kLanes;
constexpr int kAhead = 2,
              kSlots = kAhead + 1;  // tiles that rows are asked for before; and with the one in use

// Where a channel lies in a row of a tile: what helpers reach at once is in banks of its own. Pairs of steps differ.
__device__ inline int place_in_row(int channel, int pair) {
  return channel ^ channel / 8 ^ pair % 4 * 2;
}

template <class S>
struct Tile {
  float4 rows[S::kTile / 2][S::kChannels];  // delta, delta u of two steps
  float4 y[S::kTile][S::kChannels];         // of each four of the channel's states
  float bc[S::kTile * S::kRow];
};

// Warps of the three kinds wait for each other by tiles, of which there are two in turn.
template <class S>
struct Barriers {
  uint64_t full[2], done[2], finished[2];

  __device__ void start() {
    for (int i = 0; i < 2; ++i) {
      cuda::start_barrier(&full[i], kEach<S>), cuda::start_barrier(&done[i], S::kScanWarps * 32);
      cuda::start_barrier(&finished[i], kEach<S>);
    }
  }
  // The count-th tile of the block.
  static __device__ void arrive(uint64_t (&of)[2], unsigned count) {
    cuda::warp_arrives<32>(&of[count & 1]);
  }
  static __device__ void wait(uint64_t (&of)[2], unsigned count) {
    cuda::wait_for_phase(&of[count & 1], count / 2 & 1);
  }
};

template <class S>
struct Memory {
  Tile<S> tile[2];
  // Rows as they lie in memory, of each thread its own.
  struct {
    uint4 u[kSlots][kEach<S>], dt[kSlots][kEach<S>], b[kSlots][kEach<S>], c[kSlots][kEach<S>];
  } before;  // of those that prepare
  struct {
    uint4 u[kSlots][kEach<S>], z[kSlots][kEach<S>];
  } after;
  Barriers<S> tiles;
};

// Eight channels of a row of each tile, a thread's.
template <class S>
struct RowPlace {
  const int thread, row, first;  // first: of its channels
  __device__ explicit RowPlace(int thread_)
      : thread(thread_),
        row(thread_ / 16 * 8 + thread_ / 8 % 2 + thread_ / 2 % 4 * 2),
        first(thread_ % kLanes * 8) {
    static_assert(S::kWhole && S::kChannels == kLanes * 8 && S::kHelpers == 2 * kEach<S>);
  }
  __device__ int place(int n) const { return place_in_row(first + n, row / 2); }
};

// Brings tiles, from memory to where the tile before last was.
template <class S>
struct Preparer {
  const CudaForward& w;
  Memory<S>& memory;
  const RowPlace<S> at;
  int in_rows[8];  // bytes from the beginning of a tile to its channels
  float bias[8];
  const RowsFrom of_u, of_dt, of_b, of_c;

  __device__ Preparer(const CudaForward& w_, const Place& place, Memory<S>& memory_, int thread)
      : w(w_),
        memory(memory_),
        at(thread),
        of_u(w_.p.u, place.first + at.first),
        of_dt(w_.p.dt, place.first + at.first),
        of_b(w_.p.B, place.group * w_.p.B.group + at.first),
        of_c(w_.p.C, place.group * w_.p.C.group + at.first) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      bias[n] = w.p.dt_bias ? w.p.dt_bias[place.first + at.first + n] : 0.0f;
      in_rows[n] = static_cast<int>(offsetof(Tile<S>, rows)) +
                   ((at.row / 2 * S::kChannels + at.place(n)) * 2 + at.row % 2) *
                       static_cast<int>(sizeof(float2));
      asm("" : "+r"(in_rows[n]));  // else they are made again for each use
    }
  }

  __device__ void run(const Unit& u, int tiles) const {
    if (tiles == 0) return;
    const int begin = static_cast<int>(u.s.begin + u.from),
              last = static_cast<int>(u.s.tokens - u.from) - 1;
    // Of what is not there to be read the last row is.
    const auto fetch = [&](int i, int slot) {
      const int token = begin + min(i * S::kTile + at.row, last);
      if (i < tiles) {
        cuda::copy_async<16>(&memory.before.u[slot][at.thread], of_u[token]);
        cuda::copy_async<16>(&memory.before.dt[slot][at.thread], of_dt[token]);
        cuda::copy_async<16>(&memory.before.b[slot][at.thread], of_b[token]);
        cuda::copy_async<16>(&memory.before.c[slot][at.thread], of_c[token]);
      }
      cuda::commit_copies();
    };
    for (int i = 0; i < kAhead; ++i) fetch(i, i);
    int slot = 0, next = kAhead;
#pragma unroll 1
    for (int i = 0; i < tiles; ++i) {
      Tile<S>& to = memory.tile[i & 1];
      fetch(i + kAhead, next);
      cuda::wait_for_copies<kAhead>();
      if (i >= 2) Barriers<S>::wait(memory.tiles.done, i - 2);
      put_bc(memory.before.b[slot][at.thread], memory.before.c[slot][at.thread], to);
      few::prepare_octet(w.p, bias, i * S::kTile + at.row <= last, memory.before.u[slot][at.thread],
                         memory.before.dt[slot][at.thread], &to, in_rows);
      Barriers<S>::arrive(memory.tiles.full, i);
      slot = slot + 1 == kSlots ? 0 : slot + 1, next = next + 1 == kSlots ? 0 : next + 1;
    }
  }

 private:
  // Half a row of B and of C.
  __device__ void put_bc(const uint4& of_b, const uint4& of_c, Tile<S>& to) const {
    const auto *b = reinterpret_cast<const unsigned*>(&of_b),
               *c = reinterpret_cast<const unsigned*>(&of_c);
    float* const row = to.bc + at.row * S::kRow + at.first * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int two = i ^ at.row / 2 % 4;  // in other banks than other rows
      *reinterpret_cast<float4*>(row + two * 4) = {cuda::low_bf16(b[two]), cuda::high_bf16(b[two]),
                                                   cuda::low_bf16(c[two]), cuda::high_bf16(c[two])};
    }
  }
};

// Takes y of the tiles to memory.
template <class S>
struct Finisher {
  const CudaForward& w;
  Memory<S>& memory;
  const RowPlace<S> at;
  int in_y[8];  // bytes from the beginning of a tile to its channels
  float D[8];
  const RowsFrom of_u, of_z, of_y;

  __device__ Finisher(const CudaForward& w_, const Place& place, Memory<S>& memory_, int thread)
      : w(w_),
        memory(memory_),
        at(thread),
        of_u(w_.p.u, place.first + at.first),
        of_z(w_.p.z, place.first + at.first),
        of_y(w_.y, place.first + at.first) {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      D[n] = w.p.D ? w.p.D[place.first + at.first + n] : 0.0f;
      in_y[n] = static_cast<int>(offsetof(Tile<S>, y)) +
                (at.row * S::kChannels + at.place(n)) * static_cast<int>(sizeof(float4));
      asm("" : "+r"(in_y[n]));  // else they are made again for each use
    }
  }

  __device__ void run(const Unit& u, int tiles) const {
    if (tiles == 0) return;
    const int begin = static_cast<int>(u.s.begin + u.from),
              last = static_cast<int>(u.s.tokens - u.from) - 1;
    const auto fetch = [&](int i, int slot) {
      const int token = begin + min(i * S::kTile + at.row, last);
      if (i < tiles) {
        cuda::copy_async<16>(&memory.after.u[slot][at.thread], of_u[token]);
        if (w.p.z.data) cuda::copy_async<16>(&memory.after.z[slot][at.thread], of_z[token]);
      }
      cuda::commit_copies();
    };
    for (int i = 0; i < kAhead; ++i) fetch(i, i);
    int slot = 0, next = kAhead;
#pragma unroll 1
    for (int i = 0; i < tiles; ++i) {
      const int t = i * S::kTile + at.row;
      fetch(i + kAhead, next);
      cuda::wait_for_copies<kAhead>();
      Barriers<S>::wait(memory.tiles.done, i);
      if (t <= last) {
        float y[8];
        few::finish_octet(w.p, D, memory.after.u[slot][at.thread], memory.after.z[slot][at.thread],
                          &memory.tile[i & 1], in_y, y);
        few::store_octet<S>(of_y[begin + t], 8, y);
      }
      Barriers<S>::arrive(memory.tiles.finished, i);
      slot = slot + 1 == kSlots ? 0 : slot + 1, next = next + 1 == kSlots ? 0 : next + 1;
    }
  }
};

// The helping threads: half of them prepare, half finish.
template <class S>
struct Helper {
  const CudaForward& w;
  const Place& place;
  Memory<S>& memory;
  const int helper;

  __device__ Helper(const CudaForward& w_, const Place& place_, Memory<S>& memory_, int helper_)
      : w(w_), place(place_), memory(memory_), helper(helper_) {}
  __device__ void run(const Unit& u, int tiles) const {
    if (helper < kEach<S>)
      Preparer<S>(w, place, memory, helper).run(u, tiles);
    else
      Finisher<S>(w, place, memory, helper - kEach<S>).run(u, tiles);
  }
};

// What a scanning thread does, two steps at a time. Decays of the next two are made meanwhile. Sums over four states go
// in one order however many lanes have them: the lane of the first two begins, that of the others ends.
template <class S>
struct Scanner {
  static constexpr int kRounds = S::kTile / 2, NS = S::NS;
  const int l, channel;  // which of a channel's lanes; of the block
  float A[NS], h[NS];    // A: A log2(e)
  // Bytes from the beginning of a tile to the lane's own: of pairs of steps, B and C, y.
  static constexpr int kPlaces = 4;
  int of_v[kPlaces], of_bc, of_y[kPlaces];

  // Lanes i and i ^ 2 have the same channel, i and i ^ 1 the same states.
  __device__ Scanner(int role, int lane)
      : l(lane / 2 % 2 + lane / 8 * 2), channel(role * 4 + lane % 2 + lane / 4 % 2 * 2) {
    static_assert(NS == 2);
    // By shuffles, or the compiler finds them again in every loop.
    const auto own = [&](int bytes) { return __shfl_sync(~0u, bytes, lane); };
#pragma unroll
    for (int i = 0; i < kPlaces; ++i) {
      const int at = place_in_row(channel, i) * static_cast<int>(sizeof(float4));
      of_v[i] = own(static_cast<int>(offsetof(Tile<S>, rows)) + at);
      of_y[i] = own(static_cast<int>(offsetof(Tile<S>, y)) + at +
                    l * NS / 4 * static_cast<int>(sizeof(float)));
    }
    of_bc =
        own(static_cast<int>(offsetof(Tile<S>, bc)) + l * 2 * NS * static_cast<int>(sizeof(float)));
  }

  // Calls before(i) with the states before tile i.
  template <class F>
  __device__ void walk(Memory<S>& memory, int tiles, const F& before) {
    if (tiles > 0) Barriers<S>::wait(memory.tiles.full, 0), begin(memory.tile[0]);
#pragma unroll 1
    for (int i = 0; i < tiles; ++i) {
      before(i);
      if (i >= 2) Barriers<S>::wait(memory.tiles.finished, i - 2);
      tile(memory.tile[i & 1], memory.tile[~i & 1], [&] {
        if (i + 1 < tiles) Barriers<S>::wait(memory.tiles.full, i + 1);
      });
      Barriers<S>::arrive(memory.tiles.done, i);
    }
  }

 private:
  float4 v[4];
  float b[2][2][NS], c[2][2][NS], decay[2][2][NS];
  // Of a round: what the sum goes on with in the lane of the other half.
  struct Half {
    float h[2][NS], c[2][NS], before[2];
  };

  __device__ void begin(const Tile<S>& at) {
    fetch_v(at, 0), fetch_v(at, 1), fetch_bc(at, 0);
#pragma unroll
    for (int s = 0; s < 2; ++s)
#pragma unroll
      for (int n = 0; n < NS; ++n) decay[0][s][n] = decay_of(0, s, n);
  }
  // `after`: the next tile, whose first rounds are fetched once it is there.
  template <class F>
  __device__ void tile(Tile<S>& at, const Tile<S>& after, const F& wait_for_after) {
    Half half[2];
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      if (r + 2 == kRounds) wait_for_after();
      fetch_v(r + 2 < kRounds ? at : after, r + 2), fetch_bc(r + 1 < kRounds ? at : after, r + 1);
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        float y;
#pragma unroll
        for (int n = 0; n < NS; ++n) {
          decay[(r + 1) % 2][s][n] = decay_of(r + 1, s, n);
          h[n] =
              fmaf(decay[r % 2][s][n], h[n], (s == 0 ? v[r % 4].y : v[r % 4].w) * b[r % 2][s][n]);
          y = n == 0 ? c[r % 2][s][n] * h[n] : fmaf(c[r % 2][s][n], h[n], y);
          half[r % 2].h[s][n] = h[n], half[r % 2].c[s][n] = c[r % 2][s][n];
        }
        half[r % 2].before[s] = __shfl_up_sync(~0u, y, 2);
      }
      if (r > 0) put_sums(at, r - 1, half[~r & 1]);
      if (r + 1 == kRounds) put_sums(at, r, half[r & 1]);
    }
  }
  __device__ void put_sums(Tile<S>& at, int r, const Half& of) const {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      float y = of.before[s];
#pragma unroll
      for (int n = 0; n < NS; ++n) y = fmaf(of.c[s][n], of.h[s][n], y);
      constexpr int kRow = S::kChannels * static_cast<int>(sizeof(float4));
      if (l % 2 == 1)
        *reinterpret_cast<float*>(reinterpret_cast<char*>(&at) + of_y[r % kPlaces] +
                                  (2 * r + s) * kRow) = y;
    }
  }
  __device__ void fetch_v(const Tile<S>& at, int r) {
    constexpr int kRow = S::kChannels * static_cast<int>(sizeof(float4));
    v[r % 4] = *reinterpret_cast<const float4*>(reinterpret_cast<const char*>(&at) +
                                                of_v[r % kPlaces] + r % kRounds * kRow);
  }
  __device__ void fetch_bc(const Tile<S>& at, int r) {
    const auto* rows = reinterpret_cast<const float*>(reinterpret_cast<const char*>(&at) + of_bc);
#pragma unroll
    for (int s = 0; s < 2; ++s) load_bc<S>(rows, r % kRounds * 2 + s, 0, b[r % 2][s], c[r % 2][s]);
  }
  __device__ float decay_of(int r, int s, int n) const {
    return exp2_of<true>((s == 0 ? v[r % 4].x : v[r % 4].z) * A[n]);
  }
};

}  // namespace fewest
}  // namespace
}  // namespace krait::ops::scan
