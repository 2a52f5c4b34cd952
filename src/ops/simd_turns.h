// Vectors of angles, their sines and cosines. Only for cpu_simd.cpp files, as simd_math.h.
#pragma once
#include <hwy/highway.h>

#include <cstdint>

#include "krait/ops/simd_math.h"

namespace krait::KRAIT_ISA {

// Angles are counted in turns of 2^32, which wrap by themselves.
template <class D>
using Turns = hn::Vec<hn::RebindToSigned<D>>;

// The fraction of a turn `half` / 2; any size.
template <class D>
HWY_INLINE Turns<D> turns_of_half(D tag, Vec<D> half) {
  const hn::RebindToSigned<D> di;
  auto turn = hn::Mul(half, hn::Set(tag, 0.5f));
  turn = hn::Sub(turn, hn::Round(turn));
  return hn::ConvertTo(di, hn::Mul(turn, hn::Set(tag, 0x1p32f)));
}

// From the sine and cosine of what is left of an angle those of the angle; of `quarter` the two lowest bits count.
template <class D>
HWY_INLINE void turn_by_quarters(D tag, Turns<D> quarter, Vec<D> s, Vec<D> c, Vec<D>& sin,
                                 Vec<D>& cos) {
  const hn::RebindToSigned<D> di;
  const auto odd = hn::RebindMask(tag, hn::Ne(hn::And(quarter, hn::Set(di, 1)), hn::Zero(di)));
  const auto second = hn::And(quarter, hn::Set(di, 2));
  const auto next = hn::And(hn::Add(quarter, hn::Set(di, 1)), hn::Set(di, 2));
  sin = hn::Xor(hn::IfThenElse(odd, c, s), hn::BitCast(tag, hn::ShiftLeft<30>(second)));
  cos = hn::Xor(hn::IfThenElse(odd, s, c), hn::BitCast(tag, hn::ShiftLeft<30>(next)));
}

// The quarter turn around a multiple of one: exact. Polynomials through the Chebyshev nodes, absolute error
// 3e-9 beside the roundings.
template <class D>
HWY_INLINE void SinCos(D tag, Turns<D> turns, Vec<D>& sin, Vec<D>& cos) {
  const hn::RebindToSigned<D> di;
  const auto quarter = hn::ShiftRight<30>(hn::Add(turns, hn::Set(di, 1 << 29)));
  const auto u = hn::Mul(hn::ConvertTo(tag, hn::Sub(turns, hn::ShiftLeft<30>(quarter))),
                         hn::Set(tag, 0x1p-29f));
  const auto t = hn::Mul(u, u);
  auto s =
      hn::MulAdd(t, hn::Set(tag, -3.5954290723279945e-05f), hn::Set(tag, 0.002490006801489351f));
  s = hn::MulAdd(s, t, hn::Set(tag, -0.08074543470810011f));
  s = hn::Mul(u, hn::MulAdd(s, t, hn::Set(tag, 0.7853981609766182f)));
  auto c =
      hn::MulAdd(t, hn::Set(tag, 3.541952717316077e-06f), hn::Set(tag, -0.0003259613803265038f));
  c = hn::MulAdd(c, t, hn::Set(tag, 0.015854338147307873f));
  c = hn::MulAdd(c, t, hn::Set(tag, -0.30842513734355304f));
  c = hn::MulAdd(c, t, hn::Set(tag, 1.0f));
  turn_by_quarters(tag, quarter, s, c, sin, cos);
}

// Of an angle in radians, to be multiplied thousands of times: neither the turn nor the length of (cos, sin) is off by
// more than 1e-9 on the mean over neighbouring angles, so that errors do not add up. Multiples of a quarter turn are
// taken away in three parts of which two are exact; the first terms of both polynomials are too.
template <class D>
HWY_INLINE void SinCosOfRadians(D tag, Vec<D> angle, Vec<D>& sin, Vec<D>& cos) {
  const hn::RebindToSigned<D> di;
  const auto n = hn::Round(hn::Mul(angle, hn::Set(tag, 0x1.45f306p-1f)));
  auto r = hn::NegMulAdd(n, hn::Set(tag, 0x1.92p+0f), angle);
  r = hn::NegMulAdd(n, hn::Set(tag, 0x1.fbp-12f), r);
  r = hn::NegMulAdd(n, hn::Set(tag, 0x1.5110b4p-22f), r);
  const auto t = hn::Mul(r, r);
  auto s = hn::MulAdd(t, hn::Set(tag, -0x1.99579cp-13f), hn::Set(tag, 0x1.110780p-7f));
  s = hn::MulAdd(s, t, hn::Set(tag, -0x1.555546p-3f));
  s = hn::MulAdd(hn::Mul(r, t), s, r);
  auto c = hn::MulAdd(t, hn::Set(tag, 0x1.99ebaep-16f), hn::Set(tag, -0x1.6c0c30p-10f));
  c = hn::MulAdd(c, t, hn::Set(tag, 0x1.55554ap-5f));
  c = hn::MulAdd(c, t, hn::Set(tag, -0.5f));
  c = hn::MulAdd(c, t, hn::Set(tag, 1.0f));
  turn_by_quarters(tag, hn::ConvertTo(di, n), s, c, sin, cos);
}

}  // namespace krait::KRAIT_ISA
