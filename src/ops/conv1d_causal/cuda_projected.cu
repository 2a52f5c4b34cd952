// The convolution's backward joined with that of a product of its result, which reads and writes each row once:
//
//   dY = dy + dp W      dz = dY · silu'(z)      dx, dk, dbias of dz as in cuda.cu      dW = dpᵀ y,  y = silu(z) made again
//
// A block has 128 channels, 64 for each of two warpgroups, and a piece of the tokens in four streams, one for each warp
// of a warpgroup: step by step 16 tokens of each, together the 64 rows of dp W and, y written in its place, the 64
// terms of dW. Between the two a lane takes in the tokens of two channels, one after another.
#include "krait/ops/conv1d_causal/cuda_projected.h"

#include <type_traits>

#include "krait/tensor/cuda/exponentials.cuh"
#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/math.h"
#include "krait/tensor/cuda/mma.h"
#include "krait/tensor/cuda/one_pass.h"
#include "krait/tensor/cuda/warpgroup.cuh"

namespace krait::cuda {

namespace {

using bfloat16 = __nv_bfloat16;

constexpr int kGroups = 2, kThreads = 128 * kGroups;  // warpgroups of a block
constexpr int kTaps = 4;

// A step between rows that stays in registers: else it is multiplied out for each row.
__device__ int64_t in_registers(int64_t step) {
  asm("" : "+l"(step));
  return step;
}

// J columns in parts of 64, and behind them one of 32.
template <int kWideParts, bool kNarrowPart>
struct Columns {
  static constexpr int kWide = kWideParts;
  static constexpr bool kNarrow = kNarrowPart;
  static constexpr int kTiles = kWide + kNarrow, kTerms = 4 * kWide + 2 * kNarrow;  // of 16
  static constexpr int kStages = kWide < 3 ? 3 : 2;  // steps in shared memory, as many as fit
};

#if KRAIT_HOPPER

// 64 rows of J sums in a warpgroup's registers.
template <class S>
struct Sums {
  float wide[S::kWide][8][4] = {}, narrow[4][4] = {};

  // += 16 terms: of A by columns, and of tiles by columns some bytes behind their begin.
  __device__ void add(uint64_t a, const unsigned char (*b)[kTileBytes], int bytes) {
#pragma unroll
    for (int n = 0; n < S::kWide; ++n)
      product<true, true, true>(wide[n], a, further(tile_at(b[n]), bytes));
    if constexpr (S::kNarrow)
      product<true, true, true>(narrow, a, further(tile_at(b[S::kWide]), bytes));
  }
  __device__ void wait() {
#pragma unroll
    for (int n = 0; n < S::kWide; ++n) wait_for_products<0>(wide[n]);
    if constexpr (S::kNarrow) wait_for_products<0>(narrow);
  }
  // Calls f with a thread's sums of columns [8 n, 8 n + 8).
  template <class F>
  __device__ void for_columns(const F& f) const {
#pragma unroll
    for (int n = 0; n < S::kWide * 8; ++n) f(wide[n / 8][n % 8], n);
    if constexpr (S::kNarrow)
#pragma unroll
      for (int n = 0; n < 4; ++n) f(narrow[n], S::kWide * 8 + n);
  }
};

#endif

constexpr int kStreams = 4, kStep = 16;  // tokens of a stream at a time
constexpr int kAtOnce = 4;               // tokens that a lane reads together
constexpr int kSums = kTaps + 1;

template <class S>
struct Shared {
  struct Stage {
    unsigned char dp[S::kTiles][kTileBytes];
    unsigned char x[kGroups][kTileBytes];   // rows as they are
    unsigned char dy[kGroups][kTileBytes];  // then dY, then y
  };
  unsigned char w[kGroups][S::kTerms * 2048];  // rows of W, by columns
  Stage stage[S::kStages];
};

// The tokens [begin, end) of a warp.
struct Stream {
  int64_t begin, end;
};

__device__ Stream stream_of(const ConvProjected& p, int64_t index) {
  const int64_t each = ceil_div(p.tokens, int64_t{gridDim.x} * kStreams);
  return {min(p.tokens, index * each), min(p.tokens, (index + 1) * each)};
}

template <class S>
__global__ void __launch_bounds__(kThreads, 1)
    projected_backward_kernel(const __grid_constant__ ConvProjected p) {
#if KRAIT_HOPPER
  extern __shared__ unsigned char memory[];
  auto& s = *reinterpret_cast<Shared<S>*>(memory + (1024 - shared_address(memory) % 1024) % 1024);
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32),
            group = warp / 4, of_stream = warp % 4, row0 = of_stream * kStep;
  const int64_t e0 = int64_t{blockIdx.y} * kProjectedChannels + group * 64, e = e0 + 2 * lane;
  const int units = static_cast<int>(p.J / 8);  // of 8 elements, of a row of dp
  const Stream of = stream_of(p, int64_t{blockIdx.x} * kStreams + of_stream);
  const int64_t last = min(p.tokens, of.end + kTaps - 1);  // what the dx of its own reach
  const int steps = static_cast<int>(
      ceil_div(ceil_div(p.tokens, int64_t{gridDim.x} * kStreams) + kTaps - 1, int64_t{kStep}));

