// A block has a few tokens: their angles first, in float64, then all of their heads. Bound by memory.
#include "krait/ops/rotary/cuda.h"

#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kTokens = 8, kMany = 2048;  // tokens of a block, and from how many on

// Where token t stands in its sequence, with what that has read before.
__device__ int64_t position_of(const RotaryCall& c, int64_t t) {
  int64_t s = 0, first = 0, row = 0;
  if (c.begin) {
    int64_t high = c.sequences;  // begin[s] <= t, and the answer is below `high`
    while (high - s > 1) {
      const int64_t middle = (s + high) / 2;
      (c.begin[middle] <= t ? s : high) = middle;
    }
    first = c.begin[s];
    row = c.row_in[s];
  } else {
    row = t / c.L;
    first = row * c.L;
  }
  return t - first + (c.start && row >= 0 ? static_cast<int64_t>(c.start[row]) : 0);
}

// Pairs and what is copied, in runs of V neighbouring elements.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    rotary_kernel(const __grid_constant__ RotaryCall c, unsigned of_block) {
  let_next_start();
  __shared__ float cosine[kTokens][kRotaryMaxPairs], sine[kTokens][kRotaryMaxPairs];
  const int64_t first = int64_t{blockIdx.x} * of_block;
  const auto tokens = static_cast<unsigned>(min(c.tokens - first, int64_t{of_block}));
  const auto half = static_cast<unsigned>(c.R / 2);
  for (unsigned i = threadIdx.x; i < tokens * half; i += kThreads) {
    const unsigned t = i / half, e = i % half;
    double s, cos_of;
    sincos(static_cast<double>(position_of(c, first + t)) * c.angle[e], &s, &cos_of);
    cosine[t][e] = static_cast<float>(cos_of);
    sine[t][e] = static_cast<float>(c.sign * s);
  }
  wait_for_previous();
  __syncthreads();

  // Two runs at once: those of a pair, or neighbours that are copied.
  const unsigned heads = static_cast<unsigned>(c.H), P = static_cast<unsigned>(c.P),
                 turned = half / V, of_head = turned + (P - 2 * half + 2 * V - 1) / (2 * V),
                 of_token = heads * of_head;
  for (unsigned i = threadIdx.x; i < tokens * of_token; i += kThreads) {
    const unsigned t = i / of_token, head = i % of_token / of_head, run = i % of_head;
    const T* const from =
        static_cast<const T*>(c.from) + (first + t) * c.from_row + head * c.from_head;
    T* const to = static_cast<T*>(c.to) + (first + t) * c.to_row + head * c.to_head;
    const bool turns = run < turned, apart = turns && !c.interleaved;
    const unsigned e = run * V, a = apart ? e : 2 * e, b = apart ? e + half : a + V;
    const bool both = b < P;
    float x[2][V];
    load_past<V>(from + a, x[0]);
    if (both) load_past<V>(from + b, x[1]);
    const auto turn = [&](int v, float& low, float& high) {
      const float cos_of = cosine[t][e + v], s = sine[t][e + v], was = low;
      low = fmaf(-high, s, was * cos_of);
      high = fmaf(was, s, high * cos_of);
    };
    if (turns) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        if (c.interleaved) {
          turn(v, x[2 * v / V][2 * v % V], x[(2 * v + 1) / V][(2 * v + 1) % V]);
        } else {
          turn(v, x[0][v], x[1][v]);
        }
      }
    }
    store_or_add<V>(to + a, x[0], c.add);
    if (both) store_or_add<V>(to + b, x[1], c.add);
  }
}

// Whether every head of every token can be walked in runs of V.
bool in_runs_of(const RotaryCall& c, int64_t V) {
  const int64_t bytes = c.bf16 ? 2 : 4;
  return c.R / 2 % V == 0 && c.P % V == 0 && c.from_head % V == 0 && c.to_head % V == 0 &&
         in_runs(c.from, c.from_row, bytes, V) && in_runs(c.to, c.to_row, bytes, V);
}

}  // namespace

void rotary(const RotaryCall& c, void* stream) {
  if (c.tokens == 0 || c.H == 0 || c.P == 0) return;
  // Few tokens have a block each.
  const int64_t of_block = c.tokens < kMany ? 1 : kTokens;
  // Nothing but sequences and their starts is read early.
  const bool early = c.tokens < kMany && !c.add;
  const auto launch = [&](auto kernel) {
    cuda::launch("rotary", early, kernel, dim3(static_cast<unsigned>(ceil_div(c.tokens, of_block))),
                 kThreads, 0, 1, stream, c, static_cast<unsigned>(of_block));
  };
  if (c.bf16) {
    launch(in_runs_of(c, 8) ? rotary_kernel<__nv_bfloat16, 8> : rotary_kernel<__nv_bfloat16, 1>);
  } else {
    launch(in_runs_of(c, 4) ? rotary_kernel<float, 4> : rotary_kernel<float, 1>);
  }
}

}  // namespace krait::cuda
