// A block a row, or where there are few rows of a large vocabulary a cluster of blocks (sm_90 on), each with a run of
// neighbouring ids, as each thread has. Weights exp((logit - largest) / temperature) are summed as integers of 2^-40,
// so that sums do not depend on their order; the float64 sum of what a cluster could share out is over the same runs
// either way.
#include "krait/ops/sampler/cuda.h"

#include <cfloat>

#include "krait/tensor/cuda/cluster.cuh"
#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

namespace {

using Weight = unsigned long long;  // in units of 2^-40

// Two blocks on a multiprocessor (H200: 16 rows of 50,280 in 9.1 us instead of 16.8 with 1,024 threads, one in 6.9
// instead of 8.7, 64 in 16.6 instead of 16.2).
constexpr int kThreads = 512;
constexpr float kUnits = 0x1p40f;
constexpr int64_t kMostKept = 56 * 1024;  // logits that a block keeps in its own memory
constexpr int kRuns = 8;                  // of a large vocabulary
constexpr int64_t kFewestShared = 4096;   // ids of one
constexpr int kMostShared = 16;           // rows whose runs blocks share out
constexpr int kDigit = 256;  // values of the byte that a pass of the selection looks at

// Larger for larger numbers.
__device__ unsigned key_of(float x) {
  const unsigned b = __float_as_uint(x);
  return b & 0x80000000u ? ~b : b | 0x80000000u;
}

// What the blocks of a cluster tell each other once.
enum Told { kLargest, kTotal, kLargestPenalised, kChosen, kTold };

struct Mailboxes {
  uint64_t barriers[kTold];
  double values[kTold][kRuns];  // or what is smaller
};
__shared__ Mailboxes mailboxes;

template <class T>
__device__ void open_mailbox(Told what) {
  expect_in_block(&mailboxes.barriers[what], kRuns * sizeof(T));
}

// What `combine` makes of one value a block, in the order of the blocks. All threads of the cluster call it.
template <Told kWhat, class T, class Combine>
__device__ T over_cluster(T of_this, int blocks, const Combine& combine) {
  if (blocks == 1) return of_this;
  T* const of_all = reinterpret_cast<T*>(mailboxes.values[kWhat]);
  uint64_t* const barrier = &mailboxes.barriers[kWhat];
  if (threadIdx.x < kRuns) send_to_block(of_all + rank_in_cluster(), of_this, barrier, threadIdx.x);
  wait_for_sent(barrier);
  T all = of_all[0];
#pragma unroll
  for (int r = 1; r < kRuns; ++r) all = combine(all, of_all[r]);
  return all;
}

// What block_sum makes of each x, added in their order; for all threads.
__device__ double sum_of_runs(double (&x)[kRuns]) {
  __shared__ double of_warps[kRuns][kThreads / 32], of_runs[kRuns];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // A step of the butterfly halves what a lane goes on with: in the end that is run lane / 4.
#pragma unroll
  for (int half = kRuns / 2, bit = 16; half > 0; half /= 2, bit /= 2) {
    const bool upper = lane & static_cast<unsigned>(bit);
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const double given = upper ? x[i] : x[i + half], kept = upper ? x[i + half] : x[i];
      x[i] = kept + __shfl_xor_sync(~0u, given, bit);
    }
  }
  x[0] += __shfl_xor_sync(~0u, x[0], 2);
  x[0] += __shfl_xor_sync(~0u, x[0], 1);
  if (lane % 4 == 0) of_warps[lane / 4][warp] = x[0];
  __syncthreads();
  if (threadIdx.x < kRuns) {
    double sum = 0;
    for (const double of_warp : of_warps[threadIdx.x]) sum += of_warp;
    of_runs[threadIdx.x] = sum;
  }
  __syncthreads();
  double total = of_runs[0];
#pragma unroll
  for (int r = 1; r < kRuns; ++r) total += of_runs[r];
  return total;
}

