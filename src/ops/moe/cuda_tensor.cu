// The products of experts in bfloat16 on tensor cores: tiles of 128 x 128, 8 warps with 32 x 64 each, strips of
// kDepth of the axis that is summed over passing by, the next on its way during each.
#include "krait/ops/moe/cuda_product.cuh"
#include "krait/tensor/cuda/mma.h"

namespace krait::cuda::moe {

namespace {

using bfloat16 = __nv_bfloat16;

constexpr int kTile = 128, kDepth = 32, kThreads = 256;
// Elements between rows in shared memory: eight rows in a row are in different banks.
constexpr int kAlongStep = kDepth + 8, kAcrossStep = kTile + 8;
constexpr int kStrip = kTile * kAlongStep;  // elements, either way round
static_assert(kDepth * kAcrossStep <= kStrip);

// A strip of a factor, (kTile, kDepth) with kAlong, else (kDepth, kTile): `rows` by `columns` of it are there.
template <bool kAlong>
__device__ void fetch(bfloat16* to, const bfloat16* from, int64_t step, int64_t rows,
                      int64_t columns) {
  constexpr int kRows = kAlong ? kTile : kDepth, kChunks = (kAlong ? kDepth : kTile) / 8;
  constexpr int kStep = kAlong ? kAlongStep : kAcrossStep;
#pragma unroll
  for (int n = 0; n < kRows * kChunks / kThreads; ++n) {
    const int at = n * kThreads + static_cast<int>(threadIdx.x), r = at / kChunks,
              i = at % kChunks * 8;
    const bool there = r < rows && i < columns;
    copy_async(to + r * kStep + i, there ? from + r * step + i : from, there);
  }
}

// What a warp adds up: rows [32 (warp / 2), + 32), columns [64 (warp % 2), + 64).
struct Sums {
  float c[2][8][4] = {};
  int row = static_cast<int>(threadIdx.x) / 64 * 32,
      col = static_cast<int>(threadIdx.x) / 32 % 2 * 64;

  // A is (m, k) along k or stored by k; B is (n, k) along k or stored by k.
  template <bool kAlongA, bool kAlongB>
  __device__ void add(const bfloat16* a, const bfloat16* b) {
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t left[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (kAlongA) {
          load_a(left[i], a + (row + 16 * i) * kAlongStep + k, kAlongStep);
        } else {
          load_a_columns(left[i], a + k * kAcrossStep + row + 16 * i, kAcrossStep);
        }
      }
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        uint32_t right[4];
        if (kAlongB) {
          load_b(right, b + (col + 8 * j) * kAlongStep + k, kAlongStep);
        } else {
          load_b_rows(right, b + k * kAcrossStep + col + 8 * j, kAcrossStep);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          mma_bf16(c[i][j], left[i], right[0], right[1]);
          mma_bf16(c[i][j + 1], left[i], right[2], right[3]);
        }
      }
    }
  }

  // f(row, column, value)
  template <class F>
  __device__ void each(const F& f) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int v = 0; v < 4; ++v)
          f(row + 16 * i + lane / 4 + v / 2 * 8, col + 8 * j + lane % 4 * 2 + v % 2, c[i][j][v]);
  }
};

// Calls fetch(strip, place) for each strip, a strip ahead, and add(place).
template <class Fetch, class Add>
__device__ void over_strips(int64_t strips, const Fetch& fetch_strip, const Add& add) {
  if (strips > 0) fetch_strip(0, 0);
  commit_copies();
  for (int64_t s = 0; s < strips; ++s) {
    const int place = static_cast<int>(s % 2);
    if (s + 1 < strips) fetch_strip(s + 1, 1 - place);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();
    add(place);
    __syncthreads();
  }
}

