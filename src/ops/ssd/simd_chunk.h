// Private to cpu_simd.cpp: one chunk of tokens, brought from the tensors into rows of whole vectors.
#pragma once
#include <hwy/highway.h>

#include "krait/ops/simd_area.h"
#include "krait/ops/simd_product.h"
#include "krait/ops/ssd/kernels.h"

namespace krait::KRAIT_ISA::ssd_rows {

namespace ssd = ops::ssd_cpu;
using ssd::kChunk;
using ssd::padded;

using D = ProductTag;
using V = Vec<D>;
constexpr D d;
constexpr int kLanes = kProductLanes;

static HWY_INLINE V at(const float* p) { return hn::LoadU(d, p); }

static void zero_floats(float* p, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = 0;
}

static void copy_floats(const float* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

template <class T>
static void load_typed(const T* p, int64_t stride, int64_t rows, int64_t columns, float* out) {
  const int64_t width = padded(columns);
  for (int64_t t = 0; t < rows; ++t, p += stride, out += width) {
    for_lanes(0, columns, [&](auto tag, int64_t i) { store(tag, load(tag, p + i), out + i); });
    zero_floats(out + columns, width - columns);
  }
}

// Columns [column, column + columns) of `rows` tokens from t0 on, as rows of padded(columns) floats.
static void load_rows(const ops::Rows& in, int64_t t0, int64_t rows, int64_t column,
                      int64_t columns, float* out) {
  const int64_t first = t0 * in.stride + column;
  if (!in.data) {
    zero_floats(out, rows * padded(columns));
  } else if (in.bf16) {
    load_typed(static_cast<const bf16*>(in.data) + first, in.stride, rows, columns, out);
  } else {
    load_typed(static_cast<const float*>(in.data) + first, in.stride, rows, columns, out);
  }
}

// Asks for rows ahead of their use: each lies in another page, where no hardware prefetcher follows. None before
// token 0 or behind the last.
static void prefetch_rows(const ssd::Piece& p, const ops::Rows& in, int64_t t0, int64_t column,
                          int64_t columns) {
  constexpr int64_t kLine = 64;
  if (!in.data || t0 < 0) return;
  const int64_t size = in.bf16 ? 2 : 4, end = t0 + kChunk < p.tokens ? t0 + kChunk : p.tokens;
  const char* row = static_cast<const char*>(in.data) + (t0 * in.stride + column) * size;
  for (int64_t t = t0; t < end; ++t, row += in.stride * size)
    for (int64_t i = 0; i < columns * size; i += kLine) __builtin_prefetch(row + i, 0, 2);
}

// What comes after head `head` of the chunk at t, where chunks are `step` tokens from one another.
struct Ahead {
  int64_t t, head;
};
static Ahead ahead(const ssd::Piece& p, int64_t t, int64_t head, int64_t step) {
  return head + 1 < p.heads ? Ahead{t, head + 1} : Ahead{t + step, 0};
}

template <class T>
static void store_typed(T* p, int64_t stride, bool add, int64_t rows, int64_t columns,
                        const float* in) {
  for (int64_t t = 0; t < rows; ++t, p += stride, in += padded(columns))
    for_lanes(0, columns, [&](auto tag, int64_t i) {
      const auto value = hn::LoadU(tag, in + i);
      store(tag, add ? hn::Add(load(tag, p + i), value) : value, p + i);
    });
}

static void store_rows(const ops::GradRows& out, int64_t t0, int64_t rows, int64_t column,
                       int64_t columns, const float* in) {
  const int64_t first = t0 * out.stride + column;
  if (!out.data) return;
  if (out.bf16) {
    store_typed(static_cast<bf16*>(out.data) + first, out.stride, out.add, rows, columns, in);
  } else {
    store_typed(static_cast<float*>(out.data) + first, out.stride, out.add, rows, columns, in);
  }
}

#if HWY_TARGET <= HWY_AVX3
constexpr bool kTransposesTiles = true;

// 16 x 16: pairs of rows interleaved, then pairs of those, then quarters of registers put in their places.
static HWY_INLINE void transpose_tile(const float* in, int64_t in_row, float* out,
                                      int64_t out_row) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) a[r] = _mm512_loadu_ps(in + r * in_row);
#pragma GCC unroll 8
  for (int r = 0; r < 16; r += 2) {
    b[r] = _mm512_unpacklo_ps(a[r], a[r + 1]);
    b[r + 1] = _mm512_unpackhi_ps(a[r], a[r + 1]);
  }
  const auto low = [](__m512 x, __m512 y) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  };
  const auto high = [](__m512 x, __m512 y) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  };
  // a[4 q + k], quarter l: column 4 l + k of rows 4 q to 4 q + 3.
