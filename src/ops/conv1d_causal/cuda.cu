// A thread has a run of neighbouring channels and some tokens; the inputs that its window reaches stay in
// registers. Kernels are made for windows of 4 and of 8 taps: of a narrower one the oldest `skip` taps are
// left out, so that what stands there is never multiplied.
#include "krait/ops/conv1d_causal/cuda.h"

#include <algorithm>
#include <type_traits>

#include "krait/tensor/cuda/exponentials.cuh"
#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/math.h"
#include "krait/tensor/cuda/rows.h"

namespace krait::cuda {

namespace {

using bfloat16 = __nv_bfloat16;

constexpr int64_t kForwardTokens = 32;          // of a thread
constexpr int kForwardAtOnce = 8, kAtOnce = 4;  // tokens whose loads are on their way at once
constexpr int kRun = 4;                         // neighbouring channels of a thread in backward
constexpr int kSlices = 4;                      // of a block's tokens in backward
constexpr int64_t kSliceTokens = kConvBackwardTokens / kSlices;

struct Sequence {
  int64_t begin, end, in, out;
  bool reverse;

  __device__ int64_t row(int64_t t) const { return reverse ? begin + end - 1 - t : t; }
};

__device__ Sequence sequence(const ConvSequences& c, int64_t s) {
  if (!c.begin) return {s * c.length, (s + 1) * c.length, s, s, c.reverse};
  return {c.begin[s], c.begin[s + 1], c.in[s], c.out[s], c.reverse};
}

// The sequence that holds `token`.
__device__ int64_t sequence_of(const ConvSequences& c, int64_t token) {
  if (!c.begin) return token / c.length;
  int64_t low = 0, high = c.n;  // begin[low] <= token, and the answer is below `high`
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (c.begin[middle] <= token ? low : high) = middle;
  }
  return low;
}

template <int N>
__device__ void load_runs(const float* from, float (&to)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    float run[4];
    load<4>(from + i, run);
#pragma unroll
    for (int j = 0; j < 4; ++j) to[i + j] = run[j];
  }
}

// Channels [e, e + V): their taps and bias, and the inputs of the window's older taps.
template <class T, int V, int W>
struct Window {
  const ConvProblem& p;
  const int64_t e;
  const int skip;
  float taps[W][V], bias[V] = {}, x[W - 1][V];

  __device__ Window(const ConvProblem& problem, int64_t channel)
      : p(problem), e(channel), skip(W - problem.width) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      float of_channel[W];
      if (V > 1 && skip == 0) {
        load_runs(p.k + (e + v) * W, of_channel);
      } else {
#pragma unroll
        for (int w = 0; w < W; ++w)
          of_channel[w] = w < skip ? 0.0f : p.k[(e + v) * p.width + w - skip];
      }
#pragma unroll
      for (int w = 0; w < W; ++w) taps[w][v] = of_channel[w];
    }
    if (p.bias) load<V>(p.bias + e, bias);
  }

  __device__ void input(const Sequence& q, int64_t t, float (&to)[V]) const {
    load<V>(static_cast<const T*>(p.x) + q.row(t) * p.x_stride + e, to);
  }

  // The inputs before token t of sequence q: of the sequence, of its state, or zero.
  __device__ void fill(int64_t t, const Sequence& q, const float* state_in) {
#pragma unroll
    for (int j = 0; j < W - 1; ++j) {
      const int64_t time = t - (W - 1) + j;
#pragma unroll
      for (int v = 0; v < V; ++v) x[j][v] = 0;
      if (j < skip) continue;
      if (time >= q.begin) {
        input(q, time, x[j]);
      } else if (state_in && q.in >= 0) {
#pragma unroll
        for (int v = 0; v < V; ++v)
          x[j][v] = state_in[(q.in * p.E + e + v) * p.K + p.K + time - q.begin];
      }
    }
  }

  // The convolution where `now` is the current input; with kFull no tap is skipped.
  template <bool kFull>
  __device__ void sum(const float (&now)[V], float (&to)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v) to[v] = bias[v];
