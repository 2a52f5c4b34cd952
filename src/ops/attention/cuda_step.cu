// attention of one token a sequence. Its keys are cut into pieces, a block each, so that one sequence fills the
// card; the heads that share a head of keys are taken together, so that keys and values are read once. A warp has
// every fourth run of keys: a key is a row of the warp's lanes. And the cache: what is appended to it.
#include <type_traits>

#include "krait/ops/attention/cuda_plain.cuh"
#include "krait/ops/attention/cuda_tensor.cuh"

namespace krait::cuda {

namespace attention {
namespace {

constexpr int kWarps = 4, kRun = 8;  // kRun: keys of a run, at most
constexpr int64_t kFewestPositions = 64, kBlocksWanted = 4096;

// The most positions that a token sees, by the shapes.
int64_t most_positions(const AttentionCall& c) {
  return (c.window > 0 ? std::min(c.from_C, c.window) : c.from_C) + 1;
}

// Positions of a piece: as many as leave blocks enough for any card.
int64_t positions_of_a_piece(const AttentionCall& c) {
  const int64_t wanted = ceil_div(most_positions(c) * c.sequences * c.Hkv, kBlocksWanted);
  return std::max(kFewestPositions, ceil_div(wanted, kWarps * kRun) * kWarps * kRun);
}

int64_t pieces_of(const AttentionCall& c) {
  return ceil_div(most_positions(c), positions_of_a_piece(c));
}

// What a piece says of a head: the largest score, Σ exp(score - largest), and the values weighted so (P).
struct Parts {
  float *largest, *sum, *y;  // (sequences, pieces, H) twice, (sequences, pieces, H, P)
  int64_t pieces;
};

Parts parts_at(const AttentionCall& c, float* at) {
  const int64_t n = c.sequences * pieces_of(c) * c.H;
  return {at, at + n, at + 2 * n, pieces_of(c)};
}

// A lane's elements of a row of P: kPasses runs of kWidth, runs of one pass side by side over the lanes.
template <int kWidth, int kPasses>
struct Lane {
  static constexpr int kElements = kWidth * kPasses;
  int lane = static_cast<int>(threadIdx.x) % 32;

  __device__ int at(int pass) const { return (pass * 32 + lane) * kWidth; }
  template <class T>
  __device__ void read(const T* row, int64_t P, float (&to)[kElements]) const {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      float run[kWidth] = {};
      if (at(pass) < P) load<kWidth>(row + at(pass), run);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) to[pass * kWidth + i] = run[i];
    }
  }
  __device__ void write(const float (&from)[kElements], int64_t P, float* row) const {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      float run[kWidth];
#pragma unroll
      for (int i = 0; i < kWidth; ++i) run[i] = from[pass * kWidth + i];
      if (at(pass) < P) store<kWidth>(row + at(pass), run);
    }
  }
};

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
  return x;
}

// The running softmax of a warp over its keys, for kHeads heads of queries.
template <int kHeads, int kElements>
struct Running {
  float largest[kHeads], sum[kHeads], y[kHeads][kElements];

  __device__ Running() {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      largest[h] = -INFINITY;
      sum[h] = 0;
#pragma unroll
      for (int e = 0; e < kElements; ++e) y[h][e] = 0;
    }
  }

  // kKeys more keys, of which the first `count` are there. At least one.
  template <int kKeys>
  __device__ void add(const float (&q)[kHeads][kElements], const float (&k)[kKeys][kElements],
                      const float (&v)[kKeys][kElements], int64_t count) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float score[kKeys], now = largest[h];
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        float dot = 0;
#pragma unroll
        for (int e = 0; e < kElements; ++e) dot = fmaf(q[h][e], k[j][e], dot);
        score[j] = j < count ? warp_sum(dot) : -INFINITY;
        now = fmaxf(now, score[j]);
      }
      const float factor = now == largest[h] ? 1.0f : expf(largest[h] - now);
      largest[h] = now;
      sum[h] *= factor;
#pragma unroll
      for (int e = 0; e < kElements; ++e) y[h][e] *= factor;
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        const float p = expf(score[j] - now);
        sum[h] += p;
#pragma unroll
        for (int e = 0; e < kElements; ++e) y[h][e] = fmaf(p, v[j][e], y[h][e]);
      }
    }
  }
};

