// A row's ids are kSegments runs of neighbours, each a warp's: it finds its largest logit and what its weights sum up to,
// and tells all blocks of the row. Blocks of a cluster share out the segments (sm_90 on); what a row gets does not depend
// on how many there are. Weights exp((logit - largest) / temperature) are summed as integers of 2^-40, so that sums do not
// depend on their order. Where counts of logits by their distance from the largest say that top-k and top-p leave a few ids
// only, the first block gets these and decides alone; else digits of that distance are counted until the cut is known.
#include <cfloat>

#include "krait/ops/sampler/cuda_row.cuh"
#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/philox.cuh"

namespace krait::cuda {

namespace {

constexpr int kSegments = 128;
constexpr int64_t kMostKept = 52 * 1024;   // logits that a block keeps in its own memory
constexpr int64_t kFewestShared = 4096;    // ids of a row that blocks share out
constexpr int64_t kBlocksAtOnce = 264;     // on an H200
constexpr int kCandidates = kThreads / 2;  // that one block decides among

struct alignas(8) Top {
  float x;  // NaN where there is one
  int id;   // the first that has it
};
struct alignas(16) Told {
  Top top;
  double sum;  // of exp(logit - top.x)
};
struct alignas(16) Measure {
  Weight all;   // of the segment's weights
  Weight some;  // of its candidates: count · 2^36 + weights in units of 2^-20, rounded down
};
constexpr int kSomeBits = 36, kSomeUnits = 20;

struct alignas(16) Turn {
  double uniform;     // of [0, 1)
  uint64_t position;  // of the row
};

// What each segment of the row, or one block, says once.
template <class T, int kCount = kSegments>
struct Mailbox {
  alignas(16) T of[kCount];
  uint64_t barrier;

  __device__ void open() { expect_in_block(&barrier, sizeof(of)); }
  // To all blocks, or the first alone; by a whole warp.
  __device__ void tell(int segment, const T& x, int blocks, bool first_alone = false) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (blocks == 1) {
      if (lane == 0) of[segment] = x;
    } else if (lane < (first_alone ? 1 : blocks)) {
      send_to_block(of + segment, x, &barrier, static_cast<unsigned>(lane));
    }
  }
  // Until all have been told; by all threads.
  __device__ void hear(int blocks) { blocks == 1 ? __syncthreads() : wait_for_sent(&barrier); }
};

struct Shared {
  Mailbox<Told> told;
  Mailbox<Top> penalised;
  Mailbox<Measure> measures;
  Mailbox<Turn, 1> turn;
  uint64_t candidates_sent;
  Weight candidates[kCandidates];  // a key and, below it, ~id: larger for what comes first
  Weight weights[kCandidates];     // theirs
  double log_total;
  unsigned last;  // digit of candidates
};
__shared__ Shared shared;

__device__ float penalised_logit(float x, float penalty) {
  if (!isfinite(x)) return x;
  const float y = x > 0 ? x / penalty : x * penalty;
  return fminf(fmaxf(y, -FLT_MAX), FLT_MAX);
}

__device__ Top warp_top(Top mine) {
  const float most = of_key(__reduce_max_sync(~0u, key_of(mine.x)));  // a NaN's is the largest
  return {most, __reduce_min_sync(~0u, mine.x == most ? mine.id : INT32_MAX)};
}

__device__ void take(Top& top, float x, int id) {  // ids ascend
  if (x > top.x) top = {x, id};
}

// Of all segments; by a whole warp.
template <class T, class Of>
__device__ Top top_of_row(const T (&of)[kSegments], const Of& top_of) {
  Top top{-INFINITY, INT32_MAX};
  bool nan = false;
  for (int s = static_cast<int>(threadIdx.x) % 32; s < kSegments; s += 32) {
    const Top other = top_of(of[s]);
    nan |= isnan(other.x);
    take(top, other.x, other.id);
  }
  return warp_top(nan ? Top{NAN, 0} : top);
}

struct Draw {
  const SampleTask& t;
  SampleOut* out;
  int64_t half;
  int32_t* tokens;
  int b, blocks;
  bool keep;
  float* kept;
  const float* raw;
  const float* x;  // kept or raw, or after the penalty
  int rank, lane, warp;
  int valid, length, first_segment, of_block, begin, end;  // of a segment, of this block