#pragma unroll
    for (int w = 0; w < W - 1; ++w) {
      if (!kFull && w < skip) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) to[v] = fmaf(taps[w][v], x[w][v], to[v]);
    }
#pragma unroll
    for (int v = 0; v < V; ++v) to[v] = fmaf(taps[W - 1][v], now[v], to[v]);
  }

  __device__ void push(const float (&now)[V]) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int w = 0; w + 2 < W; ++w) x[w][v] = x[w + 1][v];
      x[W - 2][v] = now[v];
    }
  }
};

// To what rounding to T leaves of it.
template <class T>
__device__ float sigmoid(float z) {
  if (std::is_same_v<T, float>) return __fdividef(1.0f, 1.0f + expf(-z));
  return reciprocal<true>(1.0f + exp2_fast(-kLog2e * z));
}

// What most calls are: SiLU, and as many taps as the kernel has.
template <int W>
bool is_usual(const ConvProblem& p) {
  return p.silu && p.width == W;
}

// V neighbouring elements as they stand in memory, in registers of four bytes.
template <class T, int V>
struct alignas(sizeof(T) * V) Words {
  uint32_t word[sizeof(T) * V / 4];

  __device__ void widen(float (&to)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (sizeof(T) == 4) {
        to[v] = __uint_as_float(word[v]);
      } else {
        to[v] = __uint_as_float(v % 2 ? word[v / 2] & 0xffff0000u : word[v / 2] << 16);
      }
    }
  }
};

// N tokens on their way, at `from` and every `step` elements.
template <class T, int V, int N>
struct Group {
  Words<T, V> token[N];

  __device__ void fetch(const T* from, int64_t step) {
#pragma unroll
    for (int i = 0; i < N; ++i, from += step)
      token[i] = *reinterpret_cast<const Words<T, V>*>(from);
  }
};

// A step between rows that stays in registers: else it is multiplied out for each token.
__device__ int64_t in_registers(int64_t step) {
  asm("" : "+l"(step));
  return step;
}

// That are to fit on a multiprocessor.
template <class T, int W>
constexpr int kForwardBlocks = W > 4            ? 2
                               : sizeof(T) == 2 ? 6
                                                : 4;

template <class T, int V, int W, bool kUsual>
__global__ void __launch_bounds__(128, kForwardBlocks<T, W>)
    forward_kernel(const __grid_constant__ ConvProblem p, const __grid_constant__ ConvSequences c,
                   const float* state_in) {
  let_next_start();
  wait_for_previous();
  const int64_t e = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * V;
  if (e >= p.E) return;
  Window<T, V, W> window(p, e);
  const auto step = [&](const float(&now)[V], T* to) {
    float y[V];
    window.template sum<kUsual>(now, y);
    if (kUsual || p.silu)
#pragma unroll
      for (int v = 0; v < V; ++v) y[v] *= sigmoid<T>(y[v]);
    window.push(now);
    store<V>(to, y);
  };
  int64_t t = blockIdx.x * kForwardTokens;
  const int64_t to = min(c.tokens, t + kForwardTokens);
  for (int64_t s = sequence_of(c, t); t < to; ++s) {
    const Sequence q = sequence(c, s);
    const int64_t end = min(to, q.end);
    if (t >= end) continue;
    window.fill(t, q, state_in);
    const int64_t turn = q.reverse ? -1 : 1, x_step = in_registers(turn * p.x_stride),
                  y_step = in_registers(turn * p.E);
    const T* x = static_cast<const T*>(p.x) + q.row(t) * p.x_stride + e;
    T* y = static_cast<T*>(p.y) + q.row(t) * p.E + e;
    float now[V];
    int rest = static_cast<int>(end - t);
    if constexpr (V > 1) {
      constexpr int N = kForwardAtOnce;
      Group<T, V, N> next;
      if (rest >= N) next.fetch(x, x_step);
      for (; rest >= N; rest -= N) {
        const Group<T, V, N> group = next;
        x += N * x_step;
        if (rest >= 2 * N) next.fetch(x, x_step);
#pragma unroll
        for (int i = 0; i < N; ++i, y += y_step) {
          group.token[i].widen(now);
          step(now, y);
        }
      }
    }
    for (; rest > 0; --rest, x += x_step, y += y_step) {
      load<V>(x, now);
      step(now, y);
    }
    t = end;
  }
}