// Σ of the threads before this one, in blocks before this one too, and of all.
template <class T>
__device__ T sum_before(T x, int blocks, T& total) {
  __shared__ T of_warps[32];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  T sum = x;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const T other = __shfl_up_sync(~0u, sum, d);
    if (lane >= static_cast<unsigned>(d)) sum += other;
  }
  __syncthreads();  // an earlier call may still be reading
  if (lane == 31) of_warps[warp] = sum;
  __syncthreads();
  T before = 0;
  total = 0;
  for (unsigned w = 0; w < kThreads / 32; ++w) {
    if (w < warp) before += of_warps[w];
    total += of_warps[w];
  }
  before += sum - x;
  if (blocks == 1) return before;
  __shared__ T of_this_block;
  synchronize_cluster();
  if (threadIdx.x == 0) of_this_block = total;
  synchronize_cluster();
  total = 0;
  const unsigned rank = rank_in_cluster();
#pragma unroll
  for (unsigned r = 0; r < kRuns; ++r) {
    const T of_other = of_block(&of_this_block, r);
    if (r < rank) before += of_other;
    total += of_other;
  }
  return before;
}

// Where a row's candidates end, in the order of falling logits: keys above `key`, and of those equal to it
// the first `ties`.
struct Cut {
  unsigned key = 0;
  int64_t ties = INT64_MAX;
};

struct Row {
  const float* x;      // after the penalty; of ids outside of the block's run there is nothing
  int64_t begin, end;  // of this thread
  int blocks;
  float most, sharpness;

  __device__ Weight weight(float logit) const {
    return static_cast<Weight>(expf((logit - most) * sharpness) * kUnits);
  }

  // The smallest set of largest logits, within `inside`, whose measure reaches `wanted`: one for each id
  // where `by_count`, else their weights. A byte of the key a pass.
  __device__ Cut select(bool by_count, Weight wanted, const Cut& inside) const {
    __shared__ Weight of_digit[kDigit], of_all[kDigit];  // of this block, of the row
    __shared__ unsigned prefix_found;
    __shared__ Weight wanted_left;
    unsigned prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
      __syncthreads();
      for (int d = threadIdx.x; d < kDigit; d += kThreads) of_digit[d] = 0;
      __syncthreads();
      for (int64_t i = begin; i < end; ++i) {
        const unsigned key = key_of(x[i]);
        if (key < inside.key || (shift < 24 && key >> (shift + 8) != prefix)) continue;
        atomicAdd(&of_digit[key >> shift & 255], by_count ? Weight{1} : weight(x[i]));
      }
      blocks > 1 ? synchronize_cluster() : __syncthreads();
      for (int d = threadIdx.x; d < kDigit; d += kThreads) {
        Weight sum = of_digit[d];
        if (blocks > 1) {
          sum = 0;
#pragma unroll
          for (unsigned r = 0; r < kRuns; ++r) sum += of_block(of_digit + d, r);
        }
        of_all[d] = sum;
      }
      blocks > 1 ? synchronize_cluster() : __syncthreads();
      if (threadIdx.x < 32) {  // a lane has eight digits, the first one the largest
        constexpr int kOfLane = kDigit / 32;
        const int lane = static_cast<int>(threadIdx.x), top = kDigit - 1 - lane * kOfLane;
        Weight mine = 0;
        for (int i = 0; i < kOfLane; ++i) mine += of_all[top - i];
        Weight upto = mine;
#pragma unroll
        for (int other = 1; other < 32; other *= 2) {
          const Weight before = __shfl_up_sync(~0u, upto, other);
          if (lane >= other) upto += before;
        }
        const unsigned reached = __ballot_sync(~0u, upto >= wanted) | 1u << 31;
        if (lane == __ffs(static_cast<int>(reached)) - 1) {
          Weight left = wanted - (upto - mine);
          int d = top;
          for (; d > top - kOfLane + 1 && of_all[d] < left; --d) left -= of_all[d];
          prefix_found = prefix << 8 | static_cast<unsigned>(d);
          wanted_left = left;
        }
      }
      __syncthreads();
      prefix = prefix_found, wanted = wanted_left;
    }
    Cut cut{prefix, 0};
    Weight each = 1;
    if (!by_count) {
      const unsigned b = prefix & 0x80000000u ? prefix & 0x7fffffffu : ~prefix;
      each = weight(__uint_as_float(b));
    }
    cut.ties = each > 0 ? static_cast<int64_t>((wanted + each - 1) / each) : INT64_MAX;
    if (cut.key == inside.key && inside.ties < cut.ties) cut.ties = inside.ties;
    return cut;
  }

  // Calls f(i, weight) for the thread's ids within the cut whose weight is at least `least`.
  template <class F>
  __device__ void for_chosen(const Cut& cut, Weight least, int64_t ties_before, const F& f) const {
    for (int64_t i = begin; i < end; ++i) {
      const unsigned key = key_of(x[i]);
      if (key < cut.key || (key == cut.key && ties_before++ >= cut.ties)) continue;
      const Weight w = weight(x[i]);
      if (w >= least && w > 0) f(i, w);
    }
  }

  __device__ int64_t ties_before(const Cut& cut) const {
    int64_t mine = 0, total;
    for (int64_t i = begin; i < end; ++i) mine += key_of(x[i]) == cut.key;
    return sum_before(mine, blocks, total);
  }

  __device__ Weight sum(const Cut& cut, Weight least, Weight* before = nullptr) const {
    Weight mine = 0, total;
    for_chosen(cut, least, ties_before(cut), [&](int64_t, Weight w) { mine += w; });
    const Weight b = sum_before(mine, blocks, total);
    if (before) *before = b;
    return total;
  }
};