  __device__ Draw(const SampleTask& task, SampleOut* out_, int64_t half_, int32_t* tokens_,
                  int blocks_, bool keep_, float* kept_)
      : t(task), out(out_), half(half_), tokens(tokens_), blocks(blocks_), keep(keep_) {
    b = static_cast<int>(blockIdx.x) / blocks;
    raw = t.logits + b * t.stride;
    rank = blocks > 1 ? static_cast<int>(rank_in_cluster()) : 0;
    lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    valid = static_cast<int>(t.valid);
    length = (valid + kSegments - 1) / kSegments;
    of_block = kSegments / blocks, first_segment = rank * of_block;
    begin = min(valid, first_segment * length), end = min(valid, begin + of_block * length);
    kept = kept_ - begin;
    x = keep ? kept : raw;
  }

  template <class F>
  __device__ void for_segments(const F& f) const {
    for (int s = first_segment + warp; s < first_segment + of_block; s += kWarps)
      f(s, min(valid, s * length), min(valid, (s + 1) * length));
  }
  // f(x, id) of the lane's ids of a segment.
  template <class F>
  __device__ void for_ids(int from, int to, const F& f) const {
#pragma unroll 4
    for (int i = from + lane; i < to; i += 32) f(x[i], i);
  }

  __device__ void write(int32_t result, float logprob) const {
    out[(shared.turn.of[0].position % 2 ? half : 0) + b] = {result, logprob};
    tokens[b] = max(result, 0);
  }
  // `drawn`: its logit, after the penalty.
  __device__ void finish(int token, float drawn, double log_total) const {
    const double logit = static_cast<double>(t.penalised ? __ldcg(raw + token) : drawn);
    write(token, static_cast<float>(logit - log_total));
  }

  // Reads the row. Tells of each segment what the log-probability and, without a penalty, the draw need. A lane's sum is
  // of exp(x - its largest), or of exp(x) where that is infinite: NaN if one of them is.
  __device__ void read(bool first_alone) const {
    constexpr int kTogether = 16;
    const auto factor = [](float before, float now) {
      return before == now || before == -INFINITY ? 1.0f : __expf(before - now);
    };
    for_segments([&](int s, int from, int to) {
      Top top{-INFINITY, INT32_MAX};
      float sum = 0;
      for (int i = from + lane; i < to; i += 32 * kTogether) {
        float v[kTogether];
#pragma unroll
        for (int j = 0; j < kTogether; ++j)
          v[j] = i + 32 * j < to ? __ldcg(raw + i + 32 * j) : -INFINITY;
        const float before = top.x;
#pragma unroll
        for (int j = 0; j < kTogether; ++j) {
          if (keep && i + 32 * j < to) kept[i + 32 * j] = v[j];
          take(top, v[j], i + 32 * j);
        }
        sum *= factor(before, top.x);
        const float most = isinf(top.x) ? 0 : top.x;
#pragma unroll
        for (int j = 0; j < kTogether; ++j) sum += __expf(v[j] - most);
      }
      const Top all = warp_top(top);
      auto total = static_cast<double>(sum * factor(top.x, all.x));
#pragma unroll
      for (int i = 16; i > 0; i /= 2) total += __shfl_xor_sync(~0u, total, i);
      shared.told.tell(s, {isnan(total) ? Top{NAN, 0} : all, total}, blocks, first_alone);
    });
  }

  // log Σ exp(logit), of the row; by a whole warp.
  __device__ double log_total(float most) const {
    double total = 0;
    for (int s = lane; s < kSegments; s += 32) {
      const Told& of = shared.told.of[s];
      total += of.sum * static_cast<double>(expf(of.top.x - most));
    }
#pragma unroll
    for (int i = 16; i > 0; i /= 2) total += __shfl_xor_sync(~0u, total, i);
    return static_cast<double>(most) + log(total);
  }