// Blocks: pieces of sequences, for kHeads heads of one head of keys. S: type of the cache.
template <class T, class S, int kHeads, int kWidth, int kPasses>
__global__ void __launch_bounds__(32 * kWarps)
    step_kernel(const AttentionCall c, const Parts parts, int64_t positions) {
  using Row = Lane<kWidth, kPasses>;
  // As many keys at once as the registers hold.
  constexpr int kElements = Row::kElements, kKeys = kElements > 4 ? kRun / 2 : kRun;
  __shared__ float of_largest[kWarps][kHeads], of_sum[kWarps][kHeads];
  __shared__ alignas(16) float of_y[kWarps][kHeads][32 * kElements];
  const int64_t blocks_of_head = (c.group() + kHeads - 1) / kHeads;
  const int64_t head = blockIdx.y / blocks_of_head,
                h0 = head * c.group() + blockIdx.y % blocks_of_head * kHeads,
                h1 = min(h0 + kHeads, (head + 1) * c.group());
  const int64_t piece = blockIdx.x % parts.pieces, index = blockIdx.x / parts.pieces;
  const Sequence s = sequence(c, index);
  const Row row;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const Seen see = seen(c, s, s.first);
  const int64_t begin = see.low + piece * positions, end = min(begin + positions, s.total());
  const bool any = s.tokens > 0 && begin < end;
  Running<kHeads, kElements> running;
  if (any) {
    float q[kHeads][kElements];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      row.read(static_cast<const T*>(c.q.data) + s.begin * c.q.row + min(h0 + h, h1 - 1) * c.q.head,
               c.P, q[h]);
#pragma unroll
      for (int e = 0; e < kElements; ++e) q[h][e] *= c.scale;
    }
    const KeysOf<T> k_rows(c, s, c.k, c.from_k, head), v_rows(c, s, c.v, c.from_v, head);
    const int64_t cached_end = min(end, s.first);
    for (int64_t key = begin + warp * kKeys; key < cached_end; key += kWarps * kKeys) {
      float k[kKeys][kElements], v[kKeys][kElements];
#pragma unroll
      for (int j = 0; j < kKeys; ++j) {
        const int64_t at = min(key + j, cached_end - 1);
        row.read(k_rows.template cached_at<S>(at), c.P, k[j]);
        row.read(v_rows.template cached_at<S>(at), c.P, v[j]);
      }
      running.template add<kKeys>(q, k, v, cached_end - key);
    }
    if (end > s.first && warp == 0) {  // its own key
      float k[1][kElements], v[1][kElements];
      row.read(k_rows.own_at(s.first), c.P, k[0]);
      row.read(v_rows.own_at(s.first), c.P, v[0]);
      running.template add<1>(q, k, v, 1);
    }
  }
  // The warps together, in their order.
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (row.lane == 0) {
      of_largest[warp][h] = running.largest[h];
      of_sum[warp][h] = running.sum[h];
    }
    row.write(running.y[h], 32 * kElements, of_y[warp][h]);
  }
  __syncthreads();
  for (int64_t h = warp; h < h1 - h0; h += kWarps) {
    float most = of_largest[0][h], total = 0, y[kElements] = {};
#pragma unroll
    for (int w = 1; w < kWarps; ++w) most = fmaxf(most, of_largest[w][h]);
    for (int w = 0; w < kWarps; ++w) {
      const float factor = most == -INFINITY ? 0.0f : expf(of_largest[w][h] - most);
      total += factor * of_sum[w][h];
      float part[kElements];
      row.read(of_y[w][h], 32 * kElements, part);
#pragma unroll
      for (int e = 0; e < kElements; ++e) y[e] = fmaf(factor, part[e], y[e]);
    }
    const int64_t place = (index * parts.pieces + piece) * c.H + h0 + h;
    if (row.lane == 0) {
      parts.largest[place] = most;
      parts.sum[place] = total;
    }
    row.write(y, c.P, parts.y + place * c.P);
  }
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

constexpr int kJoinThreads = 512;

