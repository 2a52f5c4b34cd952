// attention of one token a sequence: the pieces of its keys together. And the cache: what is appended to it.
#include <algorithm>

#include "krait/ops/attention/cuda_step.cuh"
#include "krait/tensor/cuda/launch_dependent.cuh"

namespace krait::cuda {

namespace attention {
namespace {

constexpr int kWarps = 4;
constexpr int kCacheRun = 8;  // bfloat16 elements in 16 bytes

// Whether what a token appends lies in the cache's type, dense, in runs of 16 bytes.
__device__ bool in_runs_of_cache(const AttentionCall& c) {
  const auto fits = [&](const HeadRows& r) {
    return r.head == c.P && r.row % kCacheRun == 0 && reinterpret_cast<uintptr_t>(r.data) % 16 == 0;
  };
  return c.bf16 && c.cache_bf16 && c.Hkv * c.P % kCacheRun == 0 && fits(c.k) && fits(c.v) &&
         reinterpret_cast<uintptr_t>(c.to_k) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(c.to_v) % 16 == 0;
}

// One position of a sequence, of those that the cache handed out is to get: the i-th.
__device__ void append_row(const AttentionCall& c, const Sequence& s, int64_t i) {
  if (s.out < 0) return;
  const int64_t oldest = max(int64_t{0}, s.total() - c.to_C);
  const int64_t first =
      c.in_place ? max(oldest, s.first) : max(oldest, c.from_k ? s.first - c.from_C : int64_t{0});
  const int64_t position = first + i, width = c.Hkv * c.P;
  if (position >= s.total()) return;
  const int64_t to = (s.out * c.to_C + position % c.to_C) * width;
  const auto value = [](const void* p, bool bf16, int64_t i) {
    return bf16 ? static_cast<float>(static_cast<const bfloat16*>(p)[i])
                : static_cast<const float*>(p)[i];
  };
  const auto put = [&](void* p, int64_t i, float v) {
    if (c.cache_bf16) {
      static_cast<bfloat16*>(p)[i] = static_cast<bfloat16>(v);
    } else {
      static_cast<float*>(p)[i] = v;
    }
  };
  if (position >= s.first && in_runs_of_cache(c)) {  // as it is
    const int64_t token = s.begin + position - s.first;
    const int runs = static_cast<int>(width / kCacheRun);
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < runs; i += static_cast<int>(blockDim.x)) {
      const auto copy = [&](void* p, const HeadRows& from) {
        reinterpret_cast<uint4*>(static_cast<bfloat16*>(p) + to)[i] =
            __ldcg(reinterpret_cast<const uint4*>(static_cast<const bfloat16*>(from.data) +
                                                  token * from.row) +
                   i);
      };
      copy(c.to_k, c.k);
      copy(c.to_v, c.v);
    }
    return;
  }
#pragma unroll 4
  for (int64_t at = threadIdx.x; at < width; at += blockDim.x) {
    if (position < s.first) {
      const int64_t from = (s.in * c.from_C + position % c.from_C) * width + at;
      put(c.to_k, to + at, value(c.from_k, c.cache_bf16, from));
      put(c.to_v, to + at, value(c.from_v, c.cache_bf16, from));
    } else {
      const int64_t token = s.begin + position - s.first, head = at / c.P, e = at % c.P;
      put(c.to_k, to + at, value(c.k.data, c.bf16, token * c.k.row + head * c.k.head + e));
      put(c.to_v, to + at, value(c.v.data, c.bf16, token * c.v.row + head * c.v.head + e));
    }
  }
}

__global__ void append_kernel(const AttentionCall c, int64_t rows) {
  append_row(c, sequence(c, blockIdx.x / rows), blockIdx.x % rows);
}

// After the rows: nobody reads the old lengths any more.
__global__ void lengths_kernel(const AttentionCall c) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= c.sequences) return;
  const Sequence s = sequence(c, i);
  if (s.out >= 0) c.to_length[s.out] = static_cast<float>(s.total());
}

constexpr int kJoinThreads = 512;  // at most

// Enough to read the pieces of a head side by side, at least one an element.
int join_threads(const AttentionCall& c, int64_t pieces) {
  const int64_t wanted = ceil_div(c.P, 32) * 32 * ceil_div(pieces, 8);
  return static_cast<int>(std::clamp<int64_t>(wanted, 128, kJoinThreads));
}

// Appends what a step's sequence read to the cache in place.
__device__ void append_in_place(const AttentionCall& c, int64_t index) {
  const Sequence s = sequence(c, index);
  append_row(c, s, 0);
  __syncthreads();
  if (threadIdx.x == 0 && s.out >= 0) c.to_length[s.out] = static_cast<float>(s.total());
}

bool appends(const AttentionCall& c) { return c.to_k && c.in_place; }

// The pieces of a head together, at most 32 of them: a warp a head. The first block of a sequence appends to the cache
// where there is one to be appended to.
__global__ void __launch_bounds__(32 * kWarps)
    join_few_kernel(const AttentionCall c, const Parts parts, const int appending) {
  let_next_start();
  wait_for_previous();
  const int64_t index = blockIdx.x;
  const int block = static_cast<int>(blockIdx.y) - appending;
  if (block < 0) return append_in_place(c, index);
  const int64_t h = int64_t{block} * kWarps + threadIdx.x / 32;
  const int64_t token = c.begin ? c.begin[index] : index;
  if (h >= c.H || (c.begin && c.begin[index + 1] == token)) return;
  const int lane = static_cast<int>(threadIdx.x) % 32, pieces = static_cast<int>(parts.pieces);
  const int64_t first = index * parts.pieces * c.H + h;  // of its pieces, c.H apart
  float largest = -INFINITY, sum = 0;
  if (lane < pieces) {
    largest = __ldcg(parts.largest + first + lane * c.H);
    sum = __ldcg(parts.sum + first + lane * c.H);
  }
  float most = largest;
#pragma unroll
  for (int other = 16; other > 0; other /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, other));
  const float weight = lane < pieces ? expf(largest - most) : 0.0f;
  sum *= weight;
