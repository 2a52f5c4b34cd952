// Private to this room: what the kernels of attention on warpgroups share.
#pragma once
#include "krait/ops/attention/cuda_tensor.cuh"
#include "krait/ops/attention/cuda_warpgroup.cuh"
#include "krait/tensor/cuda/exponentials.cuh"
#include "krait/tensor/cuda/mma.h"
#include "krait/tensor/cuda/tensor_map.h"
#include "krait/tensor/cuda/warpgroup.cuh"

namespace krait::cuda::attention {
namespace {

constexpr int kKeys = 128, kBoxRow = 128;  // bytes of a row of a box: 64 elements

// As the compiler cannot know: a branch on it is one for all lanes.
__device__ inline int same_in_warp(int x) { return __shfl_sync(~0u, x, 0); }

__device__ inline int floor_div(int a, int b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// Barriers of kStages stages, of which the n-th use is meant.
template <int kStages>
struct Stages {
  __device__ static void wait(uint64_t* of_stages, int n) {
    wait_for_phase(of_stages + n % kStages, n / kStages % 2);
  }
  __device__ static void release(uint64_t* of_stages, int n) {
    warp_arrives<kArriving>(of_stages + n % kStages);
  }
};

// A tile of kSize tokens of a sequence and a head: those of one head of one sequence after each other, that they find its
// keys, values and sums in the second-level cache; the last tokens first.
struct Work {
  int head, sequence, from;
};

template <int kSize>
__device__ inline Work work_of(const AttentionCall& c, unsigned work) {
  const auto of_head = static_cast<unsigned>(tiles(c, kSize));
  const unsigned tile = of_head - 1 - work % of_head;
  Work w;
  w.head = static_cast<int>(work / of_head);
  if (c.begin) {
    int64_t from;
    w.sequence = static_cast<int>(sequence_of_tile(c, tile, kSize, from));
    w.from = static_cast<int>(from);
  } else {
    const auto of_sequence = static_cast<unsigned>(ceil_div(c.L, kSize));
    w.sequence = static_cast<int>(tile / of_sequence);
    w.from = static_cast<int>(tile % of_sequence) * kSize;
  }
  return w;
}

// The work that is tile `tile` of a sequence.
template <int kSize>
__device__ inline int64_t work_at(const AttentionCall& c, int head, int64_t s, int tile) {
  const int64_t before = c.begin ? c.begin[s] / kSize + s : s * ceil_div(c.L, kSize);
  return (head + 1) * tiles(c, kSize) - 1 - before - tile;
}

__device__ inline int key_head_of(const AttentionCall& c, int head) {
  return head / (static_cast<int>(c.H) / static_cast<int>(c.Hkv));
}

// How the copy engine finds `rows` tokens of a head.
CUtensorMap map_of_heads(const AttentionCall& c, const HeadRows& r, int64_t heads, int rows) {
  return map_of_parts(r.data, c.tokens, heads, c.P, r.row, rows, r.head);
}

#if KRAIT_HOPPER

// copy_box of one of several such matrices: map_of_matrices (tensor_map.h).
__device__ inline void copy_cached_box(void* to, const CUtensorMap& map, int column, int part,
                                       int row, int matrix, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3, %4, %5}], [%6];" ::"r"(shared_address(to)),
      "l"(&map), "r"(column), "r"(part), "r"(row), "r"(matrix), "r"(shared_address(barrier))
      : "memory");
}

#endif

}  // namespace
}  // namespace krait::cuda::attention
