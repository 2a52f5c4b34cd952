// The kernel behind few_rows.h, for any use of what comes out. A block has kStrip * MT rows of W, and 8 * NT
// rows of x; its eight warps, and up to eight blocks of a cluster, share out K. A chunk is 32 elements of K:
// lane 4 g + t has elements 8 t to 8 t + 7 of rows g and g + 8 of a strip, and of row g of x. As both factors
// have their elements in the same places, tensor cores may take them in whatever order they come. Sums run
// over warps, then over blocks, always in the same order. The weights' first chunks are on their way before
// the kernel waits for the one that makes x.
#pragma once
#include <algorithm>
#include <type_traits>

#include "krait/tensor/cuda/cluster.cuh"
#include "krait/tensor/cuda/few_rows.h"
#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

constexpr int kStrip = 16, kChunk = 32, kFewWarps = 8, kMostFewSplit = 8;

struct Normed {  // x = stream * w / rms(stream): the stream is float32, whatever the type of W
  const float* w;
  float eps;
};

constexpr int kMostLeftK = kFewWarps * 32 * 8;  // of a row left over: eight elements a thread

constexpr int kOfLine = 32;  // floats of a line of the second-level cache

// Eight neighbouring elements in registers.
template <class T>
struct Eight {
  uint4 v[sizeof(T) / 2];
};

// 16 bytes of weights, which no kernel writes, or zeros. Volatile: it stays in front of wait_for_previous.
__device__ inline uint4 load_weights_16(const void* p, bool valid) {
  uint4 v;
  asm volatile(
      "{ .reg .pred there; setp.ne.s32 there, %5, 0;\n"
      "mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
      "@there ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4]; }"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(p), "r"(static_cast<int>(valid)));
  return v;
}

// The same of what another kernel may just have written.
__device__ inline uint4 load_written_16(const void* p, bool valid) {
  uint4 v;
  asm volatile(
      "{ .reg .pred there; setp.ne.s32 there, %5, 0;\n"
      "mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
      "@there ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4]; }"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(p), "r"(static_cast<int>(valid))
      : "memory");
  return v;
}

template <class T>
__device__ inline Eight<T> load_weights(const T* p, bool valid) {
  Eight<T> e;
#pragma unroll
  for (unsigned i = 0; i < sizeof(T) / 2; ++i)
    e.v[i] = load_weights_16(reinterpret_cast<const uint4*>(p) + i, valid);
  return e;
}

template <class T>
__device__ inline Eight<T> load_written(const T* p, bool valid) {
  Eight<T> e;
#pragma unroll
  for (unsigned i = 0; i < sizeof(T) / 2; ++i)
    e.v[i] = load_written_16(reinterpret_cast<const uint4*>(p) + i, valid);
  return e;
}

__device__ inline void as_floats(const Eight<float>& e, float (&to)[8]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    to[4 * i] = __uint_as_float(e.v[i].x), to[4 * i + 1] = __uint_as_float(e.v[i].y);
    to[4 * i + 2] = __uint_as_float(e.v[i].z), to[4 * i + 3] = __uint_as_float(e.v[i].w);
  }
}

__device__ inline void as_floats(const Eight<__nv_bfloat16>& e, float (&to)[8]) {
  const unsigned words[4] = {e.v[0].x, e.v[0].y, e.v[0].z, e.v[0].w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = low_bf16(words[i]);
    to[2 * i + 1] = high_bf16(words[i]);
  }
}

__device__ inline unsigned two_bf16(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&v);
}

__device__ inline void multiply_tile(float (&c)[4], unsigned a0, unsigned a1, unsigned a2,
                                     unsigned a3, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <int MT, int NT>
struct FewRowsLayout {
  static constexpr int kRows = kStrip * MT, kColumns = 8 * NT, kElements = kRows * kColumns;
  // Floats between rows of a warp's sums: pairs that lanes write at once fall into different banks.
  static constexpr int kStep = NT % 2 ? kColumns : kColumns + 8;
  static constexpr int kSums = kRows * kStep;
  // Elements of a thread, where a block has all sums.
  static constexpr int kMine = std::max(1, kElements / (kFewWarps * 32));
  static constexpr size_t kBytes = sizeof(float) * kFewWarps * (kSums + kColumns);
};

// Sums of one warp. In bfloat16 of tiles as tensor cores leave them; in float32 MT = NT = 1.
template <class W, int MT, int NT>
struct WarpSums {
  float c[MT][NT][4] = {};

  // x: row g of the tile.
  __device__ void add(const Eight<W> (&w)[MT][2], int tile, const float (&x)[8]) {
    Eight<W> rounded;
    rounded.v[0] = {two_bf16(x[0], x[1]), two_bf16(x[2], x[3]), two_bf16(x[4], x[5]),
                    two_bf16(x[6], x[7])};
    add(w, tile, rounded);
  }
  __device__ void add(const Eight<W> (&w)[MT][2], int tile, const Eight<W>& x) {
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      const uint4 &low = w[m][0].v[0], &high = w[m][1].v[0], &b = x.v[0];
      multiply_tile(c[m][tile], low.x, high.x, low.y, high.y, b.x, b.y);
      multiply_tile(c[m][tile], low.z, high.z, low.w, high.w, b.z, b.w);
    }
  }
  __device__ void finish(int) {}
};

