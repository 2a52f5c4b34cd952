// A product y = x Wᵀ in bfloat16 of up to 64 kGroups rows of x by kN rows of W, on compute capability 9.0: what a block of
// a kernel that is bound by reading W does. Stages of both factors pass through two rings in shared memory. One warp
// asks for them, for W as far ahead as its ring is long before the kernels before this one are done; for the first ones
// of x another. kWarps warps multiply, and have in `sums`, four for every eight rows of W, rows 16 w + g and
// 16 w + g + 8 of x as mma.h lays out C.
#pragma once
#include <algorithm>

#include "krait/tensor/cuda/hopper.cuh"
#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/tensor_map.h"

namespace krait::cuda {

// kTotalBytes: of both rings.
template <int kN_, int kGroups_, int kTotalBytes, int kXStages_>
struct RowsTile {
  static constexpr int kN = kN_, kGroups = kGroups_, kSequences = 64 * kGroups;
  static constexpr int kWarps = 4 * kGroups, kSumThreads = 32 * kWarps, kThreads = kSumThreads + 32;
  static constexpr int kK = 64;       // of a stage
  static constexpr int kOfWarp = 16;  // rows of x
  static constexpr int kWBytes = kN * kK * 2, kXBytes = kSequences * kK * 2;
  static constexpr int kXStages = kXStages_,
                       kWStages = (kTotalBytes - kXStages * kXBytes) / kWBytes;
  // Stages of W on their way before x is there. Where x is large, as many as keep the memory busy: more would make what the
  // kernels before this one still wait for, and then x, stand in line behind them (H200, mamba-1.4b: a layer of 128
  // rows takes 45.2 us, 46.1 otherwise; of 64 rows 37.8 and 36.5).
  static constexpr int kPaced = kGroups == 1 ? kWStages : std::max(1, (48 << 10) / kWBytes);
  static constexpr int kBytes =
      kXStages * kXBytes + kWStages * kWBytes + 8 * (kWStages + 2 * kXStages);
  static_assert(kN % 8 == 0 && kWStages >= 4);
};

#if KRAIT_HOPPER

template <class Tile>
class RowsPass {
 public:
  // `memory`: Tile::kBytes of shared memory, at a multiple of 1024.
  __device__ explicit RowsPass(unsigned char* memory)
      : x_ring_(memory),
        w_ring_(memory + Tile::kXStages * Tile::kXBytes),
        w_full_(reinterpret_cast<uint64_t*>(w_ring_ + Tile::kWStages * Tile::kWBytes)),
        x_full_(w_full_ + Tile::kWStages),
        empty_(x_full_ + Tile::kXStages) {}

  // By one thread, before a barrier of the block.
  __device__ void start() {
    for (int i = 0; i < Tile::kWStages; ++i) start_barrier(w_full_ + i, 1);
    for (int i = 0; i < Tile::kXStages; ++i) {
      start_barrier(x_full_ + i, 1);
      start_barrier(empty_ + i, Tile::kWarps);
    }
    fence_barriers();
  }

  // Where stage i of W, or what follows the last one, comes, and the barrier that counts it.
  __device__ unsigned char* place_of(int i) const {
    return w_ring_ + i % Tile::kWStages * Tile::kWBytes;
  }
  __device__ uint64_t* barrier_of(int i) const { return w_full_ + i % Tile::kWStages; }
  __device__ void wait_for(int i) const { wait_for_phase(barrier_of(i), i / Tile::kWStages % 2); }

  // By one thread, when x is complete: its first stages, from row m0 and column `first` on.
  __device__ void bring_x(const CUtensorMap& x, int m0, int first, int stages) {
    for (int i = 0; i < min(stages, Tile::kXStages); ++i) copy_x(x, m0, first, i);
  }

  // By one warp: copy_w(i) for `all` things of which `stages` are stages of W, and the other stages of x.
  template <class CopyW>
  __device__ void bring(const CUtensorMap& x, int m0, int first, int stages, int all,
                        const CopyW& copy_w) {
    let_next_start();
    for (int i = 0; i < min(all, Tile::kWStages); ++i) {
      if (i >= Tile::kPaced && i < stages) wait_for_phase(w_full_ + i - Tile::kPaced, 0);
      copy_w(i);
    }
    wait_for_previous();
    for (int i = 0; i < stages; ++i) {
      const int x_next = i + Tile::kXStages, w_next = i + Tile::kWStages;
      if (x_next >= stages && w_next >= all) break;
      wait_for_phase(empty_ + i % Tile::kXStages, i / Tile::kXStages % 2);
      if (x_next < stages && threadIdx.x % 32 == 0) copy_x(x, m0, first, x_next);
      if (w_next < all) copy_w(w_next);
    }
  }

  // By the kWarps warps.
  __device__ void multiply(float (&sums)[Tile::kN / 2], int stages) {
    const int lane = static_cast<int>(threadIdx.x) % 32,
              group = static_cast<int>(threadIdx.x) / 128;
    const uint64_t of_x = tile_at(x_ring_ + group * 64 * Tile::kK * 2), of_w = tile_at(w_ring_);
    int x_slot = 0, w_slot = 0, before = 0;
    unsigned x_parity = 0, w_parity = 0;
    hold_sums(sums);
    for (int i = 0; i < stages; ++i) {
      wait_for_phase(w_full_ + w_slot, w_parity);
      wait_for_phase(x_full_ + x_slot, x_parity);
      const uint64_t a = of_x + static_cast<uint64_t>(x_slot * (Tile::kXBytes >> 4)),
                     b = of_w + static_cast<uint64_t>(w_slot * (Tile::kWBytes >> 4));
      begin_products();
#pragma unroll
      for (int k = 0; k < Tile::kK / 16; ++k)
        warpgroup_product(sums, a + k * kTileStepK, b + k * kTileStepK);
      commit_products();
      wait_for_products<1>();
      if (i > 0 && lane == 0) arrive(empty_ + before);
      before = x_slot;
      if (++x_slot == Tile::kXStages) x_slot = 0, x_parity ^= 1;
      if (++w_slot == Tile::kWStages) w_slot = 0, w_parity ^= 1;
    }
    wait_for_products<0>();
    hold_sums(sums);
    if (stages > 0 && lane == 0) arrive(empty_ + before);
  }

 private:
  __device__ void copy_x(const CUtensorMap& x, int m0, int first, int i) {
    const int slot = i % Tile::kXStages;
    arrive_expecting(x_full_ + slot, Tile::kXBytes);
    copy_box(x_ring_ + slot * Tile::kXBytes, x, first + i * Tile::kK, m0, x_full_ + slot);
  }

  unsigned char *const x_ring_, *const w_ring_;
  uint64_t *const w_full_, *const x_full_, *const empty_;
};

#endif

}  // namespace krait::cuda