  // The rows of a step that a lane copies: of x and dy units of 16 bytes four rows apart, of dp a half for each group.
  const int x_row = lane / 8, dp_row = lane % 16, first_unit = 2 * group + lane / 16;
  const auto* x_from =
      static_cast<const bfloat16*>(p.x) + (of.begin + x_row) * p.x_stride + e0 + lane % 8 * 8;
  const auto* dy_from =
      static_cast<const bfloat16*>(p.dy) + (of.begin + x_row) * p.E + e0 + lane % 8 * 8;
  const auto* dp_from =
      static_cast<const bfloat16*>(p.dp) + (of.begin + dp_row) * p.J + first_unit * 8;
  const int64_t x_step = in_registers(4 * p.x_stride), dy_step = in_registers(4 * p.E),
                dp_step = in_registers(kStep * p.J);
  int left = static_cast<int>(last - of.begin);
  const auto fetch = [&](int i) {
    auto& to = s.stage[i % S::kStages];
#pragma unroll
    for (int k = 0; k < 4; ++k, x_from += x_step, dy_from += dy_step) {
      const int at = (row0 + x_row + 4 * k) * 128 + lane % 8 * 16;
      const bool there = x_row + 4 * k < left;
      copy_async(to.x[group] + at, x_from, there);
      copy_async(to.dy[group] + in_tile(row0 + x_row + 4 * k, lane % 8), dy_from, there);
    }
#pragma unroll
    for (int k = 0; k < 2 * S::kTiles; ++k) {
      const int unit = 4 * k + first_unit;
      if (unit < units)
        copy_async(to.dp[k / 2] + in_tile(row0 + dp_row, unit % 8), dp_from + 32 * k,
                   dp_row < left);
    }
    dp_from += dp_step;
    left -= kStep;
  };

  // Columns and rows beyond J are zeros.
  for (int i = static_cast<int>(threadIdx.x); i < S::kStages * S::kTiles * 512; i += kThreads) {
    const int row = i % 64, unit = i / 64 % (8 * S::kTiles), stage = i / (512 * S::kTiles);
    if (unit >= units)
      *reinterpret_cast<uint4*>(s.stage[stage].dp[unit / 8] + in_tile(row, unit % 8)) = {};
  }
  for (int i = static_cast<int>(threadIdx.x); i < kGroups * S::kTerms * 16 * 8; i += kThreads) {
    const int unit = i % 8, row = i / 8 % (S::kTerms * 16), g = i / (S::kTerms * 128);
    copy_async(s.w[g] + in_tile(row, unit),
               static_cast<const bfloat16*>(p.w) + row * p.E +
                   int64_t{blockIdx.y} * kProjectedChannels + g * 64 + unit * 8,
               row < p.J);
  }
#pragma unroll
  for (int i = 0; i + 1 < S::kStages; ++i) {
    if (i < steps) fetch(i);
    commit_copies();
  }

  float taps[kTaps][2], bias[2] = {}, x[kTaps - 1][2] = {}, dz[kTaps][2] = {}, dk[kTaps][2] = {},
                        dbias[2] = {};
#pragma unroll
  for (int v = 0; v < 2; ++v) {
    float of_channel[kTaps];
    load<kTaps>(p.k + (e + v) * kTaps, of_channel);
#pragma unroll
    for (int j = 0; j < kTaps; ++j) taps[j][v] = of_channel[j];
  }
  if (p.bias) load<2>(p.bias + e, bias);
#pragma unroll
  for (int j = 0; j < kTaps - 1; ++j) {
    const int64_t t = of.begin - (kTaps - 1) + j;
    if (of.begin < p.tokens && t >= of.begin - of.begin % p.length)
      load<2>(static_cast<const bfloat16*>(p.x) + t * p.x_stride + e, x[j]);
  }

