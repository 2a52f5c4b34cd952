// The loops of ssd: forward in chunks and by steps. Backward is in simd_backward.h.
#include "krait/ops/ssd/simd_pairs_backward.h"

namespace krait::KRAIT_ISA {
namespace ssd_rows {

// scores[i, j] = CB[i, j] times the decay from j to i, zero for j > i.
static void score(const float* CB, const float* decay, int64_t rows, float* decays, float* scores) {
  zero_floats(decays, kChunk);
  for (int64_t i = 0; i < rows; ++i, CB += kChunk, scores += kChunk) {
    next_decays(decay[i], i, decays);
    int64_t j = 0;
    for (; j <= i; j += kLanes) hn::StoreU(hn::Mul(at(CB + j), at(decays + j)), d, scores + j);
    zero_floats(scores + j, padded(rows) - j);
  }
}

// A chunk's products, in float32. `x`, `y`: rows of one head, S its state (N, Pp).
class FloatProducts {
 public:
  using State = float;

  FloatProducts(const ssd::Piece& p, Area& area)
      : p_(p),
        B_(area.take(kChunk * Np_)),
        C_(area.take(kChunk * Np_)),
        BT_(area.take(p.N * kChunk)),
        scores_(area.take(kChunk * kChunk)),
        scaled_(area.take(kChunk * Pp_)),
        decays_(area.take(kChunk)) {}

  // Takes B and C of `rows` tokens from t on; CB = C Bᵀ, its lower half.
  void begin(int64_t t, int64_t rows, float* CB) {
    load_rows(p_.B, t, rows, 0, p_.N, B_);
    load_rows(p_.C, t, rows, 0, p_.N, C_);
    transpose(B_, Np_, rows, p_.N, BT_, kChunk, padded(rows));
    small_product({rows, padded(rows), p_.N, C_, Np_, 1, BT_, kChunk, CB, kChunk, false},
                  Triangle::lower_result);
  }
  // Of the state before the chunk: keeps it where wanted. make_y and write_state follow, which need it times the
  // chunk's decay.
  void take(float decay, float* S, float* kept) {
    decay_ = decay;
    if (kept) copy_floats(S, p_.N * Pp_, kept);
  }
  // y = prefix ∘ C S + (CB with the decays) Δx + D x
  void make_y(int64_t rows, bool has_state, const float* CB, const Times& times, const float* skip,
              const float* x, const float* S, float* y) {
    if (has_state) small_product({rows, Pp_, p_.N, C_, Np_, 1, S, Pp_, y, Pp_, false});
    pass_through(times, skip, x, rows, Pp_, has_state, y);
    score(CB, times.decay, rows, decays_, scores_);
    scale_rows(x, times.delta, rows, Pp_, scaled_);
    small_product({rows, Pp_, rows, scores_, kChunk, 1, scaled_, Pp_, y, Pp_, true},
                  Triangle::lower_factor);
  }
  // S = Bᵀ (the arriving x), and the decayed state before the chunk with `add`.
  void write_state(int64_t rows, const Times& times, const float* x, bool add, float* S) {
    scale_rows(x, times.arriving, rows, Pp_, scaled_);
    if (add) scale(decay_, p_.N * Pp_, S);
    small_product({p_.N, Pp_, rows, B_, 1, Np_, scaled_, Pp_, S, Pp_, add});
  }