// The last K inputs of each sequence. In place is right: a column only ever takes from later ones.
template <class T>
__global__ void states_kernel(const __grid_constant__ ConvProblem p,
                              const __grid_constant__ ConvSequences c, const float* state_in,
                              float* state_out) {
  let_next_start();
  wait_for_previous();
  const int64_t e = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (e >= p.E) return;
  const Sequence q = sequence(c, blockIdx.x);
  if (q.out < 0) return;
  const float* const from = state_in && q.in >= 0 ? state_in + (q.in * p.E + e) * p.K : nullptr;
  float* const to = state_out + (q.out * p.E + e) * p.K;
  for (int64_t j = 0; j < p.K; ++j) {
    const int64_t t = q.end - p.K + j;
    to[j] = t >= q.begin ? static_cast<float>(static_cast<const T*>(p.x)[q.row(t) * p.x_stride + e])
            : from       ? from[p.K + t - q.begin]
                         : 0.0f;
  }
}

// dx of token u, with what came from the state that its sequence left.
template <class T, int V>
__device__ void write_input_gradient(const ConvProblem& p, const ConvBackward& b, const Sequence& q,
                                     int64_t u, int64_t e, float (&dx)[V]) {
  const int64_t column = p.K - (q.end - u);  // of state_out, where this input was left
  if (b.dstate_out && q.out >= 0 && column >= 0)
#pragma unroll
    for (int v = 0; v < V; ++v) dx[v] += b.dstate_out[(q.out * p.E + e + v) * p.K + column];
  T* const at = static_cast<T*>(p.dx) + q.row(u) * p.dx_stride + e;
  if (p.dx_add) {
    float old[V];
    load<V>(at, old);
#pragma unroll
    for (int v = 0; v < V; ++v) dx[v] += old[v];
  }
  store<V>(at, dx);
}

// A slice of tokens a warp, kSlices slices a block. With z the convolution and dz = dy · act'(z):
//   dx[u] = Σ_j k[W-1-j] · dz[u+j],   dk[w] = Σ_t dz[t] · x[t-(W-1-w)]
template <class T, int V, int W>
struct Gradients {
  Window<T, V, W> window;
  float dz[W][V];  // of the last W tokens
  float dk[W][V] = {}, dbias[V] = {};

  __device__ Gradients(const ConvProblem& p, int64_t e) : window(p, e) {}

  // Token t with its input and dy is taken in. `ours`: it lies in the slice, its share of dk and dbias is counted.
  template <bool kUsual>
  __device__ __forceinline__ void take(const float (&now)[V], const float (&dy)[V], bool ours) {
    float z[V];
    window.template sum<kUsual>(now, z);
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int j = 0; j + 1 < W; ++j) dz[j][v] = dz[j + 1][v];
      const float g = sigmoid<T>(z[v]);
      dz[W - 1][v] = kUsual || window.p.silu ? dy[v] * g * fmaf(z[v], 1.0f - g, 1.0f) : dy[v];
      if (!ours) continue;
      dbias[v] += dz[W - 1][v];
#pragma unroll
      for (int w = 0; w + 1 < W; ++w) dk[w][v] = fmaf(dz[W - 1][v], window.x[w][v], dk[w][v]);
      dk[W - 1][v] = fmaf(dz[W - 1][v], now[v], dk[W - 1][v]);
    }
    window.push(now);
  }
  // There is no token t: the sequence has ended.
  __device__ __forceinline__ void take_nothing() {
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int j = 0; j + 1 < W; ++j) dz[j][v] = dz[j + 1][v];
      dz[W - 1][v] = 0;
    }
  }
  // dx of token t - (W-1), of which everything is known when t has been taken in.
  template <bool kFull>
  __device__ __forceinline__ void input_gradient(float (&dx)[V]) const {
#pragma unroll
    for (int v = 0; v < V; ++v) dx[v] = 0;
#pragma unroll
    for (int j = 0; j < W; ++j) {
      if (!kFull && W - 1 - j < window.skip) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) dx[v] = fmaf(window.taps[W - 1 - j][v], dz[j][v], dx[v]);
    }
  }
};