  // Puts the penalised logits where x shows, and tells of each segment its largest.
  __device__ void penalise() {
    float* const changed = keep ? kept : t.penalised + b * t.valid;
    if (!keep)
      for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += kThreads)
        changed[i] = __ldcg(raw + i);
    __syncthreads();
    const int64_t last = t.history_begin[b + 1];
    for (int64_t i = t.history_begin[b] + threadIdx.x; i < last; i += kThreads) {
      const int32_t id = t.history[i];
      if (id >= begin && id < end) changed[id] = penalised_logit(__ldcg(raw + id), t.penalty);
    }
    __syncthreads();
    x = changed;
    for_segments([&](int s, int from, int to) {
      Top top{-INFINITY, INT32_MAX};
      for_ids(from, to, [&](float y, int i) { take(top, y, i); });
      shared.penalised.tell(s, warp_top(top), blocks);
    });
  }

  // The last digit of distances from the largest key that top-k and top-p can reach to, as far as counts tell: a share of
  // weights is a guess, a little more than asked for.
  __device__ unsigned last_digit(const Row& row, int top_k) const {
    row.measure(true, 0, kFirstShift, true, 0);
    if (top_k > 0) return row.reach(static_cast<Weight>(top_k));
    if (warp == 0) {
      constexpr int kOfLane = kDigits / 32;
      float of_digit[kOfLane], mine = 0;
#pragma unroll
      for (int i = 0; i < kOfLane; ++i) {
        const unsigned d = static_cast<unsigned>(lane * kOfLane + i),
                       half = 1u << (kFirstShift - 1);
        const float middle = of_key(row.most_key - min(row.most_key, (d << kFirstShift) + half));
        const float w = expf((middle - row.scale.most) * row.scale.sharpness);
        // The last digit's are all that are left: at most that much.
        mine += of_digit[i] = w > 0 ? w * static_cast<float>(digits.of_row[d]) : 0;
      }
      float upto = mine;
#pragma unroll
      for (int i = 1; i < 32; i *= 2) {
        const float other = __shfl_up_sync(~0u, upto, i);
        if (lane >= i) upto += other;
      }
      const float share = t.top_p + fminf(0.02f, 0.3f * (1 - t.top_p)),
                  wanted = share * __shfl_sync(~0u, upto, 31);
      const unsigned reached = __ballot_sync(~0u, upto >= wanted) | 1u << 31;
      if (lane == __ffs(static_cast<int>(reached)) - 1) {
        float left = wanted - (upto - mine);
        int i = 0;
#pragma unroll
        for (int j = 0; j < kOfLane - 1; ++j)
          if (i == j && of_digit[j] < left) left -= of_digit[j], ++i;
        shared.last = static_cast<unsigned>(lane * kOfLane + i);
      }
    }
    __syncthreads();
    return shared.last;
  }

  // Among all: the weights of at least `least`, in the order of the ids.
  __device__ void draw_plainly(const Scale& scale, Weight least) const {
    const auto weight = [&](float y) {
      const Weight w = scale.weight(y);
      return w >= least ? w : 0;
    };
    for_segments([&](int s, int from, int to) {
      Weight sum = 0;
      for_ids(from, to, [&](float y, int) { sum += weight(y); });
      shared.measures.tell(s, {warp_sum(sum), 0}, blocks);
    });
    __syncthreads();  // `log_total`, too
    shared.measures.hear(blocks);
    constexpr int kOfLane = kSegments / 32;
    Weight of_lane[kOfLane], mine = 0;
#pragma unroll
    for (int k = 0; k < kOfLane; ++k)
      mine += of_lane[k] = shared.measures.of[lane * kOfLane + k].all;
    Weight before = warp_sum_upto(mine);
    const Weight all = __shfl_sync(~0u, before, 31), target = target_of(all);
    before -= mine;
    int chosen = 0;
#pragma unroll
    for (int k = 0; k < kOfLane; ++k) {
      if (before + of_lane[k] > target) break;
      before += of_lane[k], ++chosen;
    }
    // The first lane whose segments reach beyond the target.
    const int of = __ffs(static_cast<int>(__ballot_sync(~0u, chosen < kOfLane))) - 1,
              segment = of * kOfLane + __shfl_sync(~0u, chosen, of);
    before = __shfl_sync(~0u, before, of);
    if (segment < first_segment || segment >= first_segment + of_block ||
        (segment - first_segment) % kWarps != warp)
      return;
    const int from = segment * length, to = min(valid, from + length);
    for (int i = from + lane;; i += 32) {
      const Weight w = i < to ? weight(x[i]) : 0, of_these = warp_sum(w);
      if (before + of_these > target) {
        const Weight upto = before + warp_sum_upto(w);
        if (upto > target && upto - w <= target) finish(i, x[i], shared.log_total);
        return;
      }
      before += of_these;
    }
  }

