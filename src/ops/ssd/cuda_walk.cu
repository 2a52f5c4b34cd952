#include "krait/ops/ssd/cuda_walk.cuh"

#include <algorithm>

namespace krait::ops::ssd_gpu {

namespace {

// What a block keeps in shared memory: first the operands of products, then Steps and decays.
template <class E, int NT>
struct Room {
  using T = typename E::T;
  static constexpr int Q = E::kQ, ldP = kP + E::kPad, ldN = 64 * NT + E::kPad, ldQ = Q + E::kPad;
  T *x, *weighted, *B, *C, *state, *scores;
  Steps<Q>* steps;
  float* decays;

  static constexpr size_t size(bool with_y) {
    const size_t elements = 2 * Q * ldP + Q * ldN + (with_y ? Q * ldN + kP * ldN + Q * ldQ : 0);
    return elements * sizeof(T) + sizeof(Steps<Q>) + (E::kMatrixUnits ? 0 : Q * ldQ * 4);
  }
  __device__ Room(unsigned char* memory, bool with_y) {
    T* at = reinterpret_cast<T*>(memory);
    const auto take = [&](int n) {
      T* const taken = at;
      at += n;
      return taken;
    };
    x = take(Q * ldP), weighted = take(Q * ldP), B = take(Q * ldN);
    C = state = scores = nullptr;
    if (with_y) C = take(Q * ldN), state = take(kP * ldN), scores = take(Q * ldQ);
    steps = reinterpret_cast<Steps<Q>*>(at);
    decays = reinterpret_cast<float*>(steps + 1);
  }
};

template <class E, int NT, bool kBackwards, bool kFirstPass>
__global__ void __launch_bounds__(kThreads, NT <= 2 ? 2 : 1)
    walk_kernel(const Walk w, const int64_t span) {
  extern __shared__ __align__(16) unsigned char memory[];
  using T = typename E::T;
  constexpr int Q = E::kQ, NP = 64 * NT;
  using R = Room<E, NT>;
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
  const Steps<Q>& steps = *room.steps;
  const int64_t at_head = (piece.s * p.H + h) * of_head + p0 * N;  // of row s of a tensor of states

  typename E::template Tile<kP, NP> S;
  clear(S);
  const float* from = nullptr;
  if (!kFirstPass && w.pieces) {
    from = w.pieces + (blockIdx.x * p.H + h) * of_head + p0 * N;
  } else if (!kFirstPass && first && w.start) {
    const int64_t row = w.start_row ? w.start_row[piece.s] : piece.s;
    if (row >= 0) from = w.start + at_head + (row - piece.s) * p.H * of_head;
  }
  if (from)
    E::for_pairs(S, [&](int i, int n, float& a, float& b, int) {
      if (i < channels && n < states) a = from[i * N + n];
      if (i < channels && n + 1 < states) b = from[i * N + n + 1];
    });

  const int64_t chunks = ceil_div(piece.tokens, Q);
  const int64_t slot = first_slot(p, piece.s, Q) + piece.i * (span / Q);
  float kept = 1;
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t chunk = kBackwards ? chunks - 1 - c : c, row = piece.begin + chunk * Q;
    const int valid = static_cast<int>(min(int64_t{Q}, piece.tokens - chunk * Q));
    if (threadIdx.x < 32) E::take_steps(p, h, row, valid, *room.steps, room.decays);
    bring<Q, kP>(room.x, R::ldP, p.x, row, valid, h * p.P + p0, channels);
    bring<Q, NP>(room.B, R::ldN, p.B, row, valid, column_B, states);
    if (w.states && !kFirstPass) {
      T* const to = static_cast<T*>(w.states) + ((slot + chunk) * p.H + h) * of_head + p0 * N;
      E::for_pairs(S, [&](int i, int n, float& a, float& b, int) {
        if (i < channels) store_pair(to + i * N + n, a, b, states - n);
      });
    }
    if (with_y) {
      bring<Q, NP>(room.C, R::ldN, p.C, row, valid, column_B, states);
      E::for_pairs(S, [&](int i, int n, float& a, float& b, int) {
        store_pair(room.state + i * R::ldN + n, a, b, 2);
      });
    }
    __syncthreads();

    for (int i = static_cast<int>(threadIdx.x); i < Q * kP; i += kThreads) {
      const int t = i / kP, at = t * R::ldP + i % kP;
      const float weight = kBackwards ? steps.before[t] : steps.delta[t] * steps.after[t];
      room.weighted[at] = static_cast<T>(weight * static_cast<float>(room.x[at]));
    }
    typename E::template Tile<Q, kP> y;
    if (with_y) {
      typename E::template Tile<Q, Q> scores;
      clear(scores);
      E::template product<false, false>(scores, room.C, R::ldN, room.B, R::ldN, NP);
      E::for_pairs(scores, [&](int t, int s, float& a, float& b, int) {
        a = s <= t ? a * E::decay(steps, room.decays, t, s) * steps.delta[s] : 0.0f;
        b = s < t ? b * E::decay(steps, room.decays, t, s + 1) * steps.delta[s + 1] : 0.0f;
        store_pair(room.scores + t * R::ldQ + s, a, b, 2);
      });
      clear(y);
      E::template product<false, false>(y, room.C, R::ldN, room.state, R::ldN, NP);
      E::for_pairs(y, [&](int t, int, float& a, float& b, int) {
        a *= steps.before[t], b *= steps.before[t];
      });
    }
    __syncthreads();

    if (with_y) {
      E::template product<false, true>(y, room.scores, R::ldQ, room.x, R::ldP, Q);
      E::for_pairs(y, [&](int t, int i, float& a, float& b, int) {
        if (t >= valid || i >= channels) return;
        const T* const x = room.x + t * R::ldP + i;
        const float* const D = p.D ? p.D + (p.D_per_channel ? h * p.P + p0 + i : h) : nullptr;
        const bool two = i + 1 < channels;
        if (D) a += D[0] * static_cast<float>(x[0]);
        if (D && two) b += D[p.D_per_channel ? 1 : 0] * static_cast<float>(x[1]);
        put_pair(w.y, row + t, h * p.P + p0 + i, two ? 2 : 1, a, b);
      });
    }
    const float through = steps.before[Q - 1];
    kept *= through;
    E::for_pairs(S, [&](int, int, float& a, float& b, int) { a *= through, b *= through; });
    E::template product<true, true>(S, room.weighted, R::ldP, room.B, R::ldN, Q);
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
    E::for_pairs(S, [&](int i, int n, float& a, float& b, int) {
      if (i < channels) store_pair(to + i * N + n, a, b, states - n);
    });
}

// From what each piece of a sequence leaves on its own to what it begins with, in the order of the walk.
__global__ void join_kernel(const Walk w, const int64_t span, const bool backwards) {
  const CudaProblem& p = w.p;
  const int64_t s = blockIdx.x, h = blockIdx.y, of_head = p.P * p.N;
  const int64_t slot = first_slot(p, s, span),
                units = ceil_div(begin_of(p, s + 1) - begin_of(p, s), span);
  const int64_t row = w.start_row ? w.start_row[s] : s;
  for (int64_t i = threadIdx.x; i < of_head; i += blockDim.x) {
    float state = w.start && row >= 0 ? w.start[(row * p.H + h) * of_head + i] : 0.0f;
    for (int64_t k = 0; k < units; ++k) {
      const int64_t piece = (slot + (backwards ? units - 1 - k : k)) * p.H + h;
      float& at = w.pieces[piece * of_head + i];
      const bool more = k + 1 < units;
      const float left = more ? at : 0.0f, kept = more ? w.kept[piece] : 0.0f;
      at = state;
      state = fmaf(kept, state, left);
    }
  }
}

template <class E, int NT>
void launch(const Walk& w, bool backwards, int64_t span, cudaStream_t stream) {
  const CudaProblem& p = w.p;
  const dim3 grid(static_cast<unsigned>(slots(p, span)),
                  static_cast<unsigned>(p.H * ceil_div(p.P, kP)));
  const auto run = [&](auto kernel, bool with_y) {
    const size_t bytes = Room<E, NT>::size(with_y);
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(bytes));
    kernel<<<grid, kThreads, bytes, stream>>>(w, span);
    cuda::check_launch("ssd");
  };
  if (w.pieces) {
    backwards ? run(walk_kernel<E, NT, true, true>, false)
              : run(walk_kernel<E, NT, false, true>, false);
    join_kernel<<<dim3(static_cast<unsigned>(p.sequences), static_cast<unsigned>(p.H)), 256, 0,
                  stream>>>(w, span, backwards);
    cuda::check_launch("ssd pieces");
  }
  backwards ? run(walk_kernel<E, NT, true, false>, false)
            : run(walk_kernel<E, NT, false, false>, w.y.data != nullptr);
}

template <class E>
void launch(const Walk& w, bool backwards, int64_t span, cudaStream_t stream) {
  if (w.p.N <= 64) {
    launch<E, 1>(w, backwards, span, stream);
  } else if (w.p.N <= 128) {
    launch<E, 2>(w, backwards, span, stream);
  } else {
    launch<E, 4>(w, backwards, span, stream);
  }
}

}  // namespace