// Tokens [t, t + kAtOnce n) of a usual call, whose windows lie in the slice and reach no state, with the next loads
// on their way.
template <class T, int V, int W>
__device__ __forceinline__ void take_groups(Gradients<T, V, W>& of, const Sequence& q, int64_t t,
                                            int n) {
  const ConvProblem& p = of.window.p;
  const int64_t turn = q.reverse ? -1 : 1, x_step = in_registers(turn * p.x_stride),
                dy_step = in_registers(turn * p.E), dx_step = in_registers(turn * p.dx_stride);
  const T* x = static_cast<const T*>(p.x) + q.row(t) * p.x_stride + of.window.e;
  const T* dy = static_cast<const T*>(p.dy) + q.row(t) * p.E + of.window.e;
  T* dx = static_cast<T*>(p.dx) + q.row(t - (W - 1)) * p.dx_stride + of.window.e;
  Group<T, V, kAtOnce> next_x, next_dy;
  next_x.fetch(x, x_step);
  next_dy.fetch(dy, dy_step);
  for (; n > 0; --n) {
    const Group<T, V, kAtOnce> now_x = next_x, now_dy = next_dy;
    x += kAtOnce * x_step;
    dy += kAtOnce * dy_step;
    if (n > 1) {
      next_x.fetch(x, x_step);
      next_dy.fetch(dy, dy_step);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i, dx += dx_step) {
      float now[V], d[V];
      now_x.token[i].widen(now);
      now_dy.token[i].widen(d);
      of.template take<true>(now, d, true);
      of.template input_gradient<true>(d);
      store<V>(dx, d);
    }
  }
}

// The tokens [from, end) of sequence s.
template <bool kUsual, class T, int V, int W>
__device__ __forceinline__ void take_slice(Gradients<T, V, W>& of, const ConvBackward& b,
                                           const Sequence& q, int64_t s, int64_t from,
                                           int64_t end) {
  const ConvProblem& p = of.window.p;
  const int64_t e = of.window.e;
  of.window.fill(from, q, b.state_in);
#pragma unroll
  for (int j = 0; j < W; ++j)
#pragma unroll
    for (int v = 0; v < V; ++v) of.dz[j][v] = 0;
  // Where inputs end that the state handed out holds.
  const int64_t free_of_state = b.dstate_out ? min(end, q.end - p.K + W - 1) : end;
  for (int64_t t = from; t < end + W - 1; ++t) {
    if constexpr (kUsual) {
      if (t - (W - 1) == from && t + kAtOnce <= free_of_state) {
        const auto n = static_cast<int>((free_of_state - t) / kAtOnce);
        take_groups(of, q, t, n);
        t += n * kAtOnce;
      }
    }
    if (t < q.end) {
      float now[V], dy[V] = {};
      of.window.input(q, t, now);
      if (p.dy) load<V>(static_cast<const T*>(p.dy) + q.row(t) * p.E + e, dy);
      of.template take<kUsual>(now, dy, t < end);
    } else {
      of.take_nothing();
    }
    const int64_t u = t - (W - 1);
    const bool before = from == q.begin && u >= q.begin - (p.width - 1);
    if (u >= end || (u < from && !before)) continue;
    float dx[V];
    of.template input_gradient<kUsual>(dx);
    if (u >= from) {
      if (p.dx) write_input_gradient<T>(p, b, q, u, e, dx);
    } else if (b.dhistory) {
      store<V>(b.dhistory + (s * (p.width - 1) + u - q.begin + p.width - 1) * p.E + e, dx);
    }
  }
}

