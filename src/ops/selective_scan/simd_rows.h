// Private to cpu_simd.cpp: vectors over the channels of a block, their functions, and rows of kBlock floats
// from and to the tensors.
#pragma once
#include <hwy/highway.h>

#include "krait/ops/selective_scan/kernels.h"
#include "krait/ops/simd_area.h"
#include "krait/ops/simd_math.h"

namespace krait::KRAIT_ISA::selective_scan {

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
static HWY_INLINE V Exp2(V x) {
#if HWY_TARGET <= HWY_AVX3
  x = hn::Max(hn::Set(d, -160.0f), x);
  const V n = hn::Round(x);
#else
  const hn::RebindToSigned<D> di;
  // A NaN stays one, which Max would not promise.
  x = hn::Min(hn::Set(d, 128.0f),
              hn::IfThenElse(hn::Lt(x, hn::Set(d, -127.0f)), hn::Set(d, -127.0f), x));
  // The integer now stands in the low bits, as an exponent does.
  const V shifted = hn::Add(x, hn::Set(d, 0x1.8p23f + 127.0f));
  const V n = hn::Sub(shifted, hn::Set(d, 0x1.8p23f + 127.0f));
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
  // A product: a sum of exponents makes numbers of NaNs.
  return hn::Mul(p, hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
#endif
}

static HWY_INLINE V at(const float* row, int v) { return hn::LoadU(d, row + v); }

// f(v) for the first lane v of each vector of a row.
template <class F>
static HWY_INLINE void for_row(const F& f) {
  for (int v = 0; v < kBlock; v += kLanes) f(v);
}

template <class T>
static void load_typed(const T* p, int64_t stride, int64_t rows, int columns, float* out) {
  for (int64_t t = 0; t < rows; ++t, p += stride, out += kBlock) {
    if (columns == kBlock) {
      for_row([&](int v) { hn::StoreU(load(d, p + v), d, out + v); });
    } else {
      for (int i = 0; i < kBlock; ++i) out[i] = 0;
      for (int i = 0; i < columns; ++i) store(OneLane(), load(OneLane(), p + i), out + i);
    }
  }
}

static void zero_floats(float* p, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = 0;
}

// `rows` steps from step t0 on of `columns` <= kBlock values, as rows of kBlock floats, zero beyond.
static void load_rows(const ops::Rows& in, int64_t t0, int64_t rows, int columns, float* out) {
  if (!in.data) {
    zero_floats(out, rows * kBlock);
  } else if (in.bf16) {
    load_typed(static_cast<const bf16*>(in.data) + t0 * in.stride, in.stride, rows, columns, out);
  } else {
    load_typed(static_cast<const float*>(in.data) + t0 * in.stride, in.stride, rows, columns, out);
  }
}

// Asks for the rows of a chunk ahead of their use: each lies in another page, where no hardware
// prefetcher follows. Into the second level: in the first, rows at such distances share a few sets.
static void prefetch_rows(const ops::Rows& in, int64_t t0, int64_t tokens) {
  if (!in.data) return;
  const int64_t end = tokens < t0 + kChunk ? tokens : t0 + kChunk,
                step = in.stride * (in.bf16 ? 2 : 4);
  for (int64_t t = t0; t < end; ++t)
    __builtin_prefetch(static_cast<const char*>(in.data) + t * step, 0, 2);
}

template <class T>
static void store_typed(T* p, int64_t stride, bool add, int64_t rows, int columns,
                        const float* in) {
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

static void store_rows(const ops::GradRows& out, int64_t t0, int64_t rows, int columns,
                       const float* in) {
  if (!out.data) return;
  if (out.bf16) {
    store_typed(static_cast<bf16*>(out.data) + t0 * out.stride, out.stride, out.add, rows, columns,
                in);
  } else {
    store_typed(static_cast<float*>(out.data) + t0 * out.stride, out.stride, out.add, rows, columns,
                in);
  }
}

// (channels, N) to and from rows over channels (N, kBlock). A null source gives zeros.
static void load_transposed(const float* in, int channels, int64_t N, float* out) {
  for (int64_t n = 0; n < N; ++n)
    for (int i = 0; i < kBlock; ++i)
      out[n * kBlock + i] = in && i < channels ? in[i * N + n] : 0.0f;
}

static void store_transposed(const float* in, int channels, int64_t N, float* out) {
  for (int i = 0; i < channels; ++i)
    for (int64_t n = 0; n < N; ++n) out[i * N + n] = in[n * kBlock + i];
}

static void copy_floats(const float* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

static const float* row_of(const float* p, int channels, float* buffer) {
  for (int i = 0; i < kBlock; ++i) buffer[i] = p && i < channels ? p[i] : 0.0f;
  return buffer;
}

// In place: dt becomes Δ; x = Δ u. `slope`, where given, gets dΔ / d(dt + bias).
static void discretise(const scan::Block& b, int64_t rows, const float* bias, const float* u,
                       float* dt, float* x, float* slope) {
  for (int64_t i = 0; i < rows * kBlock; i += kBlock)
    for_row([&](int v) {
      const V pre = hn::Add(at(dt + i, v), at(bias, v));
      const V delta = b.softplus ? Softplus(d, pre) : pre;
      hn::StoreU(delta, d, dt + i + v);
      hn::StoreU(hn::Mul(delta, at(u + i, v)), d, x + i + v);
      if (slope) hn::StoreU(b.softplus ? Sigmoid(d, pre) : hn::Set(d, 1.0f), d, slope + i + v);
    });
}

// y = D u, or zero.
static void skip(int64_t rows, const float* D_row, const float* u, float* y) {
  for (int64_t i = 0; i < rows * kBlock; i += kBlock)
    for_row([&](int v) { hn::StoreU(hn::Mul(at(D_row, v), at(u + i, v)), d, y + i + v); });
}

static void gate(int64_t rows, const float* z, float* y) {
  for (int64_t i = 0; i < rows * kBlock; i += kLanes)
    hn::StoreU(hn::Mul(hn::LoadU(d, y + i), Silu(d, hn::LoadU(d, z + i))), d, y + i);
}

}  // namespace krait::KRAIT_ISA::selective_scan
