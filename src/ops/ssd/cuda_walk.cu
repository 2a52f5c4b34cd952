// The walk in float32, and the order of its passes.
#include "krait/ops/ssd/cuda_walk.cuh"

#include <algorithm>

#include "krait/ops/ssd/cuda_exact.cuh"
#include "krait/tensor/cuda/launch_dependent.cuh"
#include "krait/tensor/cuda/math.h"

namespace krait::ops::ssd_gpu {

namespace {

// What a block keeps in shared memory: first the operands of products, then Steps and decays.
template <int NT>
struct Room {
  static constexpr int Q = kQ, ldP = kP + kPad, ldN = 64 * NT + kPad, ldQ = Q + kPad;
  float *x, *weighted, *B, *C, *state, *scores;
  Steps* steps;
  float* decays;

  static constexpr size_t size(bool with_y) {
    const size_t elements = 2 * Q * ldP + Q * ldN + (with_y ? Q * ldN + kP * ldN + Q * ldQ : 0);
    return (elements + Q * ldQ) * sizeof(float) + sizeof(Steps);
  }
  __device__ Room(unsigned char* memory, bool with_y) {
    float* at = reinterpret_cast<float*>(memory);
    const auto take = [&](int n) {
      float* const taken = at;
      at += n;
      return taken;
    };
    x = take(Q * ldP), weighted = take(Q * ldP), B = take(Q * ldN);
    C = state = scores = nullptr;
    if (with_y) C = take(Q * ldN), state = take(kP * ldN), scores = take(Q * ldQ);
    steps = reinterpret_cast<Steps*>(at);
    decays = reinterpret_cast<float*>(steps + 1);
  }
};

template <int NT, bool kBackwards, bool kFirstPass>
__global__ void __launch_bounds__(kThreads, NT <= 2 ? 2 : 1)
    walk_kernel(const Walk w, const int64_t span) {
  extern __shared__ __align__(16) unsigned char memory[];
  constexpr int Q = kQ, NP = 64 * NT;
  using R = Room<NT>;
  const CudaProblem& p = w.p;
  const Place piece = place_of(p, blockIdx.x, span);
  if (!piece.there) return;
  if (w.skip_short && begin_of(p, piece.s + 1) - begin_of(p, piece.s) <= kShort) return;
  const bool at_end = piece.i + 1 == piece.units, at_begin = piece.i == 0;
  const bool first = kBackwards ? at_end : at_begin, last = kBackwards ? at_begin : at_end;
  if (kFirstPass && last) return;
  const int64_t tiles = ceil_div(p.P, kP), h = blockIdx.y / tiles, p0 = blockIdx.y % tiles * kP;
  const int64_t of_head = p.P * p.N, N = p.N, column_B = h / (p.H / p.G) * N;
  const int channels = static_cast<int>(min(int64_t{kP}, p.P - p0)), states = static_cast<int>(N);
  const bool with_y = !kBackwards && !kFirstPass && w.y.data;
  const R room(memory, with_y);
  const Steps& steps = *room.steps;
  const int64_t at_head = (piece.s * p.H + h) * of_head + p0 * N;  // of row s of a tensor of states

  Tile<kP, NP> S;
  clear(S);
  const float* from = nullptr;
  if (!kFirstPass && w.pieces) {
    from = w.pieces + (blockIdx.x * p.H + h) * of_head + p0 * N;
  } else if (!kFirstPass && first && w.start) {
    const int64_t row = w.start_row ? w.start_row[piece.s] : piece.s;
    if (row >= 0) from = w.start + at_head + (row - piece.s) * p.H * of_head;
  }
  if (from)
    for_pairs(S, [&](int i, int n, float& a, float& b, int) {
      if (i < channels && n < states) a = from[i * N + n];
      if (i < channels && n + 1 < states) b = from[i * N + n + 1];
    });

  const int64_t chunks = ceil_div(piece.tokens, Q);
  const int64_t slot = first_slot(p, piece.s, Q) + piece.i * (span / Q);
  float kept = 1;
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t chunk = kBackwards ? chunks - 1 - c : c, row = piece.begin + chunk * Q;
    const int valid = static_cast<int>(min(int64_t{Q}, piece.tokens - chunk * Q));
    if (threadIdx.x < 32) take_steps(p, h, row, valid, *room.steps, room.decays);
    bring<Q, kP>(room.x, R::ldP, p.x, row, valid, h * p.P + p0, channels);
    bring<Q, NP>(room.B, R::ldN, p.B, row, valid, column_B, states);
    if (w.states && !kFirstPass) {
      float* const to =
          static_cast<float*>(w.states) + ((slot + chunk) * p.H + h) * of_head + p0 * N;
      for_pairs(S, [&](int i, int n, float& a, float& b, int) {
        if (i < channels) store_pair(to + i * N + n, a, b, states - n);
      });
    }
    if (with_y) {
      bring<Q, NP>(room.C, R::ldN, p.C, row, valid, column_B, states);
      for_pairs(S, [&](int i, int n, float& a, float& b, int) {
        store_pair(room.state + i * R::ldN + n, a, b, 2);
      });
    }
    __syncthreads();

    for (int i = static_cast<int>(threadIdx.x); i < Q * kP; i += kThreads) {
      const int t = i / kP, at = t * R::ldP + i % kP;
      const float weight = kBackwards ? steps.before[t] : steps.delta[t] * steps.after[t];
      room.weighted[at] = weight * room.x[at];
    }
    Tile<Q, kP> y;
    if (with_y) {
      Tile<Q, Q> scores;
      clear(scores);
      product<false, false>(scores, room.C, R::ldN, room.B, R::ldN, NP);
      for_pairs(scores, [&](int t, int s, float& a, float& b, int) {
        a = s <= t ? a * decay_of(room.decays, t, s) * steps.delta[s] : 0.0f;
        b = s < t ? b * decay_of(room.decays, t, s + 1) * steps.delta[s + 1] : 0.0f;
        store_pair(room.scores + t * R::ldQ + s, a, b, 2);
      });
      clear(y);
      product<false, false>(y, room.C, R::ldN, room.state, R::ldN, NP);
      for_pairs(y, [&](int t, int, float& a, float& b, int) {
        a *= steps.before[t], b *= steps.before[t];
      });
    }
    __syncthreads();

    if (with_y) {
      product<false, true>(y, room.scores, R::ldQ, room.x, R::ldP, Q);
      for_pairs(y, [&](int t, int i, float& a, float& b, int) {
        if (t >= valid || i >= channels) return;
        const float* const x = room.x + t * R::ldP + i;
        const float* const D = p.D ? p.D + (p.D_per_channel ? h * p.P + p0 + i : h) : nullptr;
        const bool two = i + 1 < channels;
        if (D) a += D[0] * x[0];
        if (D && two) b += D[p.D_per_channel ? 1 : 0] * x[1];
        put_pair(w.y, row + t, h * p.P + p0 + i, two ? 2 : 1, a, b);
      });
    }
    const float through = steps.before[Q - 1];
    kept *= through;
    for_pairs(S, [&](int, int, float& a, float& b, int) { a *= through, b *= through; });
    product<true, true>(S, room.weighted, R::ldP, room.B, R::ldN, Q);
    __syncthreads();
  }

