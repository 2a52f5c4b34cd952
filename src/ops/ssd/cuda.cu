// The launches of ssd, in their order, and the small sums behind them.
#include "krait/ops/ssd/cuda.h"

#include "krait/ops/ssd/cuda_device.cuh"
#include "krait/ops/ssd/cuda_gradient.cuh"
#include "krait/ops/ssd/cuda_matrix_parts.cuh"
#include "krait/ops/ssd/cuda_step.cuh"
#include "krait/ops/ssd/cuda_walk.cuh"
#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/rows.h"

namespace krait::ops::ssd_gpu {

namespace {

// Takes 16-byte aligned parts of scratch; with null only counts.
class Parts {
 public:
  explicit Parts(float* begin) : begin_(begin) {}
  float* take(int64_t floats) {
    float* const part = begin_ ? begin_ + used_ : nullptr;
    used_ += ceil_div(floats, 4) * 4;
    return part;
  }
  int64_t used() const { return used_; }

 private:
  float* begin_;
  int64_t used_ = 0;
};

struct ForwardParts {
  float *steps, *pairs, *of_walk;
  int64_t used;

  ForwardParts(const CudaProblem& p, float* scratch) {
    Parts parts(scratch);
    // Packed sequences are planned for before it is known how long each is.
    const bool matrices = p.matrix_units && (p.begin || p.longest > kShort);
    steps = parts.take(matrices ? 2 * matrix_steps_size(p) : 0);
    pairs = parts.take(matrices ? matrix_pairs_size(p) : 0);
    of_walk = parts.take(p.longest > kShort ? walk_scratch(p, 1) : 0);
    used = parts.used();
  }
};

// What forward leaves to backward.
struct KeptParts {
  float *steps, *slopes, *states;
  int64_t used;

  KeptParts(const CudaProblem& p, float* memory) {
    Parts parts(memory);
    const int64_t steps_size = matrix_steps_size(p);
    steps = parts.take(2 * steps_size), slopes = parts.take(steps_size);
    states = parts.take(steps_size * p.P * p.N / chunk_of(true) / 2);
    used = parts.used();
  }
};

struct BackwardParts {
  float *steps, *slopes, *states, *dstates, *dB, *dC, *sums, *totals, *of_totals, *of_sequences,
      *of_walk;
  int64_t used;