  Sums<S> dw;  // transposed: rows are channels
  // What a lane reads of some tokens: their y is written in the place of dY when the next ones have been read.
  struct Tokens {
    uint32_t x[kAtOnce], dy[kAtOnce];
  };
  const auto dy_at = [&](int i, int row, int unit, int word) {
    return reinterpret_cast<uint32_t*>(s.stage[i % S::kStages].dy[group] +
                                       in_tile(row0 + row, unit) + word * 4);
  };
  const auto read = [&](int i, int row, Tokens& to) {
    const unsigned char* const x_at = s.stage[i % S::kStages].x[group] + row0 * 128 + lane * 4;
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      to.x[r] = *reinterpret_cast<const uint32_t*>(x_at + (row + r) * 128);
      to.dy[r] = *dy_at(i, row + r, lane / 4, lane % 4);
    }
  };
  // Masked: the stream begins or ends here, or a sequence does: its first token is `border`; or dx is added to.
  const auto take = [&](int64_t t, uint32_t x_pair, uint32_t dy_pair, bfloat16* to_dx, auto masked,
                        int64_t border) {
    const float now[2] = {low_bf16(x_pair), high_bf16(x_pair)};
    const float dy[2] = {low_bf16(dy_pair), high_bf16(dy_pair)};
    const bool ours = !masked || t < of.end;
    float y[2], of_u[2] = {};
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      if (masked && t == border) x[0][v] = x[1][v] = x[2][v] = 0;
      float z = bias[v];
#pragma unroll
      for (int j = 0; j + 1 < kTaps; ++j) z = fmaf(taps[j][v], x[j][v], z);
      z = fmaf(taps[kTaps - 1][v], now[v], z);
      const float g = sigmoid<true>(z), silu = z * g;
      y[v] = ours ? silu : 0.0f;
#pragma unroll
      for (int j = 0; j + 1 < kTaps; ++j) dz[j][v] = dz[j + 1][v];
      dz[kTaps - 1][v] = dy[v] * fmaf(silu, 1.0f - g, g);
      if (ours) {
        dbias[v] += dz[kTaps - 1][v];
#pragma unroll
        for (int j = 0; j + 1 < kTaps; ++j) dk[j][v] = fmaf(dz[kTaps - 1][v], x[j][v], dk[j][v]);
        dk[kTaps - 1][v] = fmaf(dz[kTaps - 1][v], now[v], dk[kTaps - 1][v]);
      }
#pragma unroll
      for (int j = 0; j + 2 < kTaps; ++j) x[j][v] = x[j + 1][v];
      x[kTaps - 2][v] = now[v];
    }
    const int64_t u = t - (kTaps - 1);  // of which everything is known now
    if (!masked || (u >= of.begin && u < of.end)) {
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        if (masked && u < border && u + j >= border) continue;
#pragma unroll
        for (int v = 0; v < 2; ++v) of_u[v] = fmaf(taps[kTaps - 1 - j][v], dz[j][v], of_u[v]);
      }
      masked ? store_or_add<2>(to_dx, of_u, p.dx_add) : store<2>(to_dx, of_u);
    }
    return pack_bf16(y[0], y[1]);
  };
  const auto take_step = [&](int i, auto masked, int64_t border) {
    const int64_t token = of.begin + int64_t{i} * kStep;
    const int64_t dx_step = in_registers(p.dx_stride);
    bfloat16* dx = static_cast<bfloat16*>(p.dx) + (token - (kTaps - 1)) * dx_step + e;
    Tokens next;
    read(i, 0, next);
#pragma unroll
    for (int row = 0; row < kStep; row += kAtOnce) {
      Tokens now = next;
      if (row + kAtOnce < kStep) read(i, row + kAtOnce, next);
      uint32_t y[kAtOnce];
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r, dx += dx_step)
        y[r] = take(token + row + r, now.x[r], now.dy[r], dx, masked, border);
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) *dy_at(i, row + r, lane / 4, lane % 4) = y[r];
    }
  };

  int64_t border = of.begin - of.begin % p.length;  // the first token of a step's last sequence
  for (int i = 0; i < steps; ++i) {
    wait_for_copies<S::kStages - 2>();
    show_to_products();
    __syncthreads();  // the step's rows are there, and nobody reads those of the step before
    if (i + S::kStages - 1 < steps) fetch(i + S::kStages - 1);
    commit_copies();

    float dp_w[8][4];
    begin_products();
    const auto& from = s.stage[i % S::kStages];
#pragma unroll
    for (int k = 0; k < S::kTerms; ++k) {
      const uint64_t a = further(tile_at(from.dp[k / 4]), k % 4 * 32),
                     b = further(tile_at(s.w[group]), k * 2048);
      k == 0 ? product<false, false, true>(dp_w, a, b) : product<true, false, true>(dp_w, a, b);
    }
    commit_products();
    uint32_t dy[8][2];  // read meanwhile
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        dy[n][half] = *dy_at(i, lane / 4 + 8 * half, n, lane % 4);
    wait_for_products<0>(dp_w);
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *dy_at(i, lane / 4 + 8 * half, n, lane % 4) =
            pack_bf16(low_bf16(dy[n][half]) + dp_w[n][2 * half],
                      high_bf16(dy[n][half]) + dp_w[n][2 * half + 1]);
    __syncwarp();

    const int64_t token = of.begin + int64_t{i} * kStep, behind = token + kStep;
    if (border + p.length < behind) border += p.length;
    i > 0 && behind <= of.end && !p.dx_add && border <= token - kTaps + 1
        ? take_step(i, std::false_type(), border)
        : take_step(i, std::true_type(), border);

    show_to_products();
    sync_warpgroup(group);
    begin_products();
#pragma unroll
    for (int k = 0; k < 4; ++k)
      dw.add(further(tile_at(from.dy[group]), k * 2048), from.dp, k * 2048);
    commit_products();
    dw.wait();
  }

  float* const sums = p.sums + int64_t{blockIdx.x} * (kSums + p.J) * p.E;
  dw.for_columns([&](const float(&d)[4], int n) {
    const int j = n * 8 + lane % 4 * 2;
    if (j >= p.J) return;
    float* const to = sums + (kSums + j) * p.E + e0 + row0 + lane / 4;
    to[0] = d[0];
    to[p.E] = d[1];
    to[8] = d[2];
    to[p.E + 8] = d[3];
  });

  // dk and dbias, the streams in their order.
  __syncthreads();
  auto* const of_streams = reinterpret_cast<float(*)[kSums][128]>(s.stage[0].dp[0]);