// A block's or a row's largest logit, and the first id that has it where that is asked for.
struct Top {
  float x;
  int id;
};

__device__ Top larger(Top a, Top b) {  // NaN wins
  if (isnan(a.x) || isnan(b.x)) return {NAN, 0};
  if (a.x == b.x) return {a.x, min(a.id, b.id)};
  return a.x > b.x ? a : b;
}

// The block's own, of `mine` of each thread and its logits x[begin, end).
__device__ Top top_of_block(float mine, const float* x, int64_t begin, int64_t end, bool with_id) {
  __shared__ int first;
  if (threadIdx.x == 0) first = INT32_MAX;
  const float most = block_max(mine);
  if (!with_id) return {most, 0};
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads)
    if (x[i] == most) {
      atomicMin(&first, static_cast<int>(i));
      break;
    }
  __syncthreads();
  return {most, first};
}

__device__ float penalised_logit(float x, float penalty) {
  if (!isfinite(x)) return x;
  const float y = x > 0 ? x / penalty : x * penalty;
  return fminf(fmaxf(y, -FLT_MAX), FLT_MAX);
}

__device__ void sample_row(const SampleTask& t, int64_t b, SampleOut* out, int32_t* tokens,
                           int blocks, bool by_runs, bool keep) {
  extern __shared__ float kept[];
  __shared__ int chosen;
  __shared__ double uniform;
  const int rank = blocks > 1 ? static_cast<int>(rank_in_cluster()) : 0;
  const bool first = rank == 0 && threadIdx.x == 0;
  if (threadIdx.x == 0 && t.temperature > 0) uniform = t.uniform[b];
  const float* const raw = t.logits + b * t.stride;
  const int64_t share = blocks > 1 ? ceil_div(t.valid, kRuns) : t.valid,
                begin = min(t.valid, rank * share), end = min(t.valid, begin + share),
                each = ceil_div(end - begin, kThreads);
  Row row;
  row.x = keep ? kept - begin : raw;
  row.begin = min(end, begin + threadIdx.x * each), row.end = min(end, row.begin + each);
  row.blocks = blocks;
  const bool greedy = t.temperature == 0;
  float most = -INFINITY;
  bool nan = false;
#pragma unroll 8
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const float x = raw[i];
    if (keep) kept[i - begin] = x;
    nan |= isnan(x);
    most = fmaxf(most, x);
  }
  nan = __syncthreads_or(nan);
  Top top = top_of_block(most, row.x, begin, end, greedy);
  top = over_cluster<kLargest>(nan ? Top{NAN, 0} : top, blocks, larger);
  most = top.x;
  if (isnan(most) || isinf(most)) {
    if (first) {
      out[b] = {isnan(most) ? kHoldsNan : most > 0 ? kHoldsInfinity : kHoldsNothing, 0.0f};
      tokens[b] = 0;
    }
    return;
  }
  const auto sum_of_run = [&](int64_t first, int64_t last) {  // what this thread has of it
    double sum = 0;
#pragma unroll 4
    for (int64_t i = first + threadIdx.x; i < last; i += kThreads)
      sum += static_cast<double>(expf(row.x[i] - most));
    return sum;
  };
  double total;
  if (blocks > 1 || !by_runs) {
    total = over_cluster<kTotal>(block_sum(sum_of_run(begin, end)), blocks,
                                 [](double x, double y) { return x + y; });
  } else {
    const int64_t run = ceil_div(t.valid, kRuns);
    double sums[kRuns];
#pragma unroll
    for (int r = 0; r < kRuns; ++r)
      sums[r] = sum_of_run(min(t.valid, r * run), min(t.valid, (r + 1) * run));
    total = sum_of_runs(sums);
  }
  const double log_total = static_cast<double>(most) + log(total);

  if (t.penalised) {
    float* const x = t.penalised + b * t.valid;
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) x[i] = raw[i];
    __syncthreads();
    for (int64_t i = t.history_begin[b] + threadIdx.x; i < t.history_begin[b + 1]; i += kThreads) {
      const int32_t id = t.history[i];
      if (id >= begin && id < end) x[id] = penalised_logit(raw[id], t.penalty);
    }
    __syncthreads();
    row.x = x;
    most = -INFINITY;
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) most = fmaxf(most, x[i]);
    top =
        over_cluster<kLargestPenalised>(top_of_block(most, x, begin, end, greedy), blocks, larger);
    most = top.x;
  }
  int token = top.id;
  if (!greedy) {
    row.most = most;
    if (threadIdx.x == 0) chosen = INT32_MAX;
    __syncthreads();
    // Below a temperature of 1e-6 only ties with the largest logit are left anyway.
    row.sharpness = 1 / fmaxf(t.temperature, 1e-6f);
    Cut cut;
    if (t.top_k > 0 && t.top_k < t.valid) cut = row.select(true, static_cast<Weight>(t.top_k), cut);
    if (t.top_p < 1) {
      const double share = static_cast<double>(t.top_p) * static_cast<double>(row.sum(cut, 0));
      cut = row.select(false, static_cast<Weight>(ceil(share)), cut);
    }
    const auto least = static_cast<Weight>(t.min_p * kUnits);
    Weight before = 0;
    const Weight all = row.sum(cut, least, &before);
    const auto target =
        min(static_cast<Weight>(uniform * static_cast<double>(all)), all > 0 ? all - 1 : 0);
    row.for_chosen(cut, least, row.ties_before(cut), [&](int64_t i, Weight w) {
      if (before <= target && target < before + w) chosen = static_cast<int>(i);
      before += w;
    });
    __syncthreads();
    token = over_cluster<kChosen>(chosen, blocks, [](int x, int y) { return min(x, y); });
  }
  if (first) {
    out[b] = {token, static_cast<float>(static_cast<double>(raw[token]) - log_total)};
    tokens[b] = token;
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    sample_kernel(const SampleTask t, SampleOut* out, int32_t* tokens, const int blocks,
                  const bool by_runs, const bool keep) {
  if (blocks > 1) {
    if (threadIdx.x == 0) {
      open_mailbox<Top>(kLargest), open_mailbox<double>(kTotal);
      open_mailbox<Top>(kLargestPenalised), open_mailbox<int>(kChosen);
    }
    __syncwarp();
    arrive_in_cluster();
    wait_in_cluster();
  }
  wait_for_previous();
  sample_row(t, blockIdx.x / blocks, out, tokens, blocks, by_runs, keep);
  if (blocks > 1) leave_cluster();  // another block may still read this one's memory
}

}  // namespace

void sample(const SampleTask& task, SampleOut* out, int32_t* tokens, void* stream) {
  const bool by_runs = task.valid >= kFewestShared;
  const bool shared = by_runs && task.B <= kMostShared &&
                      has_clusters(reinterpret_cast<const void*>(sample_kernel));
  const int blocks = shared ? kRuns : 1;
  // A GPU whose blocks may not have as much reads the row where it is.
  const int64_t share = ceil_div(task.valid, blocks);
  bool keep = share <= kMostKept;
  const size_t bytes = keep ? static_cast<size_t>(share) * sizeof(float) : 0;
  keep = keep && cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(kMostKept * sizeof(float))) == cudaSuccess;
  if (!keep) cudaGetLastError();
  launch_dependent("sampler", sample_kernel, dim3(static_cast<unsigned>(task.B * blocks)), kThreads,
                   keep ? bytes : 0, static_cast<unsigned>(blocks), stream, task, out, tokens,
                   blocks, by_runs, keep);
}

}  // namespace krait::cuda