  BackwardParts(const CudaProblem& p, float* kept, float* scratch) {
    Parts parts(scratch);
    const int64_t Q = chunk_of(p.matrix_units), chunks = slots(p, Q), of_head = p.P * p.N;
    const int64_t states_size = ceil_div(chunks * p.H * of_head, p.matrix_units ? 2 : 1);
    const int64_t steps_size = p.matrix_units ? matrix_steps_size(p) : 0;
    if (kept) {
      const KeptParts of(p, kept);
      steps = of.steps, slopes = of.slopes, states = of.states;
    } else {
      steps = parts.take(2 * steps_size), slopes = parts.take(steps_size);
      states = parts.take(states_size);
    }
    dstates = parts.take(states_size);
    const int64_t sets = sets_of_group(p), of_rows = sets > 1 ? p.G * sets * p.tokens * p.N : 0;
    dB = parts.take(of_rows), dC = parts.take(of_rows);
    sums = parts.take(chunks * p.H * sums_size(p));
    totals = parts.take(p.H * sums_size(p));
    of_totals = parts.take(cuda::parts_of_sum(chunks) * p.H * sums_size(p));
    of_sequences = parts.take(p.state_in ? p.sequences * p.H * of_head : 0);
    of_walk = parts.take(walk_scratch(p, 2));
    used = parts.used();
  }
};

CudaRows parts_of_sets(const CudaProblem& p, float* parts) {
  CudaRows rows;
  rows.data = parts, rows.stride = p.N, rows.runs = p.N % 4 == 0;
  return rows;
}

constexpr int kRowsOfBlock = 64, kRowsAtOnce = 8;

// dB and dC: the sums over the sets of heads of each group, V columns a thread.
template <int V>
__global__ void __launch_bounds__(32 * kRowsAtOnce)
    sum_sets_kernel(const CudaProblem p, const float* of_dB, const CudaRows dB, const float* of_dC,
                    const CudaRows dC) {
  const float* const parts = blockIdx.y == 0 ? of_dB : of_dC;
  const CudaRows& to = blockIdx.y == 0 ? dB : dC;
  if (!to.data) return;
  const int64_t first = int64_t{blockIdx.x} * kRowsOfBlock, of_set = p.tokens * p.N;
  const int rows = static_cast<int>(min(int64_t{kRowsOfBlock}, p.tokens - first));
  const int N = static_cast<int>(p.N), columns = static_cast<int>(p.G) * N;
  const int sets = static_cast<int>(sets_of_group(p));
  const bool whole = V == 4 && to.bf16 && to.runs && !to.add;
  for (int column = static_cast<int>(threadIdx.x) * V; column < columns; column += 32 * V) {
    const int g = column / N;
    const float* const from = parts + g * sets * of_set + first * N + column - g * N;
#pragma unroll 4
    for (int t = static_cast<int>(threadIdx.y); t < rows; t += kRowsAtOnce) {
      float sum[V] = {};
      for (int set = 0; set < sets; ++set) {
        float part[V];
        cuda::load<V>(from + set * of_set + t * N, part);
#pragma unroll
        for (int v = 0; v < V; ++v) sum[v] += part[v];
      }
      if (whole) {
        cuda::store<V>(static_cast<__nv_bfloat16*>(to.data) + (first + t) * to.stride + column,
                       sum);
        continue;
      }
#pragma unroll
      for (int v = 0; v < V; ++v) put(to, first + t, column + v, sum[v]);
    }
  }
}

__device__ inline void put(const CudaSum& to, int64_t i, float value) {
  if (to.to) to.to[i] = to.add ? to.to[i] + value : value;
}

// dA, ddt_bias and dD of a head that has one D, from those of the chunks.
constexpr int kSumThreads = 256;
__global__ void __launch_bounds__(kSumThreads)
    sum_head_kernel(const CudaBackward w, const float* sums, int64_t chunks) {
  __shared__ float of_warp[kSumThreads / 32][3];
  cuda::wait_for_previous();
  const int64_t h = blockIdx.x;
  float sum[3] = {};
#pragma unroll 4
  for (int64_t c = threadIdx.x; c < chunks; c += kSumThreads)
#pragma unroll
    for (int i = 0; i < 3; ++i) sum[i] += __ldcg(sums + (c * w.p.H + h) * 3 + i);
#pragma unroll
  for (int d = 16; d > 0; d /= 2)
#pragma unroll
    for (float& part : sum) part += __shfl_xor_sync(~0u, part, d);
  if (threadIdx.x % 32 == 0)
    for (int i = 0; i < 3; ++i) of_warp[threadIdx.x / 32][i] = sum[i];
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int k = 1; k < kSumThreads / 32; ++k)
    for (int i = 0; i < 3; ++i) sum[i] += of_warp[k][i];
  put(w.dA, h, sum[0] * (w.p.a_is_log ? rate(w.p, h) : 1.0f));
  put(w.ddt_bias, h, sum[1]);
  put(w.dD, h, sum[2]);
}

__global__ void hand_out_sums_kernel(const CudaBackward w, const float* totals) {
  const CudaProblem& p = w.p;
  const int64_t h = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (h >= p.H) return;
  const float* const of_head = totals + h * sums_size(p);
  put(w.dA, h, of_head[0] * (p.a_is_log ? rate(p, h) : 1.0f));
  put(w.ddt_bias, h, of_head[1]);
  float sum = 0;
  for (int64_t i = 0; i < sums_size(p) - 2; ++i) {
    sum += of_head[2 + i];
    if (p.D_per_channel) put(w.dD, h * p.P + i, of_head[2 + i]);
  }
  if (!p.D_per_channel) put(w.dD, h, sum);
}

// The gradient of a row of the states handed in: it may have started several sequences, or none.
__global__ void state_gradient_kernel(const CudaBackward w, const float* of_sequences) {
  const CudaProblem& p = w.p;
  const int64_t row = blockIdx.x, of_row = p.H * p.P * p.N;
  const int64_t i = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (i >= of_row) return;
  float sum = 0;
  for (int64_t s = p.begin ? 0 : row; s < (p.begin ? p.sequences : row + 1); ++s) {
    if (p.begin && p.row_in[s] != row) continue;
    if (begin_of(p, s) < begin_of(p, s + 1)) {
      sum += of_sequences[s * of_row + i];
    } else if (w.dstate_out) {  // the state went through as it was
      const int64_t out = p.row_out ? p.row_out[s] : s;
      if (out >= 0) sum += w.dstate_out[out * of_row + i];
    }
  }
  put(w.dstate_in, row * of_row + i, sum);
}

}  // namespace

int64_t forward_scratch(const CudaProblem& p) { return ForwardParts(p, nullptr).used; }