#pragma unroll
  for (int j = 0; j < kSums; ++j)
    store<2>(&of_streams[of_stream][j][group * 64 + 2 * lane], j < kTaps ? dk[j % kTaps] : dbias);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kSums * 128; i += kThreads) {
    float sum = 0;
    for (int k = 0; k < kStreams; ++k) sum += of_streams[k][i / 128][i % 128];
    sums[i / 128 * p.E + int64_t{blockIdx.y} * kProjectedChannels + i % 128] = sum;
  }
#endif
}

// The sums of all pieces, in their order, to where they belong.
__global__ void __launch_bounds__(128)
    hand_out_projected_kernel(const __grid_constant__ ConvProjected p, int64_t pieces) {
  const int64_t e = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * 4, row = blockIdx.y;
  wait_for_previous();
  if (e >= p.E) return;
  float sum[4] = {};
#pragma unroll 11
  for (int64_t i = 0; i < pieces; ++i) {
    const float4 more =
        __ldcg(reinterpret_cast<const float4*>(p.sums + (i * (kSums + p.J) + row) * p.E + e));
    sum[0] += more.x, sum[1] += more.y, sum[2] += more.z, sum[3] += more.w;
  }
  if (row >= kSums) {
    if (p.dw) store_or_add<4>(p.dw + (row - kSums) * p.E + e, sum, p.dw_add);
  } else if (row == kTaps) {
    if (p.dbias) store_or_add<4>(p.dbias + e, sum, p.dbias_add);
  } else if (p.dk) {
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      float* const to = p.dk + (e + v) * kTaps + row;
      *to = p.dk_add ? *to + sum[v] : sum[v];
    }
  }
}

template <class S>
void launch_backward(const ConvProjected& p, void* stream) {
  const auto kernel = projected_backward_kernel<S>;
  const size_t shared = sizeof(Shared<S>) + 1024;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(shared));
  const int64_t pieces = conv_projected_pieces(p.tokens, p.E);
  const dim3 grid(static_cast<unsigned>(pieces), static_cast<unsigned>(p.E / kProjectedChannels));
  launch_in_order("conv1d_causal projected", kernel, grid, kThreads, shared, 1, stream, p);
  const dim3 of_sums(static_cast<unsigned>(ceil_div(p.E, 512)), static_cast<unsigned>(kSums + p.J));
  launch_dependent("conv1d_causal projected sums", hand_out_projected_kernel, of_sums, 128, 0, 1,
                   stream, p, pieces);
}

}  // namespace

bool fits_conv_projected(const ConvProjected& p) {
  return p.E % kProjectedChannels == 0 && p.J % 16 == 0 && p.J > 64 && p.J <= kProjectedColumns &&
         p.length >= 32 && p.tokens >= 2048 && in_runs(p.x, p.x_stride, 2, 8) && on_hopper();
}

void conv_projected_backward(const ConvProjected& p, void* stream) {
  p.J <= 96    ? launch_backward<Columns<1, true>>(p, stream)
  : p.J <= 128 ? launch_backward<Columns<2, false>>(p, stream)
  : p.J <= 160 ? launch_backward<Columns<2, true>>(p, stream)
               : launch_backward<Columns<3, false>>(p, stream);
}

}  // namespace krait::cuda