template <>
struct WarpSums<float, 1, 1> {
  float c[1][1][4], rows[2][8] = {};

  __device__ void add(const Eight<float> (&w)[1][2], int column, const float (&x)[8]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float of_w[8];
      as_floats(w[0][r], of_w);
#pragma unroll
      for (int i = 0; i < 8; ++i) rows[r][column] = fmaf(of_w[i], x[i], rows[r][column]);
    }
  }
  // Sums over the four lanes of a row, into the places where tensor cores would have them.
  __device__ void finish(int t) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int m = 0; m < 8; ++m) {
        float& sum = rows[r][m];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (m / 2 == t) c[0][0][2 * r + m % 2] = sum;
      }
  }
};

// Blocks that fit on a multiprocessor at the least: the next kernel's wait beside this one's.
template <class W, bool kNormed>
constexpr unsigned few_rows_blocks(int MT, int NT) {
  if (MT * NT > 8) return 1;
  return MT * NT > 1 || kNormed || sizeof(W) > 2 ? 2 : 3;
}

// Calls end(n, m, Σ_k x[m, k] w[n, k], end.hold(n, m)) once for each element of the product; hold is called early, to
// read what the end needs beside the sums: with End::kHoldsEarly before what makes x is complete. With End::kFactors
// sums are multiplied by a factor of the row, which a warp computes together: end.factor_of(end.part(m)). With kLeft the
// first blocks have one more row of W each, of those that their strips leave over.
template <class W, bool kNormed, int MT, int NT, int kAhead, int kBlocks, bool kLeft, class End>
__global__ void __launch_bounds__(kFewWarps * 32, kBlocks)
    few_rows_kernel(const __grid_constant__ FewRows p, const __grid_constant__ Normed norm,
                    const __grid_constant__ End end, const int blocks_of_cluster) {
  using Layout = FewRowsLayout<MT, NT>;
  using X = std::conditional_t<kNormed, float, W>;
  constexpr bool kFloat = std::is_same_v<W, float>;
  constexpr int kThreads = kFewWarps * 32, kGiven = std::min(kThreads, Layout::kElements);
  extern __shared__ __align__(16) float sums[];
  __shared__ float given[kNormed ? 1 : kMostFewSplit][kGiven];  // by each block of the cluster
  __shared__ uint64_t all_given;
  float* const squares = sums + kFewWarps * Layout::kSums;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int K = static_cast<int>(p.K), chunks = (K + kChunk - 1) / kChunk;
  const int split = kNormed ? 1 : blocks_of_cluster;
  const bool shared = split > 1;
  const unsigned rank = shared ? rank_in_cluster() : 0;
  const ClusterShare share(chunks, rank, split);
  const int64_t n0 = int64_t{share.cluster} * Layout::kRows;
  const int m0 = static_cast<int>(blockIdx.y) * Layout::kColumns, M = static_cast<int>(p.M);
  const int last = share.end;
  int chunk = share.first + warp;
  const int columns = min(Layout::kColumns, M - m0), elements = columns * Layout::kRows;
  if (shared) {
    const int here = min(max(elements - static_cast<int>(rank) * kThreads, 0), kThreads);
    if (threadIdx.x == 0) expect_in_block(&all_given, static_cast<unsigned>(here * split) * 4);
    __syncwarp();
    arrive_in_cluster();
  }

  const W* of_row[MT]
                 [2];  // rows behind the last one repeat it; what they give is left out at the end
#pragma unroll
  for (int i = 0; i < MT * 2; ++i)
    of_row[i / 2][i % 2] = static_cast<const W*>(p.w) + min(n0 + i * 8 + g, p.N - 1) * p.K + 8 * t;
  Eight<W> w[kAhead][MT][2];
  const auto fetch = [&](Eight<W>(&to)[MT][2], int c) {
    const bool valid = c < last && c * kChunk + 8 * t < K;
#pragma unroll
    for (int i = 0; i < MT * 2; ++i)
      to[i / 2][i % 2] = load_weights(of_row[i / 2][i % 2] + int64_t{c} * kChunk, valid);
  };
#pragma unroll
  for (int a = 0; a < kAhead; ++a) fetch(w[a], chunk + a * kFewWarps);
  const int64_t left = int64_t{gridDim.x} * Layout::kRows + blockIdx.x;
  const int of_left = 8 * static_cast<int>(threadIdx.x);
  const bool has_left = kLeft && left < p.N;
  [[maybe_unused]] Eight<W> w_left;
  if constexpr (kLeft)
    w_left = load_weights(static_cast<const W*>(p.w) + left * K + of_left, has_left && of_left < K);
  if constexpr (kNormed) {
    for (int k = threadIdx.x * kOfLine; k < K; k += kThreads * kOfLine) prefetch(norm.w + k);
  }
  if (!p.holds_next) let_next_start();
  const int mine = threadIdx.x + static_cast<int>(rank) * kThreads,
            step = shared ? split * kThreads : kThreads;
  typename End::Held held[Layout::kMine];
  const auto hold = [&] {
#pragma unroll
    for (int i = 0; i < Layout::kMine; ++i) {
      const int e = mine + i * step;
      if (e < elements && n0 + e % Layout::kRows < p.N)
        held[i] = end.hold(n0 + e % Layout::kRows, m0 + e / Layout::kRows);
    }
  };
  if constexpr (End::kHoldsEarly) hold();
  const float of_each = 1.0f / static_cast<float>(K);
  wait_for_previous();
  if (p.holds_next) let_next_start();
  if constexpr (!End::kHoldsEarly) hold();
  float of_factors[End::kFactors ? NT : 1];
  if constexpr (End::kFactors) {
#pragma unroll
    for (int i = 0; i < NT; ++i)
      of_factors[i] = warp + i * kFewWarps < columns ? end.part(m0 + warp + i * kFewWarps) : 0.0f;
  }

  __shared__ float sums_left[kLeft ? kFewWarps : 1][Layout::kColumns];
  if constexpr (kLeft) {
    static_assert(kNormed && !kFloat);
    for (int m = 0; has_left && m < columns; ++m) {
      float of_w[8], of_x[8], scale[8], sum = 0;
      as_floats(w_left, of_w);
      as_floats(
          load_written(static_cast<const X*>(p.x) + (m0 + m) * p.x_step + of_left, of_left < K),
          of_x);
      as_floats(load_weights(norm.w + of_left, of_left < K), scale);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum = fmaf(of_x[i] * scale[i], of_w[i], sum);
#pragma unroll
      for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
      if (lane == 0) sums_left[warp][m] = sum;
    }
  }

  WarpSums<W, MT, NT> acc;
  float square[NT] = {};
  const X* const x0 = static_cast<const X*>(p.x) + 8 * t;
  struct Inputs {  // of x, for one chunk: in float32 every row, in bfloat16 row g of each tile
    Eight<X> x[kFloat ? 8 : NT];
    Eight<float> scale;  // of the norm
  };
  const auto read = [&](Inputs& in, int c) {
    const int64_t k = int64_t{c} * kChunk;
    const bool there = c < last && k + 8 * t < K;
    if constexpr (kNormed) in.scale = load_weights(norm.w + k + 8 * t, there);
#pragma unroll
    for (int i = 0; i < (kFloat ? 8 : NT); ++i) {
      const int m = m0 + (kFloat ? i : i * 8 + g);
      in.x[i] = load_written(x0 + m * p.x_step + k, there && m < M);
    }
  };
  const auto multiply = [&](const Eight<W>(&weights)[MT][2], const Inputs& in) {
    float scale[8];
    if constexpr (kNormed) as_floats(in.scale, scale);
#pragma unroll
    for (int i = 0; i < (kFloat ? 8 : NT); ++i) {
      if constexpr (kFloat || kNormed) {
        float x[8];
        as_floats(in.x[i], x);
        if constexpr (kNormed) {
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            if (!kFloat || i == g)
              square[kFloat ? 0 : i] = fmaf(x[j], x[j], square[kFloat ? 0 : i]);
            x[j] *= scale[j];
          }
        }
        acc.add(weights, i, x);
      } else {
        acc.add(weights, i, in.x[i]);
      }
    }
  };
  // Few inputs are read for several chunks at once.
  constexpr int kTogether = !kFloat && NT <= 2 ? kAhead : 1;
