// Private to cpu_simd.cpp: padded rows from and to the tensors, and the functions of the angles.
#pragma once
#include <hwy/highway.h>

#include "krait/ops/mamba3_scan/kernels.h"
#include "krait/ops/simd_math.h"

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
static HWY_INLINE void load_row(const m3::Rows& in, int64_t t, int64_t column, int64_t n,
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

static HWY_INLINE void store_row(const m3::GradRows& out, int64_t t, int64_t n, const float* in) {
  const int64_t i = t * out.stride;
  if (!out.data) return;
  if (out.bf16) {
    store_typed(static_cast<bf16*>(out.data) + i, out.add, n, in);
  } else {
    store_typed(static_cast<float*>(out.data) + i, out.add, n, in);
  }
}

static HWY_INLINE float number(const m3::Rows& in, int64_t t) {
  return static_cast<const float*>(in.data)[t * in.stride];
}

static HWY_INLINE void put_number(const m3::GradRows& out, int64_t t, float value) {
  if (!out.data) return;
  float& to = static_cast<float*>(out.data)[t * out.stride];
  to = out.add ? to + value : value;
}

static HWY_INLINE V Tanh(V x) {
  const V e = Exp(d, hn::Mul(hn::Set(d, -2.0f), hn::Abs(x))), one = hn::Set(d, 1.0f);
  return hn::CopySign(hn::Div(hn::Sub(one, e), hn::Add(one, e)), x);
}

// Angles are counted in turns of 2^32, which wrap by themselves.
using Turns = hn::RebindToSigned<Lane>;
constexpr Turns di;

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

// The fraction of a turn `half` / 2; any size.
static HWY_INLINE hn::Vec<Turns> turns_of_half(V half) {
  V turn = hn::Mul(half, hn::Set(d, 0.5f));
  turn = hn::Sub(turn, hn::Round(turn));
  return hn::ConvertTo(di, hn::Mul(turn, hn::Set(d, 0x1p32f)));
}

// The quarter turn around a multiple of one: exact. Polynomials through the Chebyshev nodes, absolute error
// 3e-9 beside the roundings.
static HWY_INLINE void SinCos(hn::Vec<Turns> turns, V& sin, V& cos) {
  const auto quarter = hn::ShiftRight<30>(hn::Add(turns, hn::Set(di, 1 << 29)));
  const V u =
      hn::Mul(hn::ConvertTo(d, hn::Sub(turns, hn::ShiftLeft<30>(quarter))), hn::Set(d, 0x1p-29f));
  const V t = hn::Mul(u, u);
  V s = hn::MulAdd(t, hn::Set(d, -3.5954290723279945e-05f), hn::Set(d, 0.002490006801489351f));
  s = hn::MulAdd(s, t, hn::Set(d, -0.08074543470810011f));
  s = hn::Mul(u, hn::MulAdd(s, t, hn::Set(d, 0.7853981609766182f)));
  V c = hn::MulAdd(t, hn::Set(d, 3.541952717316077e-06f), hn::Set(d, -0.0003259613803265038f));
  c = hn::MulAdd(c, t, hn::Set(d, 0.015854338147307873f));
  c = hn::MulAdd(c, t, hn::Set(d, -0.30842513734355304f));
  c = hn::MulAdd(c, t, hn::Set(d, 1.0f));
  const auto odd = hn::RebindMask(d, hn::Ne(hn::And(quarter, hn::Set(di, 1)), hn::Zero(di)));
  const auto second = hn::And(quarter, hn::Set(di, 2));
  const auto next = hn::And(hn::Add(quarter, hn::Set(di, 1)), hn::Set(di, 2));
  sin = hn::Xor(hn::IfThenElse(odd, c, s), hn::BitCast(d, hn::ShiftLeft<30>(second)));
  cos = hn::Xor(hn::IfThenElse(odd, s, c), hn::BitCast(d, hn::ShiftLeft<30>(next)));
}

// to[n] = from[the dimension turned together with n]; rows of n floats.
static HWY_INLINE void swap_pairs(const float* HWY_RESTRICT from, int64_t n, bool halves,
                                  float* HWY_RESTRICT to) {
  if (halves) {
    copy(from + n / 2, n / 2, to);
    copy(from, n / 2, to + n / 2);
  } else {
    for (int64_t i = 0; i + 1 < n; i += 2) {
      to[i] = from[i + 1];
      to[i + 1] = from[i];
    }
  }
}

// Spreads the cosines and signed sines of T angles over the N dimensions.
static HWY_INLINE void spread(const float* HWY_RESTRICT c, const float* HWY_RESTRICT s, int64_t T,
                              int64_t N, bool halves, float* HWY_RESTRICT cos,
                              float* HWY_RESTRICT sin) {
  fill(1, padded(N), cos);
  fill(0, padded(N), sin);
  const int64_t other = halves ? N / 2 : 1, step = halves ? 1 : 2;
  for (int64_t i = 0; i < T; ++i) {
    cos[i * step] = cos[i * step + other] = c[i];
    sin[i * step] = -s[i];
    sin[i * step + other] = s[i];
  }
}

}  // namespace krait::KRAIT_ISA::mamba3