  __device__ Weight target_of(Weight all) const {
    return min(static_cast<Weight>(shared.turn.of[0].uniform * static_cast<double>(all)),
               all > 0 ? all - 1 : 0);
  }
  __device__ Weight wanted_of(Weight all) const {
    return static_cast<Weight>(ceil(static_cast<double>(t.top_p) * static_cast<double>(all)));
  }

  // Where what top-k and top-p leave is surely among few: false where not.
  __device__ bool draw_among_few(const Row& row, Weight least, int top_k) const {
    const unsigned last = last_digit(row, top_k);
    unsigned count_upto = 0;
    for (unsigned d = static_cast<unsigned>(lane); d <= last; d += 32)
      count_upto += static_cast<unsigned>(digits.of_row[d]);
    const auto count = static_cast<int>(__reduce_add_sync(~0u, count_upto));
    if (count > kCandidates) return false;
    const Scale& scale = row.scale;
    const auto is_one = [&](float y) {
      const unsigned d = (row.most_key - key_of(y)) >> kFirstShift;
      return d <= last || last == kDigits - 1;
    };
    for_segments([&](int s, int from, int to) {
      Weight sum = 0, some = 0;
      unsigned ones = 0;
      for_ids(from, to, [&](float y, int) {
        const bool one = is_one(y);
        ones += one;
        if (top_k > 0) return;
        const Weight w = scale.weight(y);
        sum += w;
        if (one) some += w;
      });
      ones = __reduce_add_sync(~0u, ones);
      some = Weight{ones} << kSomeBits | warp_sum(some) >> kSomeUnits;
      shared.measures.tell(s, {warp_sum(sum), some}, blocks);
    });
    shared.measures.hear(blocks);
    constexpr int kOfLane = kSegments / 32;
    Weight all = 0, some = 0;
#pragma unroll
    for (int k = 0; k < kOfLane; ++k) {
      const Measure& of = shared.measures.of[lane + 32 * k];
      all += of.all, some += of.some;
    }
    all = warp_sum(all), some = warp_sum(some);
    const Weight weighed = (some & ((Weight{1} << kSomeBits) - 1)) << kSomeUnits;
    if (top_k == 0 && weighed < wanted_of(all)) return false;

    for_segments([&](int s, int from, int to) {
      unsigned before = 0;
#pragma unroll
      for (int k = 0; k < kOfLane; ++k)
        if (lane + 32 * k < s)
          before += static_cast<unsigned>(shared.measures.of[lane + 32 * k].some >> kSomeBits);
      unsigned place = __reduce_add_sync(~0u, before);
      for (int i = from; i < to; i += 32) {
        const int id = i + lane;
        const bool one = id < to && is_one(x[id]);
        const unsigned ones = __ballot_sync(~0u, one);
        if (one) {
          Weight* const to_place = shared.candidates + place + __popc(ones & ((1u << lane) - 1));
          const Weight candidate = Weight{key_of(x[id])} << 32 | ~static_cast<unsigned>(id);
          if (blocks == 1) {
            *to_place = candidate;
          } else {
            send_to_block(to_place, candidate, &shared.candidates_sent, 0);
          }
        }
        place += __popc(ones);
      }
    });
    if (rank != 0) return true;
    if (blocks > 1) {
#if __CUDA_ARCH__ >= 900
      if (threadIdx.x == 0)
        arrive_expecting(&shared.candidates_sent, static_cast<unsigned>(count) * sizeof(Weight));
#endif
      wait_for_sent(&shared.candidates_sent);
    } else {
      __syncthreads();
    }
    decide(scale, least, top_k, count, all);
    return true;
  }