#pragma unroll
  for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(~0u, sum, other);
  const float over = 1.0f / sum;
  for (int e0 = 0; e0 < c.P; e0 += 32) {
    const int e = e0 + lane;
    float y = 0;
#pragma unroll 4
    for (int i = 0; i < pieces; ++i) {
      const float w = __shfl_sync(~0u, weight, i);
      if (e < c.P) y = fmaf(w, __ldcg(parts.y + (first + i * c.H) * c.P + e), y);
    }
    const int64_t to = (token * c.H + h) * c.P + e;
    if (e >= c.P) continue;
    if (c.bf16) {
      static_cast<bfloat16*>(c.y)[to] = static_cast<bfloat16>(y * over);
    } else {
      static_cast<float*>(c.y)[to] = y * over;
    }
  }
  if (c.norm && lane == 0) {
    c.norm[2 * (token * c.H + h)] = most;
    c.norm[2 * (token * c.H + h) + 1] = over;
  }
}

// A block: the pieces of a head together, an element of y a thread, and as many threads an element as there
// are. The first block of a sequence appends as above.
__global__ void __launch_bounds__(kJoinThreads)
    join_kernel(const AttentionCall c, const Parts parts, const int appending) {
  extern __shared__ float weights[];  // (pieces), then one a thread
  let_next_start();
  wait_for_previous();
  const int64_t index = blockIdx.x, h = int64_t{blockIdx.y} - appending;
  if (h < 0) return append_in_place(c, index);
  const int64_t token = c.begin ? c.begin[index] : index;
  if (c.begin && c.begin[index + 1] == token) return;
  const auto place = [&](int64_t piece) { return (index * parts.pieces + piece) * c.H + h; };
  float most = -INFINITY, sum = 0;
  for (int64_t i = threadIdx.x; i < parts.pieces; i += blockDim.x)
    most = fmaxf(most, __ldcg(parts.largest + place(i)));
  most = block_max(most);
  for (int64_t i = threadIdx.x; i < parts.pieces; i += blockDim.x) {
    weights[i] = expf(__ldcg(parts.largest + place(i)) - most);
    sum += weights[i] * __ldcg(parts.sum + place(i));
  }
  const float over = 1.0f / block_sum(sum);  // with a barrier: the weights are there
  float* const shares = weights + parts.pieces;
  const int width = static_cast<int>(c.P), of_element = static_cast<int>(blockDim.x) / width;
  const int e = static_cast<int>(threadIdx.x) % width, part = static_cast<int>(threadIdx.x) / width;
  float y = 0;
#pragma unroll 4
  for (int64_t i = part; part < of_element && i < parts.pieces; i += of_element)
    y = fmaf(weights[i], __ldcg(parts.y + place(i) * c.P + e), y);
  shares[threadIdx.x] = y;
  __syncthreads();
  if (part == 0) {
    for (int i = 1; i < of_element; ++i) y += shares[i * width + e];
    const int64_t to = (token * c.H + h) * c.P + e;
    if (c.bf16) {
      static_cast<bfloat16*>(c.y)[to] = static_cast<bfloat16>(y * over);
    } else {
      static_cast<float*>(c.y)[to] = y * over;
    }
  }
  if (c.norm && threadIdx.x == 0) {
    c.norm[2 * (token * c.H + h)] = most;
    c.norm[2 * (token * c.H + h) + 1] = over;
  }
}

}  // namespace

void join_pieces(const AttentionCall& c, const Parts& parts, void* stream) {
  const int appending = appends(c) ? 1 : 0;
  const auto join = [&](auto kernel, int64_t blocks, int threads, int64_t floats) {
    launch_dependent(
        "attention step, pieces together", kernel,
        dim3(static_cast<unsigned>(c.sequences), static_cast<unsigned>(blocks + appending)),
        static_cast<unsigned>(threads), static_cast<size_t>(floats) * sizeof(float), 1, stream, c,
        parts, appending);
  };
  if (parts.pieces <= 32) {
    join(join_few_kernel, ceil_div(c.H, kWarps), 32 * kWarps, 0);
  } else {
    const int threads = join_threads(c, parts.pieces);
    join(join_kernel, c.H, threads, parts.pieces + threads);
  }
}

}  // namespace attention

void attention_append(const AttentionCall& c, void* stream) {
  if (c.sequences == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  const int64_t rows =
      std::min(c.to_C, c.longest + (c.in_place || !c.from_k ? int64_t{0} : c.from_C));
  const auto width = static_cast<unsigned>(std::min<int64_t>(256, c.Hkv * c.P));
  if (rows > 0)
    attention::append_kernel<<<static_cast<unsigned>(c.sequences * rows), width, 0, s>>>(c, rows);
  attention::lengths_kernel<<<static_cast<unsigned>(ceil_div(c.sequences, 128)), 128, 0, s>>>(c);
  check_launch("attention cache");
}

}  // namespace krait::cuda
