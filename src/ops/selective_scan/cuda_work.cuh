// Private to selective_scan: what both backward kernels share: how the work is cut, and the sums that follow them.
#pragma once
#include <algorithm>

#include "krait/ops/selective_scan/cuda_device.cuh"

namespace krait::ops::scan {
namespace {

using cuda::ceil_div;

// What the launcher adds.
struct Work {
  CudaBackward w;
  int64_t pieces = 1, blocks = 1;  // of the sequences; of the channels of a group
  // A launch goes over `span` tokens (whole tiles) of every sequence, from token `from` on.
  int64_t from = 0, span = 0;
  // The tokens of a launch are cut into segments (whole tiles), which blocks walk through at the same time, one
  // where sequences are packed.
  int64_t segments = 1, segment = 0;
  bool last = true;       // of the launches in time, so the first to run: adjoints start here
  int64_t part_rows = 0;  // tokens of `parts`
  float *parts, *dA, *dB, *dC, *dD, *ddt_bias,
      *dstates;               // dstates: adjoints before the tokens of a launch
  float* adjoints = nullptr;  // after each segment, where there are several

  __device__ int64_t units() const { return w.p.sequences * segments; }

  // Row of `parts` of token t of sequence n, which begins at token `begin` of all.
  __device__ int64_t part_row(int64_t n, int64_t begin, int64_t t) const {
    return w.p.begin ? begin + t : n * span + t - from;
  }
};

// A unit is a segment of a sequence. It belongs to the piece of the tokens that holds its first.
__device__ inline int64_t piece_of(const Work& k, int64_t unit) {
  const CudaProblem& p = k.w.p;
  const int64_t piece = p.begin && k.segments == 1
                            ? begin_of(p, unit) * k.pieces / (p.tokens > 0 ? p.tokens : 1)
                            : unit * k.pieces / k.units();
  return piece < k.pieces ? piece : k.pieces - 1;
}

__device__ inline int64_t first_of(const Work& k, int64_t piece) {
  int64_t low = 0, high = k.units();
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (piece_of(k, middle) < piece)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

struct Unit {
  int64_t n, segment;   // its sequence; which of that one's segments
  Span s;               // the sequence
  int64_t from, tiles;  // its first token in the sequence; empty ones have no tiles
};

template <class S>
__device__ inline Unit unit_of(const Work& k, int64_t index) {
  Unit u;
  u.n = index / k.segments, u.segment = index % k.segments;
  u.s = sequence(k.w.p, u.n);
  u.from = k.from + u.segment * k.segment;
  const int64_t end = u.s.tokens < k.from + k.span ? u.s.tokens : k.from + k.span,
                left = end - u.from;
  u.tiles = left <= 0 ? 0 : ceil_div(left < k.segment ? left : k.segment, S::kTile);
  return u;
}

__device__ inline void put(const CudaSum& g, int64_t i, float value) {
  if (g.to) g.to[i] = g.add ? g.to[i] + value : value;
}

// Σ of[i step], in order.
__device__ inline float sum_of(const float* of, int64_t count, int64_t step) {
  float sum = 0;
#pragma unroll 8
  for (int64_t i = 0; i < count; ++i) sum += of[i * step];
  return sum;
}

// Over the pieces: dA and constant dB and dC of state i, or dD and ddt_bias of channel i - E N.
__device__ inline void sum_pieces(const Work& k, int64_t i) {
  const CudaBackward& w = k.w;
  const int64_t states = w.p.E * w.p.N, e = i - states;
  const auto total = [&](const float* of, int64_t at, int64_t step) {
    return sum_of(of + at, k.pieces, step);
  };
  if (i < states) {
    if (w.dA.to)
      put(w.dA, i,
          total(k.dA, i, states) * (w.p.a_is_log ? kLn2 * scaled_A(w.p.A[i], true) : 1.0f));
    if (w.dB_constant.to) put(w.dB_constant, i, total(k.dB, i, states));
    if (w.dC_constant.to) put(w.dC_constant, i, total(k.dC, i, states));
  } else if (e < w.p.E) {
    if (w.dD.to) put(w.dD, e, total(k.dD, e, w.p.E));
    if (w.ddt_bias.to) put(w.ddt_bias, e, total(k.ddt_bias, e, w.p.E));
  }
}

// A row of states may have started several sequences, or none. One thread a state.
__global__ void sum_states(const __grid_constant__ Work k) {
  const CudaBackward& w = k.w;
  const int64_t states = w.p.E * w.p.N, i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= states) return;
  float* to = w.dstate_in.to + i;
  if (!w.dstate_in.add)
    for (int64_t row = 0; row < w.state_rows; ++row) to[row * states] = 0;
  for (int64_t n = 0; n < w.p.sequences; ++n) {
    const int64_t row = sequence(w.p, n).in;
    if (row >= 0) to[row * states] += k.dstates[n * states + i];
  }
}

// Neighbouring columns of dB or dC that a thread sums.
template <int NS>
constexpr int kColumns = NS < 4 ? NS : 4;

// dB and dC of the tokens of a launch over the sets of channels: of some columns of a token, B or C.
template <int NS>
__device__ inline void sum_sets(const Work& k, int row, int64_t i) {
  constexpr int V = kColumns<NS>;
  const CudaBackward& w = k.w;
  const int64_t part_row = i * V / row;
  const int column = static_cast<int>(i * V - part_row * row),
            n = column / (2 * NS) * NS + column % NS;
  const CudaRows& to = column % (2 * NS) < NS ? w.dB : w.dC;
  if (part_row >= k.part_rows || n >= w.p.N || !to.data) return;
  const int64_t sequence = w.p.begin ? 0 : part_row / k.span, t = part_row - sequence * k.span;
  if (!w.p.begin && k.from + t >= w.p.L) return;
  const int64_t token = w.p.begin ? part_row : sequence * w.p.L + k.from + t;
  for (int64_t group = 0; group < w.p.G; ++group) {
    const float* const parts = k.parts + (group * k.blocks * k.part_rows + part_row) * row + column;
    float sum[V] = {};
#pragma unroll 8
    for (int64_t block = 0; block < k.blocks; ++block) {
      float part[V];
      cuda::load<V>(parts + block * k.part_rows * row, part);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] += part[v];
    }
    const int64_t at = token * to.stride + group * to.group + n;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      if (n + v >= w.p.N) break;
      if (to.bf16) {
        auto* x = static_cast<__nv_bfloat16*>(to.data) + at + v;
        *x = __float2bfloat16_rn(to.add ? __bfloat162float(*x) + sum[v] : sum[v]);
      } else {
        auto* x = static_cast<float*>(to.data) + at + v;
        *x = to.add ? *x + sum[v] : sum[v];
      }
    }
  }
}