int64_t span_of(const CudaProblem& p) {
  // Blocks that a large card runs at once: more pieces would wait for the first, and pieces cost a second walk.
  constexpr int64_t kBlocks = 264;
  constexpr int64_t kLeast = 512, kMost = int64_t{1} << 20;  // tokens
  const int64_t blocks = std::max<int64_t>(1, p.sequences * p.H * ceil_div(p.P, kP));
  const int64_t pieces = std::max<int64_t>(1, kBlocks / blocks), each = ceil_div(p.longest, pieces);
  return std::clamp(ceil_div(each, 64) * 64, kLeast, kMost);
}

int64_t walk_scratch(const CudaProblem& p) {
  const int64_t span = span_of(p);
  return p.longest <= span ? 0 : slots(p, span) * p.H * (p.P * p.N + 1);
}

void walk(Walk w, bool backwards, float* scratch, void* stream) {
  if (w.p.tokens == 0 || w.p.H == 0) return;
  const int64_t span = span_of(w.p);
  if (w.p.longest > span) {
    w.pieces = scratch;
    w.kept = scratch + slots(w.p, span) * w.p.H * w.p.P * w.p.N;
  }
  const auto s = static_cast<cudaStream_t>(stream);
  w.p.matrix_units ? launch<Halves>(w, backwards, span, s) : launch<Exact>(w, backwards, span, s);
}

}  // namespace krait::ops::ssd_gpu