#pragma unroll 1
  for (; chunk < last; chunk += kAhead * kFewWarps) {
#pragma unroll
    for (int first = 0; first < kAhead; first += kTogether) {
      Inputs in[kTogether];
#pragma unroll
      for (int a = 0; a < kTogether; ++a) read(in[a], chunk + (first + a) * kFewWarps);
#pragma unroll
      for (int a = 0; a < kTogether; ++a) multiply(w[first + a], in[a]);
#pragma unroll
      for (int a = 0; a < kTogether; ++a)
        fetch(w[first + a], chunk + (kAhead + first + a) * kFewWarps);
    }
  }
  acc.finish(t);

  float* const of_warp = sums + warp * Layout::kSums;
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int tile = 0; tile < NT; ++tile)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<float2*>(of_warp + (m * kStrip + half * 8 + g) * Layout::kStep +
                                   tile * 8 + 2 * t) = {acc.c[m][tile][2 * half],
                                                        acc.c[m][tile][2 * half + 1]};
  if constexpr (kNormed) {
#pragma unroll
    for (int tile = 0; tile < NT; ++tile) {
      square[tile] += __shfl_xor_sync(~0u, square[tile], 1);
      square[tile] += __shfl_xor_sync(~0u, square[tile], 2);
      if (t == 0) squares[warp * Layout::kColumns + tile * 8 + g] = square[tile];
    }
  }
  float* const factors = squares;
  if constexpr (End::kFactors) {
    static_assert(!kNormed);
#pragma unroll
    for (int i = 0; i < NT; ++i) {
      const float f = end.factor_of(of_factors[i]);
      if (lane == 0) factors[warp + i * kFewWarps] = f;
    }
  }
  __syncthreads();

  const auto over_warps = [&](const float* at, int step) {
    float sum = at[0];
#pragma unroll
    for (int i = 1; i < kFewWarps; ++i) sum += at[i * step];
    return sum;
  };
  const auto sum_of = [&](int e) {
    return over_warps(sums + e % Layout::kRows * Layout::kStep + e / Layout::kRows, Layout::kSums);
  };
  const auto factor_of = [&](int m) {  // of the norm
    const float mean = fmaf(over_warps(squares + m, Layout::kColumns), of_each, norm.eps);
    return kFloat ? 1.0f / sqrtf(mean) : rsqrtf(mean);
  };
  if (shared) {  // a block finishes kThreads elements, the next one the next ones
    wait_in_cluster();
    for (int e = threadIdx.x; e < elements; e += kThreads)
      send_to_block(&given[rank][threadIdx.x], sum_of(e), &all_given,
                    static_cast<unsigned>(e / kThreads));
    if (mine < elements) wait_for_sent(&all_given);
  }