  // By the first block: the candidates against each other, two threads for each.
  __device__ void decide(const Scale& scale, Weight least, int top_k, int count, Weight all) const {
    static_assert(2 * kCandidates == kThreads);
    const int c = static_cast<int>(threadIdx.x) / 2, half = lane % 2;
    const bool there = c < count, warp_there = warp * 16 < count;
    const Weight mine = there ? shared.candidates[c] : 0;
    const float drawn = of_key(static_cast<unsigned>(mine >> 32));
    const Weight weight = there ? scale.weight(drawn) : 0;
    if (half == 0) shared.weights[c] = weight;
    __syncthreads();
    int above = 0;
    Weight before = 0;  // weights of those above
    if (warp_there) {
#pragma unroll 4
      for (int i = half; i < count; i += 2)
        if (shared.candidates[i] > mine) ++above, before += shared.weights[i];
      above += __shfl_xor_sync(~0u, above, 1);
      before += __shfl_xor_sync(~0u, before, 1);
    }
    bool chosen = there && (top_k == 0 || above < top_k);
    if (t.top_p < 1) {
      if (top_k > 0) all = block_sum(chosen && half == 0 ? weight : 0);
      chosen = chosen && before < wanted_of(all);
    }
    const Weight left = chosen && weight >= least ? weight : 0;
    all = block_sum(half == 0 ? left : 0);  // all threads have read the weights
    if (half == 0) shared.weights[c] = left;
    __syncthreads();
    if (!warp_there) return;
    const Weight target = target_of(all);
    Weight upto = 0;  // in the order of the ids
#pragma unroll 4
    for (int i = half; i < count; i += 2)
      if (static_cast<unsigned>(shared.candidates[i]) > static_cast<unsigned>(mine))
        upto += shared.weights[i];
    upto += __shfl_xor_sync(~0u, upto, 1);
    if (half == 0 && upto <= target && target < upto + left)
      finish(static_cast<int>(~static_cast<unsigned>(mine)), drawn, shared.log_total);
  }

  // By selections over the whole row.
  __device__ void draw_among_all(const Row& row, Weight least, int top_k) const {
    Cut cut;
    Weight before = 0;
    if (top_k > 0) cut = row.select(true, static_cast<Weight>(top_k), cut);
    if (t.top_p < 1) {
      const Weight all = row.sum(cut, 0, row.ties_before(cut), before);
      cut = row.select(false, wanted_of(all), cut);
    }
    const int64_t ties = row.ties_before(cut);
    const Weight target = target_of(row.sum(cut, least, ties, before));
    row.for_chosen(cut, least, ties, [&](int i, Weight w) {
      if (before <= target && target < before + w) finish(i, x[i], shared.log_total);
      before += w;
    });
  }

