// A block a row; each thread has a run of neighbouring ids. Weights exp((logit - largest) / temperature) are
// summed as integers of 2^-40, so that sums do not depend on their order.
#include "krait/ops/sampler/cuda.h"

#include <cfloat>

#include "krait/tensor/cuda/math.h"

namespace krait::cuda {

namespace {

using Weight = unsigned long long;  // in units of 2^-40

constexpr int kThreads = 1024;
constexpr float kUnits = 0x1p40f;
constexpr int64_t kMostKept = 56 * 1024;  // logits of a row that a block keeps in its own memory
constexpr int kDigit = 256;  // values of the byte that a pass of the selection looks at

// Larger for larger numbers.
__device__ unsigned key_of(float x) {
  const unsigned b = __float_as_uint(x);
  return b & 0x80000000u ? ~b : b | 0x80000000u;
}

// Σ of the threads before this one, and of all.
template <class T>
__device__ T sum_before(T x, T& total) {
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
  return before + sum - x;
}

// Where a row's candidates end, in the order of falling logits: keys above `key`, and of those equal to it
// the first `ties`.
struct Cut {
  unsigned key = 0;
  int64_t ties = INT64_MAX;
};

struct Row {
  const float* x;      // after the penalty
  int64_t begin, end;  // of this thread
  float most, sharpness;

  __device__ Weight weight(float logit) const {
    return static_cast<Weight>(expf((logit - most) * sharpness) * kUnits);
  }

  // The smallest set of largest logits, within `inside`, whose measure reaches `wanted`: one for each id
  // where `by_count`, else their weights. A byte of the key a pass.
  __device__ Cut select(bool by_count, Weight wanted, const Cut& inside) const {
    __shared__ Weight of_digit[kDigit];
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
      __syncthreads();
      if (threadIdx.x == 0) {
        int d = kDigit - 1;
        for (; d > 0 && of_digit[d] < wanted; --d) wanted -= of_digit[d];
        prefix_found = prefix << 8 | static_cast<unsigned>(d);
        wanted_left = wanted;
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
    return sum_before(mine, total);
  }

  __device__ Weight sum(const Cut& cut, Weight least, Weight* before = nullptr) const {
    Weight mine = 0, total;
    for_chosen(cut, least, ties_before(cut), [&](int64_t, Weight w) { mine += w; });
    const Weight b = sum_before(mine, total);
    if (before) *before = b;
    return total;
  }
};

__device__ float penalised_logit(float x, float penalty) {
  if (!isfinite(x)) return x;
  const float y = x > 0 ? x / penalty : x * penalty;
  return fminf(fmaxf(y, -FLT_MAX), FLT_MAX);
}

__global__ void __launch_bounds__(kThreads)
    sample_kernel(const SampleTask t, SampleOut* out, int32_t* tokens, const bool keep) {
  extern __shared__ float kept[];
  __shared__ int chosen;
  __shared__ double uniform;
  const int b = blockIdx.x;
  if (threadIdx.x == 0 && t.temperature > 0) uniform = t.uniform[b];
  const float* const raw = t.logits + b * t.stride;
  const int64_t each = (t.valid + kThreads - 1) / kThreads;
  Row row;
  row.x = keep ? kept : raw;
  row.begin = min(t.valid, threadIdx.x * each), row.end = min(t.valid, row.begin + each);
  float most = -INFINITY;
  bool nan = false;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < t.valid; i += kThreads) {
    const float x = raw[i];
    if (keep) kept[i] = x;
    nan |= isnan(x);
    most = fmaxf(most, x);
  }
  nan = __syncthreads_or(nan);
  most = block_max(most);
  if (nan || isinf(most)) {
    if (threadIdx.x == 0) {
      out[b] = {nan ? kHoldsNan : most > 0 ? kHoldsInfinity : kHoldsNothing, 0.0f};
      tokens[b] = 0;
    }
    return;
  }
  double total = 0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < t.valid; i += kThreads)
    total += static_cast<double>(expf(row.x[i] - most));
  total = block_sum(total);
  const double log_total = static_cast<double>(most) + log(total);

  if (t.penalised) {
    float* const x = t.penalised + b * t.valid;
    for (int64_t i = threadIdx.x; i < t.valid; i += kThreads) x[i] = raw[i];
    __syncthreads();
    for (int64_t i = t.history_begin[b] + threadIdx.x; i < t.history_begin[b + 1]; i += kThreads) {
      const int32_t id = t.history[i];
      if (id >= 0 && id < t.valid) x[id] = penalised_logit(raw[id], t.penalty);
    }
    __syncthreads();
    row.x = x;
    most = -INFINITY;
    for (int64_t i = threadIdx.x; i < t.valid; i += kThreads) most = fmaxf(most, x[i]);
    most = block_max(most);
  }
  row.most = most;
  if (threadIdx.x == 0) chosen = INT32_MAX;
  __syncthreads();
  if (t.temperature == 0) {
    for (int64_t i = threadIdx.x; i < t.valid; i += kThreads)
      if (row.x[i] == most) {
        atomicMin(&chosen, static_cast<int>(i));
        break;
      }
  } else {
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
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    out[b] = {chosen, static_cast<float>(static_cast<double>(raw[chosen]) - log_total)};
    tokens[b] = chosen;
  }
}

}  // namespace

void sample(const SampleTask& task, SampleOut* out, int32_t* tokens, void* stream) {
  // A GPU whose blocks may not have as much reads the row where it is.
  bool keep = task.valid <= kMostKept;
  const size_t bytes = keep ? static_cast<size_t>(task.valid) * sizeof(float) : 0;
  keep = keep && cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(kMostKept * sizeof(float))) == cudaSuccess;
  if (!keep) cudaGetLastError();
  sample_kernel<<<static_cast<unsigned>(task.B), kThreads, keep ? bytes : 0,
                  static_cast<cudaStream_t>(stream)>>>(task, out, tokens, keep);
  check_launch("sampler");
}

}  // namespace krait::cuda