#pragma unroll
  for (int i = 0; i < Layout::kMine; ++i) {
    const int e = mine + i * step, row = e % Layout::kRows, m = e / Layout::kRows;
    if (e >= elements) break;
    float value = 0;
    if (shared) {
      for (int r = 0; r < split; ++r) value += given[r][threadIdx.x];
    } else {
      value = sum_of(e);
    }
    if constexpr (kNormed) value *= factor_of(m);
    if constexpr (End::kFactors) value *= factors[m];
    if (n0 + row < p.N) end(n0 + row, m0 + m, value, held[i]);
  }
  if constexpr (kLeft) {
    // By threads that have nothing of few rows above.
    const int m = kThreads - 1 - static_cast<int>(threadIdx.x);
    if (has_left && m < columns)
      end(left, m0 + m, over_warps(&sums_left[0][m], Layout::kColumns) * factor_of(m),
          end.hold(left, m0 + m));
  }
}

constexpr int64_t kBlocksWanted = 264;  // two for each multiprocessor of an H100

// Blocks of a cluster: as many as K gives two chunks a warp for, while the card is not full.
inline int split_of(int64_t blocks, int64_t K) {
  int split = 1;
  while (split < kMostFewSplit && blocks * split * 2 <= kBlocksWanted &&
         ceil_div(K, kChunk) >= split * 2 * kFewWarps * 2)
    split *= 2;
  return split;
}

template <class W, bool kNormed, int MT, int NT, int kAhead,
          int kBlocks = few_rows_blocks<W, kNormed>(MT, NT), bool kLeft = false, class End>