#pragma GCC unroll 4
  for (int r = 0; r < 16; r += 4) {
    a[r] = low(b[r], b[r + 2]);
    a[r + 1] = high(b[r], b[r + 2]);
    a[r + 2] = low(b[r + 1], b[r + 3]);
    a[r + 3] = high(b[r + 1], b[r + 3]);
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    const __m512 even01 = _mm512_shuffle_f32x4(a[k], a[4 + k], 0x88),
                 odd01 = _mm512_shuffle_f32x4(a[k], a[4 + k], 0xdd),
                 even23 = _mm512_shuffle_f32x4(a[8 + k], a[12 + k], 0x88),
                 odd23 = _mm512_shuffle_f32x4(a[8 + k], a[12 + k], 0xdd);
    _mm512_storeu_ps(out + k * out_row, _mm512_shuffle_f32x4(even01, even23, 0x88));
    _mm512_storeu_ps(out + (4 + k) * out_row, _mm512_shuffle_f32x4(odd01, odd23, 0x88));
    _mm512_storeu_ps(out + (8 + k) * out_row, _mm512_shuffle_f32x4(even01, even23, 0xdd));
    _mm512_storeu_ps(out + (12 + k) * out_row, _mm512_shuffle_f32x4(odd01, odd23, 0xdd));
  }
}
#else
constexpr bool kTransposesTiles = false;
static HWY_INLINE void transpose_tile(const float*, int64_t, float*, int64_t) {}
#endif

// out[j, i] = in[i, j] for i < rows, j < columns; zero in the rest of rows of `out_row` floats.
static void transpose(const float* in, int64_t in_row, int64_t rows, int64_t columns, float* out,
                      int64_t out_row, int64_t out_used) {
  constexpr int64_t kTile = 16;
  for (int64_t i = 0; i < rows; i += kTile) {
    const int64_t end = rows - i < kTile ? rows - i : kTile;
    int64_t j = 0;
    if (kTransposesTiles && end == kTile)
      for (; j + kTile <= columns; j += kTile)
        transpose_tile(in + i * in_row + j, in_row, out + j * out_row + i, out_row);
    for (; j < columns; ++j)
      for (int64_t r = 0; r < end; ++r) out[j * out_row + i + r] = in[(i + r) * in_row + j];
  }
  for (int64_t j = 0; j < columns; ++j) zero_floats(out + j * out_row + rows, out_used - rows);
}

// What one head's step sizes are over a chunk, one float a token; zero behind the last.
struct Times {
  float *delta, *slope;    // Δ; dΔ / d(dt + bias)
  float* decay;            // exp(Δ A)
  float *prefix, *suffix;  // the decays up to and with this token; those after it
  float* arriving;  // Δ and the decays after it: what of x Bᵀ the state after the chunk has
};

static Times take_times(Area& area) {
  return {area.take(kChunk), area.take(kChunk), area.take(kChunk),
          area.take(kChunk), area.take(kChunk), area.take(kChunk)};
}