  float* to = nullptr;
  if (kFirstPass) {
    to = w.pieces + (blockIdx.x * p.H + h) * of_head + p0 * N;
    if (threadIdx.x == 0 && p0 == 0) w.kept[blockIdx.x * p.H + h] = kept;
  } else if (last && w.end) {
    const int64_t row = w.end_row ? w.end_row[piece.s] : piece.s;
    if (row >= 0) to = w.end + at_head + (row - piece.s) * p.H * of_head;
  }
  if (to)
    for_pairs(S, [&](int i, int n, float& a, float& b, int) {
      if (i < channels) store_pair(to + i * N + n, a, b, states - n);
    });
}

template <int V>
__device__ inline void load_past_first_cache(const float* from, float (&to)[V]) {
  if constexpr (V == 4) {
    const float4 v = __ldcg(reinterpret_cast<const float4*>(from));
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
  } else {
    to[0] = __ldcg(from);
  }
}

// From what each piece of a sequence leaves on its own to what it begins with, in the order of the walk. V states a thread.
template <int V>
__global__ void __launch_bounds__(256) join_kernel(const Walks walks, const int64_t span) {
  cuda::let_next_start();
  cuda::wait_for_previous();
  const Walk& w = walks.walk[blockIdx.z];
  const CudaProblem& p = w.p;
  const int64_t s = blockIdx.x;
  const int of_head = static_cast<int>(p.P * p.N), of_row = static_cast<int>(p.H) * of_head;
  const int i = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * V, h = i / of_head;
  if (i >= of_row) return;
  const int64_t slot = first_slot(p, s, span);
  const int units = static_cast<int>(ceil_div(begin_of(p, s + 1) - begin_of(p, s), span));
  const int64_t row = w.start_row ? w.start_row[s] : s;
  float state[V] = {};
  if (w.start && row >= 0) load_past_first_cache<V>(w.start + row * of_row + i, state);
  const auto piece_of = [&](int k) { return slot + (w.backwards ? units - 1 - k : k); };
  constexpr int kAtOnce = V == 1 ? 12 : 5;  // read before the first of them is written
  for (int first = 0; first < units; first += kAtOnce) {
    float left[kAtOnce][V], kept[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (first + k + 1 >= units) break;
      load_past_first_cache<V>(w.pieces + piece_of(first + k) * of_row + i, left[k]);
      kept[k] = __ldcg(w.kept + piece_of(first + k) * p.H + h);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      if (first + k >= units) break;
      cuda::store<V>(w.pieces + piece_of(first + k) * of_row + i, state);
      if (first + k + 1 >= units) break;
#pragma unroll
      for (int v = 0; v < V; ++v) state[v] = fmaf(kept[k], state[v], left[k][v]);
    }
  }
}

template <int NT>
void exact_walk(const Walk& w, int64_t span, bool first_pass, cudaStream_t stream) {
  const CudaProblem& p = w.p;
  const dim3 grid(static_cast<unsigned>(slots(p, span)),
                  static_cast<unsigned>(p.H * ceil_div(p.P, kP)));
  const auto run = [&](auto kernel) {
    const size_t bytes = Room<NT>::size(!w.backwards && !first_pass && w.y.data);
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(bytes));
    kernel<<<grid, kThreads, bytes, stream>>>(w, span);
    cuda::check_launch("ssd");
  };
  if (w.backwards) {
    first_pass ? run(walk_kernel<NT, true, true>) : run(walk_kernel<NT, true, false>);
  } else {
    first_pass ? run(walk_kernel<NT, false, true>) : run(walk_kernel<NT, false, false>);
  }
}