// kAlong: the columns of b are dense.
template <bool kAlong>
__global__ void __launch_bounds__(kThreads) product_kernel(const MoeProduct p) {
  __shared__ alignas(16) bfloat16 a_strips[2][kStrip], b_strips[2][kStrip];
  const RowTile tile = row_tile(p, blockIdx.x, kTile);
  const int64_t col0 = int64_t{blockIdx.y} * kTile;
  const bool nobody = tile.expert == p.n;
  if (tile.row >= tile.end || (nobody && p.c.add)) return;
  const auto* const a = static_cast<const bfloat16*>(p.a) + tile.row * p.a_row;
  const auto* const b =
      static_cast<const bfloat16*>(p.b) + (nobody ? 0 : tile.expert) * p.b_expert + col0 * p.b_col;
  Sums sums;
  over_strips(
      nobody ? 0 : ceil_div(p.K, kDepth),
      [&](int64_t strip, int place) {
        const int64_t k = strip * kDepth;
        fetch<true>(a_strips[place], a + k, p.a_row, tile.end - tile.row, p.K - k);
        if (kAlong) {
          fetch<true>(b_strips[place], b + k, p.b_col, p.N - col0, p.K - k);
        } else {
          fetch<false>(b_strips[place], b + k * p.b_row, p.b_row, p.K - k, p.N - col0);
        }
      },
      [&](int place) { sums.add<true, kAlong>(a_strips[place], b_strips[place]); });
  sums.each([&](int row, int col, float value) {
    if (tile.row + row < tile.end && col0 + col < p.N)
      put(p.c, (tile.row + row) * p.c.row + col0 + col, value);
  });
}

__global__ void __launch_bounds__(kThreads) weight_kernel(const MoeWeightGradient p) {
  __shared__ alignas(16) bfloat16 a_strips[2][kStrip], b_strips[2][kStrip];
  const int64_t e = blockIdx.z, n0 = int64_t{blockIdx.y} * kTile, k0 = int64_t{blockIdx.x} * kTile;
  const int64_t begin = p.begin[e], rows = p.begin[e + 1] - begin;
  const auto* const a = static_cast<const bfloat16*>(p.a) + begin * p.a_row + n0;
  const auto* const b = static_cast<const bfloat16*>(p.b) + begin * p.b_row + k0;
  Sums sums;
  over_strips(
      ceil_div(rows, kDepth),
      [&](int64_t strip, int place) {
        const int64_t row = strip * kDepth;
        fetch<false>(a_strips[place], a + row * p.a_row, p.a_row, rows - row, p.N - n0);
        fetch<false>(b_strips[place], b + row * p.b_row, p.b_row, rows - row, p.K - k0);
      },
      [&](int place) { sums.add<false, false>(a_strips[place], b_strips[place]); });
  sums.each([&](int row, int col, float value) {
    if (n0 + row < p.N && k0 + col < p.K) put(p.c, (e * p.N + n0 + row) * p.K + k0 + col, value);
  });
}

}  // namespace

bool tensor_product(const MoeProduct& p, void* stream) {
  const bool along = p.b_row == 1;
  const int64_t b_step = along ? p.b_col : p.b_row;
  if (!p.bf16 || p.K % 8 != 0 || (!along && p.N % 8 != 0) || !in_runs(p.a, p.a_row, 2, 8) ||
      !in_runs(p.b, b_step, 2, 8) || p.b_expert % 8 != 0)
    return false;
  const dim3 grid(row_tiles(p, kTile), static_cast<unsigned>(ceil_div(p.N, kTile)));
  const auto s = static_cast<cudaStream_t>(stream);
  if (along) {
    product_kernel<true><<<grid, kThreads, 0, s>>>(p);
  } else {
    product_kernel<false><<<grid, kThreads, 0, s>>>(p);
  }
  check_launch("moe product");
  return true;
}

bool tensor_weight_gradient(const MoeWeightGradient& p, void* stream) {
  if (!p.bf16 || p.N % 8 != 0 || p.K % 8 != 0 || !in_runs(p.a, p.a_row, 2, 8) ||
      !in_runs(p.b, p.b_row, 2, 8))
    return false;
  const dim3 grid(static_cast<unsigned>(ceil_div(p.K, kTile)),
                  static_cast<unsigned>(ceil_div(p.N, kTile)), static_cast<unsigned>(p.n));
  weight_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  check_launch("moe weight gradient");
  return true;
}

}  // namespace krait::cuda::moe