template <class T, int V, int W, bool kUsual>
__global__ void __launch_bounds__(32 * kSlices)
    backward_kernel(const __grid_constant__ ConvProblem p, const __grid_constant__ ConvSequences c,
                    const __grid_constant__ ConvBackward b) {
  const int64_t e = (int64_t{blockIdx.y} * 32 + threadIdx.x) * V;
  Gradients<T, V, W> of(p, min(e, p.E - V));
  int64_t t = blockIdx.x * kConvBackwardTokens + threadIdx.y * kSliceTokens;
  const int64_t to = min(c.tokens, t + kSliceTokens);
  if (e < p.E && t < to) {
    for (int64_t s = sequence_of(c, t); t < to; ++s) {
      const Sequence q = sequence(c, s);
      const int64_t end = min(to, q.end);
      if (t >= end) continue;
      take_slice<kUsual>(of, b, q, s, t, end);
      t = end;
    }
  }
  if (!b.sums) return;
  // The slices' sums in the order of the slices, a tap at a time.
  __shared__ float of_slice[kSlices][32 * V];
  const int skip = W - p.width, lane = static_cast<int>(threadIdx.y * 32 + threadIdx.x);
  const int64_t channel = int64_t{blockIdx.y} * 32 * V + lane;
#pragma unroll
  for (int tap = 0; tap <= W; ++tap) {
    if (tap < skip) continue;
    __syncthreads();
    store<V>(&of_slice[threadIdx.y][threadIdx.x * V], tap < W ? of.dk[tap % W] : of.dbias);
    __syncthreads();
    if (lane >= 32 * V || channel >= p.E) continue;
    float sum = 0;
    for (int i = 0; i < kSlices; ++i) sum += of_slice[i][lane];
    b.sums[(int64_t{blockIdx.x} * (p.width + 1) + tap - skip) * p.E + channel] = sum;
  }
}

// dk (E, W) and dbias (E) from their totals (W+1, E).
__global__ void hand_out_sums_kernel(const ConvBackward b, int width, int64_t E) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= (width + 1) * E) return;
  const int64_t w = i / E, e = i % E;
  float* const to = w < width ? b.dk ? b.dk + e * width + w : nullptr
                    : b.dbias ? b.dbias + e
                              : nullptr;
  if (to) *to = (w < width ? b.dk_add : b.dbias_add) ? *to + b.totals[i] : b.totals[i];
}

// d(state_in) of one row: from the gradients of the inputs before each sequence that started there, and
// from d(state_out) where a short sequence let part of its state pass through. In the order of sequences.
__global__ void state_gradient_kernel(const ConvProblem p, const ConvSequences c,
                                      const ConvBackward b) {
  const int64_t e = int64_t{blockIdx.y} * blockDim.x + threadIdx.x, row = blockIdx.x, K = p.K;
  if (e >= p.E) return;
  const int W = p.width;
  float* const in = b.dstate_in + (row * p.E + e) * K;
  for (int64_t s = c.begin ? 0 : row; s < (c.begin ? c.n : row + 1); ++s) {
    const Sequence q = sequence(c, s);
    if (q.in != row) continue;
    const int64_t T = q.end - q.begin;
    for (int64_t j = 0; j < W - 1 && T > 0; ++j)
      in[K - (W - 1) + j] += b.dhistory[(s * (W - 1) + j) * p.E + e];
    if (!b.dstate_out || q.out < 0) continue;
    const float* const out = b.dstate_out + (q.out * p.E + e) * K;
    for (int64_t j = T; j < K; ++j) in[j] += out[j - T];
  }
}

bool channels_in_runs(const ConvProblem& p, const float* dhistory, int64_t V) {
  const int64_t bytes = p.bf16 ? 2 : 4;
  return p.E % V == 0 && in_runs(p.x, p.x_stride, bytes, V) && in_runs(p.y, 0, bytes, V) &&
         in_runs(p.dy, 0, bytes, V) && in_runs(p.dx, p.dx_stride, bytes, V) &&
         in_runs(p.bias, 0, 4, std::min<int64_t>(V, 4)) && in_runs(p.k, 0, 4, 4) &&
         in_runs(dhistory, 0, 4, std::min<int64_t>(V, 4));
}