// Both, one thread each: the first `of_pieces` blocks the former.
template <int NS>
__global__ void sum_over_blocks(const __grid_constant__ Work k, int row, unsigned of_pieces) {
  if (blockIdx.x < of_pieces)
    sum_pieces(k, int64_t{blockIdx.x} * blockDim.x + threadIdx.x);
  else
    sum_sets<NS>(k, row, int64_t{blockIdx.x - of_pieces} * blockDim.x + threadIdx.x);
}

constexpr int64_t kMostParts = int64_t{1} << 26;  // floats

// Places in the scratch, from the shapes alone; without memory only their sizes.
struct Memory {
  float* from;
  int64_t taken = 0;
  float* take(int64_t n) {
    float* const here = from ? from + taken : nullptr;
    taken += ceil_div(n, 4) * 4;
    return here;
  }
};

// How the tokens are cut.
template <class S>
Work plan_spans(const CudaProblem& p, Memory& at) {
  Work k{};
  k.blocks = blocks_of_group<S>(p);
  const int64_t states = p.E * p.N, sets = p.G * k.blocks;
  // The parts of dB and dC are bounded by going over time in several launches; packed sequences, which start
  // anywhere, go in one.
  const bool varying = !p.constant_B || !p.constant_C;
  const auto tiles = [](int64_t tokens) { return ceil_div(tokens, S::kTile) * S::kTile; };
  const int64_t whole = tiles(std::max<int64_t>(p.begin ? p.tokens : p.L, 1));
  const int64_t fitting = tiles(kMostParts / (sets * std::max<int64_t>(p.sequences, 1) * S::kRow));
  k.span = p.begin || !varying ? whole : std::min(whole, std::max<int64_t>(fitting, 16 * S::kTile));
  k.segment = k.span;
  k.part_rows = p.begin ? p.tokens : p.sequences * k.span;
  k.dstates = at.take(p.state_in || k.span < whole ? p.sequences * states : 0);
  k.parts = at.take(varying ? sets * k.part_rows * S::kRow : 0);
  return k;
}

inline void take_sums(const CudaProblem& p, Work& k, Memory& at) {
  const int64_t states = k.pieces * p.E * p.N, constant = p.constant_B || p.constant_C ? states : 0;
  k.dA = at.take(states), k.dB = at.take(constant), k.dC = at.take(constant);
  k.dD = at.take(k.pieces * p.E), k.ddt_bias = at.take(k.pieces * p.E);
}

// After a launch: dB and dC of its tokens, in rows of `row` floats, and after the last to run what is summed over all.
template <int NS>
void launch_sums(const Work& k, int row, cudaStream_t queue) {
  const CudaBackward& w = k.w;
  const auto blocks = [](int64_t n) { return static_cast<unsigned>(ceil_div(n, 256)); };
  const int64_t states = w.p.E * w.p.N;
  const bool to_run = k.from > 0;
  const unsigned of_pieces = to_run ? 0 : blocks(states + w.p.E),
                 of_sets =
                     k.parts && w.p.tokens > 0 ? blocks(k.part_rows * (row / kColumns<NS>)) : 0;
  if (of_pieces + of_sets > 0)
    sum_over_blocks<NS><<<of_pieces + of_sets, 256, 0, queue>>>(k, row, of_pieces);
  if (!to_run && w.dstate_in.to) sum_states<<<blocks(states), 256, 0, queue>>>(k);
  cuda::check_launch("sums of selective_scan backward");
}

// Calls launch(Work, stream) for each span from the last on, and takes the sums.
template <class S, class F>
void in_spans(Work k, void* stream, const F& launch) {
  const CudaBackward& w = k.w;
  if (!w.dB.data && !w.dC.data) k.parts = nullptr;
  const int64_t length = w.p.begin ? w.p.tokens : w.p.L;
  const bool in_one = length <= k.span;
  if (!w.dstate_in.to && in_one) k.dstates = nullptr;
  const auto queue = static_cast<cudaStream_t>(stream);
  for (k.from = in_one ? 0 : (length - 1) / k.span * k.span; k.from >= 0; k.from -= k.span) {
    launch(k, queue);
    cuda::check_launch("selective_scan backward");
    launch_sums<S::NS>(k, S::kRow, queue);
    k.last = false;
    if (in_one) break;
  }
}

}  // namespace
}  // namespace krait::ops::scan
