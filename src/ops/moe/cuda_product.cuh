// Private to this room: what both kinds of product share.
#pragma once
#include "krait/ops/moe/cuda.h"
#include "krait/tensor/cuda/math.h"

namespace krait::cuda::moe {

// The rows of a tile of at most `size`, all of one expert; n is nobody's, which stands behind the others.
// Expert e has the tiles from begin[e] / size + e on, which is room enough: the last may be empty.
struct RowTile {
  int64_t expert, row, end;
};

__device__ inline RowTile row_tile(const MoeProduct& p, int64_t tile, int64_t size) {
  int64_t e = 0, high = p.n + 1;
  while (high - e > 1) {
    const int64_t middle = (e + high) / 2;
    (p.begin[middle] / size + middle <= tile ? e : high) = middle;
  }
  return {e, p.begin[e] + (tile - p.begin[e] / size - e) * size, e < p.n ? p.begin[e + 1] : p.M};
}

inline unsigned row_tiles(const MoeProduct& p, int64_t size) {
  return static_cast<unsigned>(p.M / size + p.n + 1);
}

__device__ inline void put(const MoeRows& c, int64_t at, float value) {
  if (c.bf16) {
    __nv_bfloat16& to = static_cast<__nv_bfloat16*>(c.data)[at];
    to = static_cast<__nv_bfloat16>(c.add ? static_cast<float>(to) + value : value);
  } else {
    float& to = static_cast<float*>(c.data)[at];
    to = c.add ? to + value : value;
  }
}

// On tensor cores, where all of it is bfloat16 that can be copied 16 bytes at a time; false where it is not.
bool tensor_product(const MoeProduct& p, void* stream);
bool tensor_weight_gradient(const MoeWeightGradient& p, void* stream);

}  // namespace krait::cuda::moe
