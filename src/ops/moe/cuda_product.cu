// Products of the rows of each expert with its matrix, all experts in one launch, in float32 arithmetic.
#include <type_traits>

#include "krait/ops/moe/cuda_product.cuh"

namespace krait::cuda {

namespace {

using moe::put;

using bfloat16 = __nv_bfloat16;

constexpr int kTile = 64, kDepth = 16, kThreads = 256, kEach = kTile / 16;

// A (kDepth, kTile) strip each of both factors in shared memory, and 16 x 16 threads with 4 x 4 sums.
struct alignas(16) Strips {
  float a[kDepth][kTile + 4], b[kDepth][kTile + 4];
};

__device__ void add_strips(const Strips& s, float (&sums)[kEach][kEach]) {
  const int ty = static_cast<int>(threadIdx.x) / 16, tx = static_cast<int>(threadIdx.x) % 16;
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
    float a[kEach], b[kEach];
    load<4>(&s.a[k][ty * kEach], a);
    load<4>(&s.b[k][tx * kEach], b);
#pragma unroll
    for (int i = 0; i < kEach; ++i)
#pragma unroll
      for (int j = 0; j < kEach; ++j) sums[i][j] = fmaf(a[i], b[j], sums[i][j]);
  }
}

// strip[k][i] = value(k, i), k the faster of the two in memory where kAlong.
template <bool kAlong, class F>
__device__ void fill(float (&strip)[kDepth][kTile + 4], const F& value) {
#pragma unroll
  for (int n = 0; n < kDepth * kTile / kThreads; ++n) {
    const int at = n * kThreads + static_cast<int>(threadIdx.x);
    const int k = kAlong ? at % kDepth : at / kTile, i = kAlong ? at / kDepth : at % kTile;
    strip[k][i] = value(k, i);
  }
}

// kAlong: the columns of b are dense.
template <class T, bool kAlong>
__global__ void __launch_bounds__(kThreads) product_kernel(const MoeProduct p) {
  __shared__ Strips strips;
  const moe::RowTile tile = moe::row_tile(p, blockIdx.x, kTile);
  const int64_t e = tile.expert, row0 = tile.row, end = tile.end,
                col0 = int64_t{blockIdx.y} * kTile;
  if (row0 >= end || (e == p.n && p.c.add)) return;
  const T* const a = static_cast<const T*>(p.a);
  const T* const b = static_cast<const T*>(p.b) + (e < p.n ? e : 0) * p.b_expert;
  float sums[kEach][kEach] = {};
  for (int64_t k0 = 0; e < p.n && k0 < p.K; k0 += kDepth) {
    __syncthreads();
    fill<true>(strips.a, [&](int k, int i) {
      const bool there = k0 + k < p.K && row0 + i < end;
      return there ? static_cast<float>(a[(row0 + i) * p.a_row + k0 + k]) : 0.0f;
    });
    fill<kAlong>(strips.b, [&](int k, int j) {
      const bool there = k0 + k < p.K && col0 + j < p.N;
      return there ? static_cast<float>(b[(k0 + k) * p.b_row + (col0 + j) * p.b_col]) : 0.0f;
    });
    __syncthreads();
    add_strips(strips, sums);
  }
  const int64_t row = row0 + threadIdx.x / 16 * kEach, col = col0 + threadIdx.x % 16 * kEach;
#pragma unroll
  for (int i = 0; i < kEach; ++i)
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      if (row + i >= end || col + j >= p.N) continue;
      put(p.c, (row + i) * p.c.row + col + j, sums[i][j]);
    }
}

template <class T>
__global__ void __launch_bounds__(kThreads) weight_kernel(const MoeWeightGradient p) {
  __shared__ Strips strips;
  const int64_t e = blockIdx.z, n0 = int64_t{blockIdx.y} * kTile, k0 = int64_t{blockIdx.x} * kTile;
  const int64_t end = p.begin[e + 1];
  const T *const a = static_cast<const T*>(p.a), *const b = static_cast<const T*>(p.b);
  float sums[kEach][kEach] = {};
  for (int64_t row0 = p.begin[e]; row0 < end; row0 += kDepth) {
    __syncthreads();
    fill<false>(strips.a, [&](int r, int i) {
      const bool there = row0 + r < end && n0 + i < p.N;
      return there ? static_cast<float>(a[(row0 + r) * p.a_row + n0 + i]) : 0.0f;
    });
    fill<false>(strips.b, [&](int r, int j) {
      const bool there = row0 + r < end && k0 + j < p.K;
      return there ? static_cast<float>(b[(row0 + r) * p.b_row + k0 + j]) : 0.0f;
    });
    __syncthreads();
    add_strips(strips, sums);
  }
  const int64_t row = n0 + threadIdx.x / 16 * kEach, col = k0 + threadIdx.x % 16 * kEach;
#pragma unroll
  for (int i = 0; i < kEach; ++i)
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      if (row + i >= p.N || col + j >= p.K) continue;
      put(p.c, (e * p.N + row + i) * p.K + col + j, sums[i][j]);
    }
}

}  // namespace

void moe_product(const MoeProduct& p, void* stream) {
  if (p.M == 0 || p.N == 0) return;
  if (moe::tensor_product(p, stream)) return;
  const dim3 grid(moe::row_tiles(p, kTile), static_cast<unsigned>(ceil_div(p.N, kTile)));
  const auto launch = [&](auto kernel) {
    kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  };
  const bool along = p.b_row == 1;
  if (p.bf16) {
    along ? launch(product_kernel<bfloat16, true>) : launch(product_kernel<bfloat16, false>);
  } else {
    along ? launch(product_kernel<float, true>) : launch(product_kernel<float, false>);
  }
  check_launch("moe product");
}

void moe_weight_gradient(const MoeWeightGradient& p, void* stream) {
  if (p.n == 0 || p.N == 0 || p.K == 0 || moe::tensor_weight_gradient(p, stream)) return;
  const dim3 grid(static_cast<unsigned>(ceil_div(p.K, kTile)),
                  static_cast<unsigned>(ceil_div(p.N, kTile)), static_cast<unsigned>(p.n));
  const auto launch = [&](auto kernel) {
    kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  };
  p.bf16 ? launch(weight_kernel<bfloat16>) : launch(weight_kernel<float>);
  check_launch("moe weight gradient");
}

}  // namespace krait::cuda