void pass(const Walks& w, int64_t span, bool first_pass, cudaStream_t stream) {
  if (w.walk[0].p.matrix_units) return matrix_walk(w, span, first_pass, stream);
  for (int i = 0; i < w.count; ++i) {
    if (w.walk[i].p.N <= 64) {
      exact_walk<1>(w.walk[i], span, first_pass, stream);
    } else if (w.walk[i].p.N <= 128) {
      exact_walk<2>(w.walk[i], span, first_pass, stream);
    } else {
      exact_walk<4>(w.walk[i], span, first_pass, stream);
    }
  }
}

// Tokens that one block walks through: all of a sequence, or where that leaves half of the card idle a piece.
// Pieces cost a second walk, and more than run at once would wait for the first.
int64_t span_of(const CudaProblem& p) {
  constexpr int64_t kSlices = 264;  // of 64 channels, of one walk, that a large card has room for
  constexpr int64_t kLeast = 512;   // tokens
  const int64_t slices = p.sequences * p.H * ceil_div(p.P, kP);  // of a piece of all
  const int64_t pieces = std::max<int64_t>(1, kSlices / std::max<int64_t>(1, slices));
  return std::max(ceil_div(ceil_div(p.longest, pieces), 64) * 64, kLeast);
}

int64_t pieces_scratch(const CudaProblem& p, int64_t span) {
  const int64_t of_head = p.P * p.N + ceil_div(p.P, kP);
  return p.longest <= span ? 0 : ceil_div(slots(p, span) * p.H * of_head, 4) * 4;
}
float* kept_of(const CudaProblem& p, int64_t span, float* pieces) {
  return pieces + slots(p, span) * p.H * p.P * p.N;
}

}  // namespace

int64_t walk_scratch(const CudaProblem& p, int walks) {
  return walks * pieces_scratch(p, span_of(p));
}

Decays decays_of_pieces(const CudaProblem& p, float* scratch) {
  const int64_t span = span_of(p);
  if (pieces_scratch(p, span) == 0) return {};
  return {kept_of(p, span, scratch), slots(p, span) * p.H * ceil_div(p.P, kP)};
}

void walk(Walks w, float* scratch, void* stream) {
  const CudaProblem& p = w.walk[0].p;
  if (p.tokens == 0 || p.H == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  const int64_t span = span_of(p), size = pieces_scratch(p, span);
  for (int i = 0; i < w.count; ++i) {
    if (size == 0) break;
    w.walk[i].pieces = scratch + i * size;
    w.walk[i].kept = kept_of(p, span, w.walk[i].pieces);
  }
  if (size > 0 && !(p.matrix_units && warpgroups_join(w))) {
    pass(w, span, true, s);
    bool fours = p.P * p.N % 4 == 0;
    for (int i = 0; i < w.count; ++i) fours = fours && cuda::in_runs(w.walk[i].start, 4, 4, 4);
    const dim3 grid(
        static_cast<unsigned>(p.sequences),
        static_cast<unsigned>(ceil_div(p.H * p.P * p.N, int64_t{256} * (fours ? 4 : 1))),
        static_cast<unsigned>(w.count));
    cuda::launch_dependent("ssd pieces", fours ? join_kernel<4> : join_kernel<1>, grid, 256, 0, 1,
                           stream, w, span);
  }
  pass(w, span, false, s);
}

}  // namespace krait::ops::ssd_gpu
