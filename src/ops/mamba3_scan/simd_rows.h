// Private to cpu_simd.cpp: padded rows from and to the tensors, and the functions of the angles.
#pragma once
#include <hwy/highway.h>

#include "krait/ops/mamba3_scan/kernels.h"
#include "krait/ops/simd_turns.h"

namespace krait::KRAIT_ISA::mamba3 {

namespace m3 = ops::mamba3;
using m3::kPad;
using m3::padded;

using Lane = hn::CappedTag<float, kPad>;
using V = Vec<Lane>;
constexpr Lane d;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(d));

static HWY_INLINE V at(const float* row, int64_t i) { return hn::LoadU(d, row + i); }
static HWY_INLINE void put(V v, float* row, int64_t i) { hn::StoreU(v, d, row + i); }

// f(i) for the first lane i of each vector of a padded row.
template <class F>
static HWY_INLINE void for_row(int64_t n, const F& f) {
  for (int64_t i = 0; i < n; i += kLanes) f(i);
}

static HWY_INLINE float dot(const float* a, const float* b, int64_t n) {
  V sum = hn::Zero(d);
  for_row(n, [&](int64_t i) { sum = hn::MulAdd(at(a, i), at(b, i), sum); });
  return sum_lanes(d, sum);
}

// to += s x
static HWY_INLINE void axpy(float s, const float* x, int64_t n, float* to) {
  const V scale = hn::Set(d, s);
  for_row(n, [&](int64_t i) { put(hn::MulAdd(scale, at(x, i), at(to, i)), to, i); });
}

static void fill(float value, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = value;
}
static void copy(const float* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

template <class T>
static HWY_INLINE void load_typed(const T* p, int64_t n, float* out) {
  for_lanes(0, n, [&](auto tag, int64_t i) { hn::StoreU(load(tag, p + i), tag, out + i); });
  for (int64_t i = n; i < padded(n); ++i) out[i] = 0;
}

// `n` columns of token t from `column` on, zeros beyond.
static HWY_INLINE void load_row(const ops::Rows& in, int64_t t, int64_t column, int64_t n,
                                float* out) {
  const int64_t i = t * in.stride + column;
  if (!in.data) {
    fill(0, padded(n), out);
  } else if (in.bf16) {
    load_typed(static_cast<const bf16*>(in.data) + i, n, out);
  } else {
    load_typed(static_cast<const float*>(in.data) + i, n, out);
  }
}

// A row of floats, or `otherwise` where there is none; zeros beyond.
static void load_vector(const float* in, int64_t n, float otherwise, float* out) {
  for (int64_t i = 0; i < padded(n); ++i) out[i] = i >= n ? 0 : in ? in[i] : otherwise;
}

template <class T>
static HWY_INLINE void store_typed(T* p, bool add, int64_t n, const float* in) {
  for_lanes(0, n, [&](auto tag, int64_t i) {
    const auto value = hn::LoadU(tag, in + i);
    store(tag, add ? hn::Add(load(tag, p + i), value) : value, p + i);
  });
}

static HWY_INLINE void store_row(const ops::GradRows& out, int64_t t, int64_t n, const float* in) {
  const int64_t i = t * out.stride;
  if (!out.data) return;
  if (out.bf16) {
    store_typed(static_cast<bf16*>(out.data) + i, out.add, n, in);
  } else {
    store_typed(static_cast<float*>(out.data) + i, out.add, n, in);
  }
}

static HWY_INLINE float number(const ops::Rows& in, int64_t t) {
  return static_cast<const float*>(in.data)[t * in.stride];
}

static HWY_INLINE void put_number(const ops::GradRows& out, int64_t t, float value) {
  if (!out.data) return;
  float& to = static_cast<float*>(out.data)[t * out.stride];
  to = out.add ? to + value : value;
}

template <class D>
HWY_INLINE Vec<D> Tanh(D tag, Vec<D> x) {
  const auto e = Exp(tag, hn::Mul(hn::Set(tag, -2.0f), hn::Abs(x))), one = hn::Set(tag, 1.0f);
  return hn::CopySign(hn::Div(hn::Sub(one, e), hn::Add(one, e)), x);
}

static int32_t turns_of(float angle) {
  const double turns = static_cast<double>(angle) * 0.15915494309189535;
  const double part = turns - __builtin_floor(turns);
  return static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint64_t>(part * 0x1p32)));
}

// In [0, 2π).
static float angle_of(int32_t turns) {
  const float a =
      static_cast<float>(static_cast<double>(static_cast<uint32_t>(turns)) * 1.4629180792671596e-9);
  return a < 6.2831853f ? a : 0.0f;
}

// The pairs of dimensions that are turned together, in padded rows of N: (2i, 2i+1), or (i, i + N/2). An odd last
// dimension is paired with the padding, and never turned.
struct Pairs {
  int64_t N = 0;
  bool halves = false;

  int64_t count() const { return halves ? N / 2 : (N + 1) / 2; }

  template <class D>
  HWY_INLINE void load(D tag, const float* row, int64_t i, Vec<D>& a, Vec<D>& b) const {
    if (halves) {
      a = hn::LoadU(tag, row + i);
      b = hn::LoadU(tag, row + N / 2 + i);
    } else {
      hn::LoadInterleaved2(tag, row + 2 * i, a, b);
    }
  }

  template <class D>
  HWY_INLINE void store(D tag, Vec<D> a, Vec<D> b, float* row, int64_t i) const {
    if (halves) {
      hn::StoreU(a, tag, row + i);
      hn::StoreU(b, tag, row + N / 2 + i);
    } else {
      hn::StoreInterleaved2(a, b, tag, row + 2 * i);
    }
  }
};

// to = row turned by the angles of these cosines and sines, one a pair.
static HWY_INLINE void turn_pairs(const Pairs& pairs, const float* row, const float* cos,
                                  const float* sin, float* to) {
  for_lanes(0, pairs.count(), [&](auto tag, int64_t i) {
    const auto c = load(tag, cos + i), s = load(tag, sin + i);
    Vec<decltype(tag)> a, b;
    pairs.load(tag, row, i, a, b);
    pairs.store(tag, hn::NegMulAdd(b, s, hn::Mul(a, c)), hn::MulAdd(b, c, hn::Mul(a, s)), to, i);
  });
}

}  // namespace krait::KRAIT_ISA::mamba3
