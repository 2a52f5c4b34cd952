// The loops of selective_scan. The recurrence is bound by arithmetic: about 13 vector operations a vector
// of (channel, state) pairs, with the states of a block in registers over the whole chunk.
#include <hwy/highway.h>

#include "krait/ops/selective_scan/kernels.h"
#include "krait/ops/simd_math.h"

namespace krait::KRAIT_ISA {
namespace {

namespace scan = ops::scan;
using scan::kBlock;
using scan::kChunk;

using D = hn::CappedTag<float, kBlock>;
using V = Vec<D>;
constexpr D d;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(d));

// States carried in registers over a chunk: as many as leave room for the constants of Exp2.
#if HWY_TARGET <= HWY_AVX3
constexpr int kForwardStates = 16;
#else
constexpr int kForwardStates = 8;
#endif

// 2^x, relative error below 1.7e-7; exactly 1 at 0, 0 below -127 and infinity from 128 on. The polynomial
// is the minimax one of degree 5 with constant 1 for the relative error on [-1/2, 1/2] (9.1e-8).
HWY_INLINE V Exp2(V x) {
#if HWY_TARGET <= HWY_AVX3
  x = hn::Max(hn::Set(d, -160.0f), x);
  const V n = hn::Round(x);
#else
  const hn::RebindToSigned<D> di;
  x = hn::Min(hn::Set(d, 128.0f), hn::Max(hn::Set(d, -127.0f), x));
  const V shifted = hn::Add(x, hn::Set(d, 0x1.8p23f));  // the integer now stands in the low bits
  const V n = hn::Sub(shifted, hn::Set(d, 0x1.8p23f));
#endif
  const V r = hn::Sub(x, n);
  V p = hn::MulAdd(r, hn::Set(d, 0.000153533634f), hn::Set(d, 0.001339887618f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.009618436917f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.055503323674f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.240226477384f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.693147182464f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f));
#if HWY_TARGET <= HWY_AVX3
  return V{_mm512_scalef_ps(p.raw, n.raw)};
#else
  return hn::BitCast(d, hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
#endif
}

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|), relative error below 5e-7 where it is above 1e-37; equals x
// in float32 from 17 on. log1p(y) = 2 artanh(y / (2 + y)), a polynomial of degree 4 in the square.
HWY_INLINE V Softplus(V x) {
  const V y = Exp(d, hn::Neg(hn::Abs(x)));
  const V s = hn::Div(y, hn::Add(y, hn::Set(d, 2.0f)));
  const V q = hn::Mul(s, s);
  V p = hn::MulAdd(q, hn::Set(d, 0.140060245990f), hn::Set(d, 0.140008971095f));
  p = hn::MulAdd(p, q, hn::Set(d, 0.200107634067f));
  p = hn::MulAdd(p, q, hn::Set(d, 0.333332091569f));
  p = hn::MulAdd(hn::Mul(p, q), s, s);
  return hn::MulAdd(hn::Set(d, 2.0f), p, hn::IfThenElse(hn::Lt(x, hn::Zero(d)), hn::Zero(d), x));
}

HWY_INLINE V at(const float* row, int v) { return hn::LoadU(d, row + v); }

// f(v) for the first lane v of each vector of a row.
template <class F>
HWY_INLINE void for_row(const F& f) {
  for (int v = 0; v < kBlock; v += kLanes) f(v);
}

template <class T>
void load_typed(const T* p, int64_t stride, int64_t rows, int columns, float* out) {
  for (int64_t t = 0; t < rows; ++t, p += stride, out += kBlock) {
    if (columns == kBlock) {
      for_row([&](int v) { hn::StoreU(load(d, p + v), d, out + v); });
    } else {
      for (int i = 0; i < kBlock; ++i) out[i] = 0;
      for (int i = 0; i < columns; ++i) store(OneLane(), load(OneLane(), p + i), out + i);
    }
  }
}

void zero_floats(float* p, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = 0;
}

// `rows` steps from step t0 on of `columns` <= kBlock values, as rows of kBlock floats, zero beyond.
void load_rows(const scan::Rows& in, int64_t t0, int64_t rows, int columns, float* out) {
  if (!in.data) {
    zero_floats(out, rows * kBlock);
  } else if (in.bf16) {
    load_typed(static_cast<const bf16*>(in.data) + t0 * in.stride, in.stride, rows, columns, out);
  } else {
    load_typed(static_cast<const float*>(in.data) + t0 * in.stride, in.stride, rows, columns, out);
  }
}

template <class T>
void store_typed(T* p, int64_t stride, bool add, int64_t rows, int columns, const float* in) {
  const auto put = [add](auto tag, const float* from, T* to) {
    const auto value = hn::LoadU(tag, from);
    store(tag, add ? hn::Add(load(tag, to), value) : value, to);
  };
  for (int64_t t = 0; t < rows; ++t, p += stride, in += kBlock) {
    if (columns == kBlock) {
      for_row([&](int v) { put(d, in + v, p + v); });
    } else {
      for (int i = 0; i < columns; ++i) put(OneLane(), in + i, p + i);
    }
  }
}

void store_rows(const scan::GradRows& out, int64_t t0, int64_t rows, int columns, const float* in) {
  if (!out.data) return;
  if (out.bf16) {
    store_typed(static_cast<bf16*>(out.data) + t0 * out.stride, out.stride, out.add, rows, columns, in);
  } else {
    store_typed(static_cast<float*>(out.data) + t0 * out.stride, out.stride, out.add, rows, columns, in);
  }
}

// (channels, N) to and from rows over channels (N, kBlock). A null source gives zeros.
void load_transposed(const float* in, int channels, int64_t N, float* out) {
  for (int64_t n = 0; n < N; ++n)
    for (int i = 0; i < kBlock; ++i) out[n * kBlock + i] = in && i < channels ? in[i * N + n] : 0.0f;
}

void store_transposed(const float* in, int channels, int64_t N, float* out) {
  for (int i = 0; i < channels; ++i)
    for (int64_t n = 0; n < N; ++n) out[i * N + n] = in[n * kBlock + i];
}

void copy_floats(const float* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

// B or C as the passes read it: at + t * step + n * column. Varying over time: one float for all
// channels. Constant: a row over channels.
struct Operand {
  const float* at = nullptr;
  int64_t step = 0;
  int64_t column = 1;
};

// The float32 values of steps t0.. of B or C, N a step; converted into `buffer` where they are bfloat16.
Operand varying(const scan::Rows& in, int64_t t0, int64_t rows, int64_t N, float* buffer) {
  if (!in.bf16) return {static_cast<const float*>(in.data) + t0 * in.stride, in.stride, 1};
  const bf16* p = static_cast<const bf16*>(in.data) + t0 * in.stride;
  for (int64_t t = 0; t < rows; ++t)
    for_lanes(0, N, [&](auto tag, int64_t n) {
      store(tag, load(tag, p + t * in.stride + n), buffer + t * N + n);
    });
  return {buffer, N, 1};
}

template <bool kVaries>
HWY_INLINE V operand(const float* p, int64_t n, int v) {
  if constexpr (kVaries) return hn::Set(d, p[n]);
  return hn::LoadU(d, p + n * kBlock + v);
}

const float* row_of(const float* p, int channels, float* buffer) {
  for (int i = 0; i < kBlock; ++i) buffer[i] = p && i < channels ? p[i] : 0.0f;
  return buffer;
}

// In place: dt becomes Δ; x = Δ u. `slope`, where given, gets dΔ / d(dt + bias).
void discretise(const scan::Block& b, int64_t rows, const float* bias, const float* u, float* dt, float* x,
                float* slope) {
  for (int64_t i = 0; i < rows * kBlock; i += kBlock)
    for_row([&](int v) {
      const V pre = hn::Add(at(dt + i, v), at(bias, v));
      const V delta = b.softplus ? Softplus(pre) : pre;
      hn::StoreU(delta, d, dt + i + v);
      hn::StoreU(hn::Mul(delta, at(u + i, v)), d, x + i + v);
      if (slope) hn::StoreU(b.softplus ? Sigmoid(d, pre) : hn::Set(d, 1.0f), d, slope + i + v);
    });
}

// y = D u, or zero.
void skip(int64_t rows, const float* D_row, const float* u, float* y) {
  for (int64_t i = 0; i < rows * kBlock; i += kBlock)
    for_row([&](int v) { hn::StoreU(hn::Mul(at(D_row, v), at(u + i, v)), d, y + i + v); });
}

void gate(int64_t rows, const float* z, float* y) {
  for (int64_t i = 0; i < rows * kBlock; i += kLanes)
    hn::StoreU(hn::Mul(hn::LoadU(d, y + i), Silu(d, hn::LoadU(d, z + i))), d, y + i);
}

// What the passes over a group of states of one chunk read and write; rows of kBlock floats.
struct Pass {
  int64_t rows;
  const float *A, *delta, *x, *g;  // A at the first state of the group
  Operand B, C;                    // likewise
  float *h, *y;                    // h at the first state
  // Backward only. history and decay: (rows, states of the group); sums at the first state of the group,
  // dB and dC with `sum_step` floats from step to step.
  float *history, *decay, *dh, *dA, *dB, *dC, *s_B, *s_A;
  int64_t dB_step, dC_step;
};

// h = exp2(Δ A) h + x B and y += C h for kStates states over the chunk. kKeep: leaves h before each step
// and the decays behind, and adds g h to dC.
template <int kStates, bool kVaryB, bool kVaryC, bool kKeep>
void forward_states(const Pass& p) {
  for_row([&](int v) {
    V h[kStates];
#pragma GCC unroll 16
    for (int n = 0; n < kStates; ++n) h[n] = at(p.h + n * kBlock, v);
    for (int64_t t = 0; t < p.rows; ++t) {
      const V delta = at(p.delta + t * kBlock, v), x = at(p.x + t * kBlock, v);
      const float* B = p.B.at + t * p.B.step;
      const float* C = p.C.at + t * p.C.step;
      V y = at(p.y + t * kBlock, v);
#pragma GCC unroll 16
      for (int n = 0; n < kStates; ++n) {
        const V a = Exp2(hn::Mul(delta, at(p.A + n * kBlock, v)));
        if constexpr (kKeep) {
          hn::StoreU(h[n], d, p.history + (t * kStates + n) * kBlock + v);
          hn::StoreU(a, d, p.decay + (t * kStates + n) * kBlock + v);
        }
        h[n] = hn::MulAdd(a, h[n], hn::Mul(x, operand<kVaryB>(B, n, v)));
        y = hn::MulAdd(operand<kVaryC>(C, n, v), h[n], y);
        if constexpr (kKeep) {
          float* dC = p.dC + t * p.dC_step + n * kBlock + v;
          hn::StoreU(hn::MulAdd(at(p.g + t * kBlock, v), h[n], hn::LoadU(d, dC)), d, dC);
        }
      }
      hn::StoreU(y, d, p.y + t * kBlock + v);
    }
#pragma GCC unroll 16
    for (int n = 0; n < kStates; ++n) hn::StoreU(h[n], d, p.h + n * kBlock + v);
  });
}

// The adjoint, last step first. k = dL/dh_t = C g + exp(ΔA) k of the step after;
// s_B = Σ_n k B, s_A = Σ_n A k exp(ΔA) h_{t-1}, dA += Δ k exp(ΔA) h_{t-1}, dB += k x.
template <int kStates, bool kVaryB, bool kVaryC>
void backward_states(const Pass& p) {
  for_row([&](int v) {
    V dh[kStates], dA[kStates];
#pragma GCC unroll 16
    for (int n = 0; n < kStates; ++n) {
      dh[n] = at(p.dh + n * kBlock, v);
      dA[n] = hn::Zero(d);
    }
    for (int64_t t = p.rows - 1; t >= 0; --t) {
      const V delta = at(p.delta + t * kBlock, v), x = at(p.x + t * kBlock, v), g = at(p.g + t * kBlock, v);
      const float* B = p.B.at + t * p.B.step;
      const float* C = p.C.at + t * p.C.step;
      V s_B = at(p.s_B + t * kBlock, v), s_A = at(p.s_A + t * kBlock, v);
#pragma GCC unroll 16
      for (int n = 0; n < kStates; ++n) {
        const V k = hn::MulAdd(operand<kVaryC>(C, n, v), g, dh[n]);
        float* dB = p.dB + t * p.dB_step + n * kBlock + v;
        hn::StoreU(hn::MulAdd(k, x, hn::LoadU(d, dB)), d, dB);
        s_B = hn::MulAdd(k, operand<kVaryB>(B, n, v), s_B);
        dh[n] = hn::Mul(k, at(p.decay + (t * kStates + n) * kBlock, v));
        const V w = hn::Mul(dh[n], at(p.history + (t * kStates + n) * kBlock, v));
        s_A = hn::MulAdd(w, at(p.A + n * kBlock, v), s_A);
        dA[n] = hn::MulAdd(w, delta, dA[n]);
      }
      hn::StoreU(s_B, d, p.s_B + t * kBlock + v);
      hn::StoreU(s_A, d, p.s_A + t * kBlock + v);
    }
#pragma GCC unroll 16
    for (int n = 0; n < kStates; ++n) {
      hn::StoreU(dh[n], d, p.dh + n * kBlock + v);
      float* sum = p.dA + n * kBlock + v;
      hn::StoreU(hn::Add(hn::LoadU(d, sum), dA[n]), d, sum);
    }
  });
}

template <int kStates, bool kVaryB, bool kVaryC, bool kBackward>
void pass(const Pass& p) {
  forward_states<kStates, kVaryB, kVaryC, kBackward>(p);
  if constexpr (kBackward) backward_states<kStates, kVaryB, kVaryC>(p);
}

Pass from_state(const Pass& p, int64_t n) {
  Pass q = p;
  q.A += n * kBlock;
  q.B.at += n * q.B.column;
  q.C.at += n * q.C.column;
  q.h += n * kBlock;
  if (q.dh) {
    q.dh += n * kBlock;
    q.dA += n * kBlock;
    q.dB += n * kBlock;
    q.dC += n * kBlock;
  }
  return q;
}

// All N states in groups. The rarer constant B or C go one state at a time.
template <bool kBackward>
void passes(const Pass& p, int64_t N, bool constant_B, bool constant_C) {
  constexpr int kMost = kBackward ? scan::kBackwardStates : kForwardStates;
  int64_t n = 0;
  if (constant_B || constant_C) {
    for (; n < N; ++n) {
      const Pass q = from_state(p, n);
      if (constant_B && constant_C) {
        pass<1, false, false, kBackward>(q);
      } else if (constant_B) {
        pass<1, false, true, kBackward>(q);
      } else {
        pass<1, true, false, kBackward>(q);
      }
    }
    return;
  }
  for (; n + kMost <= N; n += kMost) pass<kMost, true, true, kBackward>(from_state(p, n));
  for (; n + 4 <= N; n += 4) pass<4, true, true, kBackward>(from_state(p, n));
  for (; n < N; ++n) pass<1, true, true, kBackward>(from_state(p, n));
}

// Hands out the parts of a scratch area.
struct Area {
  float* next;
  float* take(int64_t n) {
    float* p = next;
    next += n;
    return p;
  }
};

// Rounded once, or nearly: an error of A acts in the same direction at every step of a sequence.
// log2(e) is kHigh + kLow; e^a = 2^m (1 + s), |s| < 1/2, so that log2(e) e^a = 2^m (kHigh + (kHigh s + kLow)).
void scale_A(const float* A, int64_t n, bool is_log, float* A2) {
  constexpr float kHigh = 0x1.715476p+0f, kLow = 0x1.4ae0cp-26f;
  for_lanes(0, n, [&](auto tag, int64_t i) {
    const hn::RebindToSigned<decltype(tag)> di;
    const auto high = hn::Set(tag, kHigh), low = hn::Set(tag, kLow);
    auto a = hn::LoadU(tag, A + i);
    if (!is_log) {
      hn::StoreU(hn::MulAdd(a, high, hn::Mul(a, low)), tag, A2 + i);
      return;
    }
    a = hn::IfThenElse(hn::Lt(a, hn::Set(tag, -87.0f)), hn::Set(tag, -87.0f), a);
    a = hn::IfThenElse(hn::Gt(a, hn::Set(tag, 87.0f)), hn::Set(tag, 87.0f), a);
    const auto m = hn::NearestInt(hn::Mul(a, high));
    const auto mf = hn::ConvertTo(tag, m);
    auto r = hn::NegMulAdd(mf, hn::Set(tag, 0x1.62ep-1f), a);  // ln 2 in two parts
    r = hn::NegMulAdd(mf, hn::Set(tag, 0x1.0bfbe8p-15f), r);
    auto p = hn::MulAdd(r, hn::Set(tag, 0.001384364790f), hn::Set(tag, 0.008374162949f));
    p = hn::MulAdd(p, r, hn::Set(tag, 0.041668001562f));
    p = hn::MulAdd(p, r, hn::Set(tag, 0.166664317250f));
    p = hn::MulAdd(p, r, hn::Set(tag, 0.499999940395f));
    const auto s = hn::MulAdd(hn::Mul(r, r), p, r);
    const auto value = hn::Add(high, hn::MulAdd(s, high, low));
    const auto scaled = hn::Add(hn::BitCast(di, value), hn::ShiftLeft<23>(m));
    hn::StoreU(hn::Neg(hn::BitCast(tag, scaled)), tag, A2 + i);
  });
}

void scan_chunked(const scan::Forward& w) {
  const scan::Block& b = w.block;
  const int64_t N = b.N, row = kChunk * kBlock;
  Area area{w.scratch};
  float *u = area.take(row), *delta = area.take(row), *x = area.take(row), *y = area.take(row);
  float *A = area.take(N * kBlock), *h = area.take(N * kBlock);
  float *const_B = area.take(N * kBlock), *const_C = area.take(N * kBlock);
  float *float_B = area.take(kChunk * N), *float_C = area.take(kChunk * N);
  float D_buffer[kBlock], bias_buffer[kBlock];
  const float* D_row = row_of(b.D, b.channels, D_buffer);
  const float* bias = row_of(b.dt_bias, b.channels, bias_buffer);
  load_transposed(b.A2, b.channels, N, A);
  load_transposed(b.state_in, b.channels, N, h);
  Pass p{};
  p.A = A, p.h = h, p.delta = delta, p.x = x, p.y = y;
  if (b.constant_B) {
    load_transposed(static_cast<const float*>(b.B.data), b.channels, N, const_B);
    p.B = {const_B, 0, kBlock};
  }
  if (b.constant_C) {
    load_transposed(static_cast<const float*>(b.C.data), b.channels, N, const_C);
    p.C = {const_C, 0, kBlock};
  }
  for (int64_t t = 0; t < b.tokens; t += kChunk) {
    if (t > 0 && w.saved) copy_floats(h, N * kBlock, w.saved + (t / kChunk - 1) * w.saved_stride);
    p.rows = b.tokens - t < kChunk ? b.tokens - t : kChunk;
    if (!b.constant_B) p.B = varying(b.B, t, p.rows, N, float_B);
    if (!b.constant_C) p.C = varying(b.C, t, p.rows, N, float_C);
    load_rows(b.u, t, p.rows, b.channels, u);
    load_rows(b.dt, t, p.rows, b.channels, delta);
    discretise(b, p.rows, bias, u, delta, x, nullptr);
    skip(p.rows, D_row, u, y);
    passes<false>(p, N, b.constant_B, b.constant_C);
    if (b.z.data) {
      load_rows(b.z, t, p.rows, b.channels, u);
      gate(p.rows, u, y);
    }
    store_rows(w.y, t, p.rows, b.channels, y);
  }
  if (w.state_out) store_transposed(h, b.channels, N, w.state_out);
}

// The first `lanes` floats, zero beyond; touches no others (masked loads of older sets may).
HWY_INLINE V load_part(const float* p, int lanes) {
  if (lanes == kLanes) return hn::LoadU(d, p);
  float buffer[kLanes] = {};
  for (int i = 0; i < lanes; ++i) buffer[i] = p[i];
  return hn::LoadU(d, buffer);
}

HWY_INLINE void store_part(V value, int lanes, float* p) {
  if (lanes == kLanes) {
    hn::StoreU(value, d, p);
    return;
  }
  float buffer[kLanes];
  hn::StoreU(value, d, buffer);
  for (int i = 0; i < lanes; ++i) p[i] = buffer[i];
}

// A few steps, vectorised over n: a channel's state is contiguous and is read and written once.
void scan_step(const scan::Forward& w) {
  const scan::Block& b = w.block;
  const int64_t N = b.N, row = scan::kShort * kBlock;
  Area area{w.scratch};
  float *u = area.take(row), *delta = area.take(row), *x = area.take(row), *y = area.take(row);
  float *float_B = area.take(scan::kShort * N), *float_C = area.take(scan::kShort * N);
  float D_buffer[kBlock], bias_buffer[kBlock];
  const float* D_row = row_of(b.D, b.channels, D_buffer);
  const float* bias = row_of(b.dt_bias, b.channels, bias_buffer);
  load_rows(b.u, 0, b.tokens, b.channels, u);
  load_rows(b.dt, 0, b.tokens, b.channels, delta);
  discretise(b, b.tokens, bias, u, delta, x, nullptr);
  skip(b.tokens, D_row, u, y);
  Operand B, C;
  if (!b.constant_B) B = varying(b.B, 0, b.tokens, N, float_B);
  if (!b.constant_C) C = varying(b.C, 0, b.tokens, N, float_C);
  for (int e = 0; e < b.channels; ++e) {
    if (b.constant_B) B.at = static_cast<const float*>(b.B.data) + e * N;
    if (b.constant_C) C.at = static_cast<const float*>(b.C.data) + e * N;
    for (int64_t n = 0; n < N; n += kLanes) {
      const int lanes = static_cast<int>(N - n < kLanes ? N - n : kLanes);
      const auto some = [lanes](const float* p) { return load_part(p, lanes); };
      V h = b.state_in ? some(b.state_in + e * N + n) : hn::Zero(d);
      const V A = some(b.A2 + e * N + n);
      for (int64_t t = 0; t < b.tokens; ++t) {
        const V a = Exp2(hn::Mul(hn::Set(d, delta[t * kBlock + e]), A));
        h = hn::MulAdd(a, h, hn::Mul(hn::Set(d, x[t * kBlock + e]), some(B.at + t * B.step + n)));
        y[t * kBlock + e] += sum_lanes(d, hn::Mul(h, some(C.at + t * C.step + n)));
      }
      if (w.state_out) store_part(h, lanes, w.state_out + e * N + n);
    }
  }
  if (b.z.data) {
    load_rows(b.z, 0, b.tokens, b.channels, u);
    gate(b.tokens, u, y);
  }
  store_rows(w.y, 0, b.tokens, b.channels, y);
}

// The rows of one chunk that backward works on.
struct ChunkRows {
  float *u, *delta, *x, *slope, *z, *dy, *g, *y, *s_B, *s_A, *out;
};

// Sums over the lanes: out[i] = Σ in[i * kBlock ...].
void reduce_rows(const float* in, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i, in += kBlock) {
    V sum = hn::LoadU(d, in);
    for (int v = kLanes; v < kBlock; v += kLanes) sum = hn::Add(sum, hn::LoadU(d, in + v));
    out[i] = sum_lanes(d, sum);
  }
}

scan::Rows beside(const scan::Rows& r, int64_t column) {
  scan::Rows s = r;
  if (s.data) s.data = static_cast<const char*>(r.data) + column * (r.bf16 ? 2 : 4);
  return s;
}

scan::GradRows beside(const scan::GradRows& r, int64_t column) {
  scan::GradRows s = r;
  if (s.data) s.data = static_cast<char*>(r.data) + column * (r.bf16 ? 2 : 4);
  return s;
}

void add_row(const float* from, float* to) {
  for_row([&](int v) { hn::StoreU(hn::Add(at(to, v), at(from, v)), d, to + v); });
}

// After the passes: the gradients of the chunk's u, dt, z, and the sums over time of those of D and bias.
void finish_block(const scan::Backward& w, int block, int channels, int64_t t0, int64_t rows, const float* D_row,
                  const ChunkRows& c, const scan::Sums& sums) {
  const int64_t column = int64_t{block} * kBlock;
  const V ln2 = hn::Set(d, 0x1.62e430p-1f);
  float dD[kBlock] = {}, dbias[kBlock] = {};
  for (int64_t i = 0; i < rows * kBlock; i += kBlock)
    for_row([&](int v) {
      const V u = at(c.u + i, v), g = at(c.g + i, v), s_B = at(c.s_B + i, v);
      const V du = hn::MulAdd(at(c.delta + i, v), s_B, hn::Mul(at(D_row, v), g));
      const V ddelta = hn::MulAdd(u, s_B, hn::Mul(ln2, at(c.s_A + i, v)));
      const V ddt = hn::Mul(ddelta, at(c.slope + i, v));
      hn::StoreU(hn::MulAdd(g, u, at(dD, v)), d, dD + v);
      hn::StoreU(hn::Add(at(dbias, v), ddt), d, dbias + v);
      hn::StoreU(du, d, c.out + i + v);
      hn::StoreU(ddt, d, c.s_A + i + v);
    });
  add_row(dD, sums.dD);
  add_row(dbias, sums.dt_bias);
  store_rows(beside(w.du, column), t0, rows, channels, c.out);
  store_rows(beside(w.ddt, column), t0, rows, channels, c.s_A);
  if (!w.dz.data) return;
  for (int64_t i = 0; i < rows * kBlock; i += kLanes) {
    const V dy = hn::LoadU(d, c.dy + i), y = hn::LoadU(d, c.y + i);
    hn::StoreU(hn::Mul(hn::Mul(dy, y), SiluSlope(d, hn::LoadU(d, c.z + i))), d, c.out + i);
  }
  store_rows(beside(w.dz, column), t0, rows, channels, c.out);
}

void backward(const scan::Backward& w) {
  const scan::Block& b = w.block;
  const int64_t N = b.N, row = kChunk * kBlock, NB = N * kBlock;
  Area area{w.scratch};
  ChunkRows c;
  for (float** r : {&c.u, &c.delta, &c.x, &c.slope, &c.z, &c.dy, &c.g, &c.y, &c.s_B, &c.s_A, &c.out})
    *r = area.take(row);
  float* history = area.take(row * scan::kBackwardStates);
  float* decay = area.take(row * scan::kBackwardStates);
  float *lanes_dB = area.take(kChunk * NB), *lanes_dC = area.take(kChunk * NB);
  float *float_B = area.take(kChunk * N), *float_C = area.take(kChunk * N);
  float *h = area.take(NB), *const_B = area.take(NB), *const_C = area.take(NB);
  float *A = area.take(w.blocks * NB), *dh = area.take(w.blocks * NB);
  const auto channels_of = [&](int k) {
    const int64_t left = w.channels - int64_t{k} * kBlock;
    return static_cast<int>(left < kBlock ? left : kBlock);
  };
  const auto of_block = [](const float* p, int64_t offset) { return p ? p + offset : nullptr; };
  for (int k = 0; k < w.blocks; ++k) {
    load_transposed(b.A2 + k * NB, channels_of(k), N, A + k * NB);
    load_transposed(of_block(w.dstate_out, k * NB), channels_of(k), N, dh + k * NB);
  }
  const int64_t chunks = (b.tokens + kChunk - 1) / kChunk;
  for (int64_t i = chunks - 1; i >= 0; --i) {
    const int64_t t = i * kChunk, rows = b.tokens - t < kChunk ? b.tokens - t : kChunk;
    Pass p{};
    p.rows = rows;
    p.delta = c.delta, p.x = c.x, p.g = c.g, p.h = h, p.y = c.y;
    p.history = history, p.decay = decay, p.s_B = c.s_B, p.s_A = c.s_A;
    if (b.constant_B) {
      p.B = {const_B, 0, kBlock};
    } else {
      p.B = varying(b.B, t, rows, N, float_B);
      p.dB = lanes_dB, p.dB_step = NB;
      zero_floats(lanes_dB, rows * NB);
    }
    if (b.constant_C) {
      p.C = {const_C, 0, kBlock};
    } else {
      p.C = varying(b.C, t, rows, N, float_C);
      p.dC = lanes_dC, p.dC_step = NB;
      zero_floats(lanes_dC, rows * NB);
    }
    for (int k = 0; k < w.blocks; ++k) {
      const int64_t column = int64_t{k} * kBlock;
      const int channels = channels_of(k);
      const scan::Sums sums = scan::sums_at(w.sums + k * scan::sums_size(N), N);
      float D_buffer[kBlock], bias_buffer[kBlock];
      const float* D_row = row_of(of_block(b.D, column), channels, D_buffer);
      const float* bias = row_of(of_block(b.dt_bias, column), channels, bias_buffer);
      load_rows(beside(b.u, column), t, rows, channels, c.u);
      load_rows(beside(b.dt, column), t, rows, channels, c.delta);
      load_rows(beside(w.dy, column), t, rows, channels, c.dy);
      discretise(b, rows, bias, c.u, c.delta, c.x, c.slope);
      copy_floats(c.dy, rows * kBlock, c.g);
      if (b.z.data) {
        load_rows(beside(b.z, column), t, rows, channels, c.z);
        gate(rows, c.z, c.g);
      }
      skip(rows, D_row, c.u, c.y);
      zero_floats(c.s_B, rows * kBlock);
      zero_floats(c.s_A, rows * kBlock);
      if (i > 0) {
        copy_floats(w.saved + (i - 1) * w.saved_stride + k * NB, NB, h);
      } else {
        load_transposed(of_block(b.state_in, k * NB), channels, N, h);
      }
      p.A = A + k * NB, p.dh = dh + k * NB, p.dA = sums.dA;
      if (b.constant_B) {
        load_transposed(static_cast<const float*>(b.B.data) + k * NB, channels, N, const_B);
        p.dB = sums.dB;
      }
      if (b.constant_C) {
        load_transposed(static_cast<const float*>(b.C.data) + k * NB, channels, N, const_C);
        p.dC = sums.dC;
      }
      passes<true>(p, N, b.constant_B, b.constant_C);
      finish_block(w, k, channels, t, rows, D_row, c, sums);
    }
    if (w.part_dB) reduce_rows(lanes_dB, rows * N, w.part_dB + t * N);
    if (w.part_dC) reduce_rows(lanes_dC, rows * N, w.part_dC + t * N);
  }
  if (w.dstate_in)
    for (int k = 0; k < w.blocks; ++k)
      store_transposed(dh + k * NB, channels_of(k), N, w.dstate_in + k * NB);
}

}  // namespace

const ops::scan::Kernels selective_scan_kernels = {scale_A, scan_chunked, scan_step, backward};

}  // namespace krait::KRAIT_ISA