// Calls f with a value of the type of x and the number of taps as an integral constant.
template <class F>
void with_kernel(const ConvProblem& p, const F& f) {
  using Narrow = std::integral_constant<int, 4>;
  using Wide = std::integral_constant<int, kConvMaxWidth>;
  if (p.bf16) {
    p.width <= 4 ? f(bfloat16(), Narrow()) : f(bfloat16(), Wide());
  } else {
    p.width <= 4 ? f(0.0f, Narrow()) : f(0.0f, Wide());
  }
}

}  // namespace

void conv_forward(const ConvProblem& p, const ConvSequences& c, const float* state_in,
                  float* state_out, void* stream) {
  if (p.E == 0) return;
  if (c.tokens > 0) {
    with_kernel(p, [&](auto x, auto taps) {
      using T = decltype(x);
      const auto launch = [&](auto kernel, int64_t V) {
        const int64_t runs = ceil_div(p.E, V),
                      threads = std::clamp<int64_t>(ceil_div(runs, 32) * 32, 32, 128);
        const dim3 grid(static_cast<unsigned>(ceil_div(c.tokens, kForwardTokens)),
                        static_cast<unsigned>(ceil_div(runs, threads)));
        launch_dependent("conv1d_causal", kernel, grid, static_cast<unsigned>(threads), 0, 1,
                         stream, p, c, state_in);
      };
      if (!channels_in_runs(p, nullptr, 4)) return launch(forward_kernel<T, 1, taps, false>, 1);
      is_usual<taps>(p) ? launch(forward_kernel<T, 4, taps, true>, 4)
                        : launch(forward_kernel<T, 4, taps, false>, 4);
    });
  }
  if (!state_out || c.n == 0) return;
  const dim3 grid(static_cast<unsigned>(c.n), static_cast<unsigned>(ceil_div(p.E, 128)));
  launch_dependent("conv1d_causal states", p.bf16 ? states_kernel<bfloat16> : states_kernel<float>,
                   grid, 128, 0, 1, stream, p, c, state_in, state_out);
}

void conv_backward(const ConvProblem& p, const ConvSequences& c, const ConvBackward& b,
                   int64_t state_rows, void* stream) {
  if (p.E == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  const int64_t pieces = ceil_div(c.tokens, kConvBackwardTokens);
  if (pieces > 0) {
    with_kernel(p, [&](auto x, auto taps) {
      using T = decltype(x);
      const auto launch = [&](auto kernel, int64_t V) {
        const dim3 grid(static_cast<unsigned>(pieces),
                        static_cast<unsigned>(ceil_div(p.E, 32 * V)));
        kernel<<<grid, dim3(32, kSlices), 0, s>>>(p, c, b);
      };
      if (!channels_in_runs(p, b.dhistory, kRun))
        return launch(backward_kernel<T, 1, taps, false>, 1);
      is_usual<taps>(p) && p.dy&& p.dx && !p.dx_add
          ? launch(backward_kernel<T, kRun, taps, true>, kRun)
          : launch(backward_kernel<T, kRun, taps, false>, kRun);
    });
    check_launch("conv1d_causal backward");
  }
  if (b.sums) {
    const int64_t n = (p.width + 1) * p.E;
    sum_rows(b.sums, false, n, pieces, n, b.totals, false, b.parts, stream);
    hand_out_sums_kernel<<<static_cast<unsigned>(ceil_div(n, 128)), 128, 0, s>>>(b, p.width, p.E);
    check_launch("conv1d_causal sums");
  }
  if (b.dstate_in && state_rows > 0) {
    const dim3 grid(static_cast<unsigned>(state_rows), static_cast<unsigned>(ceil_div(p.E, 128)));
    state_gradient_kernel<<<grid, 128, 0, s>>>(p, c, b);
    check_launch("conv1d_causal state gradient");
  }
}

}  // namespace krait::cuda