void launch_few_rows(const FewRows& p, const Normed& norm, const End& end, int split,
                     void* stream) {
  using Layout = FewRowsLayout<MT, NT>;
  static_assert(Layout::kMine <= 2, "blocks of a cluster finish one element a thread");
  const auto kernel = few_rows_kernel<W, kNormed, MT, NT, kAhead, kBlocks, kLeft, End>;
  const int64_t strips = kLeft ? kBlocksWanted : ceil_div(p.N, Layout::kRows),
                tiles = ceil_div(p.M, Layout::kColumns);
  if (Layout::kBytes > size_t{48} << 10)
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(Layout::kBytes));
  launch_dependent(
      "few_rows", kernel, dim3(static_cast<unsigned>(strips * split), static_cast<unsigned>(tiles)),
      kFewWarps * 32, Layout::kBytes, static_cast<unsigned>(split), stream, p, norm, end, split);
}

// The product of x as it is, both factors W; `end` as few_rows_kernel calls it. M is at most kMostFewRows. Figures: an
// H200, one row.
template <class W, class End>
void few_rows_into(const FewRows& p, const End& end, void* stream) {
  constexpr int64_t kAllAhead = 6, kOfAhead = kFewWarps * kChunk;
  const Normed none{};
  const int split = split_of(
      ceil_div(p.N, kStrip) * ceil_div(p.M, !std::is_same_v<W, float> && p.M > 8 ? 16 : 8), p.K);
  if constexpr (std::is_same_v<W, float>) {
    launch_few_rows<W, false, 1, 1, 1>(p, none, end, split, stream);
  } else if (p.M > 8) {
    launch_few_rows<W, false, 1, 2, 4>(p, none, end, split, stream);
  } else if (p.N >= kWideRows) {  // a head of 50,280 x 768 in 21 us instead of 31
    launch_few_rows<W, false, 2, 1, 2, 3>(p, none, end, 1, stream);
  } else if (p.K <= kAllAhead * kOfAhead && p.N >= 512) {
    // Where a warp holds all of its weights before it waits, there is nothing that blocks would have to share.
    launch_few_rows<W, false, 1, 1, kAllAhead>(p, none, end, 1, stream);
  } else if (split == 2 &&
             p.K > 2 * 4 * kOfAhead) {  // out_proj of mamba-1.4b: 5.5 us instead of 5.9
    launch_few_rows<W, false, 1, 1, 8, 2>(p, none, end, split, stream);
  } else if (split == kMostFewSplit &&
             p.K <= 2 * kOfAhead * split) {  // x_proj: 1.8 us instead of 2.1
    launch_few_rows<W, false, 1, 1, 2, 4>(p, none, end, split, stream);
  } else if (split == 1 && ceil_div(p.N, kStrip) * 4 <= 3 * kBlocksWanted && p.K > 8 * kOfAhead) {
    // Three blocks a multiprocessor: layers of mamba-2.8b take 1.83 ms instead of 1.92.
    launch_few_rows<W, false, 1, 1, 4>(p, none, end, 2, stream);
  } else {
    launch_few_rows<W, false, 1, 1, 4>(p, none, end, split, stream);
  }
}

// The product of the norm of p.x (M, K) float32; M is at most kMostFewRows. Where there are more strips than blocks at
// once, a block has two. Where that is more still, what is left over goes to blocks row by row, or three blocks are on a
// multiprocessor: one round of blocks, not one and a part (H200, layers: mamba2-1.3b 1.02 ms instead of 1.09 with three,
// mamba-2.8b 1.97 instead of 2.23).
template <class W, class End>
void normed_few_rows_into(const FewRows& p, const Normed& norm, const End& end, void* stream) {
  if constexpr (std::is_same_v<W, float>) {
    launch_few_rows<W, true, 1, 1, 1>(p, norm, end, 1, stream);
  } else if (const bool two = p.N > kStrip * kBlocksWanted; p.M <= 8) {
    const int64_t left = p.N - 2 * kStrip * kBlocksWanted;
    if (p.M <= 4 && left > 0 && left <= kBlocksWanted && p.K <= kMostLeftK)
      return launch_few_rows<W, true, 2, 1, 2, 2, true>(p, norm, end, 1, stream);
    if (p.M <= 4 && left > 0) return launch_few_rows<W, true, 2, 1, 1, 3>(p, norm, end, 1, stream);
    two ? launch_few_rows<W, true, 2, 1, 2>(p, norm, end, 1, stream)
        : launch_few_rows<W, true, 1, 1, 3>(p, norm, end, 1, stream);
  } else {
    two ? launch_few_rows<W, true, 2, 2, 2>(p, norm, end, 1, stream)
        : launch_few_rows<W, true, 1, 2, 4>(p, norm, end, 1, stream);
  }
}

}  // namespace krait::cuda