static void load_times(const ssd::Piece& p, int64_t head, int64_t t0, int64_t rows,
                       const Times& to) {
  const float bias = p.dt_bias ? p.dt_bias[head] : 0.0f;
  const int64_t first = t0 * p.dt.stride + head;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t k = first + i * p.dt.stride;
    if (p.dt.bf16) {
      store(OneLane(), load(OneLane(), static_cast<const bf16*>(p.dt.data) + k), to.delta + i);
    } else {
      to.delta[i] = static_cast<const float*>(p.dt.data)[k];
    }
  }
  for_lanes(0, rows, [&](auto tag, int64_t i) {
    const auto pre = hn::Add(hn::LoadU(tag, to.delta + i), hn::Set(tag, bias));
    const auto one = hn::Set(tag, 1.0f);
    auto delta = pre, slope = one;
    if (p.softplus) delta = Softplus(tag, pre), slope = Sigmoid(tag, pre);
    const auto low = hn::Set(tag, p.dt_min), high = hn::Set(tag, p.dt_max);
    slope = hn::IfThenElse(hn::Or(hn::Lt(delta, low), hn::Gt(delta, high)), hn::Zero(tag), slope);
    delta = hn::IfThenElse(hn::Lt(delta, low), low, delta);
    delta = hn::IfThenElse(hn::Gt(delta, high), high, delta);
    hn::StoreU(delta, tag, to.delta + i);
    hn::StoreU(slope, tag, to.slope + i);
    hn::StoreU(Exp(tag, hn::Mul(delta, hn::Set(tag, p.A[head]))), tag, to.decay + i);
  });
  // In float64: each product of slow decays would be cut the same way, as what both of them lack of 1 has a product below
  // the last place; from chunk to chunk that adds up.
  double product = 1;
  for (int64_t i = 0; i < rows; ++i)
    to.prefix[i] = static_cast<float>(product *= static_cast<double>(to.decay[i]));
  product = 1;
  for (int64_t i = rows - 1; i >= 0; --i) {
    to.suffix[i] = static_cast<float>(product), product *= static_cast<double>(to.decay[i]);
    to.arriving[i] = to.delta[i] * to.suffix[i];
  }
  for (float* row : {to.delta, to.slope, to.decay, to.prefix, to.suffix, to.arriving})
    zero_floats(row + rows, kChunk - rows);
}

// out[i] = factor[i] in[i] for rows of `width` floats; may be in place.
static void scale_rows(const float* in, const float* factor, int64_t rows, int64_t width,
                       float* out) {
  for (int64_t i = 0; i < rows; ++i) {
    const V f = hn::Set(d, factor[i]);
    for (int64_t j = i * width; j < (i + 1) * width; j += kLanes)
      hn::StoreU(hn::Mul(f, at(in + j)), d, out + j);
  }
}

static void scale(float factor, int64_t n, float* p) {
  const V f = hn::Set(d, factor);
  for (int64_t i = 0; i < n; i += kLanes) hn::StoreU(hn::Mul(f, at(p + i)), d, p + i);
}

// The decay from each token to token i, given that to token i - 1: one multiplication each. What falls
// below the smallest normal number is zero.
static HWY_INLINE void next_decays(float decay, int64_t i, float* to) {
  const V a = hn::Set(d, decay), tiny = hn::Set(d, 0x1p-126f);
  for (int64_t j = 0; j < i; j += kLanes) {
    const V e = hn::Mul(a, at(to + j));
    hn::StoreU(hn::IfThenZeroElse(hn::Lt(e, tiny), e), d, to + j);  // a NaN stays one
  }
  to[i] = 1.0f;
}

// The skip's weights of a head as a row of padded(P) floats.
static void load_skip(const ssd::Piece& p, int64_t head, float* row) {
  for (int64_t i = 0; i < padded(p.P); ++i)
    row[i] = !p.D || i >= p.P ? 0.0f : p.D[p.D_per_channel ? head * p.P + i : head];
}

// y = D x, and beside it, where there is one, what y has of the state before the chunk, decayed.
static void pass_through(const Times& times, const float* skip, const float* x, int64_t rows,
                         int64_t Pp, bool has_state, float* y) {
  for (int64_t i = 0; i < rows; ++i) {
    const V prefix = hn::Set(d, times.prefix[i]);
    for (int64_t j = 0; j < Pp; j += kLanes) {
      float* const to = y + i * Pp + j;
      const V through = hn::Mul(at(skip + j), at(x + i * Pp + j));
      hn::StoreU(has_state ? hn::MulAdd(prefix, at(to), through) : through, d, to);
    }
  }
}

static float dot(const float* a, const float* b, int64_t n) {
  V sum = hn::Zero(d);
  for (int64_t i = 0; i < n; i += kLanes) sum = hn::MulAdd(at(a + i), at(b + i), sum);
  return sum_lanes(d, sum);
}

}  // namespace krait::KRAIT_ISA::ssd_rows