// A block: the pieces of a head together, an element of y a thread, and as many threads an element as there
// are. One block more a sequence appends to the cache in place.
__global__ void __launch_bounds__(kJoinThreads)
    join_kernel(const AttentionCall c, const Parts parts) {
  extern __shared__ float weights[];  // (pieces), then (kJoinThreads)
  const int64_t index = blockIdx.x, h = blockIdx.y;
  if (h == c.H) {
    const Sequence s = sequence(c, index);
    append_row(c, s, 0);
    __syncthreads();
    if (threadIdx.x == 0 && s.out >= 0) c.to_length[s.out] = static_cast<float>(s.total());
    return;
  }
  const int64_t token = c.begin ? c.begin[index] : index;
  if (c.begin && c.begin[index + 1] == token) return;
  const auto place = [&](int64_t piece) { return (index * parts.pieces + piece) * c.H + h; };
  float most = -INFINITY, sum = 0;
  for (int64_t i = threadIdx.x; i < parts.pieces; i += blockDim.x)
    most = fmaxf(most, parts.largest[place(i)]);
  most = block_max(most);
  for (int64_t i = threadIdx.x; i < parts.pieces; i += blockDim.x) {
    weights[i] = expf(parts.largest[place(i)] - most);
    sum += weights[i] * parts.sum[place(i)];
  }
  const float over = 1.0f / block_sum(sum);  // with a barrier: the weights are there
  float* const shares = weights + parts.pieces;
  const int width = static_cast<int>(c.P), of_element = kJoinThreads / width;
  const int e = static_cast<int>(threadIdx.x) % width, part = static_cast<int>(threadIdx.x) / width;
  float y = 0;
#pragma unroll 4
  for (int64_t i = part; part < of_element && i < parts.pieces; i += of_element)
    y = fmaf(weights[i], parts.y[place(i) * c.P + e], y);
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

bool in_width(const AttentionCall& c, int64_t V) {
  const int64_t bytes = c.bf16 ? 2 : 4;
  const auto fits = [&](const HeadRows& r) {
    return in_runs(r.data, r.row, bytes, V) && r.head % V == 0;
  };
  const int64_t of_cache = c.cache_bf16 ? 2 : 4;
  return c.P % V == 0 && fits(c.q) && fits(c.k) && fits(c.v) && in_runs(c.from_k, 0, of_cache, V) &&
         in_runs(c.from_v, 0, of_cache, V);
}

template <class T, class S, int kHeads>
void launch_step(const AttentionCall& c, const Parts& parts, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(c.sequences * parts.pieces),
                  static_cast<unsigned>(c.Hkv * ceil_div(c.group(), kHeads)));
  const int64_t positions = positions_of_a_piece(c);
  const auto launch = [&](auto kernel) {
    kernel<<<grid, 32 * kWarps, 0, stream>>>(c, parts, positions);
  };
  if (c.P <= 64 && in_width(c, 2)) {
    launch(step_kernel<T, S, kHeads, 2, 1>);
  } else if (c.P <= 128 && in_width(c, 4)) {
    launch(step_kernel<T, S, kHeads, 4, 1>);
  } else if (in_width(c, 4)) {
    launch(step_kernel<T, S, kHeads, 4, 2>);
  } else {
    launch(step_kernel<T, S, kHeads, 1, 8>);
  }
}

}  // namespace
}  // namespace attention

int64_t attention_step_floats(const AttentionCall& c) {
  return c.sequences * attention::pieces_of(c) * c.H * (c.P + 2);
}

void attention_step(const AttentionCall& c, float* parts, void* stream) {
  if (c.sequences == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  const attention::Parts at = attention::parts_at(c, parts);
  const auto step = [&](auto type, auto of_cache) {
    using T = decltype(type);
    using S = decltype(of_cache);
    c.group() == 1 ? attention::launch_step<T, S, 1>(c, at, s)
                   : attention::launch_step<T, S, 4>(c, at, s);
  };
  if (c.cache_bf16) {
    step(__nv_bfloat16(), __nv_bfloat16());
  } else {
    c.bf16 ? step(__nv_bfloat16(), 0.0f) : step(0.0f, 0.0f);
  }
  check_launch("attention step");
  const dim3 grid(static_cast<unsigned>(c.sequences),
                  static_cast<unsigned>(c.H + (c.to_k && c.in_place ? 1 : 0)));
  const size_t floats = static_cast<size_t>(at.pieces) + attention::kJoinThreads;
  attention::join_kernel<<<grid, attention::kJoinThreads, floats * sizeof(float), s>>>(c, at);
  check_launch("attention step, pieces together");
}

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

void attention_forward(const AttentionCall& c, void* stream) {
  if (c.tokens == 0 || c.sequences == 0) return;
  attention::fits_tensor_cores(c) ? attention::tensor_forward(c, stream)
                                  : attention::plain_forward(c, stream);
}

void attention_backward(const AttentionBackward& b, void* stream) {
  const AttentionCall& c = b.c;
  if (c.sequences > 0 && c.tokens > 0) {
    if (b.dy) attention::add_up_dy_y(b, stream);
    attention::fits_tensor_cores(c) ? attention::tensor_backward(b, stream)
                                    : attention::plain_backward(b, stream);
  }
  if ((b.dk_in || b.dv_in) && c.from_rows > 0) attention::cache_backward(b, stream);
}

}  // namespace krait::cuda