void ssd_forward(const CudaForward& w, void* stream) {
  if ((w.p.begin && w.p.sequences > 1) || w.p.longest <= kShort) step(w, stream);
  if (w.p.longest <= kShort) return;
  const ForwardParts parts(w.p, w.scratch);
  Walks walks;
  walks.count = 1;
  Walk& forwards = walks.walk[0];
  forwards.p = w.p, forwards.y = w.y;
  forwards.start = w.p.state_in, forwards.start_row = w.p.row_in;
  forwards.end = w.state_out, forwards.end_row = w.p.row_out;
  forwards.skip_short = true;
  if (w.p.matrix_units) {
    const auto s = static_cast<cudaStream_t>(stream);
    const KeptParts kept(w.p, w.kept);
    auto* const steps = reinterpret_cast<float2*>(w.kept ? kept.steps : parts.steps);
    if (w.kept) forwards.states = kept.states;
    matrix_parts(w.p, {steps, kept.slopes}, parts.pairs, decays_of_pieces(w.p, parts.of_walk), s);
    forwards.steps = steps, forwards.pairs = parts.pairs;
  }
  walk(walks, parts.of_walk, stream);
}

int64_t kept_size(const CudaProblem& p) {
  return warpgroups_leave_states(p) ? KeptParts(p, nullptr).used : 0;
}

// What forward has left, where the gradients read such states.
static float* kept_of(const CudaBackward& w) { return w.dy.runs ? w.kept : nullptr; }

int64_t backward_scratch(const CudaBackward& w) {
  return BackwardParts(w.p, kept_of(w), nullptr).used;
}

void ssd_backward(const CudaBackward& w, void* stream) {
  const CudaProblem& p = w.p;
  float* const kept = kept_of(w);
  const BackwardParts parts(p, kept, w.scratch);
  const auto s = static_cast<cudaStream_t>(stream);
  const int64_t chunks = slots(p, chunk_of(p.matrix_units));
  const bool want_sums = w.dA.to || w.ddt_bias.to || w.dD.to;

  auto* const steps = reinterpret_cast<float2*>(parts.steps);
  if (p.matrix_units && chunks > 0 && p.H > 0 && !kept)
    matrix_parts(p, {steps, parts.slopes}, nullptr, {}, s);
  Walk forwards, backwards;
  forwards.p = p, forwards.steps = steps;
  forwards.start = p.state_in, forwards.start_row = p.row_in;
  forwards.states = parts.states;
  backwards.p = p, backwards.backwards = true, backwards.steps = steps;
  backwards.p.x = w.dy, backwards.p.B = p.C;
  backwards.start = w.dstate_out, backwards.start_row = p.row_out;
  if (w.dstate_in.to) backwards.end = parts.of_sequences;
  backwards.states = parts.dstates;
  walk(kept ? Walks{{backwards}, 1, true} : Walks{{forwards, backwards}, 2}, parts.of_walk, stream);

  if (chunks > 0) {
    Gradient g;
    g.p = p, g.dy = w.dy, g.dx = w.dx, g.ddt = w.ddt;
    g.sets = sets_of_group(p), g.heads = heads_of_set(p);
    g.steps = steps, g.slopes = parts.slopes;
    g.states = parts.states, g.dstates = parts.dstates;
    g.dB = g.sets > 1 && w.dB.data ? parts_of_sets(p, parts.dB) : w.dB;
    g.dC = g.sets > 1 && w.dC.data ? parts_of_sets(p, parts.dC) : w.dC;
    if (want_sums) g.sums = parts.sums;
    gradient(g, stream);
  }
  if (p.tokens > 0 && sets_of_group(p) > 1 && (w.dB.data || w.dC.data)) {
    const dim3 grid(static_cast<unsigned>(ceil_div(p.tokens, kRowsOfBlock)), 2);
    const auto kernel = p.N % 4 == 0 ? sum_sets_kernel<4> : sum_sets_kernel<1>;
    kernel<<<grid, dim3(32, kRowsAtOnce), 0, s>>>(p, parts.dB, w.dB, parts.dC, w.dC);
    cuda::check_launch("ssd sums of sets");
  }
  if (want_sums && chunks > 0 && sums_size(p) == 3 && !p.D_per_channel) {
    cuda::launch_dependent("ssd sums", sum_head_kernel, dim3(static_cast<unsigned>(p.H)),
                           kSumThreads, 0, 1, stream, w, parts.sums, chunks);
  } else if (want_sums) {
    const int64_t n = p.H * sums_size(p);
    cuda::sum_rows(parts.sums, false, n, chunks, n, parts.totals, false, parts.of_totals, stream);
    hand_out_sums_kernel<<<static_cast<unsigned>(ceil_div(p.H, 64)), 64, 0, s>>>(w, parts.totals);
    cuda::check_launch("ssd sums");
  }
  if (w.dstate_in.to && w.state_rows > 0) {
    const dim3 grid(static_cast<unsigned>(w.state_rows),
                    static_cast<unsigned>(ceil_div(p.H * p.P * p.N, 256)));
    state_gradient_kernel<<<grid, 256, 0, s>>>(w, parts.of_sequences);
    cuda::check_launch("ssd state gradient");
  }
}

}  // namespace krait::ops::ssd_gpu
