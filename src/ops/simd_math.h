// Vector helpers of the hot loops: float32 lanes from and to float32 or bfloat16 memory, exp and the
// functions made of it. Only for cpu_simd.cpp files: everything lives in the namespace of the instruction
// set it is compiled for.
#pragma once
#include <hwy/highway.h>

#include <cstdint>

#include "krait/base/dtype.h"

namespace krait::KRAIT_ISA {

namespace hn = hwy::HWY_NAMESPACE;

using Lanes = hn::ScalableTag<float>;     // as many lanes as the machine has
using OneLane = hn::CappedTag<float, 1>;  // for what is left over

template <class D>
using Vec = hn::Vec<D>;

// Runs f(tag, i) for i in [begin, end): whole vectors first, the rest one by one. The value of an element
// does not depend on which of the two it fell into.
template <class F>
HWY_INLINE void for_lanes(int64_t begin, int64_t end, const F& f) {
  const Lanes d;
  const auto step = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = begin;
  for (; i + step <= end; i += step) f(d, i);
  for (; i < end; ++i) f(OneLane(), i);
}

template <class D>
HWY_INLINE Vec<D> load(D d, const float* p) {
  return hn::LoadU(d, p);
}

template <class D>
HWY_INLINE Vec<D> load(D d, const bf16* p) {
  const hn::Rebind<uint32_t, D> wide;
  const hn::Rebind<uint16_t, D> half;
  const auto bits = hn::LoadU(half, reinterpret_cast<const uint16_t*>(p));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(wide, bits)));
}

template <class D>
HWY_INLINE void store(D d, Vec<D> v, float* p) {
  hn::StoreU(v, d, p);
}

// Rounds to nearest even; NaN stays NaN. The same bits as bf16(float).
template <class D>
HWY_INLINE void store(D /*d*/, Vec<D> v, bf16* p) {
  const hn::Rebind<uint32_t, D> wide;
  const hn::Rebind<uint16_t, D> half;
  const auto u = hn::BitCast(wide, v);
  const auto odd = hn::And(hn::ShiftRight<16>(u), hn::Set(wide, 1u));
  const auto rounded = hn::Add(u, hn::Add(odd, hn::Set(wide, 0x7fffu)));
  const auto quiet = hn::Or(u, hn::Set(wide, 0x400000u));
  const auto bits = hn::IfThenElse(hn::RebindMask(wide, hn::IsNaN(v)), quiet, rounded);
  hn::StoreU(hn::TruncateTo(half, hn::ShiftRight<16>(bits)), half, reinterpret_cast<uint16_t*>(p));
}

// e^x, relative error below 1.2e-7 (one unit in the last place); 0 below -104, infinity above 89, NaN of
// NaN. x = n ln 2 + r with |r| <= ln 2 / 2; e^r by a polynomial through the Chebyshev nodes of that
// interval; 2^n in two factors, so that neither leaves the range.
template <class D>
HWY_INLINE Vec<D> Exp(D d, Vec<D> x) {
  const hn::RebindToSigned<D> di;
  // Comparisons keep a NaN, where Min and Max of some instruction sets lose it.
  const auto low = hn::Set(d, -104.0f), high = hn::Set(d, 89.0f);
  x = hn::IfThenElse(hn::Lt(x, low), low, x);
  x = hn::IfThenElse(hn::Gt(x, high), high, x);
  const auto n = hn::NearestInt(hn::Mul(x, hn::Set(d, 0x1.715476p+0f)));
  const auto nf = hn::ConvertTo(d, n);
  auto r = hn::NegMulAdd(nf, hn::Set(d, 0x1.62ep-1f), x);
  r = hn::NegMulAdd(nf, hn::Set(d, 0x1.0bfbe8p-15f), r);
  auto p = hn::MulAdd(hn::Set(d, 0.00139262135f), r, hn::Set(d, 0.00836320297f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.0416665544f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.166665768f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  p = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(d, 1.0f));
  const auto half = hn::ShiftRight<1>(n);
  const auto bias = hn::Set(di, 127);
  const auto a = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(half, bias)));
  const auto b = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(hn::Sub(n, half), bias)));
  return hn::Mul(hn::Mul(p, a), b);
}

// 1 / (1 + e^-x)
template <class D>
HWY_INLINE Vec<D> Sigmoid(D d, Vec<D> x) {
  const auto one = hn::Set(d, 1.0f);
  return hn::Div(one, hn::Add(one, Exp(d, hn::Neg(x))));
}

// x / (1 + e^-x)
template <class D>
HWY_INLINE Vec<D> Silu(D d, Vec<D> x) {
  return hn::Div(x, hn::Add(hn::Set(d, 1.0f), Exp(d, hn::Neg(x))));
}