 private:
  const ssd::Piece& p_;
  const int64_t Pp_ = padded(p_.P), Np_ = padded(p_.N);
  float *B_, *C_, *BT_, *scores_, *scaled_, *decays_;
  float decay_ = 0;
};

template <class Products>
static void in_chunks(const ssd::Forward& w) {
  using State = typename Products::State;
  const ssd::Piece& p = w.piece;
  const int64_t P = p.P, N = p.N, Pp = padded(P), PN = P * N;
  Area area{w.scratch};
  float* const states = area.take(ssd::kHeadSet * N * Pp);  // (heads, N, Pp)
  Products products(p, area);
  float* const CB = area.take(kChunk * kChunk);
  float *x = area.take(kChunk * Pp), *y = area.take(kChunk * Pp);
  float* const skip = area.take(Pp);
  const Times times = take_times(area);
  if (p.state_in)
    for (int64_t h = 0; h < p.heads; ++h)
      transpose(p.state_in + h * PN, N, P, N, states + h * N * Pp, Pp, Pp);
  for (int64_t i = 0, t = 0; t < p.tokens; ++i, t += kChunk) {
    const int64_t rows = p.tokens - t < kChunk ? p.tokens - t : kChunk;
    const bool last = t + rows == p.tokens, has_state = i > 0 || p.state_in;
    State* const saved =
        i > 0 && w.saved ? static_cast<State*>(w.saved) + (i - 1) * w.saved_stride : nullptr;
    products.begin(t, rows, CB);
    for (int64_t h = 0; h < p.heads; ++h) {
      float* const S = states + h * N * Pp;
      load_times(p, h, t, rows, times);
      load_skip(p, h, skip);
      load_rows(p.x, t, rows, h * P, P, x);
      const Ahead next = ahead(p, t, h, kChunk);
      prefetch_rows(p, p.x, next.t, next.head * P, P);
      if (has_state) products.take(times.prefix[rows - 1], S, saved ? saved + h * N * Pp : nullptr);
      products.make_y(rows, has_state, CB, times, skip, x, S, y);
      store_rows(w.y, t, rows, h * P, P, y);
      if (last && !w.state_out) continue;
      products.write_state(rows, times, x, has_state, S);
      if (last) transpose(S, Pp, N, P, w.state_out + h * PN, N, N);
    }
  }
}

// Whether inputs of bfloat16 are multiplied as pairs.
static bool has_pairs() {
#if HWY_TARGET <= HWY_AVX3
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

static void chunked(const ssd::Forward& w) {
#if HWY_TARGET <= HWY_AVX3
  if (w.piece.pairs) return in_chunks<PairProducts>(w);
#endif
  in_chunks<FloatProducts>(w);
}

// The first `lanes` floats, zero beyond; touches no others.
static HWY_INLINE V load_part(const float* p, int64_t lanes) {
  if (lanes >= kLanes) return hn::LoadU(d, p);
  float buffer[kLanes] = {};
  for (int64_t i = 0; i < lanes; ++i) buffer[i] = p[i];
  return hn::LoadU(d, buffer);
}

static HWY_INLINE void store_part(V value, int64_t lanes, float* p) {
  if (lanes >= kLanes) {
    hn::StoreU(value, d, p);
    return;
  }
  float buffer[kLanes];
  hn::StoreU(value, d, buffer);
  for (int64_t i = 0; i < lanes; ++i) p[i] = buffer[i];
}

constexpr int kTogether = 4;  // rows of a state whose sums over n are formed at once

// Rows [first, first + kTogether) of one head's state, the last row again beyond the end: each state is read
// and written once. kTokens: how many at most.
template <int kTokens>
static HWY_INLINE void step_rows(int64_t tokens, int64_t N, const float* const* from,
                                 float* const* to, const float* decay, const float* dx,
                                 int64_t dx_row, const float* B, const float* C, float* y) {
  const int64_t Np = padded(N);
  V sum[kTokens][kTogether];
  for (int64_t t = 0; t < tokens; ++t)
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i) sum[t][i] = hn::Zero(d);
  for (int64_t n = 0; n < N; n += kLanes) {
    V h[kTogether];
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i)
      h[i] = from[i] ? load_part(from[i] + n, N - n) : hn::Zero(d);
    for (int64_t t = 0; t < tokens; ++t) {
      const V b = at(B + t * Np + n), c = at(C + t * Np + n), a = hn::Set(d, decay[t]);
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i) {
        h[i] = hn::MulAdd(a, h[i], hn::Mul(hn::Set(d, dx[t * dx_row + i]), b));
        sum[t][i] = hn::MulAdd(h[i], c, sum[t][i]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i)
      if (to[i]) store_part(h[i], N - n, to[i] + n);
  }
  for (int64_t t = 0; t < tokens; ++t)
    for (int i = 0; i < kTogether; ++i) y[t * dx_row + i] += sum_lanes(d, sum[t][i]);
}

static void step(const ssd::Forward& w) {
  const ssd::Piece& p = w.piece;
  const int64_t P = p.P, N = p.N, Pp = padded(P), Np = padded(N), rows = p.tokens;
  Area area{w.scratch};
  float *B = area.take(kChunk * Np), *C = area.take(kChunk * Np);
  float *x = area.take(kChunk * Pp), *dx = area.take(kChunk * Pp), *y = area.take(kChunk * Pp);
  float* skip = area.take(Pp);
  const Times times = take_times(area);
  load_rows(p.B, 0, rows, 0, N, B);
  load_rows(p.C, 0, rows, 0, N, C);
  for (int64_t h = 0; h < p.heads; ++h) {
    load_times(p, h, 0, rows, times);
    load_skip(p, h, skip);
    load_rows(p.x, 0, rows, h * P, P, x);
    scale_rows(x, times.delta, rows, Pp, dx);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < Pp; j += kLanes)
        hn::StoreU(hn::Mul(at(skip + j), at(x + i * Pp + j)), d, y + i * Pp + j);
    for (int64_t j = 0; j < P; j += kTogether) {
      const float* from[kTogether];
      float* to[kTogether];
      for (int i = 0; i < kTogether; ++i) {  // rows beyond the last: read as zero, not written
        const int64_t row = (h * P + j + i) * N;
        from[i] = p.state_in && j + i < P ? p.state_in + row : nullptr;
        to[i] = w.state_out && j + i < P ? w.state_out + row : nullptr;
      }
      if (rows == 1) {
        step_rows<1>(1, N, from, to, times.decay, dx + j, Pp, B, C, y + j);
      } else {
        step_rows<ssd::kShort>(rows, N, from, to, times.decay, dx + j, Pp, B, C, y + j);
      }
    }
    store_rows(w.y, 0, rows, h * P, P, y);
  }
}

template <class T>
static void sum_sets_to(const ssd::SetSums& w, T* to) {
  for (int64_t t = 0; t < w.tokens; ++t, to += w.to.stride)
    for_lanes(0, w.N, [&](auto tag, int64_t n) {
      const float* const from = w.parts + t * w.N + n;
      auto sum = w.to.add ? load(tag, to + n) : hn::Zero(tag);
      for (int64_t i = 0; i < w.sets; ++i)
        sum = hn::Add(sum, hn::LoadU(tag, from + i * w.distance));
      store(tag, sum, to + n);
    });
}

static void sum_sets(const ssd::SetSums& w) {
  w.to.bf16 ? sum_sets_to(w, static_cast<bf16*>(w.to.data))
            : sum_sets_to(w, static_cast<float*>(w.to.data));
}

}  // namespace ssd_rows

const ops::ssd_cpu::Kernels ssd_kernels = {ssd_rows::has_pairs, ssd_rows::chunked, ssd_rows::step,
                                           ssd_rows::backward, ssd_rows::sum_sets};

}  // namespace krait::KRAIT_ISA