  __device__ void run() {
    const bool greedy = t.temperature == 0, first_alone = greedy && !t.penalised;
    // One warp reads the row's place, tells it and leaves the next one.
    const bool has_place = rank == 0 && warp == 1;
    SamplePlace place{};
    wait_for_previous();
    if (has_place) place = {__ldcg(&t.places[b].stream), __ldcg(&t.places[b].position)};
    read(first_alone);
    if (has_place) {
      const Words words = philox(t.seed, place.stream, place.position);
      const uint64_t bits = (uint64_t{words.v[0]} << 32 | words.v[1]) >> 11;
      shared.turn.tell(0, {static_cast<double>(bits) * 0x1p-53, place.position}, blocks,
                       first_alone);
      if (lane == 0) t.places[b].position = place.position + 1;
    }
    if (first_alone && blocks > 1 && (rank > 0 || warp > 0)) return;
    shared.told.hear(blocks);
    if (first_alone && warp > 0) return;
    if (blocks > 1) shared.turn.hear(blocks);
    Top top = top_of_row(shared.told.of, [](const Told& of) { return of.top; });
    if (isnan(top.x) || isinf(top.x)) {
      if (rank == 0 && threadIdx.x == 0)
        write(isnan(top.x) ? kHoldsNan : top.x > 0 ? kHoldsInfinity : kHoldsNothing, 0.0f);
      return;
    }
    double of_all = 0;
    if (warp == 0) of_all = log_total(top.x);
    if (t.penalised) {
      penalise();
      shared.penalised.hear(blocks);
      top = top_of_row(shared.penalised.of, [](const Top& of) { return of; });
    }
    if (greedy) {
      if (rank == 0 && threadIdx.x == 0) finish(top.id, top.x, of_all);
      return;
    }
    if (threadIdx.x == 0) shared.log_total = of_all;
    // Below a temperature of 1e-6 only ties with the largest logit are left anyway.
    const Scale scale{top.x, 1 / fmaxf(t.temperature, 1e-6f)};
    const auto least = static_cast<Weight>(t.min_p * kUnits);
    const int top_k = t.top_k < valid ? static_cast<int>(t.top_k) : 0;
    if (top_k == 0 && t.top_p == 1) return draw_plainly(scale, least);
    const int each = (end - begin + kThreads - 1) / kThreads,
              first = min(end, begin + static_cast<int>(threadIdx.x) * each);
    const Row row{x, begin, end, first, min(end, first + each), blocks, key_of(top.x), scale};
    if (!draw_among_few(row, least, top_k)) draw_among_all(row, least, top_k);
    if (blocks > 1) leave_cluster();  // another block may still read this one's memory
  }
};

__global__ void __launch_bounds__(kThreads, 2)
    sample_kernel(const SampleTask t, SampleOut* out, const int64_t half, int32_t* tokens,
                  const int blocks, const bool keep) {
  extern __shared__ float kept[];
  if (blocks > 1) {
    if (threadIdx.x == 0) {
      shared.told.open(), shared.penalised.open(), shared.measures.open(), shared.turn.open();
      start_barrier(&shared.candidates_sent, 1);
    }
    __syncwarp();
    arrive_in_cluster();
    wait_in_cluster();
  }
  Draw(t, out, half, tokens, blocks, keep, kept).run();
}

}  // namespace

void sample(const SampleTask& task, SampleOut* out, int64_t half, int32_t* tokens, void* stream) {
  // Blocks that are not there at once take turns: a row's are fewer then, but what they keep of it has to fit.
  const bool greedy = task.temperature == 0 && task.penalised == nullptr;
  int blocks = 1;
  if (task.valid >= kFewestShared && has_clusters(reinterpret_cast<const void*>(sample_kernel)))
    for (blocks = kMostBlocks; blocks > (greedy ? 2 : 4) && task.B * blocks > kBlocksAtOnce;)
      blocks /= 2;
  // Where a row is read once nothing is kept; a GPU whose blocks may not have as much reads it where it is.
  const int64_t share = ceil_div(task.valid, kSegments) * (kSegments / blocks);
  bool keep = !greedy && share <= kMostKept;
  const size_t bytes = keep ? static_cast<size_t>(share) * sizeof(float) : 0;
  keep = keep && cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(kMostKept * sizeof(float))) == cudaSuccess;
  if (!keep) cudaGetLastError();
  launch_dependent("sampler", sample_kernel, dim3(static_cast<unsigned>(task.B * blocks)), kThreads,
                   keep ? bytes : 0, static_cast<unsigned>(blocks), stream, task, out, half, tokens,
                   blocks, keep);
}

}  // namespace krait::cuda
