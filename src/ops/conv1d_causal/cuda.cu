// A thread has a run of neighbouring channels and some tokens; the inputs that its window reaches stay in
// registers. Kernels are made for windows of 4 and of 8 taps: of a narrower one the oldest `skip` taps are
// left out, so that what stands there is never multiplied.
#include "krait/ops/conv1d_causal/cuda.h"

#include <algorithm>
#include <type_traits>

#include "krait/ops/conv1d_causal/cuda_ring.cuh"
#include "krait/tensor/cuda/exponentials.cuh"
#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/math.h"
#include "krait/tensor/cuda/sum_slices.cuh"

namespace krait::cuda {

namespace {

using bfloat16 = __nv_bfloat16;

// Where there are enough threads all the same, a thread of forward has many tokens.
constexpr bool many_tokens(int64_t tokens, int64_t E) { return tokens * E >= int64_t{1} << 24; }
constexpr int64_t forward_tokens(int64_t tokens, int64_t E) {
  return many_tokens(tokens, E) ? 128 : 32;
}
constexpr int kRun = 4;     // neighbouring channels of a thread
constexpr int kSlices = 4;  // of a block's tokens in backward

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

// Element i of a state.
template <class T>
__device__ float of_state(const ConvProblem& p, const void* state, int64_t i) {
  if (std::is_same_v<T, bfloat16> && p.state_bf16)
    return static_cast<float>(static_cast<const bfloat16*>(state)[i]);
  return static_cast<const float*>(state)[i];
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
        load_fours(p.k + (e + v) * W, of_channel);
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
  __device__ void fill(int64_t t, const Sequence& q, const void* state_in) {
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
          x[j][v] = of_state<T>(p, state_in, (q.in * p.E + e + v) * p.K + p.K + time - q.begin);
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

// The last K inputs of a sequence, channel e, as its state. In place is right: a column only ever takes from later ones.
template <class T>
__device__ void write_state(const ConvProblem& p, const Sequence& q, int64_t e,
                            const void* state_in, void* state_out) {
  const bool from = state_in && q.in >= 0;
  const int64_t in = (q.in * p.E + e) * p.K, out = (q.out * p.E + e) * p.K;
  for (int64_t j = 0; j < p.K; ++j) {
    const int64_t t = q.end - p.K + j;
    const float value =
        t >= q.begin ? static_cast<float>(static_cast<const T*>(p.x)[q.row(t) * p.x_stride + e])
        : from       ? of_state<T>(p, state_in, in + p.K + t - q.begin)
                     : 0.0f;
    if (std::is_same_v<T, bfloat16> && p.state_bf16) {
      static_cast<bfloat16*>(state_out)[out + j] = static_cast<bfloat16>(value);
    } else {
      static_cast<float*>(state_out)[out + j] = value;
    }
  }
}

// What most calls are: SiLU, and as many taps as the kernel has.
template <int W>
bool is_usual(const ConvProblem& p) {
  return p.silu && p.width == W;
}

constexpr int kForwardAhead = 2, kBackwardAhead = 3;  // groups

// Blocks that are to fit on a multiprocessor.
template <class T, int W>
constexpr int kForwardBlocks = W > 4            ? 2
                               : sizeof(T) == 2 ? 8
                                                : 4;

// state_out: of the one sequence there is, by those who read what was there before; or null.
template <class T, int V, int W, bool kUsual>
__global__ void __launch_bounds__(128, kForwardBlocks<T, W>)
    forward_kernel(const __grid_constant__ ConvProblem p, const __grid_constant__ ConvSequences c,
                   const void* state_in, void* state_out) {
  extern __shared__ __align__(16) unsigned char memory[];
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
  const int64_t each = forward_tokens(c.tokens, p.E);
  int64_t t = blockIdx.x * each;
  const int64_t to = min(c.tokens, t + each);
  for (int64_t s = sequence_of(c, t); t < to; ++s) {
    const Sequence q = sequence(c, s);
    const int64_t end = min(to, q.end);
    if (t >= end) continue;
    const int64_t turn = q.reverse ? -1 : 1, x_step = in_registers(turn * p.x_stride),
                  y_step = in_registers(turn * p.E);
    const T* x = static_cast<const T*>(p.x) + q.row(t) * p.x_stride + e;
    T* y = static_cast<T*>(p.y) + q.row(t) * p.E + e;
    float now[V];
    int rest = static_cast<int>(end - t);
    window.fill(t, q, state_in);
    if (state_out && q.out >= 0 && t == q.begin)
      for (int v = 0; v < V; ++v) write_state<T>(p, q, e + v, state_in, state_out);
    if constexpr (V > 1) {
      const int groups = rest / kGroup;
      Ring<T, V, kForwardAhead> ring(memory, static_cast<int>(threadIdx.x),
                                     static_cast<int>(blockDim.x), x, x_step, rest);
      for_groups<kForwardAhead>(
          groups, [&](int slot) { ring.fetch(slot); },
          [&](int, int slot) {
#pragma unroll
            for (int i = 0; i < kGroup; ++i, y += y_step) {
              ring.read(slot, i, now);
              step(now, y);
            }
          });
      x += groups * kGroup * x_step;
      rest -= groups * kGroup;
    }
    for (; rest > 0; --rest, x += x_step, y += y_step) {
      load<V>(x, now);
      step(now, y);
    }
    t = end;
  }
}

// The states of several sequences: the first inputs of one may be in the windows of several blocks of forward_kernel.
template <class T>
__global__ void states_kernel(const __grid_constant__ ConvProblem p,
                              const __grid_constant__ ConvSequences c, const void* state_in,
                              void* state_out) {
  let_next_start();
  wait_for_previous();
  const int64_t e = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  const Sequence q = sequence(c, blockIdx.x);
  if (e < p.E && q.out >= 0) write_state<T>(p, q, e, state_in, state_out);
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

// The tokens [from, end) of a usual call, whose gradients neither come from a state nor go to one.
template <class T, int V, int W>
__device__ __forceinline__ void take_usual_slice(Gradients<T, V, W>& of, const float* state_in,
                                                 const Sequence& q, int64_t from, int64_t end,
                                                 unsigned char* memory) {
  const ConvProblem& p = of.window.p;
  const int64_t e = of.window.e, turn = q.reverse ? -1 : 1;
  // Of the slice, of it and what the windows of its last inputs reach, and of these in the sequence.
  const int own = static_cast<int>(end - from), all = own + W - 1,
            there = static_cast<int>(min(q.end - from, int64_t{all}));
  const int thread = static_cast<int>(threadIdx.y * 32 + threadIdx.x);
  using Tokens = Ring<T, V, kBackwardAhead>;
  Tokens of_x(memory, thread, 32 * kSlices,
              static_cast<const T*>(p.x) + q.row(from) * p.x_stride + e, turn * p.x_stride, there);
  Tokens of_dy(memory + Tokens::bytes(32 * kSlices), thread, 32 * kSlices,
               static_cast<const T*>(p.dy) + q.row(from) * p.E + e, turn * p.E, there);
  const int64_t dx_step = in_registers(turn * p.dx_stride);
  T* dx = static_cast<T*>(p.dx) + q.row(from) * p.dx_stride + e - (W - 1) * dx_step;
  of.window.fill(from, q, state_in);
#pragma unroll
  for (int j = 0; j < W; ++j)
#pragma unroll
    for (int v = 0; v < V; ++v) of.dz[j][v] = 0;
  const auto take = [&](int g, int slot, auto masked) {
#pragma unroll
    for (int i = 0; i < kGroup; ++i, dx += dx_step) {
      const int t = g * kGroup + i;
      float now[V] = {}, d[V] = {};
      if (!masked || t < there) of_x.read(slot, i, now), of_dy.read(slot, i, d);
      of.template take<true>(now, d, !masked || t < own);
      if (masked && (t < W - 1 || t >= all)) continue;
      of.template input_gradient<true>(d);
      store<V>(dx, d);
    }
  };
  for_groups<kBackwardAhead>(
      (all + kGroup - 1) / kGroup, [&](int slot) { of_x.fetch(slot), of_dy.fetch(slot); },
      [&](int g, int slot) {
        g* kGroup >= W - 1 && (g + 1) * kGroup <= own ? take(g, slot, std::false_type())
                                                      : take(g, slot, std::true_type());
      });
}

// The tokens [from, end) of sequence s.
template <class T, int V, int W>
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
  for (int64_t t = from; t < end + W - 1; ++t) {
    if (t < q.end) {
      float now[V], dy[V] = {};
      of.window.input(q, t, now);
      if (p.dy) load<V>(static_cast<const T*>(p.dy) + q.row(t) * p.E + e, dy);
      of.template take<false>(now, dy, t < end);
    } else {
      of.take_nothing();
    }
    const int64_t u = t - (W - 1);
    const bool before = from == q.begin && u >= q.begin - (p.width - 1);
    if (u >= end || (u < from && !before)) continue;
    float dx[V];
    of.template input_gradient<false>(dx);
    if (u >= from) {
      if (p.dx) write_input_gradient<T>(p, b, q, u, e, dx);
    } else if (b.dhistory) {
      store<V>(b.dhistory + (s * (p.width - 1) + u - q.begin + p.width - 1) * p.E + e, dx);
    }
  }
}

// Blocks that are to fit on a multiprocessor.
template <class T, int W>
constexpr int kBackwardBlocks = W > 4 || sizeof(T) == 4 ? 2 : 4;

template <class T, int V, int W, bool kUsual>
__global__ void __launch_bounds__(32 * kSlices, kBackwardBlocks<T, W>)
    backward_kernel(const __grid_constant__ ConvProblem p, const __grid_constant__ ConvSequences c,
                    const __grid_constant__ ConvBackward b) {
  extern __shared__ __align__(16) unsigned char memory[];
  const int64_t e = (int64_t{blockIdx.y} * 32 + threadIdx.x) * V;
  Gradients<T, V, W> of(p, min(e, p.E - V));
  const int64_t slice = conv_backward_tokens(c.tokens, p.E) / kSlices;
  int64_t t = (int64_t{blockIdx.x} * kSlices + threadIdx.y) * slice;
  const int64_t to = min(c.tokens, t + slice);
  if (e < p.E && t < to) {
    for (int64_t s = sequence_of(c, t); t < to; ++s) {
      const Sequence q = sequence(c, s);
      const int64_t end = min(to, q.end);
      if (t >= end) continue;
      if (kUsual && !(b.dhistory && t == q.begin) && !(b.dstate_out && end > q.end - p.K)) {
        if constexpr (kUsual) take_usual_slice(of, b.state_in, q, t, end, memory);
      } else {
        take_slice(of, b, q, s, t, end);
      }
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

// dk (E, W) and dbias (E) from the sums of the pieces (pieces, W+1, E).
__global__ void __launch_bounds__(32 * kSumSlices)
    add_up_kernel(const __grid_constant__ ConvBackward b, int width, int64_t E, int64_t pieces) {
  const int64_t n = (width + 1) * E, i = int64_t{blockIdx.x} * 32 + threadIdx.x;
  sum_column<16>(b.sums, n, 0, pieces, i, n, [&](float total) {
    const int64_t w = i / E, e = i % E;
    float* const to = w < width ? b.dk ? b.dk + e * width + w : nullptr
                      : b.dbias ? b.dbias + e
                                : nullptr;
    if (to) *to = (w < width ? b.dk_add : b.dbias_add) ? *to + total : total;
  });
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

void conv_forward(const ConvProblem& p, const ConvSequences& c, const void* state_in,
                  void* state_out, void* stream) {
  if (p.E == 0) return;
  const bool one = c.n == 1 && c.tokens > 0;
  if (c.tokens > 0) {
    with_kernel(p, [&](auto x, auto taps) {
      using T = decltype(x);
      const auto launch = [&](auto kernel, int64_t V) {
        const int64_t runs = ceil_div(p.E, V),
                      threads = std::clamp<int64_t>(ceil_div(runs, 32) * 32, 32, 128);
        const dim3 grid(static_cast<unsigned>(ceil_div(c.tokens, forward_tokens(c.tokens, p.E))),
                        static_cast<unsigned>(ceil_div(runs, threads)));
        const size_t shared =
            V == 1 ? 0 : Ring<T, kRun, kForwardAhead>::bytes(static_cast<unsigned>(threads));
        // Blocks of many tokens fit on the card at once: early ones would crowd where the kernel before ends first.
        cuda::launch("conv1d_causal", !many_tokens(c.tokens, p.E), kernel, grid,
                     static_cast<unsigned>(threads), shared, 1, stream, p, c, state_in,
                     one ? state_out : nullptr);
      };
      if (!channels_in_runs(p, nullptr, 4)) return launch(forward_kernel<T, 1, taps, false>, 1);
      is_usual<taps>(p) ? launch(forward_kernel<T, 4, taps, true>, 4)
                        : launch(forward_kernel<T, 4, taps, false>, 4);
    });
  }
  if (!state_out || c.n == 0 || one) return;
  const dim3 grid(static_cast<unsigned>(c.n), static_cast<unsigned>(ceil_div(p.E, 128)));
  launch_dependent("conv1d_causal states", p.bf16 ? states_kernel<bfloat16> : states_kernel<float>,
                   grid, 128, 0, 1, stream, p, c, state_in, state_out);
}

void conv_backward(const ConvProblem& p, const ConvSequences& c, const ConvBackward& b,
                   int64_t state_rows, void* stream) {
  if (p.E == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  const int64_t pieces = ceil_div(c.tokens, conv_backward_tokens(c.tokens, p.E));
  if (pieces > 0) {
    with_kernel(p, [&](auto x, auto taps) {
      using T = decltype(x);
      const auto launch = [&](auto kernel, int64_t V) {
        const dim3 grid(static_cast<unsigned>(pieces),
                        static_cast<unsigned>(ceil_div(p.E, 32 * V)));
        const size_t shared = V == 1 ? 0 : 2 * Ring<T, kRun, kBackwardAhead>::bytes(32 * kSlices);
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared));
        kernel<<<grid, dim3(32, kSlices), shared, s>>>(p, c, b);
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
    const auto blocks = static_cast<unsigned>(ceil_div((p.width + 1) * p.E, 32));
    launch_dependent("conv1d_causal sums", add_up_kernel, blocks, dim3(32, kSumSlices), 0, 1,
                     stream, b, p.width, p.E, pieces);
  }
  if (b.dstate_in && state_rows > 0) {
    const dim3 grid(static_cast<unsigned>(state_rows), static_cast<unsigned>(ceil_div(p.E, 128)));
    state_gradient_kernel<<<grid, 128, 0, s>>>(p, c, b);
    check_launch("conv1d_causal state gradient");
  }
}

}  // namespace krait::cuda