// The derivative of Silu: σ (1 + x (1 - σ)), from x and σ, or from x.
template <class D>
HWY_INLINE Vec<D> SiluSlope(D d, Vec<D> x, Vec<D> sigmoid) {
  const auto one = hn::Set(d, 1.0f);
  return hn::Mul(sigmoid, hn::MulAdd(x, hn::Sub(one, sigmoid), one));
}
template <class D>
HWY_INLINE Vec<D> SiluSlope(D d, Vec<D> x) {
  return SiluSlope(d, x, Sigmoid(d, x));
}

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|), relative error below 1.5e-7 (with fused products; 3e-7 without) where it is
// above 1e-37; equals x in float32 from 17 on. log1p(y) = 2 artanh(y / (2 + y)), a polynomial of degree 4 in the square;
// what the sum and the quotient were rounded by is added again, because Δ multiplies the angles of complex states.
template <class D>
HWY_INLINE Vec<D> Softplus(D d, Vec<D> x) {
  const auto two = hn::Set(d, 2.0f);
  const auto y = Exp(d, hn::Neg(hn::Abs(x)));
  const auto whole = hn::Add(y, two);
  const auto s = hn::Div(y, whole);
  const auto rest = hn::NegMulAdd(s, hn::Sub(y, hn::Sub(whole, two)), hn::NegMulAdd(s, whole, y));
  const auto q = hn::Mul(s, s);
  auto p = hn::MulAdd(q, hn::Set(d, 0.140060245990f), hn::Set(d, 0.140008971095f));
  p = hn::MulAdd(p, q, hn::Set(d, 0.200107634067f));
  p = hn::MulAdd(p, q, hn::Set(d, 0.333332091569f));
  p = hn::MulAdd(hn::Mul(p, q), s, hn::Mul(rest, hn::ApproximateReciprocal(whole)));
  p = hn::Add(p, s);
  return hn::MulAdd(two, p, hn::IfThenElse(hn::Lt(x, hn::Zero(d)), hn::Zero(d), x));
}

// The sum of the lanes in a fixed order.
template <class D>
HWY_INLINE float sum_lanes(D d, Vec<D> v) {
  return hn::GetLane(hn::SumOfLanes(d, v));
}

constexpr int kSumsTogether = 4;

#if HWY_TARGET == HWY_SCALAR
// to[i] += v[i], i < kSumsTogether.
template <class D>
HWY_INLINE void add_sums_of_lanes(D d, const Vec<D>* v, float* to) {
  for (int i = 0; i < kSumsTogether; ++i)
    hn::StoreU(hn::Add(hn::LoadU(d, to + i), v[i]), d, to + i);
}
#else
// to[i] += the sum over j of lane 4 j + i.
template <class D>
HWY_INLINE void add_folded(D d, Vec<D> v, float* to) {
  if constexpr (hn::MaxLanes(d) > kSumsTogether) {
    const hn::Half<D> half;
    add_folded(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)), to);
  } else {
    hn::StoreU(hn::Add(hn::LoadU(d, to), v), d, to);
  }
}

// to[i] += the sum of the lanes of v[i], i < kSumsTogether, in a fixed order.
template <class D>
HWY_INLINE void add_sums_of_lanes(D d, const Vec<D>* v, float* to) {
  const hn::Repartition<double, D> pair;
  const auto low = hn::Add(hn::InterleaveLower(d, v[0], v[1]), hn::InterleaveUpper(d, v[0], v[1]));
  const auto high = hn::Add(hn::InterleaveLower(d, v[2], v[3]), hn::InterleaveUpper(d, v[2], v[3]));
  const auto a = hn::BitCast(pair, low), b = hn::BitCast(pair, high);
  add_folded(d,
             hn::Add(hn::BitCast(d, hn::InterleaveLower(pair, a, b)),
                     hn::BitCast(d, hn::InterleaveUpper(pair, a, b))),
             to);
}
#endif

// Σ f(tag, i) over [0, n): whole vectors in two accumulators, then the rest, in a fixed order.
template <class F>
HWY_INLINE float sum_over(int64_t n, const F& f) {
  const Lanes d;
  const auto step = static_cast<int64_t>(hn::Lanes(d));
  auto a = hn::Zero(d), b = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * step <= n; i += 2 * step) {
    a = hn::Add(a, f(d, i));
    b = hn::Add(b, f(d, i + step));
  }
  for (; i + step <= n; i += step) a = hn::Add(a, f(d, i));
  float sum = sum_lanes(d, hn::Add(a, b));
  for (; i < n; ++i) sum += hn::GetLane(f(OneLane(), i));
  return sum;
}

}  // namespace krait::KRAIT_ISA
